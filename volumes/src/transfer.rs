//! One transfer: a container that mounts the volume, and the program in it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use futures_util::StreamExt;
use orchestra::{
    ByteStream, Capabilities, ContainerId, ContainerPath, ContainerSpec, Error, ErrorKind, ExecEvent, ExecSpec,
    ExecStream, ExitStatus, ImageRef, JobId, Labels, Mount, Name, NetworkMode, OutputStream, Result, Runner,
    SharedDriver, VolumeDirectory, VolumeId, VolumePath, import_archive, labels, tar,
};
use orchestra_helper::exit;
use tokio::sync::oneshot;

use crate::parts::Tree;
use crate::{Known, directory, image};

/// Where the volume is in the container.
const ROOT: &str = "/v";

/// The image's name, which no registry can have; the tag is the job.
const IMAGE: &str = "orchestra.invalid/volume-transfer";

/// What the name of a container begins with that a volume is written or read by.
const TRANSFER: &str = "volume-transfer-";

/// How often an image that others remove is imported again.
const ATTEMPTS: usize = 3;

/// Most that is kept of what the program says when it fails.
const MAX_MESSAGE: usize = 8 << 10;

/// All that files need: owners, modes and attributes of others' files, devices, `security.capability`, `trusted.*`.
const KERNEL_CAPABILITIES: [&str; 7] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "MKNOD",
    "SETFCAP",
    "SYS_ADMIN",
];

/// Writes and reads the volumes of one job exactly, on any driver that can. A clone is the same.
#[derive(Clone, Debug)]
pub struct ExactVolumes {
    driver: SharedDriver,
    job: JobId,
    /// Whether volumes are directories of this machine, whose files this process may have.
    directories: bool,
    /// The program, where the driver's own calls are not exact.
    program: Option<&'static [u8]>,
    /// Held while the image is imported: of several that miss it one does.
    importing: Arc<tokio::sync::Mutex<()>>,
}

impl ExactVolumes {
    /// Exact transfers on `driver`, of what belongs to `job`. Nothing is made yet.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where neither the driver's own calls are exact nor the program can be run: the engine
    /// lacks [`exec`](Capabilities::exec) or [`import_image`](Capabilities::import_image), it runs on another
    /// architecture than this process, or this process was built without the program.
    pub fn new(driver: SharedDriver, job: JobId) -> Result<Self> {
        let info = driver.info();
        let unsupported = |why: String| {
            Error::new(ErrorKind::Unsupported, format!("{why}, and its own archive calls lose metadata"))
                .with_hint("keep the volume where it is, or use an engine whose volumes are read exactly; `orchestra doctor` lists what it can do")
        };
        let program = if info.capabilities.exact_volumes {
            None
        } else {
            if let Some(missing) = Self::missing(&info.capabilities) {
                return Err(unsupported(missing));
            }
            let program = image::program(&info.platform).ok_or_else(|| {
                unsupported(format!(
                    "the engine runs on {}, for which this process has no program to read volumes by",
                    info.platform
                ))
            })?;
            Some(program)
        };
        Ok(Self {
            directories: info.capabilities.volume_directories && directory::has_all_rights(),
            driver,
            job,
            program,
            importing: Arc::default(),
        })
    }

    /// The same, but never past the engine: by the driver's own calls or by the program, even where a volume is a directory that
    /// this process may read.
    #[must_use]
    pub fn through_engine(mut self) -> Self {
        self.directories = false;
        self
    }

    /// What an engine with these capabilities lacks; `None` if exact transfers need no more.
    #[must_use]
    pub fn missing(capabilities: &Capabilities) -> Option<String> {
        let needed = [("exec", capabilities.exec), ("import_image", capabilities.import_image)];
        let missing: Vec<&str> = needed.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect();
        if capabilities.exact_volumes || missing.is_empty() {
            return None;
        }
        Some(format!("the engine lacks {}", missing.join(", ")))
    }

    /// Unpacks a tar into the volume's directory `path`, which must exist, as [`Driver::write_volume`](orchestra::Driver::write_volume)
    /// does, with everything that is in it. Fails where the engine's kernel or confinement forbids some of it; what was
    /// unpacked until then stays.
    ///
    /// # Errors
    /// Those of [`Driver::write_volume`](orchestra::Driver::write_volume), and those of making a container.
    pub async fn write(&self, volume: &VolumeId, path: &VolumePath, tar: ByteStream) -> Result<()> {
        match self.way(volume).await? {
            Way::Directory(directory) => directory::write(directory, path.clone(), tar).await,
            Way::Program(program) => self
                .unpack(program, volume, &["unpack-tree", ROOT, path.as_str()], tar)
                .await
                .map(drop),
            Way::Driver => self.driver.write_volume(volume, path, tar).await,
        }
    }

    /// [Writes](Self::write) to the whole of a volume, and says what it then is, for [`read_unless`](Self::read_unless):
    /// `None` where it took the driver's own calls, which don't tell.
    ///
    /// # Errors
    /// Those of [`write`](Self::write).
    pub async fn fill(&self, volume: &VolumeId, tar: ByteStream) -> Result<Option<Known>> {
        match self.way(volume).await? {
            Way::Directory(directory) => directory::fill(directory, tar).await.map(Some),
            Way::Program(program) => {
                let said = self.unpack(program, volume, &["fill-tree", ROOT], tar).await?;
                Ok(Some(Known::as_a_whole(said.trim())))
            }
            Way::Driver => {
                self.driver.write_volume(volume, &VolumePath::root(), tar).await?;
                Ok(None)
            }
        }
    }

    /// The volume as a directory of this machine, where it is one that this process may read: what is read of it so costs least.
    ///
    /// # Errors
    /// Those of [`Driver::volume_directory`](orchestra::Driver::volume_directory).
    pub async fn tree(&self, volume: &VolumeId) -> Result<Option<Tree>> {
        Ok(match self.way(volume).await? {
            Way::Directory(directory) => Some(self.tree_in(volume, directory)),
            _ => None,
        })
    }

    fn tree_in(&self, volume: &VolumeId, directory: VolumeDirectory) -> Tree {
        let (driver, volume) = (self.driver.clone(), volume.clone());
        Tree {
            driver,
            volume,
            directory,
        }
    }

    /// How what is in a volume is reached.
    async fn way(&self, volume: &VolumeId) -> Result<Way> {
        if self.directories
            && let Some(directory) = self.driver.volume_directory(volume).await?
            && directory::is_writable(directory.as_ref()).await
        {
            return Ok(Way::Directory(directory));
        }
        Ok(self.program.map_or(Way::Driver, Way::Program))
    }

    /// Unpacks by a command of the program. What that says on its output.
    async fn unpack(
        &self,
        program: &'static [u8],
        volume: &VolumeId,
        command: &[&str],
        tar: ByteStream,
    ) -> Result<String> {
        let transfer = self.start(program, volume, false).await?;
        let (tar, failure) = watched(tar);
        // The program reads its input to the end whatever happens; what it complains of makes the rest useless.
        let (complained, complaint) = oneshot::channel::<()>();
        let (tar, mut complained) = (tar.take_until(complaint).boxed(), Some(complained));
        let written = async {
            let mut events = transfer.exec(command, Some(tar)).await?;
            let (mut outcome, mut said) = (Outcome::default(), String::new());
            while let Some(event) = events.next().await {
                if let Some(bytes) = outcome.take(event?)
                    && said.len() < MAX_MESSAGE
                {
                    said.push_str(&String::from_utf8_lossy(&bytes));
                }
                if !outcome.message.is_empty() {
                    complained.take();
                }
            }
            outcome.done().map(|()| said)
        };
        let written = written.await;
        transfer.remove().await;
        // A tar that fails ends the program's input, and what it says of that is of no interest.
        match failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => written,
        }
    }

    /// Packs files and directories of a volume into one tar, as [`Driver::read_volume`](orchestra::Driver::read_volume) does, with
    /// everything that the kernel keeps of them. Sockets are left out.
    ///
    /// # Errors
    /// Those of [`Driver::read_volume`](orchestra::Driver::read_volume), and those of making a container.
    pub async fn read(&self, volume: &VolumeId, paths: &[VolumePath]) -> Result<ByteStream> {
        match self.way(volume).await? {
            Way::Directory(directory) => {
                let tree = self.tree_in(volume, directory.clone());
                Ok(tree.while_there(directory::read(directory, VolumePath::outermost(paths))))
            }
            Way::Program(program) => {
                let packing = self.pack(program, volume, &["pack-tree", ROOT], paths).await?;
                Ok(packing.tar())
            }
            Way::Driver => self.driver.read_volume(volume, paths).await,
        }
    }

    /// The same, unless the volume is what it was when it was [filled](Self::fill): then `None`, and none of its files was
    /// opened. One that is a directory of this machine is read in any case: its [`Tree`] can be [compared](Tree::compare).
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub async fn read_unless(
        &self,
        volume: &VolumeId,
        paths: &[VolumePath],
        filled: Arc<Known>,
    ) -> Result<Option<ByteStream>> {
        let program = match self.way(volume).await? {
            Way::Program(program) => program,
            _ => return self.read(volume, paths).await.map(Some),
        };
        let command = ["pack-tree-unless", filled.fingerprint(), ROOT];
        let mut packing = self.pack(program, volume, &command, paths).await?;
        packing.begin().await;
        if packing.outcome.exit == Some(ExitStatus::Code(exit::UNCHANGED)) {
            packing.transfer.remove().await;
            return Ok(None);
        }
        Ok(Some(packing.tar()))
    }

    async fn pack(
        &self,
        program: &'static [u8],
        volume: &VolumeId,
        command: &[&str],
        paths: &[VolumePath],
    ) -> Result<Packing> {
        let transfer = self.start(program, volume, true).await?;
        let paths = VolumePath::outermost(paths);
        let command: Vec<&str> = command
            .iter()
            .copied()
            .chain(paths.iter().map(|path| path.as_str()))
            .collect();
        match transfer.exec(&command, None).await {
            Ok(events) => Ok(Packing {
                transfer,
                events,
                outcome: Outcome::default(),
                first: None,
            }),
            Err(error) => {
                transfer.remove().await;
                Err(error)
            }
        }
    }

    /// A running container with the volume mounted.
    async fn start(&self, program: &'static [u8], volume: &VolumeId, read_only: bool) -> Result<Transfer> {
        let name = Name::new(format!("{TRANSFER}{}", JobId::unique()))?;
        let spec = self.spec(&name, volume, read_only)?;
        // Before the container: from the call on there may be one to remove.
        let transfer = Transfer {
            driver: self.driver.clone(),
            container: self.job.container(&name, 1),
            removed: false,
        };
        let started = async {
            let mut attempt = 1;
            loop {
                match self.driver.create_container(&transfer.container, &spec).await {
                    Err(error) if error.kind() == ErrorKind::ImageNotFound && attempt <= ATTEMPTS => {
                        attempt += 1;
                        self.import(program, &spec.image, &spec.labels).await?;
                    }
                    created => {
                        created?;
                        break;
                    }
                }
            }
            self.driver.start_container(&transfer.container, None).await
        };
        match started.await {
            Ok(()) => Ok(transfer),
            Err(error) => {
                transfer.remove().await;
                Err(error)
            }
        }
    }

    async fn import(&self, program: &'static [u8], image: &ImageRef, labels: &Labels) -> Result<()> {
        let _one = self.importing.lock().await;
        if self.driver.image_exists(image).await? {
            return Ok(());
        }
        let platform = &self.driver.info().platform;
        let open = || std::future::ready(Ok(image::archive(program, platform, labels)));
        import_archive(&*self.driver, image, open).await
    }

    fn spec(&self, name: &Name, volume: &VolumeId, read_only: bool) -> Result<ContainerSpec> {
        let capabilities = &self.driver.info().capabilities;
        let mut spec = ContainerSpec::new(ImageRef::new(format!("{IMAGE}:{}", self.job))?);
        spec.entrypoint = Some([image::PROGRAM, "idle"].map(str::to_owned).to_vec());
        spec.mounts.push(Mount {
            volume: volume.clone(),
            target: ContainerPath::new(ROOT)?,
            read_only,
        });
        if capabilities.no_network {
            spec.network = NetworkMode::None;
        }
        if capabilities.kernel_capabilities {
            spec.cap_drop.push("ALL".parse()?);
            for capability in KERNEL_CAPABILITIES {
                spec.cap_add.push(capability.parse()?);
            }
        }
        spec.security.no_new_privileges = capabilities.no_new_privileges;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        spec.labels = Labels::from([
            (labels::JOB.to_owned(), self.job.to_string()),
            (labels::NAME.to_owned(), name.to_string()),
            (labels::RUNNER.to_owned(), Runner::current().to_string()),
            (labels::CREATED.to_owned(), created.as_secs().to_string()),
            (labels::OUTPUT.to_owned(), labels::OUTPUT_CONTENT.to_owned()),
        ]);
        Ok(spec)
    }
}

/// A way into a volume and out of it that loses nothing.
enum Way {
    /// Its directory on this machine.
    Directory(VolumeDirectory),
    /// The program, in a container.
    Program(&'static [u8]),
    /// The driver's own calls.
    Driver,
}

/// A volume that is being read.
struct Packing {
    transfer: Transfer,
    events: ExecStream,
    outcome: Outcome,
    /// What came while it was [begun](Self::begin).
    first: Option<Result<bytes::Bytes>>,
}

impl Packing {
    /// Waits for the first piece of the tar, or for the program's end.
    async fn begin(&mut self) {
        while self.first.is_none() && self.outcome.exit.is_none() {
            match self.events.next().await {
                Some(Ok(event)) => self.first = self.outcome.take(event).map(Ok),
                Some(Err(error)) => self.first = Some(Err(error)),
                None => return,
            }
        }
    }

    fn tar(self) -> ByteStream {
        let Self {
            transfer,
            mut events,
            mut outcome,
            first,
        } = self;
        tar::pipe(move |sink| async move {
            let mut last = None;
            let packed = async {
                last = first.transpose()?;
                while let Some(event) = events.next().await {
                    if let Some(bytes) = outcome.take(event?)
                        && let Some(before) = last.replace(bytes)
                    {
                        sink.send(before).await?;
                    }
                }
                outcome.done()
            };
            let packed = packed.await;
            transfer.remove().await;
            packed?;
            // Last, because who has read the tar's end need not read on to the stream's, and may remove the volume then.
            match last {
                Some(last) => sink.send(last).await,
                None => Ok(()),
            }
        })
    }
}

/// A container that waits for what is executed in it. It is removed when this is dropped, at the latest.
#[derive(Debug)]
struct Transfer {
    driver: SharedDriver,
    container: ContainerId,
    removed: bool,
}

impl Transfer {
    async fn exec(&self, arguments: &[&str], stdin: Option<ByteStream>) -> Result<ExecStream> {
        let command = std::iter::once(&image::PROGRAM)
            .chain(arguments)
            .map(|word| (*word).to_owned());
        self.driver.exec(&self.container, &ExecSpec::new(command), stdin).await
    }

    async fn remove(mut self) {
        remove(&self.driver, &self.container).await;
        // Not before: who drops this call in the middle leaves the rest to `drop`.
        self.removed = true;
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        // Without a runtime the program is at its end, and the label is left to tell.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (driver, container) = (self.driver.clone(), self.container.clone());
            runtime.spawn(async move { remove(&driver, &container).await });
        }
    }
}

/// What it fails to remove carries the job's label: the job's end removes it.
async fn remove(driver: &SharedDriver, container: &ContainerId) {
    if let Err(error) = driver.remove_container(container).await {
        tracing::warn!(%container, %error, "a container that a volume was read by could not be removed");
    }
}

/// What the program said besides the tar.
#[derive(Default)]
struct Outcome {
    message: BytesMut,
    exit: Option<ExitStatus>,
}

impl Outcome {
    /// Keeps what tells of the end, and hands back what is of the tar.
    fn take(&mut self, event: ExecEvent) -> Option<bytes::Bytes> {
        match event {
            ExecEvent::Output(chunk) if chunk.stream == OutputStream::Stdout => return Some(chunk.bytes),
            ExecEvent::Output(chunk) => {
                let room = MAX_MESSAGE - self.message.len();
                self.message
                    .extend_from_slice(&chunk.bytes[..chunk.bytes.len().min(room)]);
            }
            ExecEvent::Exit(exit) => self.exit = Some(exit),
            _ => {}
        }
        None
    }

    fn done(&self) -> Result<()> {
        let message = String::from_utf8_lossy(&self.message).trim().to_owned();
        let Some(status) = self.exit else {
            let message = "the engine did not tell how the program ended that reads volumes";
            return Err(Error::new(ErrorKind::Protocol, message));
        };
        let kind = match status {
            ExitStatus::Code(0) => return Ok(()),
            ExitStatus::Code(code) => match code {
                exit::NOT_FOUND => ErrorKind::PathNotFound,
                exit::INVALID => ErrorKind::InvalidInput,
                exit::DISK_FULL => ErrorKind::DiskFull,
                exit::IO => ErrorKind::Io,
                _ => ErrorKind::Engine,
            },
            _ => ErrorKind::Interrupted,
        };
        if message.is_empty() {
            let message = format!("the program that reads and writes volumes ended with {status}");
            return Err(Error::new(kind, message));
        }
        Err(Error::new(kind, message))
    }
}

/// Keeps aside what the stream fails with: the engine need not tell it.
fn watched(tar: ByteStream) -> (ByteStream, Arc<Mutex<Option<Error>>>) {
    let failure: Arc<Mutex<Option<Error>>> = Arc::default();
    let slot = failure.clone();
    let tar = tar.map(move |item| {
        item.map_err(|error| {
            let again = Error::new(error.kind(), error.message());
            slot.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            again
        })
    });
    (tar.boxed(), failure)
}
