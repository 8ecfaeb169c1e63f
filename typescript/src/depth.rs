//! How deep a module's syntax may be. Parser and transformer recurse, and have no measure of their own.

use std::io;

/// Brackets within each other. What is read by people has some ten.
const MAX_BRACKETS: usize = 1000;
/// Signs in a row that may each be an operator before the next one.
const MAX_SIGNS: usize = 1000;
/// Opening angles that are not closed: most are comparisons.
const MAX_ANGLES: usize = 20_000;
/// For the deepest text that is let through; only what is used of it becomes memory.
const STACK: usize = 1 << 30;

/// Where a text is deeper than any that a person writes. Texts within it are not told from code: they are no deeper either.
pub(crate) fn too_deep(text: &str) -> Option<usize> {
    let (mut brackets, mut signs, mut angles) = (0_usize, 0_usize, 0_usize);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => brackets += 1,
            b')' | b']' | b'}' => brackets = brackets.saturating_sub(1),
            b'<' => angles += 1,
            b'>' => angles = angles.saturating_sub(1),
            _ => {}
        }
        signs = match byte {
            b'!' | b'~' | b'+' | b'-' | b'*' | b'@' | b'?' | b':' => signs + 1,
            b' ' | b'\t' | b'\n' | b'\r' => signs,
            _ => 0,
        };
        if brackets > MAX_BRACKETS || signs > MAX_SIGNS || angles > MAX_ANGLES {
            return Some(at);
        }
    }
    None
}

/// Runs `work` where deep recursion has room.
pub(crate) fn with_room<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("parser".to_owned()).stack_size(STACK);
        let parsing = thread.spawn_scoped(scope, work)?;
        parsing.join().map_err(|_| io::Error::other("the parser failed on it"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_not_too_deep() {
        let rule = format!("/* {} */ const x = `{}`;", "-".repeat(200), "(((".repeat(30));
        assert_eq!(too_deep(&rule), None);
        assert_eq!(too_deep(&"[]".repeat(100_000)), None);
        assert_eq!(too_deep(&"(".repeat(1500)), Some(1000));
        assert!(too_deep(&"- ".repeat(1500)).is_some());
    }
}
