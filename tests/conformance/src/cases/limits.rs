//! What a process may use, as its kernel says it.

use std::sync::Arc;

use orchestra::{ContainerPath, ContainerSpec, Tmpfs, Ulimit};

use super::case;
use crate::check::{Failure, Outcome, holds, same};
use crate::context::Context;
use crate::suite::Case;

pub(super) const CASES: &[Case] = &[
    case!(memory_is_limited_with_its_swap, "`limits.memory` is the cgroup's limit, swap included.", needs memory_limit),
    case!(processor_time_is_a_quota, "`limits.cpus` is a quota that is enforced, not a share.", needs cpu_quota),
    case!(processes_are_limited, "`limits.pids` is the cgroup's limit, and is enforced.", needs pids_limit),
    case!(shared_memory_has_its_size, "`limits.shm_size` is the size of `/dev/shm`.", needs shm_size),
    case!(resource_limits_are_the_process_own, "`limits.ulimits` has soft and hard limits.", needs ulimits),
    case!(a_tmpfs_is_in_memory_and_has_its_size, "`tmpfs` is a memory-backed file system of the size that is asked for.", needs tmpfs),
    case!(a_relative_tmpfs_stands_under_the_working_directory, "A relative tmpfs is resolved against the working directory.", needs tmpfs),
];

/// What a file of numbers says that is not there, and one that says `max`, which is no limit.
const MISSING: u64 = u64::MAX;
const NO_LIMIT: u64 = u64::MAX - 1;

/// The first of some files that is there: the second generation of cgroups and the first call them differently.
async fn first_of(cx: &Context, name: &str, spec: &ContainerSpec, files: &[&str]) -> Outcome<Vec<u64>> {
    let mut spec = spec.clone();
    let script = format!(
        "for file in {}; do if [ -e $file ]; then cat $file; exit 0; fi; done; echo none",
        files.join(" ")
    );
    spec.entrypoint = Some(vec!["sh".to_owned(), "-c".to_owned(), script]);
    let seen = cx.output(name, &spec).await?;
    Ok(seen
        .split_whitespace()
        .map(|word| match word {
            "max" => NO_LIMIT,
            number => number.parse().unwrap_or(MISSING),
        })
        .collect())
}

async fn memory_is_limited_with_its_swap(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.spec();
    let limit = 96 << 20;
    spec.limits.memory = Some(limit);
    let files = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    same(
        "the memory limit",
        first_of(&cx, "memory", &spec, &files).await?,
        vec![limit],
    )?;
    // The second generation counts swap alone, the first both together; a kernel without swap accounting neither.
    let swap = first_of(&cx, "swap", &spec, &["/sys/fs/cgroup/memory.swap.max"]).await?;
    holds(swap == [0] || swap == [MISSING], format!("the swap limit: {swap:?}"))?;
    let both = first_of(
        &cx,
        "both",
        &spec,
        &["/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"],
    )
    .await?;
    holds(
        both == [limit] || both == [MISSING],
        format!("the limit of memory and swap: {both:?}"),
    )
}

async fn processor_time_is_a_quota(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.spec();
    spec.limits.cpus = Some("0.5".parse()?);
    let quota = match first_of(&cx, "second", &spec, &["/sys/fs/cgroup/cpu.max"]).await?[..] {
        [quota, period] => (quota, period),
        _ => {
            let quota = first_of(
                &cx,
                "quota",
                &spec,
                &[
                    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
                    "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us",
                ],
            )
            .await?;
            let period = first_of(
                &cx,
                "period",
                &spec,
                &[
                    "/sys/fs/cgroup/cpu/cpu.cfs_period_us",
                    "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us",
                ],
            )
            .await?;
            (
                quota.first().copied().unwrap_or(0),
                period.first().copied().unwrap_or(0),
            )
        }
    };
    holds(
        quota.1 > 0 && quota.0 * 2 == quota.1,
        format!("half of each period: {quota:?}"),
    )
}

async fn processes_are_limited(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.spec();
    spec.limits.pids = Some(64);
    let files = ["/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"];
    same(
        "the limit of processes",
        first_of(&cx, "pids", &spec, &files).await?,
        vec![64],
    )?;
    let mut spec = cx.shell("i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; echo all");
    spec.limits.pids = Some(20);
    let ran = cx.run("forks", &spec).await?;
    holds(!ran.stdout.contains("all"), "forty processes do not fit into twenty")
}

/// The size in KiB of what is mounted at a path.
fn size(df: &str) -> Outcome<u64> {
    let blocks = df
        .lines()
        .last()
        .and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    blocks.ok_or_else(|| Failure::new(format!("df says {df:?}")))
}

async fn shared_memory_has_its_size(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("df -k /dev/shm");
    spec.limits.shm_size = Some(24 << 20);
    same(
        "the size of /dev/shm in KiB",
        size(&cx.output("shm", &spec).await?)?,
        24 << 10,
    )
}

async fn resource_limits_are_the_process_own(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc");
    spec.limits.ulimits = vec![
        Ulimit {
            name: "nofile".to_owned(),
            soft: 512,
            hard: 1024,
        },
        Ulimit {
            name: "core".to_owned(),
            soft: 0,
            hard: 0,
        },
    ];
    same("the limits", cx.output("ulimits", &spec).await?, "512\n1024\n0\n0\n")
}

async fn a_tmpfs_is_in_memory_and_has_its_size(cx: Arc<Context>) -> Outcome {
    let mut spec =
        cx.shell("grep ' /scratch ' /proc/mounts && echo x > /scratch/file && cat /scratch/file && df -k /scratch");
    spec.tmpfs.push(Tmpfs {
        target: ContainerPath::new("/scratch")?,
        size: Some(8 << 20),
    });
    let seen = cx.output("tmpfs", &spec).await?;
    holds(
        seen.starts_with("tmpfs /scratch tmpfs "),
        format!("it is a tmpfs: {seen:?}"),
    )?;
    same("its size in KiB", size(&seen)?, 8 << 10)
}

async fn a_relative_tmpfs_stands_under_the_working_directory(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("grep ' /work/scratch ' /proc/mounts");
    spec.working_dir = Some(ContainerPath::new("/work")?);
    spec.tmpfs.push(Tmpfs {
        target: ContainerPath::new("scratch")?,
        size: None,
    });
    let seen = cx.output("tmpfs", &spec).await?;
    holds(
        seen.starts_with("tmpfs /work/scratch tmpfs "),
        format!("it is a tmpfs: {seen:?}"),
    )
}
