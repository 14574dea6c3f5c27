//! Text → grammar, as llama.cpp's parser reads it.

use std::collections::HashMap;

use super::{Choice, Grammar, Item, NESTING, REPEATS, RULES, What};

/// Letters of a name that are repeated in an error.
const NAME: usize = 64;

/// Why a text is no grammar that is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    /// At one place, both numbers from 1.
    #[error("line {line}, column {column}: {what}")]
    At {
        /// Its line.
        line: usize,
        /// Its character in the line.
        column: usize,
        /// What is wrong.
        what: String,
    },
    /// As a whole.
    #[error("{0}")]
    Whole(String),
}

struct Parser<'a> {
    whole: &'a str,
    rest: &'a str,
    names: HashMap<&'a str, usize>,
    rules: Vec<(&'a str, Option<Choice>)>,
}

type Parsed<T> = Result<T, SyntaxError>;

/// Reads a grammar.
pub(super) fn parse(text: &str) -> Parsed<Grammar> {
    let mut parser = Parser { whole: text, rest: text, names: HashMap::new(), rules: Vec::new() };
    parser.space(true);
    while !parser.rest.is_empty() {
        parser.rule()?;
    }
    let root = parser.names.get("root").copied();
    let root = root.ok_or_else(|| SyntaxError::Whole("there is no rule `root`".into()))?;
    let defined = parser.rules.into_iter().map(|(name, rule)| {
        let short: String = name.chars().take(NAME).collect();
        rule.ok_or_else(|| SyntaxError::Whole(format!("there is no rule `{short}`")))
    });
    Ok(Grammar { rules: defined.collect::<Parsed<_>>()?, root })
}

impl<'a> Parser<'a> {
    fn error<T>(&self, what: impl Into<String>) -> Parsed<T> {
        let before = self.whole.get(..self.whole.len() - self.rest.len()).unwrap_or_default();
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Err(SyntaxError::At { line: before.matches('\n').count() + 1, column, what: what.into() })
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn eat(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn expect(&mut self, text: &str) -> Parsed<()> {
        if self.eat(text) { Ok(()) } else { self.error(format!("`{text}` is expected")) }
    }

    /// Takes what fits from the front.
    fn while_is(&mut self, is: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest.trim_start_matches(is);
        let taken = self.rest.get(..self.rest.len() - rest.len()).unwrap_or_default();
        self.rest = rest;
        taken
    }

    /// Passes over blanks and comments, and over line ends where a rule cannot end.
    fn space(&mut self, lines: bool) {
        loop {
            self.while_is(|c| matches!(c, ' ' | '\t') || lines && matches!(c, '\r' | '\n'));
            if self.peek() != Some('#') {
                return;
            }
            self.while_is(|c| !matches!(c, '\r' | '\n'));
        }
    }

    /// The index of the rule whose name is next.
    fn name(&mut self) -> Parsed<usize> {
        let name = self.while_is(is_word);
        if name.is_empty() {
            return self.error("the name of a rule is expected");
        }
        if let Some(known) = self.names.get(name) {
            return Ok(*known);
        }
        if self.rules.len() == RULES {
            return self.error(format!("at most {RULES} rules are taken"));
        }
        self.names.insert(name, self.rules.len());
        self.rules.push((name, None));
        Ok(self.rules.len() - 1)
    }

    fn rule(&mut self) -> Parsed<()> {
        let index = self.name()?;
        self.space(false);
        self.expect("::=")?;
        self.space(true);
        let choice = self.choice(0)?;
        if !(self.rest.is_empty() || self.rest.starts_with(['\r', '\n'])) {
            return self.error("this cannot follow here");
        }
        if let Some((_, rule)) = self.rules.get_mut(index)
            && rule.replace(choice).is_some()
        {
            return self.error("the rule above is defined a second time");
        }
        self.space(true);
        Ok(())
    }

    /// Sequences until something else comes, within so many parentheses.
    fn choice(&mut self, depth: usize) -> Parsed<Choice> {
        let mut choice = vec![self.sequence(depth)?];
        while self.eat("|") {
            self.space(true);
            choice.push(self.sequence(depth)?);
        }
        Ok(choice)
    }

    fn sequence(&mut self, depth: usize) -> Parsed<Vec<Item>> {
        let mut items = Vec::new();
        loop {
            let what = match self.peek() {
                Some('"') => What::Text(self.text()?),
                Some('[') => self.class()?,
                Some('.') => {
                    self.next();
                    What::Class(vec![(char::MIN, char::MAX)], false)
                }
                Some('(') if depth == NESTING => {
                    return self.error(format!("at most {NESTING} parentheses within each other are taken"));
                }
                Some('(') => {
                    self.next();
                    self.space(true);
                    let choice = self.choice(depth + 1)?;
                    self.expect(")")?;
                    What::Group(choice)
                }
                Some('<' | '!') => return self.error("references to tokens are not taken; write their text"),
                Some('*' | '+' | '?' | '{') => {
                    return self.error("there is nothing to repeat; a repetition needs parentheses to be repeated");
                }
                Some(c) if is_word(c) => What::Rule(self.name()?),
                _ => return Ok(items),
            };
            self.space(depth > 0);
            let (min, max) = match &what {
                What::Text(text) if text.is_empty() => (1, Some(1)),
                _ => self.repetition(depth > 0)?,
            };
            items.push(Item { what, min, max });
        }
    }

    /// How often what stands before this place comes; once, where nothing is said.
    fn repetition(&mut self, lines: bool) -> Parsed<(u32, Option<u32>)> {
        let found = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => {
                self.next();
                self.space(lines);
                let min = self.number()?;
                self.space(lines);
                let max = if self.eat(",") {
                    self.space(lines);
                    if self.peek().is_some_and(|c| c.is_ascii_digit()) { Some(self.number()?) } else { None }
                } else {
                    Some(min)
                };
                self.space(lines);
                if self.peek() != Some('}') {
                    return self.error("`}` is expected");
                }
                if max.is_some_and(|max| max < min) {
                    return self.error("the second number is less than the first");
                }
                (min, max)
            }
            _ => return Ok((1, Some(1))),
        };
        self.next();
        self.space(lines);
        Ok(found)
    }

    fn number(&mut self) -> Parsed<u32> {
        let digits = self.while_is(|c| c.is_ascii_digit());
        match digits.parse() {
            Ok(number) if number <= REPEATS => Ok(number),
            _ if digits.is_empty() => self.error("a number is expected"),
            _ => self.error(format!("at most {REPEATS} repetitions are taken")),
        }
    }

    fn text(&mut self) -> Parsed<String> {
        self.next();
        let mut text = String::new();
        while !self.eat("\"") {
            text.push(self.character()?);
        }
        Ok(text)
    }

    fn class(&mut self) -> Parsed<What> {
        self.next();
        let others = self.eat("^");
        let mut ranges = Vec::new();
        while !self.eat("]") {
            let from = self.character()?;
            let to = if self.rest.starts_with('-') && !self.rest.starts_with("-]") {
                self.next();
                self.character()?
            } else {
                from
            };
            if to < from {
                return self.error("the range before this place goes backwards");
            }
            ranges.push((from, to));
        }
        if ranges.is_empty() {
            self.error("the class before this place is empty")
        } else {
            Ok(What::Class(ranges, others))
        }
    }

    fn character(&mut self) -> Parsed<char> {
        let digits = match self.next() {
            None => return self.error("the grammar ends within a text or a class"),
            Some('\\') => match self.next() {
                Some('x') => 2,
                Some('u') => 4,
                Some('U') => 8,
                Some('t') => return Ok('\t'),
                Some('r') => return Ok('\r'),
                Some('n') => return Ok('\n'),
                Some(c @ ('\\' | '"' | '[' | ']' | '-')) => return Ok(c),
                _ => return self.error("an unknown escape ends here"),
            },
            Some(c) => return Ok(c),
        };
        let hex = self.rest.get(..digits).filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match hex.and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32) {
            Some(c) => {
                self.rest = self.rest.get(digits..).unwrap_or_default();
                Ok(c)
            }
            None => self.error(format!("{digits} hexadecimal digits that name a character are expected")),
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-'
}
