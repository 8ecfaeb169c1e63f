//! The suite on drivers that are broken on purpose, each in one way: the case that names the promise has to fail.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use orchestra::{
    ByteStream, ContainerId, ContainerSpec, Created, Credentials, Driver, DriverInfo, EndReport, Error, ErrorKind,
    ExecEvent, ExecSpec, ExecStream, ExitStatus, HeldVolumes, ImageRef, InjectedFile, JobId, LogStream, OutputStream,
    PullImage, PullStream, Resource, Result, SharedDriver, Signal, VolumeDirectory, VolumeId, VolumePath, VolumeSpec,
};
use orchestra_conformance::{Suite, Verdict};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Defect {
    DropsTheLastPieceOfALog,
    MergesBothStreams,
    SwapsPiecesOfALog,
    StopsFollowingAtOnce,
    EndsALogCleanlyWhenTheEngineDies,
    ReadsALogOnlyOnce,
    SaysThatAllExitsAreSuccess,
    NeverTellsTheEnd,
    CallsAnUnstartedContainerDone,
    LeavesContainers,
    RemovesNoRunningContainer,
    MakesAContainerAnew,
    MakesAVolumeAnew,
    MakesVolumesThatAreMounted,
    IgnoresReadOnly,
    IgnoresWhatItCannotDo,
    StartsAgain,
    TakesNoInput,
    NeverClosesInput,
    IgnoresSignals,
    ForgetsTheExitOfAnExec,
    LosesModes,
    LosesHardLinks,
    LosesAttributes,
    IgnoresErrorsOfATar,
    ReadsEverything,
    WritesFilesAsRoot,
    CallsEverythingAnEngineFailure,
    SwallowsErrorsOfAPull,
    RemembersCredentials,
    IgnoresPlatforms,
    SaysThatAnyArchiveIsAnImage,
    ListsOtherJobs,
    ListsNoStates,
    EndsAJobInWordsOnly,
    EndsOtherJobs,
    TellsAnotherDirectory,
    Panics,
}
use Defect as D;

/// Each defect with the case that is there to catch it.
const CAUGHT_BY: &[(Defect, &str)] = &[
    (
        D::DropsTheLastPieceOfALog,
        "a_log_read_from_before_the_start_is_exact_to_the_byte",
    ),
    (D::DropsTheLastPieceOfALog, "a_large_log_is_byte_exact_and_in_order"),
    (D::MergesBothStreams, "both_streams_are_told_apart"),
    (D::SwapsPiecesOfALog, "a_large_log_is_byte_exact_and_in_order"),
    (D::StopsFollowingAtOnce, "following_ends_when_the_container_has_ended"),
    (
        D::EndsALogCleanlyWhenTheEngineDies,
        "an_engine_that_dies_interrupts_whoever_waits",
    ),
    (D::ReadsALogOnlyOnce, "a_log_is_read_late_and_more_than_once"),
    (D::ReadsALogOnlyOnce, "a_log_is_read_on_from_where_it_was_left"),
    (D::SaysThatAllExitsAreSuccess, "an_exit_code_is_told"),
    (D::NeverTellsTheEnd, "many_wait_for_one_container"),
    (
        D::CallsAnUnstartedContainerDone,
        "waiting_for_what_was_never_started_is_a_conflict",
    ),
    (D::LeavesContainers, "an_id_is_free_again_when_its_container_is_removed"),
    (
        D::RemovesNoRunningContainer,
        "a_running_container_is_killed_and_removed",
    ),
    (D::MakesAContainerAnew, "creating_a_container_again_changes_nothing"),
    (D::MakesAVolumeAnew, "creating_a_volume_again_keeps_its_content"),
    (D::MakesVolumesThatAreMounted, "no_volume_is_made_by_mounting_it"),
    (D::IgnoresReadOnly, "a_read_only_mount_cannot_be_written"),
    (D::IgnoresWhatItCannotDo, "what_capabilities_rule_out_is_refused"),
    (D::StartsAgain, "what_has_ended_is_not_started_again"),
    (D::TakesNoInput, "standard_input_is_fed_and_closed"),
    (D::NeverClosesInput, "standard_input_is_fed_and_closed"),
    (D::IgnoresSignals, "a_process_handles_a_signal_it_is_sent"),
    (D::ForgetsTheExitOfAnExec, "an_exec_tells_output_and_then_its_exit"),
    (D::LosesModes, "a_tar_comes_back_as_it_went_in"),
    (D::LosesHardLinks, "hard_links_stay_links"),
    (D::LosesAttributes, "user_attributes_are_kept"),
    (D::LosesAttributes, "an_opaque_directory_stays_opaque"),
    (D::LosesAttributes, "parts_of_seconds_are_kept"),
    (D::LosesAttributes, "holes_stay_holes"),
    (D::LosesModes, "exact_owners_and_modes_are_kept"),
    (D::IgnoresErrorsOfATar, "an_error_of_the_tar_ends_the_call"),
    (D::ReadsEverything, "chosen_paths_are_read_and_no_others"),
    (
        D::WritesFilesAsRoot,
        "files_have_the_content_mode_and_owner_they_are_given",
    ),
    (
        D::CallsEverythingAnEngineFailure,
        "a_volume_that_is_not_there_is_not_found",
    ),
    (D::SwallowsErrorsOfAPull, "a_pull_that_fails_in_the_middle_is_an_error"),
    (
        D::RemembersCredentials,
        "a_private_image_is_pulled_with_credentials_alone",
    ),
    (
        D::IgnoresPlatforms,
        "of_several_platforms_the_one_that_is_asked_for_is_pulled",
    ),
    (D::SaysThatAnyArchiveIsAnImage, "an_archive_that_is_none_is_refused"),
    (D::ListsOtherJobs, "nothing_of_another_job_is_listed"),
    (D::ListsNoStates, "a_container_is_listed_with_its_state"),
    (D::EndsAJobInWordsOnly, "ending_a_job_removes_all_of_it"),
    // Not a case of its own: whatever a case leaves, fails it.
    (D::EndsAJobInWordsOnly, "a_new_volume_is_empty"),
    (D::EndsOtherJobs, "ending_a_job_leaves_other_jobs_alone"),
    (D::TellsAnotherDirectory, "a_volume_has_a_directory_on_this_machine"),
    (D::Panics, "a_running_engine_answers_a_ping"),
];

#[derive(Debug)]
struct Broken {
    inner: SharedDriver,
    info: DriverInfo,
    defect: Defect,
    credentials: Mutex<Option<Credentials>>,
    read: Mutex<Vec<ContainerId>>,
}

impl Broken {
    fn is(&self, defect: Defect) -> bool {
        self.defect == defect
    }

    fn told<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match self.defect {
            D::CallsEverythingAnEngineFailure => Error::new(ErrorKind::Engine, error.message()),
            _ => error,
        })
    }

    async fn running(&self, id: &ContainerId) -> bool {
        let listed = self.inner.list(None).await.unwrap_or_default();
        listed
            .iter()
            .any(|resource| resource.id == id.as_str() && resource.state == Some(orchestra::ContainerState::Running))
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broken({})", self.inner)
    }
}

/// A tar of which each header is passed through `change`.
fn with_headers(tar: Vec<u8>, change: impl Fn(&mut tokio_tar::Header)) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), tar.as_slice());
    while rest.len() >= 512 {
        let (head, tail) = rest.split_at(512);
        let mut header = tokio_tar::Header::from_byte_slice(head).clone();
        let size = header.raw_entry_size().unwrap_or(0).next_multiple_of(512) as usize;
        if head.iter().any(|byte| *byte != 0) {
            change(&mut header);
            header.set_cksum();
        }
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&tail[..size.min(tail.len())]);
        rest = &tail[size.min(tail.len())..];
    }
    out
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Driver for Broken {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    async fn ping(&self) -> Result<()> {
        assert!(!self.is(D::Panics), "on purpose");
        self.inner.ping().await
    }

    async fn pull_image(&self, pull: &PullImage) -> Result<PullStream> {
        let mut pull = pull.clone();
        if self.is(D::RemembersCredentials) {
            let mut remembered = self.credentials.lock().unwrap();
            pull.credentials = pull.credentials.or_else(|| remembered.clone());
            remembered.clone_from(&pull.credentials);
        }
        if self.is(D::IgnoresPlatforms) {
            pull.platform = None;
        }
        let events = self.inner.pull_image(&pull).await?;
        Ok(match self.defect {
            D::SwallowsErrorsOfAPull => events.take_while(|event| std::future::ready(event.is_ok())).boxed(),
            _ => events,
        })
    }

    async fn import_image(&self, image: &ImageRef, archive: ByteStream) -> Result<()> {
        let imported = self.inner.import_image(image, archive).await;
        if self.is(D::SaysThatAnyArchiveIsAnImage) {
            Ok(())
        } else {
            imported
        }
    }

    async fn image_exists(&self, image: &ImageRef) -> Result<bool> {
        self.inner.image_exists(image).await
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<()> {
        self.inner.remove_image(image).await
    }

    async fn create_volume(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<Created> {
        if self.is(D::MakesAVolumeAnew) {
            self.inner.remove_volume(id).await?;
        }
        self.inner.create_volume(id, spec).await
    }

    async fn write_volume(&self, id: &VolumeId, path: &VolumePath, tar: ByteStream) -> Result<()> {
        let tar = match self.defect {
            D::LosesModes => {
                let bytes: Vec<u8> = tar.try_collect::<Vec<_>>().await?.concat();
                orchestra::stream::once(with_headers(bytes, |header| header.set_mode(0o644)))
            }
            D::LosesHardLinks => {
                let bytes: Vec<u8> = tar.try_collect::<Vec<_>>().await?.concat();
                orchestra::stream::once(with_headers(bytes, |header| {
                    if header.entry_type().is_hard_link() {
                        header.set_entry_type(tokio_tar::EntryType::Regular);
                    }
                }))
            }
            D::LosesAttributes => {
                let bytes: Vec<u8> = tar.try_collect::<Vec<_>>().await?.concat();
                orchestra::stream::once(with_headers(bytes, |header| {
                    if header.entry_type().is_pax_local_extensions() {
                        header.set_entry_type(tokio_tar::EntryType::XGlobalHeader);
                    }
                }))
            }
            _ => tar,
        };
        match self.told(self.inner.write_volume(id, path, tar).await) {
            Err(error) if error.kind() == ErrorKind::Cancelled && self.is(D::IgnoresErrorsOfATar) => Ok(()),
            result => result,
        }
    }

    async fn read_volume(&self, id: &VolumeId, paths: &[VolumePath]) -> Result<ByteStream> {
        let all = [VolumePath::root()];
        self.told(
            self.inner
                .read_volume(id, if self.is(D::ReadsEverything) { &all } else { paths })
                .await,
        )
    }

    async fn volume_directory(&self, id: &VolumeId) -> Result<Option<VolumeDirectory>> {
        let directory = self.inner.volume_directory(id).await?;
        let other = || HeldVolumes::default().hold(id, std::env::temp_dir());
        Ok(directory.or_else(|| self.is(D::TellsAnotherDirectory).then(other)))
    }

    async fn remove_volume(&self, id: &VolumeId) -> Result<()> {
        self.inner.remove_volume(id).await
    }

    async fn create_container(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<Created> {
        let mut spec = spec.clone();
        match self.defect {
            D::MakesAContainerAnew => self.inner.remove_container(id).await?,
            D::MakesVolumesThatAreMounted => {
                for mount in &spec.mounts {
                    self.inner.create_volume(&mount.volume, &VolumeSpec::default()).await?;
                }
            }
            D::IgnoresReadOnly => spec.mounts.iter_mut().for_each(|mount| mount.read_only = false),
            D::IgnoresWhatItCannotDo => {
                let mut less = ContainerSpec::new(spec.image.clone());
                (less.entrypoint, less.labels) = (spec.entrypoint, spec.labels);
                spec = less;
            }
            _ => {}
        }
        self.inner.create_container(id, &spec).await
    }

    async fn write_files(&self, id: &ContainerId, files: &[InjectedFile]) -> Result<()> {
        let mut files = files.to_vec();
        if self.is(D::WritesFilesAsRoot) {
            files.iter_mut().for_each(|file| (file.uid, file.gid) = (0, 0));
        }
        self.inner.write_files(id, &files).await
    }

    async fn start_container(&self, id: &ContainerId, stdin: Option<ByteStream>) -> Result<()> {
        let stdin = match self.defect {
            D::TakesNoInput => None,
            D::NeverClosesInput => stdin.map(|stdin| stdin.chain(futures_util::stream::pending()).boxed()),
            _ => stdin,
        };
        match self.inner.start_container(id, stdin).await {
            Err(error) if error.kind() == ErrorKind::Conflict && self.is(D::StartsAgain) => Ok(()),
            result => result,
        }
    }

    async fn logs(&self, id: &ContainerId, follow: bool) -> Result<LogStream> {
        let follow = follow && !self.is(D::StopsFollowingAtOnce);
        let logs = self.inner.logs(id, follow).await?;
        Ok(match self.defect {
            D::DropsTheLastPieceOfALog => {
                // Each piece is passed on when the next one comes.
                let late = logs.scan(None, |before, piece| std::future::ready(Some(before.replace(piece))));
                late.filter_map(std::future::ready).boxed()
            }
            D::MergesBothStreams => logs
                .map_ok(|mut chunk| {
                    chunk.stream = OutputStream::Stdout;
                    chunk
                })
                .boxed(),
            D::SwapsPiecesOfALog => {
                let pairs = logs.chunks(6).map(|mut pieces| {
                    pieces.reverse();
                    futures_util::stream::iter(pieces)
                });
                pairs.flatten().boxed()
            }
            D::EndsALogCleanlyWhenTheEngineDies => logs.take_while(|chunk| std::future::ready(chunk.is_ok())).boxed(),
            D::ReadsALogOnlyOnce => {
                let mut read = self.read.lock().unwrap();
                if read.contains(id) {
                    return Ok(futures_util::stream::empty().boxed());
                }
                read.push(id.clone());
                logs
            }
            _ => logs,
        })
    }

    async fn wait_container(&self, id: &ContainerId) -> Result<ExitStatus> {
        if self.is(D::NeverTellsTheEnd) {
            std::future::pending::<()>().await;
        }
        match self.inner.wait_container(id).await {
            Ok(_) if self.is(D::SaysThatAllExitsAreSuccess) => Ok(ExitStatus::Code(0)),
            Err(error) if error.kind() == ErrorKind::Conflict && self.is(D::CallsAnUnstartedContainerDone) => {
                Ok(ExitStatus::Code(0))
            }
            result => result,
        }
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec, stdin: Option<ByteStream>) -> Result<ExecStream> {
        let events = self.inner.exec(id, spec, stdin).await?;
        Ok(match self.defect {
            D::ForgetsTheExitOfAnExec => events
                .try_filter(|event| std::future::ready(!matches!(event, ExecEvent::Exit(_))))
                .boxed(),
            _ => events,
        })
    }

    async fn signal_container(&self, id: &ContainerId, signal: Signal) -> Result<()> {
        if self.is(D::IgnoresSignals) {
            Ok(())
        } else {
            self.inner.signal_container(id, signal).await
        }
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        match self.defect {
            D::LeavesContainers => Ok(()),
            D::RemovesNoRunningContainer if self.running(id).await => Ok(()),
            _ => self.inner.remove_container(id).await,
        }
    }

    async fn list(&self, job: Option<&JobId>) -> Result<Vec<Resource>> {
        let mut listed = self.inner.list(job.filter(|_| !self.is(D::ListsOtherJobs))).await?;
        if self.is(D::ListsNoStates) {
            listed.iter_mut().for_each(|resource| resource.state = None);
        }
        Ok(listed)
    }

    async fn end_job(&self, job: &JobId) -> Result<EndReport> {
        match self.defect {
            D::EndsAJobInWordsOnly => {
                let mut report = EndReport::default();
                report.removed = self.inner.list(Some(job)).await?;
                Ok(report)
            }
            D::EndsOtherJobs => {
                for resource in self.inner.list(None).await? {
                    let other = resource.job().filter(|other| other.as_str().starts_with(job.as_str()));
                    if let Some(other) = other {
                        self.inner.end_job(&other).await?;
                    }
                }
                Ok(EndReport::default())
            }
            _ => self.inner.end_job(job).await,
        }
    }
}

/// Runs one case on a driver with a defect, or without one.
async fn verdict(defect: Option<Defect>, case: &str) -> Verdict {
    let engine = support::engine();
    let wrap = move |inner: SharedDriver| -> SharedDriver {
        match defect {
            Some(defect) => Arc::new(Broken {
                info: {
                    let mut info = inner.info().clone();
                    info.capabilities.volume_directories = defect == D::TellsAnotherDirectory;
                    info
                },
                inner,
                defect,
                credentials: Mutex::default(),
                read: Mutex::default(),
            }),
            None => inner,
        }
    };
    let mut settings = support::settings(&engine, Arc::new(wrap));
    settings.log_bytes = 8 << 20;
    settings.deadline = Duration::from_secs(5);
    let suite = Suite::new(settings, move || {
        let driver = wrap(engine.driver());
        async move { Ok(driver) }
    });
    let cases = Suite::cases();
    let case = cases
        .iter()
        .find(|known| known.name == case)
        .unwrap_or_else(|| panic!("there is no case {case}"));
    suite.run(case).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_defect_fails_the_case_that_names_its_promise() {
    let mut runs = tokio::task::JoinSet::new();
    for (defect, case) in CAUGHT_BY {
        runs.spawn(async move { (defect, case, verdict(Some(*defect), case).await) });
    }
    let mut missed = Vec::new();
    while let Some(run) = runs.join_next().await {
        let (defect, case, verdict) = run.unwrap();
        if !matches!(verdict, Verdict::Failed(_)) {
            missed.push(format!("{defect:?} gets past {case}: {verdict:?}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_defect_the_same_cases_pass() {
    let mut runs = tokio::task::JoinSet::new();
    for (_, case) in CAUGHT_BY {
        runs.spawn(async move { (case, verdict(None, case).await) });
    }
    while let Some(run) = runs.join_next().await {
        let (case, verdict) = run.unwrap();
        let expected = match *case {
            // Memory has none.
            "a_volume_has_a_directory_on_this_machine" => {
                Verdict::Skipped("the engine lacks volume_directories".to_owned())
            }
            _ => Verdict::Passed,
        };
        assert_eq!(verdict, expected, "{case}");
    }
}

#[tokio::test]
async fn what_an_engine_lacks_is_skipped_with_the_reason() {
    let verdict = verdict(None, "processor_time_is_a_quota").await;
    assert_eq!(verdict, Verdict::Skipped("the engine lacks cpu_quota".to_owned()));
}

#[test]
fn no_two_cases_have_one_name_and_each_says_its_promise() {
    let cases = Suite::cases();
    let names: std::collections::BTreeSet<_> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len());
    assert!(cases.iter().all(|case| case.promise.ends_with('.')));
}
