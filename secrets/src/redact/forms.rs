//! The texts that a value may appear as in a log.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use zeroize::{Zeroize, Zeroizing};

use super::SHORTEST;

/// A line of a value of many lines that is at least so long and has no white space is key material, and no line of
/// anybody else's: it is looked for within lines too.
const DENSE: usize = 32;

/// One text to look for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Form {
    pub(crate) bytes: Vec<u8>,
    pub(crate) how: How,
}

impl Drop for Form {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

/// What belongs to a match besides the text itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct How {
    /// The base64 digit before it, which holds bits of the value's first byte.
    pub(crate) lead: bool,
    /// The base64 digit behind it, which holds bits of the value's last byte.
    pub(crate) tail: bool,
    /// It counts only if it begins a line, with BuildKit's margin or without; its last byte, which ends the line, does not
    /// belong to the value.
    pub(crate) line: bool,
    /// It may go on in the next line, wherever that begins: tools wrap what they encode.
    pub(crate) wraps: bool,
}

/// Whether a byte is a digit of base64, by either alphabet.
pub(crate) fn is_digit(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/-_".contains(&byte)
}

/// What percent encoding leaves as it is, besides letters and digits.
const KEPT: [&str; 15] = [
    // RFC 3986; Go's `QueryEscape`.
    "-._~",
    // JavaScript's `encodeURIComponent`, `encodeURI` and `escape`.
    "-._~!'()*",
    "-._~!'()*;,/?:@&=+$#",
    "@*_+-./",
    // PHP's and Java's `urlencode`.
    "-._",
    "-._*",
    // Python's `quote`.
    "-._~/",
    // Go's `PathEscape`, `URL.EscapedPath` and `URL.User`.
    "-._~$&+=:@",
    "-._~$&+,/:;=@",
    "-._~$&+,;=",
    // WHATWG's URLs: user names and passwords, paths, queries of special schemes, and of others.
    "!$%&'()*+,-._~",
    "!$%&'()*+,-./:;=@[\\]|_~",
    "!$%&()*+,-./:;=?@[\\]^_`{|}~",
    "!$%&'()*+,-./:;=?@[\\]^_`{|}~",
    "",
];

/// All forms of a value; none of one that is too short to be told from other text.
pub(crate) fn forms(value: &[u8]) -> BTreeSet<Form> {
    let value = value.trim_ascii();
    let mut forms = BTreeSet::new();
    let mut add = |bytes: Vec<u8>, how: How| {
        if bytes.len() >= SHORTEST {
            forms.insert(Form { bytes, how });
        }
    };
    if value.len() < SHORTEST {
        return forms;
    }
    let plain = How::default();
    add(value.to_vec(), plain);
    if value.contains(&b'\n') {
        add(replace(value, |byte| (byte == b'\n').then(|| b"\r\n".to_vec())), plain);
        lines(value, &mut add);
    }
    base64(value, &mut add);
    for digits in ["0123456789abcdef", "0123456789ABCDEF"] {
        let digit = |half: u8| digits.as_bytes()[usize::from(half & 15)];
        let hex: Vec<u8> = value.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect();
        add(hex, How { wraps: true, ..plain });
        for kept in KEPT {
            let escape = |byte: u8| {
                let stays = byte.is_ascii_alphanumeric() || kept.as_bytes().contains(&byte);
                (!stays).then(|| vec![b'%', digit(byte >> 4), digit(byte)])
            };
            add(replace(value, escape), plain);
            // As in a form (application/x-www-form-urlencoded).
            let plus = |byte: u8| {
                if byte == b' ' {
                    Some(b"+".to_vec())
                } else {
                    escape(byte)
                }
            };
            add(replace(value, plus), plain);
        }
    }
    json(value, &mut add);
    shell(value, &mut add);
    forms
}

fn replace(value: &[u8], with: impl Fn(u8) -> Option<Vec<u8>>) -> Vec<u8> {
    value
        .iter()
        .flat_map(|byte| with(*byte).unwrap_or_else(|| vec![*byte]))
        .collect()
}

/// Lines of a value of many lines, as a tool writes them that goes by lines. Other logs have lines such as `{` too, so that
/// a line counts as a whole one only.
fn lines(value: &[u8], add: &mut impl FnMut(Vec<u8>, How)) {
    for line in value.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii_end();
        let trimmed = line.trim_ascii();
        if trimmed.len() < SHORTEST {
            continue;
        }
        if trimmed.len() >= DENSE && !trimmed.iter().any(u8::is_ascii_whitespace) {
            add(trimmed.to_vec(), How::default());
            continue;
        }
        let whole = How {
            line: true,
            ..How::default()
        };
        for line in [line, trimmed] {
            for end in [b'\n', b'\r'] {
                add([line, &[end]].concat(), whole);
            }
        }
    }
}

/// base64 by itself, padded or not, and within a longer text: there, what stands before decides at which of three places
/// within a digit a byte begins, and the first and last digits hold bits of the neighbours.
fn base64(value: &[u8], add: &mut impl FnMut(Vec<u8>, How)) {
    for (padded, bare) in [(STANDARD, STANDARD_NO_PAD), (URL_SAFE, URL_SAFE_NO_PAD)] {
        let alone = How {
            wraps: true,
            ..How::default()
        };
        add(padded.encode(value).into_bytes(), alone);
        for before in 0..3_usize {
            let mut text = vec![0; before];
            text.extend_from_slice(value);
            let bits = text.len() * 8;
            let encoded = bare.encode(&text).into_bytes();
            text.zeroize();
            let how = How {
                lead: before > 0,
                tail: bits % 6 != 0,
                ..alone
            };
            add(encoded[(before * 8).div_ceil(6)..bits / 6].to_vec(), how);
        }
    }
}

/// How a program writes a JSON string.
#[derive(Clone, Copy, Default)]
struct Json {
    /// What it writes as `\uXXXX` without need.
    escaped: &'static str,
    /// Whether it does so with all that is not ASCII.
    ascii: bool,
    /// Whether the digits of that are capitals.
    capitals: bool,
    /// Whether it writes `\/`.
    slash: bool,
}

/// Within a JSON string: as most write it, and as those do that escape more.
fn json(value: &[u8], add: &mut impl FnMut(Vec<u8>, How)) {
    let Ok(text) = std::str::from_utf8(value) else { return };
    let most = Json::default();
    let python = Json { ascii: true, ..most };
    let php = Json { slash: true, ..python };
    let slash = Json { slash: true, ..most };
    let go = Json {
        escaped: "<>&\u{2028}\u{2029}",
        ..most
    };
    let gson = Json {
        escaped: "<>&='\u{2028}\u{2029}",
        ..most
    };
    let dotnet = Json {
        escaped: "\"<>&'+`",
        ascii: true,
        capitals: true,
        ..most
    };
    for how in [most, slash, go, python, php, gson, dotnet] {
        add(json_string(text, how), How::default());
    }
}

fn json_string(text: &str, how: Json) -> Vec<u8> {
    // As long as it can become, so that no copy of it is left behind where it would grow. What is kept is no longer than
    // it is.
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() * 6));
    let unicode = |out: &mut Vec<u8>, c: char| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let digits = if how.capitals {
                format!("\\u{unit:04X}")
            } else {
                format!("\\u{unit:04x}")
            };
            out.extend_from_slice(digits.as_bytes());
        }
    };
    for c in text.chars() {
        match c {
            c if how.escaped.contains(c) || (how.ascii && !c.is_ascii()) => unicode(&mut out, c),
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '/' if how.slash => out.extend_from_slice(b"\\/"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            c if c < ' ' => unicode(&mut out, c),
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.to_vec()
}

/// Quoted for a shell: in single quotes (both ways to have one in it), in double quotes, with backslashes, and as `$'…'`,
/// which is what `printf %q` and `${x@Q}` of bash make of control characters, and of letters that the locale does not know.
fn shell(value: &[u8], add: &mut impl FnMut(Vec<u8>, How)) {
    let escape = |by: &'static str| move |byte: u8| by.as_bytes().contains(&byte).then(|| vec![b'\\', byte]);
    for quote in ["'\\''", "'\"'\"'"] {
        add(
            replace(value, |byte| (byte == b'\'').then(|| quote.as_bytes().to_vec())),
            How::default(),
        );
    }
    add(replace(value, escape("\\\"$`")), How::default());
    add(replace(value, escape("\\\"$`!")), How::default());
    // zsh's `${(q)}`; PHP's `escapeshellcmd`, which leaves quotes that are pairs.
    for words in [
        " \t!\"#$&'()*,;<=>?[\\]^`{|}~",
        "#&;`|*?~<>^()[]{}$\\\"'",
        "#&;`|*?~<>^()[]{}$\\",
    ] {
        add(replace(value, escape(words)), How::default());
    }
    // Ruby's `shellescape`.
    let ruby = |byte: u8| {
        let stays = byte.is_ascii_alphanumeric() || b"_-.,:+/@\n".contains(&byte) || !byte.is_ascii();
        (!stays).then(|| vec![b'\\', byte])
    };
    add(replace(value, ruby), How::default());
    // bash's `printf %q`: `#` begins a comment and `~` is a home only at the beginning, or behind what they are said of.
    let bash = " \t!\"$&'()*,;<>?[\\]^`{|}";
    let within = replace(value, escape(bash));
    if value.starts_with(b"#") || value.starts_with(b"~") {
        add([b"\\", within.as_slice()].concat(), How::default());
    }
    let mut homes = Vec::with_capacity(within.len() * 2);
    for (at, byte) in within.iter().enumerate() {
        if *byte == b'~' && (at == 0 || b":=".contains(&within[at - 1])) {
            homes.push(b'\\');
        }
        homes.push(*byte);
    }
    add(homes, How::default());
    add(within, How::default());
    for octal in [b'\x80', b'\xff'] {
        let ansi = |byte: u8| {
            let letter = match byte {
                b'\\' | b'\'' => byte,
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                7 => b'a',
                8 => b'b',
                0x0b => b'v',
                0x0c => b'f',
                0x1b => b'E',
                _ if byte < b' ' || byte == 0x7f || byte >= octal => return Some(format!("\\{byte:03o}").into_bytes()),
                _ => return None,
            };
            Some(vec![b'\\', letter])
        };
        add(replace(value, ansi), How::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(value: &str) -> Vec<String> {
        forms(value.as_bytes())
            .iter()
            .map(|form| String::from_utf8(form.bytes.clone()).unwrap())
            .collect()
    }

    #[test]
    fn a_value_is_looked_for_in_every_form_it_is_known_to_take() {
        let found = texts("p@ss'w/ö <1>");
        for form in [
            "p@ss'w/ö <1>",
            "cEBzcyd3L8O2IDwxPg==",
            "cEBzcyd3L8O2IDwxPg",
            "70407373",
            "p%40ss%27w%2F%C3%B6%20%3C1%3E",
            "p%40ss%27w%2f%c3%b6+%3c1%3e",
            "p%40ss'w%2F%C3%B6%20%3C1%3E",
            "p@ss'w/%C3%B6%20%3C1%3E",
            "p@ss'w\\/ö <1>",
            "p@ss'w/ö \\u003c1\\u003e",
            "p@ss'w/\\u00f6 <1>",
            "p@ss'\\''w/ö <1>",
            "p@ss'\"'\"'w/ö <1>",
            "p@ss\\'w/ö\\ \\<1\\>",
            "p@ss\\'w/\\303\\266 <1>",
            "p@ss'w\\/\\u00f6 <1>",
            "p@ss\\u0027w/ö \\u003c1\\u003e",
            "p@ss\\u0027w/\\u00F6 \\u003C1\\u003E",
        ] {
            let within = found.iter().any(|found| found.contains(form.trim_end_matches('=')));
            assert!(within, "{form} is not in {found:#?}");
        }
        // Of many lines, on one.
        let found = texts("{\n\t\"a=\": 'b+'\n}");
        for form in [
            r#"{\n\t"a=": \'b+\'\n}"#,
            r#"{\n\t\"a=\": 'b+'\n}"#,
            r#"{\n\t\"a\u003d\": \u0027b+\u0027\n}"#,
            r#"{\n\t\u0022a=\u0022: \u0027b\u002B\u0027\n}"#,
        ] {
            assert!(found.iter().any(|found| found == form), "{form} is not in {found:#?}");
        }
        // Of the url alphabet, at all three places within a longer text.
        let value = [0xfb, 0xff, 0xbe, 0xfb, 0xff];
        let found: Vec<Vec<u8>> = forms(&value).iter().map(|form| form.bytes.clone()).collect();
        for before in ["", "a", "ab"] {
            let longer = URL_SAFE.encode([before.as_bytes(), &value, b"tail"].concat());
            assert!(
                found
                    .iter()
                    .any(|form| longer.as_bytes().windows(form.len()).any(|window| window == form)),
                "{longer}"
            );
        }
    }

    #[test]
    fn short_empty_and_blank_values_are_not_looked_for() {
        for value in ["", " ", "\n\n", "abc", " abc \n"] {
            assert!(forms(value.as_bytes()).is_empty(), "{value:?}");
        }
        assert!(!forms(b"abcd").is_empty());
        assert!(forms(b"abcd").iter().all(|form| form.bytes.len() >= SHORTEST));
    }

    #[test]
    fn lines_of_a_value_count_as_whole_lines_and_short_ones_not_at_all() {
        let key = format!("{{\n  \"type\": \"account\",\n{}\n}}", "k".repeat(64));
        let found = forms(key.as_bytes());
        let whole: Vec<_> = found
            .iter()
            .filter(|form| form.how.line)
            .map(|form| form.bytes.as_slice())
            .collect();
        assert!(whole.contains(&b"  \"type\": \"account\",\n".as_slice()));
        assert!(
            !whole
                .iter()
                .any(|line| line.starts_with(b"{") || line.starts_with(b"}"))
        );
        assert!(
            found
                .iter()
                .any(|form| !form.how.line && form.bytes == "k".repeat(64).into_bytes())
        );
    }
}
