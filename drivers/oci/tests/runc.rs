//! Runtime specs, run: what a container sees of what was asked for. It takes root and runc.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

#[path = "support/given.rs"]
mod given;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use given::is_given;
use oci_spec::image::{Config, ImageConfiguration};
use oci_spec::runtime::Spec;
use orchestra::{
    ContainerPath, ContainerSpec, Cpus, ErrorKind, ExecSpec, Mount, NetworkMode, Profile, Tmpfs, Ulimit, VolumeId,
};
use orchestra_oci::spec::{CgroupVersion, Host, SpecInput, exec_process, image_volumes, runtime_spec, user_of};
use orchestra_oci::users::resolve_user;

/// A bundle whose root has a busybox and the usual files.
struct Bundle {
    dir: tempfile::TempDir,
    image: ImageConfiguration,
    host: Host,
    volumes: BTreeMap<VolumeId, PathBuf>,
}

impl Bundle {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "var"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        fs::copy(busybox.unwrap(), root.join("bin/busybox")).unwrap();
        let names = Command::new(busybox.unwrap()).arg("--list").output().unwrap().stdout;
        for name in String::from_utf8(names)
            .unwrap()
            .lines()
            .filter(|name| *name != "busybox")
        {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nbuild:x:1000:1000::/home/build:/bin/sh\n",
        )
        .unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nbuild:x:1000:\nwheel:x:10:build\n").unwrap();
        let mut config = Config::default();
        config.set_env(Some(vec![
            "PATH=/bin".to_owned(),
            "FROM=image".to_owned(),
            "KEPT=yes".to_owned(),
        ]));
        config.set_cmd(Some(vec!["sh".to_owned()]));
        let mut image = ImageConfiguration::default();
        image.set_config(Some(config));
        Self {
            dir,
            image,
            host: Host::of_process(None).unwrap(),
            volumes: BTreeMap::new(),
        }
    }

    fn spec(&self, container: &ContainerSpec) -> orchestra::Result<Spec> {
        container.validate()?;
        let root = self.dir.path().join("rootfs");
        runtime_spec(&SpecInput {
            container,
            image: &self.image,
            rootfs: Path::new("rootfs"),
            user: resolve_user(&root, user_of(container, &self.image))?,
            volumes: self.volumes.clone(),
            image_volumes: BTreeMap::new(),
            hostname: "inside",
            netns: None,
            cgroup: &self.cgroup(),
            etc: BTreeMap::new(),
            host: &self.host,
        })
    }

    /// Of one level: runc removes no more than that.
    fn cgroup(&self) -> PathBuf {
        let name = self.dir.path().file_name().unwrap().to_string_lossy();
        PathBuf::from(format!("/orchestra-test-{name}"))
    }

    fn run_spec(&self, spec: &Spec) -> Output {
        fs::write(self.dir.path().join("config.json"), serde_json::to_vec(spec).unwrap()).unwrap();
        let id = self.dir.path().file_name().unwrap().to_str().unwrap().replace('.', "t");
        Command::new("runc")
            .arg("--root")
            .arg(self.dir.path().join("state"))
            .args(["run", "--bundle"])
            .arg(self.dir.path())
            .arg(id)
            .output()
            .unwrap()
    }

    fn run(&self, container: &ContainerSpec) -> String {
        let output = self.run_spec(&self.spec(container).unwrap());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn shell(script: &str) -> ContainerSpec {
    let mut spec = ContainerSpec::new("busybox".parse().unwrap());
    spec.entrypoint = Some(["sh", "-c", script].map(str::to_owned).to_vec());
    // What is tested elsewhere needs a network of the machine.
    spec.network = NetworkMode::None;
    spec
}

fn status(bundle: &Bundle, container: &ContainerSpec, field: &str) -> String {
    let mut container = container.clone();
    container.entrypoint = Some(["cat", "/proc/self/status"].map(str::to_owned).to_vec());
    let seen = bundle.run(&container);
    let line = seen
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

fn effective(bundle: &Bundle, container: &ContainerSpec) -> u64 {
    u64::from_str_radix(&status(bundle, container, "CapEff"), 16).unwrap()
}

/// docker's default set, as `capsh --decode=00000000a80425fb` spells it.
const DEFAULT: u64 = 0xa804_25fb;

#[test]
fn a_process_has_dockers_capabilities_and_what_is_added_and_taken() {
    if !is_given() {
        return;
    }
    let bundle = Bundle::new();
    let mut container = shell("");
    assert_eq!(effective(&bundle, &container), DEFAULT);
    container.cap_drop = vec!["CHOWN".parse().unwrap()];
    assert_eq!(effective(&bundle, &container), DEFAULT & !1);
    container.cap_drop = vec!["ALL".parse().unwrap()];
    assert_eq!(effective(&bundle, &container), 0);
    container.cap_add = vec!["NET_ADMIN".parse().unwrap()];
    assert_eq!(effective(&bundle, &container), 1 << 12);
    container.cap_drop.clear();
    assert_eq!(effective(&bundle, &container), DEFAULT | 1 << 12);
    container.cap_add = vec!["ALL".parse().unwrap()];
    assert_eq!(effective(&bundle, &container), bundle.host.bounding);
    container.privileged = true;
    assert_eq!(effective(&bundle, &container), bundle.host.bounding);
}

#[test]
fn system_calls_are_filtered_as_asked() {
    if !is_given() {
        return;
    }
    let bundle = Bundle::new();
    let mut container = shell("mkdir /made && echo made || echo refused");
    assert_eq!(status(&bundle, &container, "Seccomp"), "2");
    assert_eq!(bundle.run(&container), "made\n");
    let profile =
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    container.security.seccomp = Profile::Custom(profile.to_owned());
    container.working_dir = Some(ContainerPath::new("/").unwrap());
    assert_eq!(bundle.run(&container), "refused\n");
    container.security.seccomp = Profile::Unconfined;
    assert_eq!(status(&bundle, &container, "Seccomp"), "0");
    container.security.seccomp = Profile::Default;
    container.privileged = true;
    assert_eq!(status(&bundle, &container, "Seccomp"), "0");
    // What only the capability opens: a namespace of one's own.
    let container = shell("unshare -m true && echo free || echo refused");
    assert_eq!(bundle.run(&container), "refused\n");
}

#[test]
fn users_environment_and_directories_are_as_asked() {
    if !is_given() {
        return;
    }
    let bundle = Bundle::new();
    let mut container = shell("id; pwd; env; hostname");
    container.user = Some("build".parse().unwrap());
    container.working_dir = Some(ContainerPath::new("/made/deep").unwrap());
    container.env = [("FROM", "spec"), ("OWN", "a=b\nc")].into_iter().collect();
    let seen = bundle.run(&container);
    for line in [
        "uid=1000(build) gid=1000(build) groups=10(wheel),1000(build)",
        "/made/deep",
        "FROM=spec",
        "KEPT=yes",
        "OWN=a=b",
        "PATH=/bin",
        "HOME=/home/build",
        "HOSTNAME=inside",
        "inside",
    ] {
        assert!(seen.lines().any(|seen| seen == line), "{line} in {seen}");
    }
    container.user = Some("1234:5678".parse().unwrap());
    assert!(bundle.run(&container).starts_with("uid=1234 gid=5678 groups=5678\n"));
}

#[test]
fn limits_are_the_cgroups_and_the_process_own() {
    if !is_given() {
        return;
    }
    let bundle = Bundle::new();
    let mut container = shell(
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/cpu*/cpu.cfs_quota_us | sort -u; \
         cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max; ulimit -Sn; ulimit -Hn; df -k /dev/shm | tail -1; df -k /t | tail -1",
    );
    container.limits.memory = Some(96 << 20);
    container.limits.pids = Some(77);
    container.limits.cpus = Some("0.5".parse::<Cpus>().unwrap());
    container.limits.shm_size = Some(24 << 20);
    container.limits.ulimits = vec![Ulimit {
        name: "nofile".to_owned(),
        soft: 512,
        hard: 1024,
    }];
    container.tmpfs = vec![Tmpfs {
        target: ContainerPath::new("/t").unwrap(),
        size: Some(8 << 20),
    }];
    let seen = bundle.run(&container);
    let quota = match bundle.host.cgroups {
        CgroupVersion::V1 => "50000",
        CgroupVersion::V2 => "50000 100000",
    };
    for line in ["100663296", "77", quota, "512", "1024"] {
        assert!(seen.lines().any(|seen| seen == line), "{line} in {seen}");
    }
    let sizes: Vec<&str> = seen.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert!(sizes.contains(&"24576") && sizes.contains(&"8192"), "{seen}");
}

#[test]
fn the_machine_is_hidden_unless_privileged() {
    if !is_given() {
        return;
    }
    let bundle = Bundle::new();
    let script = "(echo other > /proc/sys/kernel/hostname) 2>/dev/null && echo writable; mount | grep -c ' /sys .*ro,'; wc -c < /proc/timer_list; \
                  mount -t tmpfs none /tmp && echo mounted; \
                  mount | grep -q ' /sys/fs/cgroup' && echo cgroups; true";
    let seen = bundle.run(&shell(script));
    assert!(!seen.contains("writable") && !seen.contains("mounted"), "{seen}");
    assert!(seen.starts_with("1\n0\n") && seen.contains("cgroups"), "{seen}");
    let mut container = shell(script);
    container.privileged = true;
    let free = bundle.run(&container);
    for allowed in ["writable", "mounted", "cgroups"] {
        assert!(free.lines().any(|line| line == allowed), "{free}");
    }
    let devices = |container: &ContainerSpec| {
        let spec = bundle.spec(container).unwrap();
        let devices = spec.linux().as_ref().and_then(|linux| linux.devices().clone());
        let paths = devices
            .unwrap_or_default()
            .into_iter()
            .map(|device| device.path().clone());
        paths.collect::<std::collections::BTreeSet<_>>()
    };
    // One that every machine has, and no container gets of its own.
    let own = Path::new("/dev/kmsg");
    assert!(
        own.exists() && devices(&container).contains(own),
        "{:?}",
        devices(&container)
    );
    assert!(!devices(&shell(script)).contains(own));
}

#[test]
fn volumes_are_mounted_where_they_are_to_stand() {
    if !is_given() {
        return;
    }
    let mut bundle = Bundle::new();
    let id = VolumeId::new("v").unwrap();
    let path = bundle.dir.path().join("volume");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("file"), "content\n").unwrap();
    let mut container = shell(
        "cat in/file; echo new > in/file; cat in/file; cat /other/file; touch /other/x 2>/dev/null || echo refused",
    );
    container.working_dir = Some(ContainerPath::new("/work").unwrap());
    for (target, read_only) in [("in", false), ("/other", true)] {
        container.mounts.push(Mount {
            volume: id.clone(),
            target: ContainerPath::new(target).unwrap(),
            read_only,
        });
    }
    assert_eq!(bundle.spec(&container).unwrap_err().kind(), ErrorKind::VolumeNotFound);
    bundle.volumes.insert(id, path);
    assert_eq!(bundle.run(&container), "content\nnew\nnew\nrefused\n");
}

#[test]
fn no_new_privileges_is_seen_by_the_kernel_where_it_is_asked_for() {
    if !is_given() {
        return;
    }
    let bundle = Bundle::new();
    let mut container = shell("");
    assert_eq!(status(&bundle, &container, "NoNewPrivs"), "0");
    container.security.no_new_privileges = true;
    assert_eq!(status(&bundle, &container, "NoNewPrivs"), "1");
}

#[test]
fn the_host_network_is_the_machines_and_others_are_not() {
    if !is_given() {
        return;
    }
    let bundle = Bundle::new();
    let own = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    let mut container = shell(
        "readlink /proc/self/ns/net; hostname; grep -v -e face -e Inter -e tun -e sit /proc/net/dev | cut -d: -f1",
    );
    let seen = bundle.run(&container);
    assert!(
        !seen.contains(&own) && seen.contains("\ninside\n") && seen.contains("lo"),
        "{seen}"
    );
    container.network = NetworkMode::Host;
    let seen = bundle.run(&container);
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert!(seen.starts_with(&format!("{own}\n{hostname}\n")), "{seen}");
}

#[test]
fn what_cannot_run_is_refused_with_the_reason() {
    let bundle = Bundle::new();
    let refused = |set: &dyn Fn(&mut ContainerSpec)| {
        let mut container = shell("true");
        set(&mut container);
        let error = bundle.spec(&container).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        error.message().to_owned()
    };
    let ulimit = |name: &str, soft, hard| Ulimit {
        name: name.to_owned(),
        soft,
        hard,
    };
    assert!(
        refused(&|spec| spec.limits.ulimits = vec![ulimit("nofiles", 1, 1)]).contains("no resource limit \"nofiles\"")
    );
    assert!(refused(&|spec| spec.limits.ulimits = vec![ulimit("nofile", 2, 1)]).contains("over its hard one"));
    assert!(refused(&|spec| spec.cap_add = vec!["FLY".parse().unwrap()]).contains("no kernel capability FLY"));
    assert!(refused(&|spec| spec.limits.memory = Some(4096)).contains("too small"));
    assert!(refused(&|spec| spec.user = Some("nobody-there".parse().unwrap())).contains("no user nobody-there"));
    assert!(refused(&|spec| spec.security.seccomp = Profile::Custom("{".to_owned())).contains("seccomp profile"));

    let mut bounded = Bundle::new();
    bounded.host.bounding &= !(1 << 24);
    bounded.host.hard_limits.insert("nofile".to_owned(), 20_000);
    let mut container = shell("true");
    container.limits.ulimits = vec![ulimit("nofile", 1024, 30_000)];
    assert!(bounded.spec(&container).unwrap_err().message().contains("over 20000"));
    container.limits.ulimits = vec![ulimit("nofile", 1024, 20_000)];
    assert!(bounded.spec(&container).is_ok());
    container.cap_add = vec!["SYS_RESOURCE".parse().unwrap()];
    assert!(
        bounded
            .spec(&container)
            .unwrap_err()
            .message()
            .contains("CAP_SYS_RESOURCE can't be added")
    );
    // Privileged is all that there is, whatever that is.
    container.privileged = true;
    assert!(bounded.spec(&container).is_ok());
}

#[test]
fn entry_point_and_command_are_the_images_until_they_are_replaced() {
    let mut bundle = Bundle::new();
    let words = |text: &str| Some(text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    for (of_image, of_spec, wanted) in [
        ((None, words("sh -l")), (None, None), "sh -l"),
        ((words("/init"), words("a b")), (None, None), "/init a b"),
        ((words("/init"), words("a b")), (None, words("c")), "/init c"),
        ((words("/init"), words("a b")), (None, Some(vec![])), "/init a b"),
        ((words("/init"), words("a b")), (words("/own"), None), "/own"),
        ((words("/init"), words("a b")), (words("/own"), words("c")), "/own c"),
        ((None, None), (None, words("c d")), "c d"),
    ] {
        let mut config = Config::default();
        config.set_entrypoint(of_image.0).set_cmd(of_image.1);
        bundle.image.set_config(Some(config));
        let mut container = shell("");
        (container.entrypoint, container.command) = of_spec;
        let spec = bundle.spec(&container).unwrap();
        assert_eq!(*spec.process().as_ref().unwrap().args(), words(wanted));
    }
    bundle.image.set_config(None);
    let mut container = shell("");
    container.entrypoint = None;
    assert!(
        bundle
            .spec(&container)
            .unwrap_err()
            .message()
            .contains("nothing to run")
    );
}

#[test]
fn an_exec_has_the_containers_own_until_it_says_otherwise() {
    let bundle = Bundle::new();
    let mut container = shell("true");
    container.env = [("A", "1"), ("B", "2")].into_iter().collect();
    container.security.no_new_privileges = true;
    let spec = bundle.spec(&container).unwrap();
    let mut exec = ExecSpec::new(["id"]);
    exec.env = [("B", "3")].into_iter().collect();
    exec.working_dir = Some(ContainerPath::new("/tmp").unwrap());
    let user = resolve_user(&bundle.dir.path().join("rootfs"), "build").unwrap();
    let process = exec_process(&spec, &exec, Some(&user)).unwrap();
    let env = process.env().clone().unwrap();
    assert!(env.contains(&"A=1".to_owned()) && env.contains(&"B=3".to_owned()) && !env.contains(&"B=2".to_owned()));
    assert_eq!((process.cwd().to_str(), process.user().uid()), (Some("/tmp"), 1000));
    assert_eq!(process.no_new_privileges(), Some(true));
    assert!(exec_process(&spec, &ExecSpec::new([""]), None).is_err());
}

#[test]
fn volumes_of_the_image_are_those_that_nothing_is_mounted_at() {
    let mut config = Config::default();
    config.set_volumes(Some(
        ["/data", "/logs/", "relative", "/", "/../up"]
            .map(str::to_owned)
            .to_vec(),
    ));
    let mut image = ImageConfiguration::default();
    image.set_config(Some(config));
    let mut container = shell("true");
    container.tmpfs = vec![Tmpfs {
        target: ContainerPath::new("/logs").unwrap(),
        size: None,
    }];
    assert_eq!(
        image_volumes(&container, &image),
        [ContainerPath::new("/data").unwrap()]
    );
}
