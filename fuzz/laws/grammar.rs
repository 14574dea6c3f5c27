//! A grammar in GBNF.

use temperd::constrain::{Constraint, gbnf};

use super::walk;

/// Reads a grammar, and has an answer written by it.
pub fn holds(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match gbnf::to_lark(text) {
        Ok(lark) => {
            assert!(lark.starts_with("start: "), "{lark}");
            if let Some(answer) = walk::answer(&Constraint::Grammar(text.into()), walk::seed(data)) {
                assert!(std::str::from_utf8(&answer).is_ok(), "characters are whole: {answer:?}");
            }
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.len() <= 256 && !error.contains('\n'), "{error:?}");
        }
    }
}
