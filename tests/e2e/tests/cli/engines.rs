//! Which engine is taken, and what is said of those that are not.
//!
//! The engine under test is one of the known ones; the others are not there, or a stub answers as they would.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use orchestra_e2e::{Dir, Fixture, KnownDriver, Orchestra, OwnEngine, Purpose, Stub, proxy};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{assert_says, pipeline, task, tests};

tests![
    auto_takes_the_engine_that_answers_and_says_which,
    auto_is_a_setting_like_others,
    auto_tells_what_it_tried_where_no_engine_answers,
    auto_does_not_pass_over_a_host_that_makes_no_sense,
    an_engine_that_someone_has_placed_goes_before_one_that_is_only_there,
    the_socket_of_another_engine_is_recognised,
    an_engine_that_is_too_old_is_told_what_is_needed,
    a_server_that_is_no_engine_is_not_taken_for_one,
    a_server_that_speaks_no_http_is_told_as_one,
    an_engine_is_reached_by_tcp,
    an_ordinary_users_own_engine_is_found_where_its_clients_look,
    a_daemon_that_dies_under_a_run_ends_it_and_says_what_to_do,
    doctor_names_what_networks_lack,
];

/// A command that knows the engine under test by its own variable, and no other.
fn alone(fixture: &Fixture, dir: &Dir, args: &[&str]) -> Orchestra {
    let mut command = fixture.orchestra(args).any_driver().dir(dir.path());
    for known in KnownDriver::ALL {
        command = command.env(known.host().0, nowhere(dir));
    }
    command.env(fixture.host_variable, fixture.host())
}

fn nowhere(dir: &Dir) -> String {
    format!("unix://{}", dir.file("nowhere.sock").display())
}

fn hello(fixture: &Fixture) -> Dir {
    pipeline([task(fixture, "hello", "echo hello")])
}

/// The drivers of other engines than the one under test.
fn others(fixture: &Fixture) -> impl Iterator<Item = KnownDriver> {
    let own = fixture.driver.clone();
    KnownDriver::ALL.into_iter().filter(move |known| known.name() != own)
}

fn auto_takes_the_engine_that_answers_and_says_which(fixture: &Fixture) {
    let dir = hello(fixture);
    let finished = alone(fixture, &dir, &["run", "p.yml", "--driver", "auto"]).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["hello | hello\n"]);
    let taken = format!("auto took {} ", fixture.driver);
    assert!(
        finished.stderr.contains(&taken) && finished.stderr.contains(&fixture.host()),
        "{finished}"
    );
    // Who has placed an engine that does not answer is told so, and the answer is still nothing but the answer.
    let finished = alone(fixture, &dir, &["doctor", "--json", "--driver", "auto"]).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_eq!(finished.events().expect("JSON")[0]["engine"]["driver"], fixture.driver);
    for other in others(fixture) {
        let told = finished.stderr.find(&format!("auto passes over {}: ", other.name()));
        // Only those that come before the one that is taken are tried.
        assert!(
            told.is_some() || position(&fixture.driver) < position(other.name()),
            "{finished}"
        );
    }
}

fn position(driver: &str) -> Option<usize> {
    KnownDriver::ALL.iter().position(|known| known.name() == driver)
}

fn auto_is_a_setting_like_others(fixture: &Fixture) {
    let dir = hello(fixture);
    let finished = alone(fixture, &dir, &["run", "p.yml"])
        .env("ORCHESTRA_DRIVER", "auto")
        .run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["auto took"]);
    dir.write("orchestra.toml", "driver = 'auto'");
    let finished = alone(fixture, &dir, &["run", "p.yml"]).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["auto took"]);
}

fn auto_tells_what_it_tried_where_no_engine_answers(fixture: &Fixture) {
    let dir = hello(fixture);
    let command = alone(fixture, &dir, &["run", "p.yml", "--driver", "auto"]);
    let finished = command.env(fixture.host_variable, nowhere(&dir)).run();
    assert_eq!(finished.code, 3, "{finished}");
    assert_says(&finished, &["no engine answers", "hint: start one"]);
    for known in KnownDriver::ALL {
        let (name, variable) = (known.name(), known.host().0);
        assert_says(&finished, &[&format!("\n  {name}: connect: unreachable: "), variable]);
    }
    assert_says(&finished, &[&format!("endpoint={}", nowhere(&dir))]);
}

fn auto_does_not_pass_over_a_host_that_makes_no_sense(fixture: &Fixture) {
    let dir = hello(fixture);
    let command = alone(fixture, &dir, &["run", "p.yml", "--driver", "auto"]);
    let finished = command.env(KnownDriver::ALL[0].host().0, "nonsense").run();
    assert_eq!(finished.code, 2, "{finished}");
    assert_says(&finished, &["nonsense", "unix:///PATH"]);
}

fn an_engine_that_someone_has_placed_goes_before_one_that_is_only_there(fixture: &Fixture) {
    let dir = hello(fixture);
    let key = KnownDriver::chosen().expect("a driver").host_key();
    dir.write(
        "orchestra.toml",
        format!("driver = 'auto'\n[{}]\n{key} = '{}'", fixture.driver, fixture.host()),
    );
    let mut command = fixture.orchestra(["run", "p.yml"]).any_driver().dir(dir.path());
    for known in KnownDriver::ALL {
        command = command.env(known.host().0, "");
    }
    let finished = command.run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &[&format!("auto took {} ", fixture.driver)]);
    assert!(!finished.all().contains("passes over"), "{finished}");
}

fn the_socket_of_another_engine_is_recognised(fixture: &Fixture) {
    let dir = hello(fixture);
    for other in others(fixture) {
        let command = alone(fixture, &dir, &["run", "p.yml", "--driver", other.name()]);
        let finished = command.env(other.host().0, fixture.host()).run();
        assert_eq!(finished.code, 2, "{finished}");
        let told = format!("{} answers here, not {}", fixture.driver, other.name());
        assert_says(
            &finished,
            &[&told, &fixture.host(), &format!("`--driver {}`", fixture.driver)],
        );
    }
    // To `auto` it is no engine of that kind, and another one's may be the right one.
    let mut command = alone(fixture, &dir, &["run", "p.yml", "--driver", "auto"]);
    for other in others(fixture) {
        command = command.env(other.host().0, fixture.host());
    }
    let finished = command.run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &[&format!("auto took {} ", fixture.driver)]);
}

/// What docker 19.03 and podman 3.4 say of themselves.
fn old(path: &str) -> (u16, &'static str, &'static str) {
    match path {
        "/_ping" => (
            200,
            "Libpod-API-Version: 3.4.4\r\nServer: Libpod/3.4.4 (linux)\r\n",
            "OK",
        ),
        path if path.ends_with("/version") => (
            200,
            "Content-Type: application/json\r\nServer: Docker/19.03.15 (linux)\r\nApi-Version: 1.40\r\n",
            r#"{"Version":"19.03.15","ApiVersion":"1.40","MinAPIVersion":"1.12","Os":"linux","Arch":"amd64"}"#,
        ),
        _ => (404, "", "404 page not found\n"),
    }
}

fn an_engine_that_is_too_old_is_told_what_is_needed(fixture: &Fixture) {
    let dir = hello(fixture);
    let stub = Stub::start(old).expect("a stub");
    for (driver, variable, told) in [
        (
            "docker",
            "DOCKER_HOST",
            ["docker 19.03.15 speaks API 1.40", "at least 1.41", "20.10"],
        ),
        (
            "podman",
            "CONTAINER_HOST",
            ["podman 3.4.4 does not speak API 4.0", "needed", "4.0 or newer"],
        ),
    ] {
        let command = alone(fixture, &dir, &["run", "p.yml", "--driver", driver]);
        let finished = command.env(variable, stub.host()).run();
        assert_eq!(finished.code, 2, "{finished}");
        assert_says(&finished, &told);
        assert_says(&finished, &[&stub.host()]);
    }
}

fn a_server_that_is_no_engine_is_not_taken_for_one(fixture: &Fixture) {
    let dir = hello(fixture);
    let stub = Stub::start(|_| (404, "Server: nginx/1.22\r\n", "nothing here")).expect("a stub");
    for known in KnownDriver::ALL {
        let command = alone(fixture, &dir, &["doctor", "--json", "--driver", known.name()]);
        let finished = command.env(known.host().0, stub.host()).run();
        assert!(matches!(finished.code, 2 | 3), "{finished}");
        assert_says(&finished, &[&stub.host()]);
        let told: Value = finished.events().expect("JSON").remove(0);
        assert_eq!(told["exit_code"], json!(finished.code), "{finished}");
    }
}

fn a_server_that_speaks_no_http_is_told_as_one(fixture: &Fixture) {
    let dir = hello(fixture);
    let socket = dir.file("grpc.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    // What containerd says first: the settings of an HTTP/2 connection (RFC 9113, section 6.5).
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            client.write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0").ok();
            client.read_to_end(&mut Vec::new()).ok();
        }
    });
    for known in KnownDriver::ALL {
        let command = alone(fixture, &dir, &["run", "p.yml", "--driver", known.name()]);
        let finished = command
            .env(known.host().0, format!("unix://{}", socket.display()))
            .run();
        if known == KnownDriver::Containerd {
            // To this one it is an engine that begins as it should, and then never answers.
            assert_eq!(finished.code, 3, "{finished}");
            assert_says(&finished, &["no answer within 20 s", "grpc.sock"]);
            continue;
        }
        assert_eq!(finished.code, 2, "{finished}");
        let told = format!("does not speak HTTP/1.1 answers here, not {}", known.name());
        assert_says(&finished, &[&told, "grpc.sock", "hint: name"]);
    }
}

fn an_engine_is_reached_by_tcp(fixture: &Fixture) {
    if !KnownDriver::chosen().is_some_and(KnownDriver::speaks_tcp) {
        // containerd listens on a socket alone.
        return;
    }
    let dir = hello(fixture);
    let address = proxy::by_tcp(fixture.engine.endpoint()).expect("a proxy");
    let command = alone(fixture, &dir, &["run", "p.yml", "--driver", &fixture.driver]);
    let finished = command.env(fixture.host_variable, format!("tcp://{address}")).run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["hello | hello\n"]);
}

fn an_ordinary_users_own_engine_is_found_where_its_clients_look(fixture: &Fixture) {
    let Some(socket) = KnownDriver::chosen().and_then(KnownDriver::users_socket) else {
        // docker's client looks for a user's own engine only where a variable says so.
        return;
    };
    // What runs as another user is started by root alone.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = hello(fixture);
    let open = |path: &std::path::Path| fs::set_permissions(path, Permissions::from_mode(0o755)).expect("permissions");
    open(dir.path());
    proxy::by_socket(fixture.engine.endpoint(), &dir.file(socket)).expect("a socket");
    // The binary itself may be where only root can reach it.
    let binary = dir.file("orchestra");
    fs::copy(fixture.binary(), &binary).expect("a copy");
    let nobody = 65534;
    let finished = fixture
        .orchestra_at(&binary, ["run", "p.yml"])
        .dir(dir.path())
        .user(nobody, nobody)
        .env(fixture.host_variable, "")
        .env("XDG_RUNTIME_DIR", dir.path())
        .run();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["hello | hello\n"]);
}

fn a_daemon_that_dies_under_a_run_ends_it_and_says_what_to_do(fixture: &Fixture) {
    if !OwnEngine::is_given(Purpose::Throwaway) {
        return;
    }
    let engine = OwnEngine::start(Purpose::Throwaway).expect("an engine");
    let mut long = task(fixture, "long", "echo begun; sleep 300");
    // The engine has no network.
    long["network"] = json!("none");
    let dir = pipeline([long, task(fixture, "never", "echo not run")]);
    let mut command = fixture.orchestra(["run", "p.yml"]).dir(dir.path());
    for (name, value) in engine.variables().expect("its variables") {
        command = command.env(&name, value);
    }
    let running = command.start();
    let _ = running.line_with("long | begun");
    engine.signal(Signal::KILL).expect("its daemon is killed");
    let killed = Instant::now();
    let finished = running.finish();
    assert_eq!(finished.code, 3, "{finished}");
    assert!(killed.elapsed() < Duration::from_secs(60), "{finished}");
    assert!(!finished.all().contains("not run"), "{finished}");
    assert_says(&finished, &["long", &fixture.driver, "hint: ", "orchestra gc"]);
}

fn doctor_names_what_networks_lack(fixture: &Fixture) {
    if KnownDriver::chosen() != Some(KnownDriver::Containerd) {
        // The others make networks themselves.
        return;
    }
    let dir = hello(fixture);
    dir.write("orchestra.toml", "[containerd]\ncni = ['/nowhere']\n");
    let finished = fixture.orchestra(["doctor"]).dir(dir.path()).run();
    assert_eq!(finished.code, 3, "{finished}");
    assert_says(&finished, &["containernetworking-plugins", "/nowhere"]);
    let refused = fixture.orchestra(["run", "p.yml"]).dir(dir.path()).run();
    assert_eq!(refused.code, 3, "{refused}");
    assert_says(&refused, &["containernetworking-plugins"]);
    let mut without = task(fixture, "hello", "echo hello");
    without["network"] = json!("none");
    dir.write("p.yml", crate::support::plan([without]));
    let ran = fixture.orchestra(["run", "p.yml"]).dir(dir.path()).run();
    assert_eq!(ran.code, 0, "{ran}");
    assert_says(&ran, &["hello | hello"]);
}
