//! The memory engine's busybox: small forms of the programs that tests use.

use bytes::Bytes;
use orchestra::Signal;
use tokio::time::{Duration, sleep};

use super::files::{Errno, Inode, Kind};
use super::process::Process;
use super::shell;

/// What `/bin/busybox` of a memory image can be called as.
pub(super) const APPLETS: &[&str] = &[
    "[", "cat", "chmod", "chown", "cp", "echo", "env", "false", "head", "id", "ln", "ls", "mkdir", "printf", "pwd",
    "rm", "seq", "sh", "sleep", "stat", "test", "touch", "true", "uname", "wc", "yes",
];

/// The program that all of [`APPLETS`] are names of: `busybox APPLET …`, or by the applet's own name.
pub(super) async fn busybox(mut process: Process) -> u8 {
    loop {
        let name = process.args.first().map_or("", String::as_str);
        process.args[0] = match name.rsplit_once('/') {
            Some((_, base)) => base.to_owned(),
            None => name.to_owned(),
        };
        if process.args[0] != "busybox" {
            break;
        }
        process.args.remove(0);
        if process.args.is_empty() {
            return 0;
        }
    }
    if process.args[0] == "sh" {
        return shell::main(process).await;
    }
    match builtin(&process).await {
        Some(code) => code,
        None => {
            process
                .stderr
                .write(format!("{}: applet not found\n", process.args[0]))
                .await;
            127
        }
    }
}

/// An applet that needs no process of its own.
pub(super) async fn builtin(process: &Process) -> Option<u8> {
    let name = process.args[0].as_str();
    if !APPLETS.contains(&name) || name == "sh" {
        return None;
    }
    let (options, args): (Vec<&str>, Vec<&str>) = match name {
        "echo" | "printf" | "test" | "[" | "head" | "seq" | "stat" | "env" => {
            (Vec::new(), process.args[1..].iter().map(String::as_str).collect())
        }
        _ => process.args[1..]
            .iter()
            .map(String::as_str)
            .partition(|arg| arg.len() > 1 && arg.starts_with('-')),
    };
    let has = |option: char| options.iter().any(|given| given.contains(option));
    let result = match name {
        "echo" => echo(process, &args).await,
        "printf" => {
            process.stdout.write(format_text(&args)).await;
            Ok(0)
        }
        "true" => Ok(0),
        "false" => Ok(1),
        "test" | "[" => Ok(u8::from(!test(process, &args))),
        "cat" => cat(process, &args).await,
        "sleep" => {
            let seconds = args.first().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
            sleep(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)).await;
            Ok(0)
        }
        "pwd" => print(process, format!("{}\n", process.cwd)).await,
        "id" => match () {
            () if has('u') => print(process, format!("{}\n", process.uid)).await,
            () if has('g') => print(process, format!("{}\n", process.gid)).await,
            () => print(process, format!("uid={} gid={}\n", process.uid, process.gid)).await,
        },
        "env" => {
            let lines: String = process
                .env
                .iter()
                .map(|(name, value)| format!("{name}={value}\n"))
                .collect();
            print(process, lines).await
        }
        "uname" => print(process, format!("{}\n", std::env::consts::ARCH)).await,
        "seq" => {
            let numbers: Vec<u64> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
            let (from, to) = if numbers.len() > 1 {
                (numbers[0], numbers[1])
            } else {
                (1, numbers.first().copied().unwrap_or(0))
            };
            print(process, (from..=to).map(|n| format!("{n}\n")).collect()).await
        }
        "yes" => loop {
            process.stdout.write("y\n").await;
            sleep(Duration::from_millis(1)).await;
        },
        "head" => head(process, &args).await,
        "wc" => {
            let mut bytes = 0;
            loop {
                match process.stdin.read().await {
                    piece if piece.is_empty() => break,
                    piece => bytes += piece.len(),
                }
            }
            print(process, format!("{bytes}\n")).await
        }
        "stat" => stat(process, &args).await,
        "ls" => ls(process, args.first().copied().unwrap_or("."), has('d')).await,
        _ => change(process, name, &args, &has),
    };
    Some(match result {
        Ok(code) => code,
        Err(why) => {
            process
                .stderr
                .write(format!("{name}: {}: {why}\n", args.join(" ")))
                .await;
            1
        }
    })
}

async fn print(process: &Process, text: String) -> Result<u8, Errno> {
    process.stdout.write(text).await;
    Ok(0)
}

async fn echo(process: &Process, args: &[&str]) -> Result<u8, Errno> {
    let (args, end) = match args {
        ["-n", rest @ ..] => (rest, ""),
        _ => (args, "\n"),
    };
    print(process, format!("{}{end}", args.join(" "))).await
}

fn format_text(args: &[&str]) -> String {
    let [format, args @ ..] = args else {
        return String::new();
    };
    let (mut text, mut args) = (String::new(), args.iter());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match c {
            '%' => match chars.next() {
                Some('s' | 'd') => text.push_str(args.next().copied().unwrap_or("")),
                other => text.extend(other),
            },
            '\\' => match chars.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                other => text.extend(other),
            },
            c => text.push(c),
        }
    }
    text
}

fn test(process: &Process, args: &[&str]) -> bool {
    let args = args.strip_suffix(&["]"]).unwrap_or(args);
    let number = |text: &str| text.parse::<i64>().unwrap_or(0);
    let kind = |path: &str| process.files.stat(&process.cwd, path, true).map(|inode| inode.kind);
    match args {
        ["!", rest @ ..] => !test(process, rest),
        ["-e", path] => kind(path).is_ok(),
        ["-f", path] => matches!(kind(path), Ok(Kind::File(_))),
        ["-s", path] => matches!(kind(path), Ok(Kind::File(content)) if !content.is_empty()),
        ["-d", path] => matches!(kind(path), Ok(Kind::Directory)),
        ["-z", text] => text.is_empty(),
        ["-n", text] | [text] => !text.is_empty(),
        [a, "=", b] => a == b,
        [a, "!=", b] => a != b,
        [a, "-eq", b] => number(a) == number(b),
        [a, "-ne", b] => number(a) != number(b),
        [a, "-lt", b] => number(a) < number(b),
        [a, "-le", b] => number(a) <= number(b),
        [a, "-gt", b] => number(a) > number(b),
        [a, "-ge", b] => number(a) >= number(b),
        _ => false,
    }
}

async fn cat(process: &Process, args: &[&str]) -> Result<u8, Errno> {
    for path in args {
        process.stdout.write(process.read_file(path)?).await;
    }
    if args.is_empty() {
        loop {
            match process.stdin.read().await {
                piece if piece.is_empty() => break,
                piece => process.stdout.write(piece).await,
            }
        }
    }
    Ok(0)
}

/// `head -c BYTES [FILE]`
async fn head(process: &Process, args: &[&str]) -> Result<u8, Errno> {
    let limit = args.get(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    let content = match args.get(2) {
        Some(path) => process.read_file(path)?,
        None => process.stdin.read().await,
    };
    process.stdout.write(content.slice(..content.len().min(limit))).await;
    Ok(0)
}

/// `stat -c FORMAT FILES`, with `%a`, `%u`, `%g`, `%s`, `%Y` and `%n`.
async fn stat(process: &Process, args: &[&str]) -> Result<u8, Errno> {
    let ["-c", format, paths @ ..] = args else {
        return Err("write stat -c FORMAT FILE");
    };
    for path in paths {
        let inode = process.files.stat(&process.cwd, path, false)?;
        let size = if let Kind::File(content) = &inode.kind {
            content.len()
        } else {
            0
        };
        let line = format
            .replace("%a", &format!("{:o}", inode.mode))
            .replace("%u", &inode.uid.to_string())
            .replace("%g", &inode.gid.to_string())
            .replace("%s", &size.to_string())
            .replace("%Y", &inode.mtime.to_string())
            .replace("%n", path);
        process.stdout.write(format!("{line}\n")).await;
    }
    Ok(0)
}

async fn ls(process: &Process, path: &str, itself: bool) -> Result<u8, Errno> {
    let inode = process.files.stat(&process.cwd, path, true)?;
    let names = match inode.kind {
        Kind::Directory if !itself => process.list_dir(path)?,
        _ => vec![path.to_owned()],
    };
    print(process, names.into_iter().map(|name| format!("{name}\n")).collect()).await
}

/// The applets that change files.
fn change(process: &Process, name: &str, args: &[&str], has: &dyn Fn(char) -> bool) -> Result<u8, Errno> {
    let (files, cwd, (uid, gid)) = (&process.files, process.cwd.as_str(), process.owner());
    let last = *args.last().ok_or("an argument is missing")?;
    let into = |from: &str| match files.stat(cwd, last, true) {
        Ok(Inode {
            kind: Kind::Directory, ..
        }) => {
            format!(
                "{last}/{}",
                from.trim_end_matches('/').rsplit('/').next().unwrap_or(from)
            )
        }
        _ => last.to_owned(),
    };
    match name {
        "mkdir" => args.iter().try_for_each(|path| match has('p') {
            true => files.make_dirs(cwd, path, 0o755, uid, gid),
            false => files.make_dir(cwd, path, 0o755, uid, gid),
        }),
        "rm" => args
            .iter()
            .try_for_each(|path| match files.remove(cwd, path, has('r')) {
                Err(_) if has('f') => Ok(()),
                result => result,
            }),
        "touch" => args
            .iter()
            .try_for_each(|path| files.write(cwd, path, Bytes::new(), true, (uid, gid))),
        "ln" if has('s') => files.put(
            cwd,
            &into(args[0]),
            Inode::new(Kind::Symlink(args[0].to_owned()), 0o777, uid, gid),
        ),
        "ln" => files.link(cwd, args[0], &into(args[0])),
        "cp" => args[..args.len() - 1]
            .iter()
            .try_for_each(|from| copy(process, from, &into(from))),
        "chmod" => {
            let mode = u32::from_str_radix(args[0], 8).map_err(|_| "invalid mode")?;
            args[1..]
                .iter()
                .try_for_each(|path| files.change(cwd, path, |inode| inode.mode = mode))
        }
        _ => {
            let (user, group) = args[0].split_once(':').unwrap_or((args[0], ""));
            let user = user.parse().map_err(|_| "invalid user")?;
            args[1..].iter().try_for_each(|path| {
                files.change(cwd, path, |inode| {
                    inode.uid = user;
                    inode.gid = group.parse().unwrap_or(inode.gid);
                })
            })
        }
    }
    .map(|()| 0)
}

/// `cp -a`
fn copy(process: &Process, from: &str, to: &str) -> Result<(), Errno> {
    let inode = process.files.stat(&process.cwd, from, false)?;
    let directory = matches!(inode.kind, Kind::Directory);
    process.files.put(&process.cwd, to, inode)?;
    if directory {
        for name in process.list_dir(from)? {
            copy(process, &format!("{from}/{name}"), &format!("{to}/{name}"))?;
        }
    }
    Ok(())
}

/// Whether a main process without a handler ends by this signal: like process 1 of a PID namespace, only by one that
/// can't be refused.
pub(super) fn is_fatal(signal: Signal) -> bool {
    signal == Signal::KILL
}
