//! The keeper of logs, as a process of its own, and who reads what it keeps.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use orchestra::{ErrorKind, LogChunk, LogStream, OutputStream};
use orchestra_oci::logs::{LogStore, install_program};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

struct Place {
    dir: tempfile::TempDir,
    logs: LogStore,
}

impl Place {
    async fn new(limit: u64) -> Self {
        Self::of(tempfile::tempdir().unwrap(), limit).await
    }

    async fn of(dir: tempfile::TempDir, limit: u64) -> Self {
        let program = dir.path().join("a helper");
        install_program(&program).unwrap();
        let logs = LogStore::open(dir.path().join("logs"), program, limit).await.unwrap();
        logs.create("c").await.unwrap();
        Self { dir, logs }
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("logs/c")
    }

    /// Starts the keeper as a shim does, with the arguments of the URI, and gives back the ends that a container writes to.
    fn start(&self, limit: u64) -> (Keeper, File, File) {
        let uri = self.logs.uri("c").unwrap();
        let (program, query) = uri.strip_prefix("binary://").unwrap().split_once('?').unwrap();
        let (part, argument) = query.split_once('=').unwrap();
        let argument = argument.replace("%3A", ":");
        assert_eq!(
            (part, argument.split_once(':').unwrap().0),
            ("keep-log", limit.to_string().as_str())
        );
        let fifos = ["out", "err", "ready"].map(|name| self.dir.path().join(name));
        for fifo in &fifos {
            let _ = fs::remove_file(fifo);
            assert!(Command::new("mkfifo").arg(fifo).status().unwrap().success());
        }
        let child = Command::new("sh")
            .args(["-c", r#"exec "$0" keep-log "$1" 3<"$2" 4<"$3" 5>"$4""#])
            .args([program.replace("%20", " "), argument])
            .args(&fifos)
            .spawn()
            .unwrap();
        let write = |path: &Path| OpenOptions::new().write(true).open(path).unwrap();
        let (out, err) = (write(&fifos[0]), write(&fifos[1]));
        let mut ready = [0];
        let mut answer = File::open(&fifos[2]).unwrap();
        std::io::Read::read_exact(&mut answer, &mut ready).unwrap();
        (Keeper(child), out, err)
    }

    async fn read(&self, offset: u64, follow: bool) -> BTreeMap<OutputStream, Vec<u8>> {
        timeout(SOON, collect(self.logs.read("c", offset, follow).await.unwrap()))
            .await
            .unwrap()
            .unwrap()
    }

    fn on_disk(&self) -> u64 {
        fs::read_dir(self.folder())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum()
    }
}

struct Keeper(Child);

impl Keeper {
    fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.0.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// It ends by itself.
    fn ended(mut self) {
        let begun = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < SOON, "the keeper runs on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn collect(stream: LogStream) -> orchestra::Result<BTreeMap<OutputStream, Vec<u8>>> {
    let add = |mut all: BTreeMap<OutputStream, Vec<u8>>, chunk: LogChunk| async move {
        all.entry(chunk.stream).or_default().extend(&chunk.bytes);
        Ok(all)
    };
    stream.try_fold(BTreeMap::new(), add).await
}

fn both(out: &str, err: &str) -> BTreeMap<OutputStream, Vec<u8>> {
    let streams = [(OutputStream::Stdout, out), (OutputStream::Stderr, err)];
    streams
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(stream, text)| (stream, text.as_bytes().to_vec()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_streams_are_followed_from_before_the_start_and_read_late() {
    let place = Place::new(1 << 20).await;
    let mut followed = place.logs.read("c", 0, true).await.unwrap();
    assert!(
        timeout(Duration::from_millis(300), followed.next()).await.is_err(),
        "nobody has started"
    );
    assert_eq!(place.read(0, false).await, both("", ""));

    let (keeper, mut out, mut err) = place.start(1 << 20);
    let mut pieces = Vec::new();
    for (stream, text) in [
        ("out", "one\n"),
        ("err", "two\n"),
        ("out", "\nthree without a line feed"),
    ] {
        let end = if stream == "out" { &mut out } else { &mut err };
        end.write_all(text.as_bytes()).unwrap();
        // What was written before is read before something else is written: so there is one order.
        let chunk = timeout(SOON, followed.next()).await.unwrap().unwrap().unwrap();
        pieces.push((chunk.stream, String::from_utf8(chunk.bytes.to_vec()).unwrap()));
    }
    let order = [OutputStream::Stdout, OutputStream::Stderr, OutputStream::Stdout];
    assert_eq!(pieces.iter().map(|(stream, _)| *stream).collect::<Vec<_>>(), order);
    assert_eq!(
        place.read(0, false).await,
        both("one\n\nthree without a line feed", "two\n")
    );
    assert!(
        timeout(Duration::from_millis(300), followed.next()).await.is_err(),
        "it can still write"
    );

    drop((out, err));
    assert!(timeout(SOON, followed.next()).await.unwrap().is_none());
    keeper.ended();
    for follow in [true, false] {
        let all = both("one\n\nthree without a line feed", "two\n");
        assert_eq!(place.read(0, follow).await, all, "follow: {follow}");
        assert_eq!(
            place.read(2, follow).await,
            both("e\n\nthree without a line feed", "two\n")
        );
        assert_eq!(place.read(6, follow).await, both("\nthree without a line feed", "o\n"));
        assert_eq!(place.read(1000, follow).await, both("", ""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_keeps_its_newest_bytes_and_no_more() {
    let limit = 1 << 20;
    let place = Place::new(limit).await;
    let (keeper, mut out, err) = place.start(limit);
    let lines = 600_000;
    let written = spawn_blocking(move || {
        let mut out = std::io::BufWriter::new(&mut out);
        (0..lines).for_each(|n| writeln!(out, "{n:015}").unwrap());
    });
    written.await.unwrap();
    drop(err);
    keeper.ended();
    assert!(
        place.on_disk() <= limit + limit / 8 + (64 << 10) + 32,
        "{} bytes lie there",
        place.on_disk()
    );
    let kept = place.read(0, false).await.remove(&OutputStream::Stdout).unwrap();
    // Headers count, and take less than a part in a hundred where a process writes in blocks.
    assert!(kept.len() as u64 > limit * 99 / 100, "{} bytes are kept", kept.len());
    let all: String = (0..lines).map(|n| format!("{n:015}\n")).collect();
    assert!(all.as_bytes().ends_with(&kept), "they are the newest ones");
    let from = all.len() - 100;
    assert_eq!(place.read(from as u64, false).await, both(&all[from..], ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_slow_loses_nothing_of_a_log_that_is_larger_than_its_limit() {
    let limit = 512 << 10;
    let place = Place::new(limit).await;
    let mut followed = place.logs.read("c", 0, true).await.unwrap();
    let (keeper, mut out, mut err) = place.start(limit);
    let rounds = 256_u32;
    let writing = spawn_blocking(move || {
        for round in 0..rounds {
            out.write_all(&round.to_le_bytes().repeat(16 << 10)).unwrap();
            writeln!(err, "{round}").unwrap();
        }
    });
    let (mut seen, mut pauses, mut most) = (BTreeMap::<_, Vec<u8>>::new(), 0, 0);
    while let Some(chunk) = timeout(SOON, followed.next()).await.unwrap() {
        let chunk = chunk.unwrap();
        seen.entry(chunk.stream).or_default().extend(&chunk.bytes);
        if pauses < 10 {
            pauses += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
            most = most.max(place.on_disk());
        }
    }
    writing.await.unwrap();
    keeper.ended();
    let wanted: Vec<u8> = (0..rounds)
        .flat_map(|round| round.to_le_bytes().repeat(16 << 10))
        .collect();
    assert!(seen[&OutputStream::Stdout] == wanted, "every byte arrived");
    let wanted: String = (0..rounds).map(|round| format!("{round}\n")).collect();
    assert_eq!(seen[&OutputStream::Stderr], wanted.as_bytes());
    assert!(most < 2 * limit, "the writer had to wait: {most} bytes lay there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_is_killed_is_an_error_for_who_follows() {
    let place = Place::new(1 << 20).await;
    let mut followed = place.logs.read("c", 0, true).await.unwrap();
    let (keeper, mut out, _err) = place.start(1 << 20);
    out.write_all(b"before").unwrap();
    assert_eq!(
        timeout(SOON, followed.next()).await.unwrap().unwrap().unwrap().bytes,
        "before"
    );
    let waiting = tokio::spawn(async move { followed.next().await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let killed = Instant::now();
    keeper.signal("-KILL");
    let error = timeout(SOON, waiting).await.unwrap().unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert!(killed.elapsed() < Duration::from_secs(5), "it is told at once");
    assert_eq!(place.read(0, false).await, both("before", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_frame_is_no_frame_and_the_next_keeper_goes_on_before_it() {
    let place = Place::new(1 << 20).await;
    let (keeper, mut out, err) = place.start(1 << 20);
    out.write_all(b"whole").unwrap();
    while place.read(0, false).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    keeper.signal("-KILL");
    drop((keeper, out, err));
    let segment = place.folder().join(format!("{:020}", 0));
    let bytes = fs::read(&segment).unwrap();
    for cut in 1..bytes.len() {
        fs::write(&segment, [bytes.as_slice(), &bytes[..cut]].concat()).unwrap();
        assert_eq!(place.read(0, false).await, both("whole", ""), "{cut} bytes of a frame");
    }
    let (keeper, mut out, err) = place.start(1 << 20);
    out.write_all(b" again").unwrap();
    drop((out, err));
    keeper.ended();
    assert_eq!(place.read(0, true).await, both("whole again", ""));
    assert_eq!(place.read(5, true).await, both(" again", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_is_told_to_end_first_empties_the_pipes() {
    let place = Place::new(64 << 20).await;
    let (keeper, mut out, mut err) = place.start(64 << 20);
    keeper.signal("-TERM");
    let written = spawn_blocking(move || {
        out.write_all(&vec![b'x'; 4 << 20]).unwrap();
        err.write_all(b"end").unwrap();
    });
    written.await.unwrap();
    keeper.ended();
    let log = place.read(0, true).await;
    assert_eq!(
        (log[&OutputStream::Stdout].len(), &log[&OutputStream::Stderr][..]),
        (4 << 20, &b"end"[..])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_fifos_ends_with_them_or_with_its_removal() {
    let place = Place::new(1 << 20).await;
    let (stdout, stderr) = place.logs.fifos("c").await.unwrap();
    let mut followed = place.logs.read("c", 0, true).await.unwrap();
    let write = |path: PathBuf, text: &'static str| {
        spawn_blocking(move || {
            OpenOptions::new()
                .write(true)
                .open(path)
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap()
        })
    };
    let (one, two) = (write(stdout, "out"), write(stderr, "err"));
    let mut seen = Vec::new();
    while let Some(chunk) = timeout(SOON, followed.next()).await.unwrap() {
        seen.push(chunk.unwrap().bytes);
    }
    seen.sort();
    assert_eq!(seen, ["err", "out"]);
    one.await.unwrap();
    two.await.unwrap();

    place.logs.create("never-started").await.unwrap();
    let mut followed = place.logs.read("never-started", 0, true).await.unwrap();
    place.logs.fifos("never-started").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let folder = place.dir.path().join("logs/never-started").display().to_string();
    assert!(keepers(&folder) > 0, "a keeper waits for its fifos");
    place.logs.remove("never-started").await.unwrap();
    let ended = timeout(SOON, async { while followed.next().await.is_some() {} }).await;
    assert!(ended.is_ok(), "following ends with the log");
    let begun = Instant::now();
    while keepers(&folder) > 0 {
        assert!(begun.elapsed() < SOON, "a keeper of nothing is left behind");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let gone = place.logs.read("never-started", 0, true).await.err().unwrap();
    assert_eq!(gone.kind(), ErrorKind::ContainerNotFound);
    place.logs.remove("never-started").await.unwrap();
}

/// Processes whose command line has the text.
fn keepers(text: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| String::from_utf8_lossy(line).contains(text))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_logs_are_followed_at_once() {
    let place = Place::new(1 << 20).await;
    let mut following = tokio::task::JoinSet::new();
    for n in 0..200 {
        let id = format!("many-{n}");
        place.logs.create(&id).await.unwrap();
        following.spawn(collect(place.logs.read(&id, 0, true).await.unwrap()));
    }
    for n in 0..200 {
        place.logs.remove(&format!("many-{n}")).await.unwrap();
    }
    while let Some(log) = timeout(SOON, following.join_next()).await.unwrap() {
        assert_eq!(log.unwrap().unwrap(), both("", ""));
    }
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_is_refused() {
    let place = Place::new(1 << 20).await;
    for bad in ["", ".", "..", "../c", "a/b", ".hidden"] {
        assert_eq!(
            place.logs.create(bad).await.unwrap_err().kind(),
            ErrorKind::InvalidInput,
            "{bad:?}"
        );
    }
}

/// A file system of this size, which goes with it.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, size: &str) -> Self {
        fs::create_dir(&path).unwrap();
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path);
        assert!(mount.status().unwrap().success());
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_full_disk_has_no_room_for_is_told_and_holds_up_nobody() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can make a small file system");
        return;
    }
    const LIMIT: u64 = 64 << 20;
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(dir.path().join("logs"), "1m");
    let place = Place::of(dir, LIMIT).await;
    let (keeper, mut out, err) = place.start(LIMIT);
    let line = |number: usize| format!("{number:015}\n");
    // Whoever writes is not held up.
    let writing = spawn_blocking(move || {
        let text: String = (0..(4 << 20) / 16).map(line).collect();
        out.write_all(text.as_bytes()).unwrap();
    });
    timeout(SOON, writing).await.unwrap().unwrap();
    drop(err);
    keeper.ended();
    for follow in [false, true] {
        let mut log = place.logs.read("c", 0, follow).await.unwrap();
        let mut came = Vec::new();
        let error = loop {
            match timeout(SOON, log.next()).await.unwrap().unwrap() {
                Ok(chunk) => came.extend(chunk.bytes),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::DiskFull, "{error:?}");
        let lines = String::from_utf8(came).unwrap();
        assert!(lines.len() > 500_000, "{}", lines.len());
        let whole = lines.as_bytes().chunks(16).enumerate();
        assert!(
            whole
                .clone()
                .all(|(number, seen)| line(number).as_bytes().starts_with(seen))
        );
    }
    // Before the folder that it is in.
    drop(disk);
}
