//! Grammar → llguidance's Lark. What cannot come to an end is left out: no text belongs to it, and an answer would
//! sooner or later find nothing to go on with.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
};

use super::{Choice, Grammar, Item, SyntaxError, What};

struct Writer<'a> {
    grammar: &'a Grammar,
    /// Whether each rule has a text at all.
    ends: Vec<bool>,
    /// Whether a rule contains itself somewhere: then there is a lexeme per character, else a single one.
    recursive: bool,
    /// Lexemes by their expressions.
    classes: HashMap<String, usize>,
}

/// Writes a grammar.
pub(super) fn write(grammar: &Grammar) -> Result<String, SyntaxError> {
    let mut writer = Writer { grammar, ends: Vec::new(), recursive: false, classes: HashMap::new() };
    writer.ends = ends(grammar);
    if !writer.ends.get(grammar.root).copied().unwrap_or_default() {
        return Err(SyntaxError::Whole("the rule `root` can never come to an end".into()));
    }
    let mut order = Order::default();
    writer.visit(grammar.root, &mut order);
    writer.recursive = order.recursive;

    let mut text = format!("start: {}\n", writer.name(grammar.root));
    for index in order.done {
        let choice = grammar.rules.get(index).map(|choice| writer.choice(choice)).unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}: {choice}", writer.name(index));
    }
    for (expression, index) in &writer.classes {
        let _ = writeln!(text, "C{index}: /{expression}/");
    }
    Ok(text)
}

/// Which rules have a text: those of which a sequence has one, found by going round until nothing is new.
fn ends(grammar: &Grammar) -> Vec<bool> {
    let mut ends = vec![false; grammar.rules.len()];
    loop {
        let next: Vec<bool> = grammar.rules.iter().map(|choice| choice_ends(choice, &ends)).collect();
        if next == ends {
            return ends;
        }
        ends = next;
    }
}

fn choice_ends(choice: &Choice, ends: &[bool]) -> bool {
    choice.iter().any(|items| items.iter().all(|item| item.min == 0 || what_ends(&item.what, ends)))
}

fn what_ends(what: &What, ends: &[bool]) -> bool {
    match what {
        What::Text(_) | What::Class(..) => true,
        What::Rule(index) => ends.get(*index).copied().unwrap_or_default(),
        What::Group(choice) => choice_ends(choice, ends),
    }
}

/// The rules that are needed, and what a walk through them finds.
#[derive(Default)]
struct Order {
    open: HashSet<usize>,
    seen: HashSet<usize>,
    done: Vec<usize>,
    recursive: bool,
}

impl Writer<'_> {
    fn visit(&self, index: usize, order: &mut Order) {
        if !order.seen.insert(index) {
            order.recursive |= order.open.contains(&index);
            return;
        }
        order.open.insert(index);
        if let Some(choice) = self.grammar.rules.get(index) {
            self.visit_choice(choice, order);
        }
        order.open.remove(&index);
        order.done.push(index);
    }

    fn visit_choice(&self, choice: &Choice, order: &mut Order) {
        for item in self.written(choice).flatten() {
            match &item.what {
                What::Rule(index) => self.visit(*index, order),
                What::Group(choice) => self.visit_choice(choice, order),
                What::Text(_) | What::Class(..) => {}
            }
        }
    }

    /// The sequences that have a text, and of them the items that do.
    fn written<'c>(&self, choice: &'c Choice) -> impl Iterator<Item = Vec<&'c Item>> {
        let has_text = |item: &Item| what_ends(&item.what, &self.ends);
        let sequences = choice.iter().filter(move |items| items.iter().all(|item| item.min == 0 || has_text(item)));
        sequences.map(move |items| items.iter().filter(|item| item.max != Some(0) && has_text(item)).collect())
    }

    fn name(&self, index: usize) -> String {
        // Lark tells lexemes from rules by their first letter.
        if self.recursive { format!("r{index}") } else { format!("R{index}") }
    }

    fn choice(&mut self, choice: &Choice) -> String {
        let sequences: Vec<_> = self.written(choice).collect();
        let sequences = sequences.into_iter().map(|items| {
            let items: Vec<String> = items.into_iter().filter_map(|item| self.item(item)).collect();
            if items.is_empty() { "\"\"".to_owned() } else { items.join(" ") }
        });
        sequences.collect::<Vec<_>>().join(" | ")
    }

    fn item(&mut self, item: &Item) -> Option<String> {
        let what = match &item.what {
            What::Text(text) if text.is_empty() => return None,
            What::Text(text) if self.recursive => {
                let classes: Vec<String> = text.chars().map(|c| self.class(&[(c, c)], false)).collect();
                format!("({})", classes.join(" "))
            }
            What::Text(text) => format!("/{}/", text.chars().map(number).collect::<String>()),
            What::Class(ranges, others) => self.class(ranges, *others),
            What::Rule(index) => self.name(*index),
            What::Group(choice) => format!("({})", self.choice(choice)),
        };
        Some(match (item.min, item.max) {
            (1, Some(1)) => what,
            (0, None) => format!("{what}*"),
            (1, None) => format!("{what}+"),
            (min, None) => format!("{what}{{{min},}}"),
            (min, Some(max)) => format!("{what}{{{min},{max}}}"),
        })
    }

    /// The name of the lexeme of a class, which all equal ones share.
    fn class(&mut self, ranges: &[(char, char)], others: bool) -> String {
        let ranges: String = ranges.iter().map(|(from, to)| format!("{}-{}", number(*from), number(*to))).collect();
        let expression = format!("[{}{ranges}]", if others { "^" } else { "" });
        let next = self.classes.len();
        format!("C{}", self.classes.entry(expression).or_insert(next))
    }
}

/// A character in an expression, without anything that means something there.
fn number(c: char) -> String {
    format!("\\x{{{:X}}}", u32::from(c))
}
