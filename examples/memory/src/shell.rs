//! The memory engine's `sh`: runs what [`syntax`](super::syntax) parses.
//!
//! Differences to a real one, all of which keep it small: the sides of a pipe run one after the other, a redirected
//! command's output is in its file when it has ended, and there are no functions, patterns or here-documents.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;

use super::files::lock;
use super::process::{Input, Output, Process, Sink};
use super::programs;
use super::syntax::{Command, Part, Redirect, Word, parse};

/// An exit code; `Err` ends the whole shell with it.
type Flow = Result<u8, u8>;

/// `sh [-e] (-c SCRIPT [NAME [ARGS]] | FILE [ARGS])`
pub(super) async fn main(mut process: Process) -> u8 {
    let mut errexit = false;
    let mut args = process.args.split_off(1);
    let script = loop {
        let first = if args.is_empty() { "".to_owned() } else { args.remove(0) };
        match first.as_str() {
            "" => {
                let mut script = String::new();
                while let Some(line) = process.stdin.read_line().await {
                    script.push_str(&line);
                    script.push('\n');
                }
                break script;
            }
            "-c" | "-ec" | "-ce" | "-exc" => {
                errexit |= first.contains('e');
                if args.is_empty() {
                    process.stderr.write("sh: -c needs an argument\n").await;
                    return 2;
                }
                break args.remove(0);
            }
            "-e" => errexit = true,
            file => match process.read_file(file) {
                Ok(script) => {
                    args.insert(0, file.to_owned());
                    break String::from_utf8_lossy(&script).into_owned();
                }
                Err(why) => {
                    process.stderr.write(format!("sh: can't open '{file}': {why}\n")).await;
                    return 2;
                }
            },
        }
    };
    match parse(&script) {
        Ok(command) => {
            let vars = process.env.clone();
            let traps = BTreeMap::new();
            let mut shell = Shell {
                process,
                vars,
                args,
                traps,
                last: 0,
                errexit,
                jobs: JoinSet::new(),
            };
            let (Ok(code) | Err(code)) = shell.run(&command, true).await;
            code
        }
        Err(why) => {
            process.stderr.write(format!("sh: syntax error: {why}\n")).await;
            2
        }
    }
}

struct Shell {
    process: Process,
    vars: BTreeMap<String, String>,
    /// `$0` and up.
    args: Vec<String>,
    traps: BTreeMap<u8, String>,
    last: u8,
    errexit: bool,
    /// What runs in the background; it ends with the shell.
    jobs: JoinSet<u8>,
}

impl Shell {
    /// A shell that starts as this one is; `$VAR`s that it sets are its own.
    fn fork(&self) -> Self {
        Self {
            process: self.process.clone(),
            vars: self.vars.clone(),
            args: self.args.clone(),
            traps: BTreeMap::new(),
            last: self.last,
            errexit: self.errexit,
            jobs: JoinSet::new(),
        }
    }

    /// Runs a command; `checked` is whether its failure ends a shell with `-e`.
    fn run<'a>(&'a mut self, command: &'a Command, checked: bool) -> BoxFuture<'a, Flow> {
        async move {
            let code = match command {
                Command::Simple { assign, words } => self.simple(assign, words).await?,
                Command::Redirected(command, redirects) => self.redirected(command, redirects).await?,
                Command::Pipe(left, right) => {
                    let output = self.captured(left).await;
                    let stdin = std::mem::replace(&mut self.process.stdin, Input::new(std::io::Cursor::new(output)));
                    let code = self.fork().run(right, false).await;
                    self.process.stdin = stdin;
                    code.unwrap_or_else(|code| code)
                }
                Command::And(left, right) => match self.run(left, false).await? {
                    0 => return self.run(right, checked).await,
                    code => return Ok(code),
                },
                Command::Or(left, right) => match self.run(left, false).await? {
                    0 => 0,
                    _ => return self.run(right, checked).await,
                },
                Command::Not(command) => {
                    self.last = u8::from(self.run(command, false).await? == 0);
                    return Ok(self.last);
                }
                Command::List(commands) => {
                    let mut code = 0;
                    for command in commands {
                        code = self.run(command, checked).await?;
                        self.handle_signals().await?;
                    }
                    return Ok(code);
                }
                Command::Background(command) => {
                    let (mut shell, command) = (self.fork(), command.clone());
                    shell.process.stdin = Input::empty();
                    self.jobs
                        .spawn(async move { shell.run(&command, true).await.unwrap_or_else(|code| code) });
                    0
                }
                Command::If(condition, then, otherwise) => {
                    let chosen = if self.run(condition, false).await? == 0 {
                        then
                    } else {
                        otherwise
                    };
                    return self.run(chosen, checked).await;
                }
                Command::While(condition, body) => {
                    while self.run(condition, false).await? == 0 {
                        self.run(body, checked).await?;
                        // A loop that never waits must not keep others from running.
                        tokio::task::yield_now().await;
                    }
                    0
                }
                Command::For(name, words, body) => {
                    for value in self.words(words).await {
                        self.vars.insert(name.clone(), value);
                        self.run(body, checked).await?;
                    }
                    0
                }
                Command::Subshell(command) => self.fork().run(command, true).await.unwrap_or_else(|code| code),
            };
            self.last = code;
            if checked && self.errexit && code != 0 {
                Err(code)
            } else {
                Ok(code)
            }
        }
        .boxed()
    }

    async fn handle_signals(&mut self) -> Result<(), u8> {
        if self.traps.is_empty() {
            return Ok(());
        }
        while let Some(signal) = self.process.signals.take() {
            let Some(action) = self.traps.get(&signal).cloned() else {
                continue;
            };
            let command = parse(&action).map_err(|_| 2)?;
            Box::pin(self.run(&command, false)).await?;
        }
        Ok(())
    }

    /// What a command writes to standard output.
    async fn captured(&mut self, command: &Command) -> Vec<u8> {
        let buffer = Arc::new(Mutex::new(Vec::new()));
        let mut shell = self.fork();
        shell.process.stdout = Output(Sink::Buffer(buffer.clone()));
        let (Ok(code) | Err(code)) = shell.run(command, true).await;
        self.last = code;
        std::mem::take(&mut *lock(&buffer))
    }

    async fn redirected(&mut self, command: &Command, redirects: &[Redirect]) -> Flow {
        let process = &self.process;
        let before = (process.stdin.clone(), process.stdout.clone(), process.stderr.clone());
        let mut files = Vec::new();
        let mut failed = None;
        for redirect in redirects {
            let to = self.whole(&redirect.to).await;
            let process = &mut self.process;
            let output = match (redirect.how, to.as_str()) {
                ("<", "/dev/null") => {
                    process.stdin = Input::empty();
                    continue;
                }
                ("<", file) => match process.read_file(file) {
                    Ok(content) => {
                        process.stdin = Input::new(std::io::Cursor::new(content));
                        continue;
                    }
                    Err(why) => {
                        failed = Some(format!("can't open {file}: {why}"));
                        break;
                    }
                },
                (">&", "1") => process.stdout.clone(),
                (">&", _) => process.stderr.clone(),
                (_, "/dev/null") => Output(Sink::Null),
                (how, file) => {
                    // Opened before the command runs: it is there, and empty, from then on.
                    let opened = process
                        .files
                        .write(&process.cwd, file, Bytes::new(), how == ">>", process.owner());
                    if let Err(why) = opened {
                        failed = Some(format!("can't create {file}: {why}"));
                        break;
                    }
                    let buffer = Arc::new(Mutex::new(Vec::new()));
                    files.push((process.cwd.clone(), to, buffer.clone()));
                    Output(Sink::Buffer(buffer))
                }
            };
            match redirect.from {
                2 => process.stderr = output,
                _ => process.stdout = output,
            }
        }
        let flow = match failed {
            Some(why) => {
                before.2.write(format!("sh: {why}\n")).await;
                Ok(1)
            }
            None => self.run(command, false).await,
        };
        (self.process.stdin, self.process.stdout, self.process.stderr) = before;
        for (cwd, file, buffer) in files {
            let content = std::mem::take(&mut *lock(&buffer));
            let written = self
                .process
                .files
                .write(&cwd, &file, content.into(), true, self.process.owner());
            if let Err(why) = written {
                self.process.stderr.write(format!("sh: write error: {why}\n")).await;
            }
        }
        flow
    }

    async fn simple(&mut self, assign: &[(String, Word)], words: &[Word]) -> Flow {
        let words = self.words(words).await;
        let mut assigned = Vec::new();
        for (name, value) in assign {
            assigned.push((name.clone(), self.whole(value).await));
        }
        if words.is_empty() {
            for (name, value) in assigned {
                if self.process.env.contains_key(&name) {
                    self.process.env.insert(name.clone(), value.clone());
                }
                self.vars.insert(name, value);
            }
            // An assignment's own code is that of the command whose output it takes.
            let substitutes =
                |(_, value): &(String, Word)| value.0.iter().any(|part| matches!(part, Part::Command(..)));
            return Ok(if assign.iter().any(substitutes) { self.last } else { 0 });
        }
        if let Some(flow) = self.builtin(&words).await {
            return flow;
        }
        let mut process = self.process.clone();
        process.env.extend(assigned);
        process.args = words;
        if let Some(code) = programs::builtin(&process).await {
            return Ok(code);
        }
        Ok(process.exec().await)
    }

    /// What only the shell itself can do.
    async fn builtin(&mut self, words: &[String]) -> Option<Flow> {
        let arg = |index: usize| words.get(index).map_or("", String::as_str);
        Some(match arg(0) {
            ":" => Ok(0),
            "exit" => Err(arg(1).parse().unwrap_or(self.last)),
            "exec" => {
                let mut process = self.process.clone();
                process.args = words[1..].to_vec();
                Err(process.exec().await)
            }
            "set" => {
                self.errexit |= arg(1).starts_with('-') && arg(1).contains('e');
                Ok(0)
            }
            "cd" => {
                let process = &mut self.process;
                match process.list_dir(arg(1)) {
                    Ok(_) if arg(1).starts_with('/') => process.cwd = arg(1).to_owned(),
                    Ok(_) => process.cwd = format!("{}/{}", process.cwd.trim_end_matches('/'), arg(1)),
                    Err(why) => {
                        process
                            .stderr
                            .write(format!("sh: cd: can't cd to {}: {why}\n", arg(1)))
                            .await;
                        return Some(Ok(1));
                    }
                }
                Ok(0)
            }
            "export" => {
                for word in &words[1..] {
                    let (name, value) = match word.split_once('=') {
                        Some((name, value)) => (name, value.to_owned()),
                        None => (word.as_str(), self.vars.get(word).cloned().unwrap_or_default()),
                    };
                    self.vars.insert(name.to_owned(), value.clone());
                    self.process.env.insert(name.to_owned(), value);
                }
                Ok(0)
            }
            "read" => match self.process.stdin.read_line().await {
                Some(line) => {
                    self.vars.insert(arg(1).to_owned(), line);
                    Ok(0)
                }
                None => Ok(1),
            },
            "trap" => {
                for signal in words[2..]
                    .iter()
                    .filter_map(|name| name.parse::<orchestra::Signal>().ok())
                {
                    self.traps.insert(signal.number(), arg(1).to_owned());
                }
                Ok(0)
            }
            "wait" => {
                let signals = self.process.signals.clone();
                let code = tokio::select! {
                    _ = async { while self.jobs.join_next().await.is_some() {} } => 0,
                    () = signals.arrived(), if !self.traps.is_empty() => 143,
                };
                self.handle_signals().await.map(|()| code)
            }
            "kill" if arg(words.len() - 1) == "1" => {
                // Process 1 is the only one that can be named.
                let signal = words[1]
                    .trim_start_matches('-')
                    .parse()
                    .unwrap_or(orchestra::Signal::TERM);
                self.process.signals.send(signal.number());
                self.handle_signals().await.map(|()| 0)
            }
            _ => return None,
        })
    }

    async fn words(&mut self, words: &[Word]) -> Vec<String> {
        let mut all = Vec::new();
        for word in words {
            all.extend(self.expand(word, true).await);
        }
        all
    }

    /// Expands a word that is one, whatever is in it.
    async fn whole(&mut self, word: &Word) -> String {
        self.expand(word, false).await.concat()
    }

    /// Expands a word; with `split_fields`, what was not quoted is split at blanks.
    async fn expand(&mut self, word: &Word, split_fields: bool) -> Vec<String> {
        let mut fields: Vec<String> = Vec::new();
        let mut open = false;
        for part in &word.0 {
            let (text, split) = match part {
                Part::Text(text) => (text.clone(), false),
                Part::Variable(name, quoted) => (self.variable(name), !quoted),
                Part::Command(command, quoted) => {
                    let output = Box::pin(self.captured(command)).await;
                    (
                        String::from_utf8_lossy(&output).trim_end_matches('\n').to_owned(),
                        !quoted,
                    )
                }
                Part::Arithmetic(inner) => {
                    let text = Box::pin(self.whole(inner)).await;
                    (arithmetic(&text, &self.vars).to_string(), false)
                }
            };
            let pieces: Vec<&str> = if split && split_fields {
                text.split_whitespace().collect()
            } else {
                vec![&text]
            };
            for (index, piece) in pieces.iter().enumerate() {
                match fields.last_mut().filter(|_| open && index == 0) {
                    Some(last) => last.push_str(piece),
                    None => fields.push((*piece).to_owned()),
                }
                open = true;
            }
        }
        if fields.is_empty() && word.1 {
            fields.push(String::new());
        }
        fields
    }

    fn variable(&self, name: &str) -> String {
        match name {
            "?" => self.last.to_string(),
            "$" => "1".to_owned(),
            "#" => self.args.len().saturating_sub(1).to_string(),
            "@" | "*" => self.args.get(1..).unwrap_or_default().join(" "),
            _ => match name.parse::<usize>() {
                Ok(index) => self.args.get(index).cloned().unwrap_or_default(),
                Err(_) => self.vars.get(name).cloned().unwrap_or_default(),
            },
        }
    }
}

/// Sums, differences, products, quotients and remainders, from left to right.
fn arithmetic(text: &str, vars: &BTreeMap<String, String>) -> i64 {
    let (mut total, mut operator, mut operand) = (0i64, '+', String::new());
    for c in text.chars().filter(|c| !c.is_whitespace()).chain(['+']) {
        if !"+-*/%".contains(c) {
            operand.push(c);
            continue;
        }
        let value = vars.get(&operand).unwrap_or(&operand).parse().unwrap_or(0);
        total = match operator {
            '+' => total.wrapping_add(value),
            '-' => total.wrapping_sub(value),
            '*' => total.wrapping_mul(value),
            '/' => total.checked_div(value).unwrap_or(0),
            _ => total.checked_rem(value).unwrap_or(0),
        };
        (operator, operand) = (c, String::new());
    }
    total
}

#[cfg(test)]
mod tests {
    use crate::{MemoryEngine, MemoryImage};
    use futures_util::StreamExt;
    use orchestra::{ContainerId, ContainerSpec};

    /// What a script writes to standard output, and its exit code.
    async fn run(options: &str, script: &str) -> (String, u8) {
        let engine = MemoryEngine::new();
        engine.add_image("busybox", MemoryImage::busybox()).unwrap();
        let driver = engine.driver();
        let id = ContainerId::new("shell").unwrap();
        let mut spec = ContainerSpec::new("busybox".parse().unwrap());
        spec.entrypoint = Some(
            ["sh", options, script, "name", "first", "second"]
                .map(str::to_owned)
                .to_vec(),
        );
        driver.create_container(&id, &spec).await.unwrap();
        driver.start_container(&id, None).await.unwrap();
        let exit = driver.wait_container(&id).await.unwrap();
        let chunks: Vec<_> = driver.logs(&id, true).await.unwrap().collect().await;
        let chunks = chunks.into_iter().map(Result::unwrap);
        let out = chunks.filter(|chunk| chunk.stream == orchestra::OutputStream::Stdout);
        let bytes: Vec<u8> = out.flat_map(|chunk| chunk.bytes).collect();
        (String::from_utf8(bytes).unwrap(), exit.code())
    }

    #[tokio::test]
    async fn scripts_mean_what_they_mean_in_a_real_shell() {
        for (script, out, code) in [
            ("echo a; echo b && false || echo c; exit 3", "a\nb\nc\n", 3),
            (
                "if [ 1 -lt 2 ]; then echo yes; elif true; then echo no; else echo never; fi",
                "yes\n",
                0,
            ),
            ("i=0; while [ $i -lt 3 ]; do echo $i; i=$((i+1)); done", "0\n1\n2\n", 0),
            (
                "for x in a 'b c' $1; do echo \"<$x>\"; done",
                "<a>\n<b c>\n<first>\n",
                0,
            ),
            ("x='a  b'; echo $x \"$x\" '$x' \\$x", "a b a  b $x $x\n", 0),
            (
                "x=$(echo one; echo two); echo \"$x\"; echo $x",
                "one\ntwo\none two\n",
                0,
            ),
            ("x=$(exit 6); echo $?; x=1; echo $?", "6\n0\n", 0),
            ("(x=inner; exit 4); echo $? $x; { echo group; }", "4\ngroup\n", 0),
            ("echo data | { read line; echo \"got $line\"; }", "got data\n", 0),
            (
                "echo out > /tmp/f; echo more >> /tmp/f; cat < /tmp/f; echo x >&2 2>/dev/null",
                "out\nmore\n",
                0,
            ),
            ("! false && echo not; # a comment\necho end", "not\nend\n", 0),
            (
                "A=1 env | while read l; do if [ \"$l\" = A=1 ]; then echo set; fi; done",
                "set\n",
                0,
            ),
            ("echo $0 $1 $2 $# \"$@\"", "name first second 2 first second\n", 0),
            (
                "(sleep 0.05; echo late) & echo early; wait; echo done",
                "early\nlate\ndone\n",
                0,
            ),
            (
                "trap 'echo caught' TERM; kill -TERM 1; echo after",
                "caught\nafter\n",
                0,
            ),
            ("no-such-program; echo $?; /etc/passwd; echo $?", "127\n126\n", 0),
            ("echo 'not closed", "", 2),
        ] {
            assert_eq!(run("-c", script).await, (out.to_owned(), code), "{script}");
        }
    }

    #[tokio::test]
    async fn a_failure_ends_a_shell_that_is_told_so() {
        assert_eq!(run("-ec", "echo a; false; echo b").await, ("a\n".to_owned(), 1));
        let checked = "if false; then echo no; fi; false || true; ! true; echo b; (exit 5); echo c";
        assert_eq!(run("-ec", checked).await, ("b\n".to_owned(), 5));
    }
}
