//! What a script can't do, and what becomes of one that tries.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::time::{Duration, Instant};

use orchestra_pipelines::Status;
use orchestra_typescript::{Script, ScriptOptions};
use support::{engine, run, run_file, run_on, run_with, wrapped};
use tokio_util::sync::CancellationToken;

fn limited() -> ScriptOptions {
    let mut options = ScriptOptions::default();
    options.time = Duration::from_millis(500);
    options.memory = 32 << 20;
    options
}

#[tokio::test]
async fn no_more_is_asked_for_at_once_than_has_room() {
    let body = "
        const v = await volumes.create();
        const large = async () => { await v.writeFiles({ a: 'x'.repeat(68e6) }); };
        await assert.rejects(large(), /more than 64 MiB is asked for at once/);
        await assert.rejects(v.writeFiles({ a: 'x'.repeat(40e6) }), /larger than 33554432 bytes/);
        await v.writeFiles({ a: 'x'.repeat(30e6) });
    ";
    let mut options = ScriptOptions::default();
    options.memory = 512 << 20;
    let ran = run_on(&engine(), &wrapped(body), options, |_| ()).await;
    assert_eq!(ran.report.status, Status::Succeeded, "{}", ran.error());
}

#[tokio::test]
async fn an_endless_loop_is_ended_and_its_job_is_cleaned_up() {
    let loops = [
        "for (;;) {}",
        "for (;;) await null;",
        "for (;;) { try { for (;;) {} } catch {} finally { continue; } }",
        "const spin = () => void Promise.resolve().then(spin); spin(); await new Promise(() => {});",
        "/(a+)+$/.test('a'.repeat(40) + 'b');",
        // One step of the interpreter's, of many seconds.
        "'a'.repeat(8e5).includes('a'.repeat(4e5) + 'b');",
        "setTimeout(() => { for (;;) {} }, 1); await new Promise(() => {});",
    ];
    for code in loops {
        let body = format!(
            "const v = await volumes.create(); await runtime.run({{ image: 'busybox', command: ['true'], mounts: {{ v }} }}); {code}"
        );
        let began = Instant::now();
        let ran = run_on(&engine(), &wrapped(&body), limited(), |_| ()).await;
        assert_eq!(ran.report.status, Status::Failed, "{code}: {ran:#?}");
        assert!(
            ran.error().contains("computed for longer than its limit of 500ms"),
            "{code}: {}",
            ran.error()
        );
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{code}: {:?}",
            began.elapsed()
        );
    }
}

#[tokio::test]
async fn too_much_memory_is_an_error_and_its_job_is_cleaned_up() {
    let hungry = [
        "'x'.repeat(1 << 30);",
        "let all = 'x'.repeat(1 << 20); for (;;) all += all;",
        "const all = []; for (;;) all.push(new Array(1000).fill(0));",
        "new ArrayBuffer(1 << 30);",
        "const all = []; for (;;) all.push({ a: [] });",
        "const spin = () => Promise.resolve().then(spin); await spin();",
    ];
    for code in hungry {
        let body = format!("const v = await volumes.create(); {code} await v.readFiles([]);");
        let mut limits = limited();
        limits.time = Duration::from_secs(20);
        let ran = run_on(&engine(), &wrapped(&body), limits, |_| ()).await;
        assert_eq!(ran.report.status, Status::Failed, "{code}: {ran:#?}");
        let error = ran.error();
        assert!(
            ["out of memory", "RangeError", "string too long"]
                .iter()
                .any(|told| error.contains(told)),
            "{code}: {error}"
        );
    }
    let ran = run("const deep = (n) => deep(n + 1) + 1; deep(0);").await;
    assert!(ran.error().contains("stack"), "{}", ran.error());
}

#[tokio::test]
async fn there_is_nothing_of_the_machine_in_scope() {
    let ran = run(r#"
        for (const name of ["require", "Deno", "Bun", "os", "std", "__dirname", "XMLHttpRequest", "Worker", "native", "WebAssembly"]) {
            assert.equal(typeof globalThis[name], "undefined", name);
        }
        assert.deepEqual(Object.keys(process.env), []);
        assert.equal(process.exit, undefined);
        for (const name of ["fs", "node:fs", "os", "std", "/etc/passwd", "./none.ts", "file:///etc/passwd"]) {
            await assert.rejects(import(name), undefined, name);
        }
        await assert.rejects(fetch("http://127.0.0.1:1/"), /host 127\.0\.0\.1 is not allowed/);
        assert.throws(() => eval("nothing()"), ReferenceError);
    "#)
    .await;
    assert_eq!(ran.report.status, Status::Succeeded, "{}", ran.error());
}

#[tokio::test]
async fn what_can_never_happen_is_not_waited_for() {
    let ran = run("await new Promise(() => {});").await;
    assert!(
        ran.error().contains("waits for something that can't happen any more"),
        "{}",
        ran.error()
    );
}

#[tokio::test]
async fn a_script_that_is_cancelled_ends_its_tasks_and_is_aborted() {
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        token.cancel();
    });
    let began = Instant::now();
    let body = "for (;;) try { await runtime.run({ image: 'busybox', command: ['sleep', '60'] }); } catch {}";
    let ran = run_with(&wrapped(body), |options| {
        options.cancel = cancel;
        options.grace = Duration::from_millis(100);
    })
    .await;
    assert_eq!(ran.report.status, Status::Aborted, "{ran:#?}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn imports_stay_in_the_pipelines_folder() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("secret.ts", "export const x = 1;");
    write(
        "p/lib/deep.ts",
        "import type { T } from './types';\nexport const x: T = { a: 41 };\nexport enum Colour { Red = 'r' }\n",
    );
    write("p/lib/types.ts", "export interface T { a: number }\n");
    write(
        "p/lib/js.js",
        "export function fail() {\n  throw new Error('deep');\n}\n",
    );
    write(
        "p/ci.ts",
        "import { x, Colour } from './lib/deep';\nimport { fail } from './lib/js.js';\nexport const pipeline = async () => {\n  assert.equal(x.a + 1, 42);\n  assert.equal(Colour.Red, 'r');\n  const again = await import('./lib/deep');\n  assert.equal(again.x, x);\n  fail();\n};\n",
    );
    let ran = run_file(&engine(), &dir.path().join("p/ci.ts"), ScriptOptions::default(), |_| ()).await;
    assert_eq!(
        ran.error(),
        "Error: deep\n    at fail (lib/js.js:2:13)\n    at pipeline (ci.ts:8:3)"
    );

    std::os::unix::fs::symlink("../secret.ts", dir.path().join("p/link.ts")).unwrap();
    for (import, told) in [
        ("../secret.ts", "is outside of the pipeline's folder"),
        ("./link.ts", "is outside of the pipeline's folder"),
        ("./lib/../../secret", "is outside of the pipeline's folder"),
        ("/etc/passwd", "is no file of the pipeline"),
        ("left-pad", "there are no packages here"),
        ("./none", "there is no file `./none`"),
    ] {
        write(
            "p/bad.ts",
            &format!("import {{ x }} from '{import}';\nexport const pipeline = () => x;\n"),
        );
        let invalid = Script::read(dir.path().join("p/bad.ts")).unwrap_err();
        let problem = &invalid.problems()[0];
        assert_eq!((problem.line(), problem.column()), (Some(1), Some(19)), "{import}");
        let said = format!("{} {}", problem.message, problem.help.clone().unwrap_or_default());
        assert!(said.contains(told), "{import}: {said}");
    }
}

#[test]
fn malformed_files_end_in_an_error_with_a_place() {
    let mut texts: Vec<String> = [
        "const = 1;",
        "export {",
        "let x: = 3;",
        "function (",
        "`",
        "'",
        "/*",
        "/a",
        "class {",
        "export { pipeline };",
        "const a = 1; const a = 2;",
        "return 1;",
        "await",
        "import",
        "import x",
        "import { from 'x'",
        "enum { A }",
        "interface { }",
        "type = 1;",
        "<T>(",
        "({ a: 1",
        "[1, 2",
        "x => {",
        "async (",
        "for (;;",
        "if (",
        "\u{0}",
        "break;",
        "continue;",
        "yield 1",
        "new.target",
        "super()",
        "0b2",
        "1_",
        "\"\\u{110000}\"",
        "@",
        "#x",
        "a ?? b || c",
        "label: label: 1;",
        "let let = 1;",
        "const x;",
        "delete x;",
        "with (a) {}",
        "var yield;",
        "import.meta.x = ",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.push("(".repeat(20_000));
    texts.push("[".repeat(20_000));
    texts.push("a => ".repeat(20_000));
    texts.push("- ".repeat(20_000));
    texts.push("x.".repeat(50_000));
    texts.push("type A = ".to_owned() + &"Array<".repeat(20_000));
    texts.push("`${".repeat(20_000));
    texts.push("{".repeat(20_000));
    let good =
        "const pipeline = async () => { await runtime.run({ image: `a`, command: ['b'] }); };\nexport { pipeline };\n";
    // Every prefix of a good file is malformed, but for those that end with it.
    for end in (1..good.len() - 2).filter(|end| good.is_char_boundary(*end)) {
        texts.push(good[..end].to_owned());
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ci.ts");
    let mut refused = 0;
    for text in &texts {
        std::fs::write(&file, text).unwrap();
        let began = Instant::now();
        let read = Script::read(&file);
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}: {:.80}",
            began.elapsed(),
            text
        );
        let Err(invalid) = read else {
            panic!("it was taken: {text:.80}")
        };
        refused += 1;
        let problem = &invalid.problems()[0];
        assert!(
            problem.line().is_some() || problem.message.contains("exports no"),
            "{text:.80}: {invalid:?}"
        );
    }
    assert_eq!(refused, texts.len());
}
