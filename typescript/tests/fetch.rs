//! What a script fetches, of a server on loopback.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use orchestra_pipelines::Status;
use orchestra_typescript::ScriptOptions;
use support::{engine, run_on, wrapped};

/// Answers one request by its path. The connection ends with it, or, where more comes, with a reset, of which the answer
/// tells nothing: servers that end idle connections look like that to a client that uses them again.
fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut headers) = (String::new(), String::new());
    reader.read_line(&mut first)?;
    while reader.read_line(&mut headers)? > 2 {}
    let of = |name: &str| {
        let mut lines = headers.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map_or_else(String::new, |(_, value)| value.to_owned())
    };
    let mut body = vec![0; of("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let words: Vec<&str> = first.split(' ').collect();
    let (method, path) = (words[0], words[1]);
    let to = |place: &str| format!("HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n");
    let mut until_it_goes = [0];
    match path {
        "/echo" => {
            let said = format!("{method} {} {}", of("x-word"), String::from_utf8_lossy(&body));
            write!(
                stream,
                "HTTP/1.1 201 Created\r\nX-Made: yes\r\nContent-Length: {}\r\n\r\n{said}",
                said.len()
            )
        }
        // Until the client has enough of it.
        "/large" => {
            write!(stream, "HTTP/1.1 200 OK\r\n\r\n")?;
            (0..64).try_for_each(|_| stream.write_all(&[b'x'; 64 << 10]))
        }
        "/cut" => write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
        "/silent" => stream.read(&mut until_it_goes).map(drop),
        "/away" => stream.write_all(to("http://localhost:1/").as_bytes()),
        "/round" => stream.write_all(to("/round").as_bytes()),
        _ => {
            stream.write_all(to("/echo").as_bytes())?;
            stream.read(&mut until_it_goes).map(drop)
        }
    }
}

#[tokio::test]
async fn answers_errors_and_limits_come_to_the_script() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    let mut options = ScriptOptions::default();
    options.fetch.allow = vec![host.clone()];
    options.fetch.timeout = Duration::from_secs(20);
    options.fetch.limit = 1 << 20;
    let body = r#"
        const to = (path, options) => fetch(`http://HOST${path}`, options);
        const made = await to("/echo", { method: "post", headers: { "X-Word": "hello" }, body: "you" });
        assert.equal(made.status, 201);
        assert.equal(made.headers.get("x-made"), "yes");
        assert.equal(await made.text(), "POST hello you");
        const sent = await to("/elsewhere");
        assert(sent.url.endsWith("/echo"), sent.url);
        await assert.rejects(to("/away"), /redirects to localhost, which is not allowed/);
        await assert.rejects(to("/round"), /too many redirects/);
        await assert.rejects(to("/large"), /larger than 1048576 bytes/);
        await assert.rejects(to("/cut"), /fetch: /);
        await assert.rejects(to("/silent", { timeout: "300ms" }), /did not answer within 300ms/);
        await assert.rejects(to("/echo", { timeout: "soon" }), /`timeout: soon` is not valid/);
        await assert.rejects(to("/echo", { headers: { "a b": "c" } }), /header "a b" is not valid/);
    "#;
    let ran = run_on(&engine(), &wrapped(&body.replace("HOST", &host)), options, |_| ()).await;
    assert_eq!(ran.report.status, Status::Succeeded, "{}", ran.error());
}
