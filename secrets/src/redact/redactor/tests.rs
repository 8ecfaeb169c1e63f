//! Redaction against a mirror: the same by the plainest means.

use proptest::prelude::*;

use super::*;
use crate::redact::{Form, SHORTEST, forms};

fn all_forms(values: &[Vec<u8>]) -> Vec<Form> {
    values.iter().flat_map(|value| forms(value)).collect()
}

fn redactor(forms: &[Form]) -> Redactor {
    Redactor::new(Arc::new(
        Patterns::default()
            .with(forms.iter().cloned().map(Arc::new).collect())
            .unwrap(),
    ))
}

fn stream(forms: &[Form], pieces: &[&[u8]]) -> Vec<u8> {
    let mut redactor = redactor(forms);
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(&redactor.push(Bytes::copy_from_slice(piece)));
    }
    out.extend_from_slice(&redactor.finish());
    out
}

fn text(values: &[&str], pieces: &[&str]) -> String {
    let values: Vec<Vec<u8>> = values.iter().map(|value| value.as_bytes().to_vec()).collect();
    let pieces: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes()).collect();
    String::from_utf8(stream(&all_forms(&values), &pieces)).unwrap()
}

/// Where a form ends that begins at `start`: in the next line, if a line is as long as tools make it.
fn end(form: &Form, text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    for (number, byte) in form.bytes.iter().enumerate() {
        let before = text[..at].iter().rev();
        let digits = before.take_while(|byte| byte.is_ascii_alphanumeric() || b"+/-_".contains(byte));
        if number > 0 && form.how.wraps && digits.count() >= 48 {
            let breaks = [b"\r\n".as_slice(), b"\n"].into_iter();
            let there = breaks.filter(|end| text[at..].starts_with(end)).map(<[u8]>::len).next();
            at += there.unwrap_or(0);
        }
        if text.get(at) != Some(byte) {
            return None;
        }
        at += 1;
    }
    Some(at)
}

/// Which bytes belong to a form, byte by byte and form by form.
fn covered(forms: &[Form], text: &[u8]) -> Vec<bool> {
    let digit = |at: Option<usize>| {
        at.and_then(|at| text.get(at))
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || b"+/-_".contains(byte))
    };
    let mut covered = vec![false; text.len()];
    let mut ended = text.to_vec();
    ended.push(b'\n');
    for form in forms {
        for start in 0..ended.len() {
            let (mut from, Some(mut to)) = (start, end(form, &ended, start)) else {
                continue;
            };
            if form.how.line {
                if start > 0 && text[start - 1] != b'\n' {
                    continue;
                }
                to -= 1;
            }
            if form.how.lead && digit(start.checked_sub(1)) {
                from -= 1;
            }
            if form.how.tail && digit(Some(to)) {
                to += 1;
            }
            if to > text.len() {
                continue;
            }
            covered[from..to].fill(true);
        }
    }
    covered
}

fn mirror(forms: &[Form], text: &[u8]) -> Vec<u8> {
    let covered = covered(forms, text);
    let mut out = Vec::new();
    for (at, byte) in text.iter().enumerate() {
        match covered[at] {
            false => out.push(*byte),
            true if at == 0 || !covered[at - 1] => out.extend_from_slice(MARKER.as_bytes()),
            true => {}
        }
    }
    out
}

/// In how many ways a secret is written.
const HOWS: u8 = 23;

/// A secret as one of the things that a program makes of it.
fn written(value: &[u8], how: u8, neighbour: &[u8]) -> Vec<u8> {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
    let within = [neighbour, value, neighbour].concat();
    let further = [b"a longer text, of which it is a part: ".as_slice(), &within].concat();
    match how % HOWS {
        0 => value.to_vec(),
        1 => STANDARD.encode(value).into_bytes(),
        2 => URL_SAFE_NO_PAD.encode(value).into_bytes(),
        3 => STANDARD.encode(&within).into_bytes(),
        4 => URL_SAFE.encode(&within).into_bytes(),
        5 => value
            .iter()
            .flat_map(|byte| format!("{byte:02X}").into_bytes())
            .collect(),
        6 => String::from_utf8_lossy(value).replace('\'', "'\"'\"'").into_bytes(),
        7 => percent(value, b""),
        8 => String::from_utf8_lossy(value).replace('\'', "'\\''").into_bytes(),
        9 => wrapped(&STANDARD.encode(&further), 64, "\n").into_bytes(),
        10 => wrapped(
            &further.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            60,
            "\r\n",
        )
        .into_bytes(),
        11 => STANDARD.encode([b"user:", value].concat()).into_bytes(),
        // Of JSON that is not ASCII, serde_json writes what is not valid otherwise than it was.
        12 => {
            let quoted = serde_json::to_string(&String::from_utf8_lossy(value)).unwrap();
            quoted.as_bytes()[1..quoted.len() - 1].to_vec()
        }
        13 => value
            .iter()
            .flat_map(|byte| match byte {
                b'"' | b'\\' | b'$' | b'`' => vec![b'\\', *byte],
                _ => vec![*byte],
            })
            .collect(),
        14 => value
            .iter()
            .flat_map(|byte| match byte {
                b' ' => vec![b'+'],
                _ if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) => vec![*byte],
                _ => format!("%{byte:02x}").into_bytes(),
            })
            .collect(),
        // As Python's `quote`, Go's `PathEscape` and `URL.User`, and a password of WHATWG's URLs have it.
        16 => percent(value, b"-._~/"),
        17 => percent(value, b"-._~$&+=:@"),
        18 => percent(value, b"-._~$&+,;="),
        19 => percent(value, b"!$%&'()*+,-._~"),
        // A path of those.
        20 => value
            .iter()
            .flat_map(|byte| match byte {
                0..=b' ' | b'"' | b'#' | b'<' | b'>' | b'?' | b'^' | b'`' | b'{' | b'}' | 0x7f.. => {
                    format!("%{byte:02X}").into_bytes()
                }
                _ => vec![*byte],
            })
            .collect(),
        // `printf %q` within a word, and Ruby's `shellescape`.
        21 => value
            .iter()
            .flat_map(|byte| match byte {
                b'A'..=b'Z'
                | b'a'..=b'z'
                | b'0'..=b'9'
                | b'%'
                | b'+'
                | b'-'..=b':'
                | b'='
                | b'@'
                | b'_'
                | b'#'
                | b'~' => {
                    vec![*byte]
                }
                b'\n' | b'\r' | 0x80.. | ..=8 | 11..=31 | 127 => vec![*byte],
                _ => vec![b'\\', *byte],
            })
            .collect(),
        22 => value
            .iter()
            .flat_map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+'..=b':' | b'@' | b'_' | b'\n' | 0x80.. => vec![*byte],
                _ => vec![b'\\', *byte],
            })
            .collect(),
        _ => value
            .iter()
            .flat_map(|byte| match byte {
                b'\n' => b"\\n".to_vec(),
                b'\'' | b'\\' => vec![b'\\', *byte],
                b' '..=b'~' => vec![*byte],
                _ => ansi(*byte),
            })
            .collect(),
    }
}

/// All but letters, digits and what is kept.
fn percent(value: &[u8], kept: &[u8]) -> Vec<u8> {
    let escaped = value.iter().flat_map(|byte| {
        if byte.is_ascii_alphanumeric() || kept.contains(byte) {
            vec![*byte]
        } else {
            format!("%{byte:02X}").into_bytes()
        }
    });
    escaped.collect()
}

/// A byte as bash has it in `$'…'`, where its locale knows ASCII alone.
fn ansi(byte: u8) -> Vec<u8> {
    match byte {
        7 => b"\\a".to_vec(),
        8 => b"\\b".to_vec(),
        9 => b"\\t".to_vec(),
        11 => b"\\v".to_vec(),
        12 => b"\\f".to_vec(),
        13 => b"\\r".to_vec(),
        27 => b"\\E".to_vec(),
        _ => format!("\\{byte:03o}").into_bytes(),
    }
}

/// Of what is [written], the part that a redacted text may not hold: without what stands around a secret, and without
/// the digits that hold bits of that too. `None` of a secret that is too short, and of what comes in several lines.
fn core(secret: &[u8], how: u8, neighbour: usize) -> Option<Vec<u8>> {
    let trimmed = secret.trim_ascii();
    if trimmed.len() < SHORTEST {
        return None;
    }
    // Texts are written of text alone.
    if matches!(how % HOWS, 6 | 8 | 12) && std::str::from_utf8(secret).is_err() {
        return None;
    }
    let before = secret.len() - secret.trim_ascii_start().len();
    match how % HOWS {
        // Whatever white space surrounds the value is part of what was encoded.
        3 | 4 => {
            let encoded = written(secret, how, &vec![b'.'; neighbour]);
            let from = ((neighbour + before) * 8).div_ceil(6);
            let to = (neighbour + before + trimmed.len()) * 8 / 6;
            Some(encoded[from..to].to_vec())
        }
        9 | 10 => None,
        11 => {
            let encoded = written(secret, how, b"");
            let from = ((5 + before) * 8).div_ceil(6);
            Some(encoded[from..(5 + before + trimmed.len()) * 8 / 6].to_vec())
        }
        1 | 2 => {
            let encoded = written(secret, how, b"");
            Some(encoded[(before * 8).div_ceil(6)..(before + trimmed.len()) * 8 / 6].to_vec())
        }
        _ => Some(written(trimmed, how, b"")),
    }
    .filter(|core| core.len() >= SHORTEST)
}

fn secret() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[ab]{4,9}".prop_map(String::into_bytes),
        4 => "[a-zA-Z0-9/+=' \"<%&$!ö-]{4,20}".prop_map(String::into_bytes),
        2 => "[a-z{ ]{0,6}\n[a-z ]{0,40}(\n[a-zA-Z]{0,40})?\n?".prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..12),
        1 => "[a-z]{0,3}".prop_map(String::into_bytes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_of_a_secret_comes_out_and_everything_else_does(
        secrets in proptest::collection::vec(secret(), 1..4),
        parts in proptest::collection::vec((any::<u8>(), any::<proptest::sample::Index>(), "[ab\n =Z-]{0,8}", any::<bool>()), 0..8),
        cuts in proptest::collection::vec(1usize..9, 1..30),
    ) {
        let forms = all_forms(&secrets);
        let mut input = Vec::new();
        // What was written of whole secrets, by code that knows nothing of the forms that are looked for.
        let mut unseen = Vec::new();
        for (how, which, around, whole) in &parts {
            input.extend_from_slice(around.as_bytes());
            let secret = which.get(&secrets);
            let mut value = written(secret, *how, around.as_bytes());
            if *whole {
                unseen.extend(core(secret, *how, around.len()));
            } else {
                value.truncate(value.len() / 2);
            }
            input.extend_from_slice(&value);
        }
        let mut pieces = Vec::new();
        let mut rest = input.as_slice();
        for cut in cuts.iter().cycle() {
            let (piece, left) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = left;
            if rest.is_empty() {
                break;
            }
        }
        let expected = mirror(&forms, &input);
        let out = stream(&forms, &pieces);
        prop_assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&expected));
        // And as one piece.
        prop_assert_eq!(stream(&forms, &[&input]), expected);
        for form in forms.iter().filter(|form| !form.how.line && !MARKER.as_bytes().windows(form.bytes.len()).any(|window| window == form.bytes)) {
            let found = out.windows(form.bytes.len()).any(|window| window == form.bytes);
            prop_assert!(!found, "{:?} is in {:?}", String::from_utf8_lossy(&form.bytes), String::from_utf8_lossy(&out));
        }
        for core in unseen.iter().filter(|core| !MARKER.as_bytes().windows(core.len()).any(|window| window == core.as_slice())) {
            let found = out.windows(core.len()).any(|window| window == core.as_slice());
            prop_assert!(!found, "{:?} is left in {:?}", String::from_utf8_lossy(core), String::from_utf8_lossy(&out));
        }
    }

    #[test]
    fn however_long_the_pauses_are_only_a_few_bytes_of_a_secret_come_out(
        value in "[a-z]{8,20}", before in "[A-Z ]{0,5}", pauses in proptest::collection::vec(any::<bool>(), 30),
    ) {
        let forms = all_forms(&[value.clone().into_bytes()]);
        let mut redactor = redactor(&forms);
        let mut out = Vec::new();
        for (at, byte) in format!("{before}{value} end\n").into_bytes().into_iter().enumerate() {
            out.extend_from_slice(&redactor.push(Bytes::copy_from_slice(&[byte])));
            if pauses[at % pauses.len()] {
                out.extend_from_slice(&redactor.flush(LONG_MOMENT));
                prop_assert!(!redactor.is_holding());
            }
        }
        out.extend_from_slice(&redactor.finish());
        let out = String::from_utf8(out).unwrap();
        prop_assert!(out.ends_with(&format!("{MARKER} end\n")), "{}", out);
        prop_assert!(!out.contains(&value[..FEW + 1]), "{}", out);
    }
}

#[test]
fn a_value_is_found_wherever_the_stream_is_cut() {
    assert_eq!(text(&["hunter2"], &["hun", "ter", "2!"]), format!("{MARKER}!"));
    assert_eq!(text(&["hunter2"], &["hunhunter2hunter"]), format!("hun{MARKER}hunter"));
    assert_eq!(
        text(&["a\nbcdef\n"], &["x a\n", "bcd", "ef\n"]),
        format!("x {MARKER}\n")
    );
}

#[test]
fn a_prompt_is_not_held() {
    let forms = all_forms(&[b"hunter2".to_vec()]);
    let mut redactor = redactor(&forms);
    assert_eq!(redactor.push("Password: ".into()), "Password: ");
    assert_eq!(redactor.push("Name of the h".into()), "Name of the ");
    assert!(redactor.flush(Duration::from_millis(100)).is_empty());
    assert_eq!(redactor.flush(MOMENT), "h");
    assert_eq!(redactor.push("unter: ".into()), "unter: ");
    assert_eq!(redactor.push("hunter".into()), "");
    assert_eq!(redactor.flush(MOMENT), "", "more than a few bytes wait a little longer");
    assert_eq!(redactor.flush(LONG_MOMENT), MARKER);
    assert_eq!(redactor.push("2!".into()), "!");
}

#[test]
fn a_braces_line_of_a_json_key_shreds_no_log() {
    let key = "{\n  \"private_key\": \"abcdefghij\",\n  \"id\": \"7\"\n}\n";
    let log = "{\n  \"status\": \"ok\"\n}\n";
    assert_eq!(text(&[key], &[log]), log);
    assert_eq!(text(&[key], &["x\n  \"id\": \"7\"\n", "y"]), format!("x\n{MARKER}\ny"));
    assert_eq!(text(&[key], &["+ ", key]), format!("+ {MARKER}\n"));
}

/// The digits in lines of this width.
fn wrapped(digits: &str, width: usize, end: &str) -> String {
    let lines = digits.as_bytes().chunks(width);
    let lines: Vec<&str> = lines.map(|line| std::str::from_utf8(line).unwrap()).collect();
    lines.join(end)
}

#[test]
fn what_tools_encode_and_wrap_is_found_wherever_its_lines_begin() {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    let value: String = (0..25).map(|number| format!("{number}-?")).collect();
    let whole = [STANDARD.encode(&value), URL_SAFE.encode(&value)];
    for before in 0..160 {
        let text = format!("{}{value}, and more behind it", "user:".repeat(32).split_at(before).0);
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        for (digits, widths) in [
            (STANDARD.encode(&text), [64, 76]),
            (URL_SAFE.encode(&text), [64, 76]),
            (hex, [60, 60]),
        ] {
            for (width, end) in widths.into_iter().zip(["\n", "\r\n"]) {
                let log = format!("$ tool\n{}\n$ done\n", wrapped(&digits, width, end));
                let mut first = None;
                for size in [1, 2, 13, 64, 77, 100, log.len()] {
                    let pieces: Vec<&[u8]> = log.as_bytes().chunks(size).collect();
                    let out = stream(&all_forms(&[value.clone().into_bytes()]), &pieces);
                    let out = String::from_utf8(out).unwrap();
                    let (begin, rest) = out
                        .split_once(MARKER)
                        .unwrap_or_else(|| panic!("{before} {width} {out}"));
                    assert!(log.starts_with(begin) && log.ends_with(rest), "{out}");
                    // What is left has no more of it than the digits that hold bits of its neighbours.
                    let digits_of = |text: &str| text.chars().filter(|char| !char.is_whitespace()).count();
                    let gone = digits_of(&log) - digits_of(begin) - digits_of(rest);
                    let least = if width == 60 {
                        2 * value.len()
                    } else {
                        value.len() * 8 / 6 - 1
                    };
                    assert!((least..=least + 4).contains(&gone), "{gone} of {least}: {out}");
                    assert_eq!(first.get_or_insert(out.clone()), &out, "{size}");
                }
            }
        }
    }
    for (whole, width) in whole.iter().zip([64, 76]) {
        let alone = format!("{}\n", wrapped(whole, width, "\n"));
        assert_eq!(text(&[&value], &[&alone]), format!("{MARKER}\n"));
    }
}

#[test]
fn a_line_that_ends_is_held_only_if_it_is_one_of_digits() {
    let forms = all_forms(&[b"hunter2hunter2hunter2".to_vec()]);
    let begin = &forms.iter().find(|form| form.how.wraps && form.how.tail).unwrap().bytes[..3];
    let line = |before: &str| [before.as_bytes(), begin, b"\n"].concat();
    let pushed = |line: Vec<u8>| redactor(&forms).push(line.into()).len();
    assert_eq!(pushed(line("Downloading ")), 16);
    // With the digit before it, which would hold bits of it.
    assert_eq!(pushed(line(&"A".repeat(61))), 60);
    // Nothing of it goes where no more comes.
    for end in ["\n", "\r\n"] {
        let text = [&[b'A'; 61], begin, end.as_bytes()].concat();
        let mut redactor = redactor(&forms);
        let out = redactor.push(Bytes::copy_from_slice(&text)).to_vec();
        assert_eq!([out, redactor.flush(LONG_MOMENT).to_vec()].concat(), text);
    }
    // What has no digits does not go on in the next line.
    let path = format!("{}/hunter2\n", "/srv/releases".repeat(5));
    assert_eq!(redactor(&forms).push(path.clone().into()), path);
}

#[test]
fn memory_does_not_grow_with_the_log() {
    let forms = all_forms(&[b"hunter2".to_vec()]);
    let mut redactor = redactor(&forms);
    let piece = Bytes::from(vec![b'h'; 64 << 10]);
    for _ in 0..200 {
        redactor.push(piece.clone());
        assert!(redactor.pending.len() < 64 && redactor.pending.capacity() <= 256 << 10);
    }
}
