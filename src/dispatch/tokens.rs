//! Tokens of a prompt or an answer: as much a text as what they were made of.

use std::{fmt, ops::Deref};

use zeroize::Zeroize;

/// Token ids, overwritten when dropped; `Debug` prints how many.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Tokens(Vec<u32>);

impl Tokens {
    /// None yet, with room for so many: what grows in place leaves no copy behind.
    pub(super) fn with_room(tokens: usize) -> Self {
        Self(Vec::with_capacity(tokens))
    }

    /// Puts more behind them.
    pub(super) fn append(&mut self, mut more: Vec<u32>) {
        if self.0.capacity() - self.0.len() < more.len() {
            let mut longer = Vec::with_capacity((self.0.len() + more.len()) * 2);
            longer.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = longer;
        }
        self.0.extend_from_slice(&more);
        more.zeroize();
    }
}

impl From<Vec<u32>> for Tokens {
    fn from(tokens: Vec<u32>) -> Self {
        Self(tokens)
    }
}

impl Deref for Tokens {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.0
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_grow_and_are_never_shown() {
        let mut tokens = Tokens::with_room(1);
        (0..100).for_each(|token| tokens.append(vec![token, token]));
        assert_eq!(tokens.len(), 200);
        assert!(tokens.chunks(2).zip(0..).all(|(pair, token)| pair == [token, token]));
        assert_eq!(format!("{tokens:?}"), "200 tokens");
    }
}
