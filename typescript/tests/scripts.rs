//! Scripts on the in-memory engine: their globals, what they are told, and that nothing is left.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use orchestra::ExitStatus;
use orchestra_pipelines::{Status, StepKind};
use orchestra_secrets::{Listed, Scope, SecretKey, SecretStore, SecretValue, Secrets};
use support::{Ran, run, run_with, statuses};

#[tokio::test]
async fn a_task_runs_and_its_output_comes_back() {
    let ran = run(r#"
        const result = await runtime.run({ image: "busybox", command: { path: "sh", args: ["-c", "echo out; echo err >&2"] } });
        assert.equal(result.code, 0);
        assert.equal(result.stdout, "out\n");
        assert.equal(result.stderr, "err\n");
        console.log("done:", result.name, { deep: [1, "two"] });
    "#)
    .await;
    assert_eq!(ran.report.status, Status::Succeeded, "{ran:#?}");
    assert_eq!(statuses(&ran), [("sh", Status::Succeeded), ("ci", Status::Succeeded)]);
    assert_eq!(ran.report.steps[1].kind, StepKind::Script);
    assert_eq!(ran.output("sh"), "out\nerr\n");
    assert_eq!(ran.output("ci"), "done: sh { deep: [ 1, \"two\" ] }\n");
}

/// A store that is asked no more often than it has to be.
#[derive(Debug, Default)]
struct Counting(std::sync::atomic::AtomicUsize);

#[async_trait::async_trait]
impl SecretStore for Counting {
    async fn get(&self, _: &Scope, key: &SecretKey) -> orchestra::Result<Option<SecretValue>> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok((key.as_str() == "TOKEN").then(|| "hunter2-token".into()))
    }
    async fn set(&self, _: &Scope, _: &SecretKey, _: &SecretValue) -> orchestra::Result<()> {
        Err(orchestra::Error::invalid("it is read-only"))
    }
    async fn list(&self) -> orchestra::Result<Vec<Listed>> {
        Ok(Vec::new())
    }
    async fn remove(&self, _: &Scope, _: &SecretKey) -> orchestra::Result<bool> {
        Ok(false)
    }
}

#[tokio::test]
async fn a_secret_is_fetched_once_and_what_the_script_says_of_it_is_redacted_wherever_it_is_cut() {
    let text = support::wrapped(
        r#"
        for (let i = 0; i < 3; i++) {
            const told = await runtime.run({ image: "busybox", command: ["sh", "-c", "[ $A = hunter2-token ] && echo it is $A"], env: { A: "secret:TOKEN" } });
            assert.equal(told.stdout, "it is ***REDACTED***\n");
        }
        process.stdout.write("a hunter2-");
        process.stdout.write("token and ::add-mask::no\n::add-mask::made-up\nof made-");
        process.stdout.write("up");
    "#,
    );
    let store = std::sync::Arc::new(Counting::default());
    let secrets = Secrets::new([Scope::Global]).shared_store("counting", store.clone());
    let ran = support::run_with_secrets(&text, secrets).await;
    assert_eq!(ran.report.status, Status::Succeeded, "{ran:#?}");
    let said = "a ***REDACTED*** and ::add-mask::no\n::add-mask::***REDACTED***\nof ***REDACTED***";
    assert_eq!(ran.output("ci"), said);
    assert_eq!(
        store.0.load(std::sync::atomic::Ordering::Relaxed),
        1,
        "it is fetched once a job"
    );
}

#[tokio::test]
async fn a_task_that_fails_rejects_with_all_that_is_known() {
    let ran = run(r#"
        try {
            await runtime.run({ name: "bad", image: "busybox", command: ["sh", "-c", "echo out; echo why >&2; exit 7"] });
            assert.fail("it did not reject");
        } catch (error) {
            assert(error instanceof TaskError);
            assert.deepEqual([error.code, error.stdout, error.stderr, error.step, error.status], [7, "out\n", "why\n", "bad", "failed"]);
            assert.contains(error.message, "exit code 7");
        }
        const allowed = await runtime.run({ name: "bad", image: "busybox", command: ["sh", "-c", "exit 3"], allowFailure: true });
        assert.deepEqual([allowed.code, allowed.name], [3, "bad-2"]);
    "#)
    .await;
    assert_eq!(ran.report.status, Status::Succeeded, "{ran:#?}");
    assert_eq!(ran.report.steps[0].exit, Some(ExitStatus::Code(7)));
}

#[tokio::test]
async fn an_error_that_nobody_catches_fails_the_run_with_the_users_line_and_column() {
    let ran = run("await runtime.run({ image: 'busybox', command: ['false'] });").await;
    assert_eq!(ran.report.status, Status::Failed, "{ran:#?}");
    let script = ran.report.steps.last().unwrap();
    let error = script.error.as_deref().unwrap();
    assert!(error.contains("TaskError: task false: exit code 1"), "{error}");
    assert!(error.contains("at pipeline (ci.ts:2:"), "{error}");

    let text = "
interface Point { x: number }
type Never = { a: string };

const pipeline = async (): Promise<void> => {
  const point: Point = { x: 1 };
  deeper(point as unknown as Never);
};
function deeper(it: Never): void {
  throw new RangeError(`no ${it.a}`);
}
export { pipeline };
";
    let ran = run_with(text, |_| ()).await;
    let error = ran.report.steps.last().unwrap().error.clone().unwrap();
    assert_eq!(
        error,
        "RangeError: no undefined\n    at deeper (ci.ts:10:30)\n    at pipeline (ci.ts:7:10)"
    );
}

#[tokio::test]
async fn promises_run_at_the_same_time() {
    let ran = run(r#"
        const began = Date.now();
        const sleep = (name) => runtime.run({ name, image: "busybox", command: ["sleep", "1"] });
        await Promise.all([1, 2, 3, 4, 5, 6, 7, 8].map((n) => sleep(`s${n}`)));
        assert(Date.now() - began < 4000, "they ran one after the other");
    "#)
    .await;
    assert_eq!(ran.report.status, Status::Succeeded, "{ran:#?}");
    assert_eq!(ran.report.steps.len(), 9);
}

#[tokio::test]
async fn output_comes_as_it_is_written() {
    let ran = run(r#"
        const pieces = [];
        let early = false;
        const task = runtime.run({
            image: "busybox",
            command: ["sh", "-c", "echo first; sleep 1; echo second >&2"],
            onOutput: (stream, data) => pieces.push([stream, data]),
        });
        task.then(() => { early = true; });
        await new Promise((resolve) => setTimeout(resolve, 600));
        assert.deepEqual([pieces, early], [[["stdout", "first\n"]], false]);
        await task;
        assert.deepEqual(pieces[1], ["stderr", "second\n"]);
    "#)
    .await;
    assert_eq!(ran.report.status, Status::Succeeded, "{ran:#?}");
}

#[tokio::test]
async fn files_go_into_volumes_and_come_out() {
    let ran = run(r#"
        const source = await volumes.create({ name: "source" });
        await source.writeFiles({ "a.txt": "one", "dir/b.bin": new Uint8Array([0, 255, 10]) });
        const copy = await runtime.run({
            image: "busybox",
            command: { path: "sh", args: ["-c", "cat source/a.txt; cp source/dir/b.bin source/c; echo more > /data/d"] },
            mounts: { source, "/data": source },
            allowFailure: true,
        }).catch((error) => error);
        await runtime.run({ image: "busybox", command: ["sh", "-c", "cat source/a.txt > source/c"], inputs: { source } });
        const files = await source.readFiles(["a.txt", "c"]);
        assert.deepEqual(files, { "a.txt": "one", c: "one" });
        const bytes = await source.readFile("dir/b.bin", { encoding: "bytes" });
        assert.deepEqual([...bytes], [0, 255, 10]);
        await assert.rejects(source.readFile("none"), "there is no file \"none\"");
        await assert.rejects(source.readFile("dir/b.bin"), /no UTF-8 text/);
        await assert.rejects(source.readFile("../etc/passwd"), TypeError);
    "#)
    .await;
    assert_eq!(ran.report.status, Status::Succeeded, "{ran:#?}");
}

#[tokio::test]
async fn a_sandbox_runs_processes_until_it_is_closed() {
    let ran = run(r#"
        const sandbox = await runtime.startSandbox({ image: "busybox", env: { GREETING: "hello" } });
        const pieces = [];
        const first = await sandbox.exec({ command: ["sh", "-c", "echo $GREETING $WHO > /tmp/x; cat /tmp/x"], env: { WHO: "you" }, onOutput: (_, data) => pieces.push(data) });
        assert.equal(first.stdout, "hello you\n");
        assert.equal(pieces.join(""), "hello you\n");
        const again = await sandbox.exec({ command: { path: "cat", args: ["/tmp/x"] } });
        assert.equal(again.stdout, "hello you\n");
        await assert.rejects(sandbox.exec({ command: ["sh", "-c", "echo bad >&2; exit 4"] }), { code: 4, stderr: "bad\n" });
        await sandbox.close();
        await assert.rejects(sandbox.exec({ command: ["true"] }), /closed/);
        await assert.rejects(runtime.startSandbox({ image: "busybox", secretEnv: "hidden" }), /hides variables from what a sandbox executes/);
        await runtime.startSandbox({ name: "open", image: "busybox" });
    "#)
    .await;
    assert_eq!(ran.report.status, Status::Succeeded, "{ran:#?}");
}

#[tokio::test]
async fn jobs_and_stages_name_their_steps() {
    let ran = run(r#"
        const sum = await pipeline.job("test", async ({ runtime, stage }) => {
            await stage("unit", ({ runtime }) => runtime.run({ image: "busybox", command: ["true"] }));
            await runtime.run({ name: "all", image: "busybox", command: ["true"] });
            return 42;
        });
        assert.equal(sum, 42);
        assert.throws(() => pipeline.job("no name", () => {}), TypeError);
        assert.equal(pipelineContext.job, "ci");
        assert.equal(yaml.stringify(yaml.parse("a: [1, two]")).trim(), "a:\n- 1\n- two");
    "#)
    .await;
    assert_eq!(ran.report.status, Status::Succeeded, "{ran:#?}");
    assert_eq!(
        statuses(&ran),
        [
            ("test.unit.true", Status::Succeeded),
            ("test.all", Status::Succeeded),
            ("ci", Status::Succeeded)
        ]
    );
}

#[tokio::test]
async fn bad_options_are_refused_before_anything_is_made_with_the_users_line() {
    for (options, told) in [
        ("{ image: 'busybox' }", "`command` is missing"),
        (
            "{ image: 'busybox', command: ['true'], tiemout: '1s' }",
            "unknown option `tiemout`",
        ),
        ("{ image: 'UPPER', command: ['true'] }", "UPPER"),
        (
            "{ image: 'busybox', command: ['true'], timeout: 'soon' }",
            "`timeout: soon` is not a valid duration",
        ),
        (
            "{ image: 'busybox', command: ['true'], mounts: { x: 'source' } }",
            "is no volume",
        ),
        (
            "{ image: 'busybox', command: ['true'], mounts: { x: { $volume: 'other' } } }",
            "there is no volume",
        ),
        (
            "{ image: 'busybox', command: ['true'], env: { A: 'secret:NONE' } }",
            "NONE",
        ),
        ("'busybox'", "takes an object"),
    ] {
        let ran = run(&format!("await runtime.run({options});")).await;
        assert_eq!(ran.report.status, Status::Failed, "{options}: {ran:#?}");
        let error = ran.report.steps.last().unwrap().error.clone().unwrap();
        assert!(
            error.contains("TypeError") && error.contains(told),
            "{options}: {error}"
        );
        assert!(error.contains("ci.ts:2:"), "{options}: {error}");
        assert_eq!(ran.report.steps.len(), 1, "{options}: {ran:#?}");
    }
}

#[tokio::test]
async fn a_build_takes_no_cache_that_has_lost_what_its_layers_delete() {
    let script = |options: &str| {
        format!(
            "const cache = await caches.restore({options}); const source = await volumes.create();
             await image.build({{ context: 'source', tag: 'a:1', inputs: {{ source }}, caches: {{ '/var/lib/buildkit': cache }} }});"
        )
    };
    let error = |ran: &Ran| ran.report.steps.last().unwrap().error.clone().unwrap_or_default();
    let ran = run(&script("{ key: 'k' }")).await;
    assert_eq!(ran.report.status, Status::Failed, "{ran:#?}");
    assert!(
        error(&ran).contains("without device files") && error(&ran).contains("ci.ts:3:"),
        "{ran:#?}"
    );
    let ran = run(&script("{ key: 'k', devices: true }")).await;
    assert!(!error(&ran).contains("device files"), "{ran:#?}");
}

#[tokio::test]
async fn what_is_not_awaited_is_waited_for_and_its_failure_is_not_lost() {
    let ran = run("runtime.run({ image: 'busybox', command: ['sh', '-c', 'sleep 0.2; exit 5'] });").await;
    assert_eq!(
        statuses(&ran),
        [("sh", Status::Failed), ("ci", Status::Failed)],
        "{ran:#?}"
    );
    let ran: Ran =
        run("setTimeout(() => { throw new Error('late'); }, 1); await new Promise((r) => setTimeout(r, 50));").await;
    assert!(
        ran.report.steps[0].error.as_deref().unwrap().contains("Error: late"),
        "{ran:#?}"
    );
}
