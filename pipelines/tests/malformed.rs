//! 300 files that are no pipelines: each ends in an error with a place, after little work and in little memory, and none in a
//! panic.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use orchestra_pipelines::Pipeline;

const TASK: &str = "{ task: t, image: busybox, config: { run: { path: sh } } }";

/// What can stand in the place of a value, and seldom should.
fn values() -> Vec<String> {
    let mut values: Vec<String> = [
        "[[]]",
        "{ a: { b: c } }",
        "[{}]",
        "!!binary x",
        "*nowhere",
        "&a [*a]",
        "{ a: 1, a: 2 }",
        "'((",
        "\"\\x\"",
        "[",
        "}",
        "- -\n-",
        "%",
        "@x",
    ]
    .map(str::to_owned)
    .into();
    values.push(format!("{}{}", "[".repeat(2000), "]".repeat(2000)));
    values.push(format!("{}1{}", "{ a: ".repeat(500), " }".repeat(500)));
    values
}

/// One for each place that a value can stand in.
fn places() -> [String; 16] {
    let step =
        |keys: &str| format!("plan:\n- {{ task: t, image: busybox, config: {{ run: {{ path: sh }} }}, {keys} }}\n");
    [
        "plan: X\n".into(),
        "jobs: X\n".into(),
        "jobs: [{ name: X, plan: [] }]\n".into(),
        "plan: [{ do: X }]\n".into(),
        "plan: [{ try: X }]\n".into(),
        "plan: [{ in_parallel: { steps: X } }]\n".into(),
        format!("plan: [{{ in_parallel: {{ limit: X, steps: [{TASK}] }} }}]\n"),
        step("attempts: X"),
        step("timeout: X"),
        step("on_failure: X"),
        step("ensure: X"),
        step("across: X"),
        step("across: [{ var: v, values: X, max_in_flight: X }]"),
        "plan: [{ task: X, image: busybox, config: { run: { path: sh } } }]\n".into(),
        "plan: [{ task: t, image: X, config: { run: { path: sh } } }]\n".into(),
        "plan: [{ build_image: X }]\n".into(),
    ]
}

/// Few lines that say very much.
fn bombs() -> Vec<String> {
    let bomb = |width: usize, depth: usize| {
        let mut text = format!("x-a0: &a0 [{}]\n", vec!["x"; width].join(", "));
        for level in 1..depth {
            let alias = format!("*a{}", level - 1);
            text += &format!("x-a{level}: &a{level} [{}]\n", vec![alias; width].join(", "));
        }
        format!("{text}plan: *a{}\n", depth - 1)
    };
    let many = vec!["1"; 30].join(", ");
    let across = |vars: usize| {
        let vars: Vec<String> = (0..vars)
            .map(|var| format!("{{ var: v{var}, values: [{many}] }}"))
            .collect();
        format!(
            "plan:\n- {{ across: [{}], task: t, image: b, config: {{ run: {{ path: sh }} }} }}\n",
            vars.join(", ")
        )
    };
    let within = (0..12).fold(TASK.to_owned(), |inner, level| {
        format!("{{ across: [{{ var: v{level}, values: [1, 2, 3, 4, 5] }}], do: [{inner}] }}")
    });
    let mut bombs: Vec<String> = (3..8).map(|depth| bomb(10, depth)).collect();
    bombs.extend((3..10).map(across));
    bombs.push(format!("plan: [{within}]\n"));
    bombs.push(format!("plan: [{{ task: {} }}]\n", "x".repeat(3 << 20)));
    bombs.push(format!("plan:\n{}", "- nothing\n".repeat(50_000)));
    bombs.push(format!(
        "plan: [{{{}}}]\n",
        (0..20_000)
            .map(|key| format!("k{key}: 1"))
            .collect::<Vec<_>>()
            .join(", ")
    ));
    bombs
}

/// What this thread has had of a processor (`proc_pid_schedstat(5)`): a machine that is busy with other things makes nothing
/// slower by this clock.
fn worked() -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(told.split(' ').next().unwrap().parse().unwrap())
}

/// KiB of memory: what this process has, or had at most, `VmRSS` and `VmHWM` of `proc_pid_status(5)`. It runs one test alone.
fn memory(of: &str) -> u64 {
    let told = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = told.lines().find(|line| line.starts_with(of)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn three_hundred_malformed_files_end_in_an_error_with_a_place() {
    let mut files: Vec<String> = bombs();
    for value in values() {
        files.extend(places().iter().map(|place| place.replace('X', &value)));
    }
    // What a disk that was full leaves.
    let whole = format!("jobs:\n- name: a\n  plan: [{TASK}]\n");
    files.extend((10..whole.len() - 3).map(|end| whole[..end].to_owned()));
    assert!(files.len() >= 300, "{}", files.len());
    for file in &files {
        let before = worked();
        // What it had at most counts from here.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let had = memory("VmRSS:");
        let shown: String = file.chars().take(200).collect();
        let Err(invalid) = Pipeline::parse("bad.yml", file) else {
            panic!("this is valid: {shown}")
        };
        let placed = invalid.problems().iter().any(|problem| problem.line().is_some());
        assert!(placed, "no place: {shown}\n{invalid:?}");
        assert!(invalid.problems().len() <= 51, "{shown}");
        let took = worked() - before;
        assert!(took < Duration::from_secs(10), "{took:?}: {shown}");
        let grew = memory("VmHWM:").saturating_sub(had);
        assert!(grew < 128 << 10, "{grew} KiB: {shown}");
    }
}
