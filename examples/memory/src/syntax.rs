//! The grammar of the memory engine's shell: the part of POSIX's shell command language that tests are written in.

use std::iter::Peekable;
use std::str::Chars;

/// A piece of a word.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    Text(String),
    /// `$NAME`; the flag is whether it stood in double quotes.
    Variable(String, bool),
    /// `$(…)`
    Command(Box<Command>, bool),
    /// `$((…))`
    Arithmetic(Word),
}

/// Parts, and whether any of it was quoted (an empty word that was quoted is an argument).
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Word(pub(super) Vec<Part>, pub(super) bool);

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Redirect {
    pub(super) from: u32,
    /// `<`, `>`, `>>` or `>&`.
    pub(super) how: &'static str,
    pub(super) to: Word,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Command {
    Simple {
        assign: Vec<(String, Word)>,
        words: Vec<Word>,
    },
    Redirected(Box<Command>, Vec<Redirect>),
    Pipe(Box<Command>, Box<Command>),
    And(Box<Command>, Box<Command>),
    Or(Box<Command>, Box<Command>),
    Not(Box<Command>),
    List(Vec<Command>),
    Background(Box<Command>),
    If(Box<Command>, Box<Command>, Box<Command>),
    While(Box<Command>, Box<Command>),
    For(String, Vec<Word>, Box<Command>),
    Subshell(Box<Command>),
}

/// Parses a whole script.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(script: &str) -> Result<Command, String> {
    let mut parser = Parser {
        chars: script.chars().peekable(),
        depth: 0,
    };
    let list = parser.list(&[])?;
    match parser.chars.peek() {
        None => Ok(list),
        Some(found) => Err(format!("unexpected {found:?}")),
    }
}

struct Parser<'a> {
    chars: Peekable<Chars<'a>>,
    depth: u32,
}

impl Parser<'_> {
    /// Skips blanks, comments and escaped line feeds, and line feeds too if `lines`.
    fn skip(&mut self, lines: bool) {
        loop {
            match self.chars.peek().copied() {
                Some(' ' | '\t') => {}
                Some('\n') if lines => {}
                Some('#') => {
                    while self.chars.next_if(|c| *c != '\n').is_some() {}
                    continue;
                }
                Some('\\') if self.chars.clone().nth(1) == Some('\n') => {
                    self.chars.next();
                }
                _ => return,
            }
            self.chars.next();
        }
    }

    /// Takes `text` if it is next.
    fn take(&mut self, text: &str) -> bool {
        let mut ahead = self.chars.clone();
        if text.chars().all(|c| ahead.next() == Some(c)) {
            self.chars = ahead;
            return true;
        }
        false
    }

    /// The reserved word that is next, if it is one of `of`.
    fn keyword(&mut self, of: &[&'static str]) -> Option<&'static str> {
        self.skip(true);
        let ahead: String = self
            .chars
            .clone()
            .take_while(|c| !c.is_whitespace() && !";&|()<>".contains(*c))
            .take(6)
            .collect();
        of.iter()
            .copied()
            .find(|word| *word == ahead || (*word == ")" && self.chars.peek() == Some(&')')))
    }

    fn expect(&mut self, word: &'static str) -> Result<(), String> {
        self.keyword(&[word]).ok_or_else(|| format!("expected `{word}`"))?;
        self.take(word);
        Ok(())
    }

    /// Commands up to one of the words `until`, or to the end.
    fn list(&mut self, until: &[&'static str]) -> Result<Command, String> {
        self.depth += 1;
        if self.depth > 64 {
            return Err("nested too deeply".to_owned());
        }
        let mut commands = Vec::new();
        loop {
            self.skip(true);
            if self.chars.peek().is_none() || self.keyword(until).is_some() {
                break;
            }
            let command = self.and_or()?;
            self.skip(false);
            let double = self.chars.clone().nth(1) == Some('&');
            if !double && self.take("&") {
                commands.push(Command::Background(Box::new(command)));
            } else {
                commands.push(command);
                if !self.take(";") && !self.take("\n") {
                    break;
                }
            }
        }
        self.depth -= 1;
        Ok(Command::List(commands))
    }

    fn and_or(&mut self) -> Result<Command, String> {
        let mut left = self.pipeline()?;
        loop {
            self.skip(false);
            let and = self.take("&&");
            if !and && !self.take("||") {
                return Ok(left);
            }
            self.skip(true);
            let right = Box::new(self.pipeline()?);
            left = match and {
                true => Command::And(Box::new(left), right),
                false => Command::Or(Box::new(left), right),
            };
        }
    }

    fn pipeline(&mut self) -> Result<Command, String> {
        self.skip(false);
        if self.take("! ") {
            return Ok(Command::Not(Box::new(self.pipeline()?)));
        }
        let mut left = self.command()?;
        loop {
            self.skip(false);
            if self.chars.clone().nth(1) == Some('|') || !self.take("|") {
                return Ok(left);
            }
            self.skip(true);
            left = Command::Pipe(Box::new(left), Box::new(self.command()?));
        }
    }

    fn command(&mut self) -> Result<Command, String> {
        let compound = match self.keyword(&["if", "while", "for", "{"]) {
            Some(word) => {
                self.take(word);
                Some(match word {
                    "if" => self.conditional()?,
                    "while" => {
                        let condition = Box::new(self.list(&["do"])?);
                        Command::While(condition, self.body()?)
                    }
                    "for" => {
                        self.skip(false);
                        let name = self.name();
                        self.expect("in")?;
                        let mut words = Vec::new();
                        while let Some(word) = self.word()? {
                            words.push(word);
                        }
                        self.take(";");
                        Command::For(name, words, self.body()?)
                    }
                    _ => {
                        let list = self.list(&["}"])?;
                        self.expect("}")?;
                        list
                    }
                })
            }
            None if self.take("(") => {
                let list = self.list(&[")"])?;
                self.expect(")")?;
                Some(Command::Subshell(Box::new(list)))
            }
            None => None,
        };
        let (mut assign, mut words, mut redirects) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            self.skip(false);
            if let Some(redirect) = self.redirect()? {
                redirects.push(redirect);
            } else if compound.is_some() {
                break;
            } else if let Some((name, value)) = words.is_empty().then(|| self.assignment()).transpose()?.flatten() {
                assign.push((name, value));
            } else if let Some(word) = self.word()? {
                words.push(word);
            } else {
                break;
            }
        }
        let command = match compound {
            Some(command) => command,
            None if assign.is_empty() && words.is_empty() && redirects.is_empty() => {
                return Err(format!("unexpected {:?}", self.chars.peek()));
            }
            None => Command::Simple { assign, words },
        };
        Ok(match redirects.is_empty() {
            true => command,
            false => Command::Redirected(Box::new(command), redirects),
        })
    }

    fn conditional(&mut self) -> Result<Command, String> {
        let condition = self.list(&["then"])?;
        self.expect("then")?;
        let then = self.list(&["elif", "else", "fi"])?;
        let otherwise = match self.keyword(&["elif", "else", "fi"]) {
            Some("elif") => {
                self.take("elif");
                return Ok(Command::If(
                    Box::new(condition),
                    Box::new(then),
                    Box::new(self.conditional()?),
                ));
            }
            Some("else") => {
                self.take("else");
                self.list(&["fi"])?
            }
            _ => Command::List(Vec::new()),
        };
        self.expect("fi")?;
        Ok(Command::If(Box::new(condition), Box::new(then), Box::new(otherwise)))
    }

    fn body(&mut self) -> Result<Box<Command>, String> {
        self.expect("do")?;
        let body = self.list(&["done"])?;
        self.expect("done")?;
        Ok(Box::new(body))
    }

    fn redirect(&mut self) -> Result<Option<Redirect>, String> {
        let mut ahead = self.chars.clone();
        let number = ahead
            .next()
            .and_then(|c| c.to_digit(10))
            .filter(|_| matches!(ahead.next(), Some('<' | '>')));
        if number.is_some() {
            self.chars.next();
        }
        let Some(how) = [">>", ">&", ">", "<"].into_iter().find(|how| self.take(how)) else {
            return Ok(None);
        };
        self.skip(false);
        let to = self.word()?.ok_or("a redirection lacks its file")?;
        Ok(Some(Redirect {
            from: number.unwrap_or(u32::from(how != "<")),
            how,
            to,
        }))
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
        }
        name
    }

    fn assignment(&mut self) -> Result<Option<(String, Word)>, String> {
        let before = self.chars.clone();
        let name = self.name();
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !self.take("=") {
            self.chars = before;
            return Ok(None);
        }
        Ok(Some((name, self.word()?.unwrap_or_default())))
    }

    fn word(&mut self) -> Result<Option<Word>, String> {
        self.skip(false);
        let mut word = Word::default();
        let mut text = String::new();
        while let Some(c) = self.chars.next_if(|c| !c.is_whitespace() && !";&|()<>".contains(*c)) {
            match c {
                '\\' => match self.chars.next() {
                    Some('\n') | None => {}
                    Some(c) => text.push(c),
                },
                '\'' => {
                    word.1 = true;
                    loop {
                        match self.chars.next().ok_or("a quote is not closed")? {
                            '\'' => break,
                            c => text.push(c),
                        }
                    }
                }
                '"' => {
                    word.1 = true;
                    self.double_quoted(&mut word, &mut text)?;
                }
                '$' => self.dollar(&mut word, &mut text, false)?,
                c => text.push(c),
            }
        }
        if !text.is_empty() {
            word.0.push(Part::Text(text));
        }
        Ok((!word.0.is_empty() || word.1).then_some(word))
    }

    fn double_quoted(&mut self, word: &mut Word, text: &mut String) -> Result<(), String> {
        loop {
            match self.chars.next().ok_or("a quote is not closed")? {
                '"' => return Ok(()),
                '\\' => match self.chars.next() {
                    Some('\n') => {}
                    Some(c @ ('"' | '\\' | '$' | '`')) => text.push(c),
                    other => {
                        text.push('\\');
                        text.extend(other);
                    }
                },
                '$' => self.dollar(word, text, true)?,
                c => text.push(c),
            }
        }
    }

    fn dollar(&mut self, word: &mut Word, text: &mut String, quoted: bool) -> Result<(), String> {
        let part = if self.take("((") {
            let mut inner = Word::default();
            let mut number = String::new();
            while !self.take("))") {
                match self.chars.next().ok_or("`$((` is not closed")? {
                    '$' => self.dollar(&mut inner, &mut number, true)?,
                    c => number.push(c),
                }
            }
            inner.0.push(Part::Text(number));
            Part::Arithmetic(inner)
        } else if self.take("(") {
            let list = self.list(&[")"])?;
            self.expect(")")?;
            Part::Command(Box::new(list), quoted)
        } else if self.take("{") {
            let name = self.name();
            if !self.take("}") {
                return Err(format!("${{{name} … is not understood"));
            }
            Part::Variable(name, quoted)
        } else if let Some(special) = self.chars.next_if(|c| "?$@#*0123456789".contains(*c)) {
            Part::Variable(special.to_string(), quoted)
        } else {
            match self.name() {
                name if name.is_empty() => {
                    text.push('$');
                    return Ok(());
                }
                name => Part::Variable(name, quoted),
            }
        };
        if !text.is_empty() {
            word.0.push(Part::Text(std::mem::take(text)));
        }
        word.0.push(part);
        Ok(())
    }
}
