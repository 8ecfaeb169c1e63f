//! Caches that go from one kind of engine to another.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use orchestra::tar::{END, EntryType, Head, padded, record};
use orchestra::{
    ByteStream, Job, Labels, NetworkMode, SharedDriver, Task, VolumeId, VolumePath, file_from_tar, stream::once,
};
use orchestra_caches::{CacheEvent, CacheEventKind, CacheSpec, CachesLayer, CachesOptions, Store, StoreOptions};
use orchestra_e2e::{Dir, Fixture, KnownDriver, OwnEngine, Purpose};
use orchestra_image_build::{BuildCache, BuildInput, BuildResult, ImageBuild};
use serde_json::json;
use tokio::sync::mpsc;

use crate::runs::counting;
use crate::{run, says};

/// The one kernel capability that the image's program has: `CAP_NET_BIND_SERVICE`, as `/proc/PID/status` shows it.
const CAPABLE: &str = "CapEff:\t0000000000000400";
/// The same as linux/capability.h has it in a file's attribute: `struct vfs_cap_data`, revision 2, effective.
const ATTRIBUTE: [u32; 5] = [0x0200_0001, 0x400, 0, 0, 0];

/// A Dockerfile whose later layers replace a directory, delete a file, link and set modes and a file's capability. Its last
/// line puts all that is to be seen of that into the image, and is the only one that has `last` in it.
fn dockerfile(last: &str) -> String {
    format!(
        r#"FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin"]
SHELL ["/bin/sh", "-c"]
COPY helper capable.tar /x/
RUN mkdir -p /d /e /etc && echo u:x:1000:1000::/:/bin/sh > /etc/passwd
RUN echo a > /d/lower && echo gone > /e/gone && echo stays > /e/stays
RUN rm -rf /d && mkdir /d && echo b > /d/upper
RUN rm /e/gone && ln /e/stays /e/hard && chmod 4755 /e/stays && mkfifo /e/fifo
RUN cat /x/capable.tar | /x/helper unpack-tree / .
RUN --mount=type=cache,target=/c echo {{first}} >> /c/runs
RUN --mount=type=cache,target=/c echo kept $(cat /c/runs) && \
    (find /d /e /cap | sort && find /d /e /cap -type f -exec stat -c '%n %a %u:%g %h %s' {{}} \; | sort && \
    cat /d/* /e/hard && su u -c '/cap/grep CapEff /proc/self/status') | tee /told && echo {last}
"#
    )
    .replace("{first}", "first")
}

/// Instructions of it that make a layer, the last one too.
const STEPS: u32 = 10;

/// The context's files but busybox.
fn context(dockerfile: &str, capable: &[u8]) -> ByteStream {
    let value: Vec<u8> = ATTRIBUTE.iter().flat_map(|word| word.to_le_bytes()).collect();
    let records = record(b"SCHILY.xattr.security.capability", &value);
    let extended = Head {
        kind: EntryType::XHeader,
        ..Head::file(records.len() as u64)
    };
    let program = Head {
        mode: 0o755,
        ..Head::file(capable.len() as u64)
    };
    let capable = [
        extended.blocks("PaxHeaders.0/grep"),
        vec![padded(&records)],
        program.blocks("cap/grep"),
        vec![padded(capable), END],
    ]
    .concat()
    .concat();
    let helper = orchestra_helper::program(std::env::consts::ARCH).unwrap();
    let mut members = Vec::new();
    for (name, mode, content) in [
        ("Dockerfile", 0o644, dockerfile.as_bytes()),
        ("helper", 0o755, helper),
        ("capable.tar", 0o644, capable.as_slice()),
    ] {
        let head = Head {
            mode,
            ..Head::file(content.len() as u64)
        };
        members.extend(head.blocks(name));
        members.push(padded(content));
    }
    members.push(END);
    once(members.concat())
}

/// What a build came to, and what became of its cache.
struct Built {
    result: BuildResult,
    said: String,
    caches: Vec<CacheEventKind>,
}

/// Where builds run.
struct Place<'a> {
    fixture: &'a Fixture,
    driver: SharedDriver,
    store: &'a Path,
}

impl Place<'_> {
    /// A job of its own that builds the Dockerfile with this last word, with the state of BuildKit on a volume. That one
    /// is the cache of this key, or begins empty.
    async fn build(&self, last: &str, key: Option<&str>) -> Built {
        let mut options = StoreOptions::default();
        options.url = format!("file://{}", self.store.display());
        let (send, mut events) = mpsc::channel::<CacheEvent>(16);
        let layer = CachesLayer::new(
            self.driver.clone(),
            Store::open(&options).unwrap(),
            CachesOptions::default(),
        );
        let job = Job::builder(Arc::new(layer.events(send))).build();
        let built = self.in_job(&job, last, key).await;
        job.end().await.unwrap();
        drop(job);
        let mut caches = Vec::new();
        while let Some(event) = events.recv().await {
            caches.push(event.kind);
        }
        let result = built.unwrap();
        self.driver.remove_image(&result.reference).await.unwrap();
        Built {
            said: result.stderr.to_string(),
            result,
            caches,
        }
    }

    async fn in_job(&self, job: &Job, last: &str, key: Option<&str>) -> orchestra_e2e::Result<BuildResult> {
        let source = self.source(job, last).await?;
        let labels = key.map(|key| {
            let mut spec = CacheSpec::new(key.parse().unwrap());
            spec.devices = true;
            spec.label()
        });
        let layers = job.create_volume_with("layers", Labels::from_iter(labels)).await?;
        let tag = format!("localhost/e2e/caches-{}:1", job.id());
        let mut build = ImageBuild::new("app".parse()?, tag.parse()?, "source".parse()?);
        build.image = self.fixture.buildkit_image.parse()?;
        build.network = NetworkMode::Host;
        build.options.source_date_epoch = Some(1_700_000_000);
        build.inputs.push(BuildInput {
            volume: source,
            path: "source".parse()?,
        });
        build.caches.push(BuildCache {
            volume: layers,
            path: "/var/lib/buildkit".parse()?,
        });
        Ok(build.run(job).await?)
    }

    async fn source(&self, job: &Job, last: &str) -> orchestra_e2e::Result<VolumeId> {
        let source = job.create_volume("source").await?;
        let copy = Task::new("copy", &self.fixture.image)?
            .shell("cp /bin/busybox source/busybox")
            .network(NetworkMode::None)
            .mount(&source, "source")?;
        job.run(copy).await?.success()?;
        let busybox = VolumePath::new("busybox")?;
        let tar = job
            .driver()
            .read_volume(&source, std::slice::from_ref(&busybox))
            .await?;
        let busybox: Vec<Bytes> = file_from_tar(tar, &busybox).await?.try_collect().await?;
        let files = context(&dockerfile(last), &busybox.concat());
        job.driver().write_volume(&source, &VolumePath::root(), files).await?;
        Ok(source)
    }
}

pub(crate) async fn the_state_of_buildkit_goes_from_one_kind_of_engine_to_another(fixture: &Fixture) {
    let other = OwnEngine::start(Purpose::Other).unwrap();
    let known = KnownDriver::chosen().unwrap();
    assert_ne!(known, other.driver());
    let store = tempfile::tempdir().unwrap();
    let place = |driver| Place {
        fixture,
        driver,
        store: store.path(),
    };
    let here = place(known.connect(None).await.unwrap());
    let there = place(other.connect().await.unwrap());

    let first = here.build("one", Some("ci/layers")).await;
    assert_eq!(first.result.steps.cached, 0, "{}", first.said);
    assert!(first.said.contains(CAPABLE), "{}", first.said);
    assert!(
        matches!(
            &first.caches[..],
            [CacheEventKind::Missed { .. }, CacheEventKind::Persisted(_)]
        ),
        "{:?}",
        first.caches
    );

    let rebuilt = there.build("two", Some("ci/layers")).await;
    let said = &rebuilt.said;
    assert!(
        matches!(rebuilt.caches[0], CacheEventKind::Restored { exact: true, .. }),
        "{:?}\n{said}",
        rebuilt.caches
    );
    assert_eq!(rebuilt.result.steps.cached, STEPS - 1, "{said}");
    assert_eq!(said.matches(" CACHED\n").count(), STEPS as usize - 1, "{said}");
    assert!(said.contains(" kept first\n"), "the cache mount is empty\n{said}");
    let listed = |name: &str| said.lines().any(|line| line.ends_with(&format!(" {name}")));
    assert!(listed("/d/upper") && listed("/e/stays"), "{said}");
    assert!(
        !listed("/d/lower") && !listed("/e/gone"),
        "what is gone shines through\n{said}"
    );

    let clean = there.build("two", None).await;
    assert_eq!(clean.result.steps.cached, 0, "{}", clean.said);
    // All files' times are the same, and so all bytes of the two images if their content is.
    assert_eq!(
        rebuilt.result.config_digest, clean.result.config_digest,
        "from the cache:\n{said}\nfrom nothing:\n{}",
        clean.said
    );
    assert_eq!(rebuilt.result.digest, clean.result.digest);
}

pub(crate) async fn a_cache_of_a_task_comes_back_on_an_engine_of_another_kind(fixture: &Fixture) {
    let other = OwnEngine::start(Purpose::Other).unwrap();
    // It has no network.
    let pipeline = counting(fixture).replace("\"image\":", "\"network\": \"none\", \"image\":");
    let dir = Dir::with([("ci.yml", pipeline)]);
    let store = format!("file://{}", dir.file("store").display());
    let mut environment = vec![("ORCHESTRA_CACHES__STORE", store.as_str())];
    says(&run(fixture, &dir, &environment, &["run", "ci.yml"]), &["count | 1"]);
    let variables = other.variables().unwrap();
    environment.extend(variables.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let there = run(fixture, &dir, &environment, &["run", "ci.yml"]);
    says(&there, &["count cache state: hit", "count | 2"]);
    assert_eq!(there.code, 0, "{there}");
    // And back again.
    let back = run(fixture, &dir, &environment[..1], &["run", "ci.yml"]);
    says(&back, &["count cache state: hit", "count | 3"]);
    comes_back_exactly(fixture, &other);
}

/// Whatever a task makes in a cache is the same there.
fn comes_back_exactly(fixture: &Fixture, other: &OwnEngine) {
    // A character device 0/0 is what no capability is needed for: the whiteout of an overlay.
    const MAKE: &str = "cd state; echo x > file; chown 70000:70001 file; chmod 4751 file; ln file hard; ln -s file link; \
                        mkfifo fifo; mknod gone c 0 0; touch -d '2020-02-02 02:02:02' file; \
                        dd if=/dev/zero of=sparse bs=1 count=1 seek=67108863 2> /dev/null";
    const TELL: &str = "cd state; stat -c '%a %h %u:%g %Y' file; test file -ef hard && echo hard; readlink link; \
                        test -p fifo && echo fifo; stat -c '%F %t:%T' gone; stat -c '%s bytes' sparse; \
                        test $(du -k sparse | cut -f1) -lt 1000 && echo sparse";
    let dir = Dir::with([("unused", "")]);
    let store = format!("file://{}", dir.file("store").display());
    let mut environment = vec![("ORCHESTRA_CACHES__STORE", store.as_str())];
    let ran = |script: &str, environment: &[(&str, &str)]| {
        let task = json!({"task": "use", "image": fixture.image, "network": "none", "config": {
            "platform": "linux", "caches": [{"path": "state", "key": "exact", "devices": true}],
            "run": {"path": "sh", "args": ["-ec", script]},
        }});
        std::fs::write(dir.file("ci.yml"), json!({"plan": [task]}).to_string()).unwrap();
        let finished = run(fixture, &dir, environment, &["run", "ci.yml"]);
        assert_eq!(finished.code, 0, "{finished}");
        let lines = finished.stdout();
        let lines = lines.lines().filter_map(|line| line.strip_prefix("use | "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let made = ran(&format!("{MAKE}; cd ..; {TELL}"), &environment);
    let expected = [
        "4751 2 70000:70001 1580608922",
        "hard",
        "file",
        "fifo",
        "character special file 0:0",
        "67108864 bytes",
        "sparse",
    ];
    assert_eq!(made, expected);
    let variables = other.variables().unwrap();
    environment.extend(variables.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    assert_eq!(ran(TELL, &environment), expected);
}
