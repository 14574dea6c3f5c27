//! One running sequence: what of it is in the KV cache, what comes next, and when its answer ends.

use llama_cpp_2::token::LlamaToken;
use temperd::{constrain::Matcher, wire::engine::Start};

use crate::{
    adapters::Group,
    answer::Answer,
    batch::{Due, Wish},
    lookup::{Draft, Lookup},
    prefix::{Kept, Owned},
    sampler::Sampler,
};

/// A sequence in its slot.
pub struct Sequence {
    /// The daemon's name for it.
    pub id: u64,
    /// llama.cpp's sequence id.
    pub slot: i32,
    /// Greater goes first.
    pub priority: i32,
    /// Chooses its tokens.
    pub sampler: Sampler,
    /// Its answer so far.
    pub answer: Answer,
    /// Where its answer is within what it must obey.
    pub matcher: Option<Matcher>,
    /// Best tokens to report beside each chosen one, where log probabilities are wanted at all.
    pub logprobs: Option<usize>,
    /// Whether digests of its logits are wanted.
    pub digests: bool,
    /// Whether its end has been reported; it leaves its slot before the next step.
    pub ended: bool,
    /// Whether what it begins with has been looked for in others' cells.
    pub begun: bool,
    /// Whether it waits for room in the KV cache. It has no cells then.
    pub waits: bool,
    /// What of its cells is kept outside the cache while it waits.
    pub copy: Option<Parked>,
    /// Tokens that were taken over from others' cells, until that has been told.
    pub cached: Option<usize>,
    /// Drafts from its own text.
    lookup: Lookup,
    /// What is drafted to follow in the next step, and whether its match was long.
    pub draft: (Vec<LlamaToken>, bool),
    /// Drafted tokens so far, and how many of them were right.
    pub drafted: (u32, u32),
    /// Prompt and answer; but for the token sampled last, the answer's are in the KV cache.
    tokens: Vec<LlamaToken>,
    /// How many of `tokens` are read without a token being sampled in between: the prompt; what another engine wrote behind
    /// it; and all that was there when its cells were given up.
    read: usize,
    /// How many of `tokens` are in the KV cache.
    cells: usize,
    public: usize,
    scope: u64,
    /// Whose turns it shares, and whose cells.
    pub adapter: Group,
}

/// A copy of cells, all but those that others hold too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parked {
    /// Cells that are not in it, from the first.
    pub prefix: usize,
    /// Where it ends.
    pub cells: usize,
}

impl Parked {
    /// Cells in it.
    pub fn own(&self) -> usize {
        self.cells - self.prefix
    }
}

impl Sequence {
    /// A sequence that has read nothing yet, and waits for its place in the KV cache.
    ///
    /// # Errors
    /// Why it cannot run: an empty or too long prompt, a token that does not exist, a sampling value out of range.
    pub fn new(start: Start, slot: i32, adapter: Group, n_vocab: i32, context: usize) -> Result<Self, String> {
        let token = |id: &u32| i32::try_from(*id).ok().filter(|id| *id < n_vocab).map(LlamaToken);
        let tokens: Option<Vec<LlamaToken>> = start.prompt.iter().chain(&start.written).map(token).collect();
        let tokens = tokens.ok_or_else(|| format!("the prompt holds a token beyond the vocabulary of {n_vocab}"))?;
        if start.prompt.is_empty() {
            return Err("the prompt is empty".to_owned());
        }
        if tokens.len() > context {
            return Err(format!("the prompt has {} tokens, the context {context}", tokens.len()));
        }
        Ok(Self {
            id: start.sequence,
            slot,
            priority: start.priority,
            sampler: Sampler::new(&start.sampling.unwrap_or_default(), n_vocab, &tokens)?,
            matcher: None,
            logprobs: start.logprobs.then_some(start.top_logprobs as usize),
            digests: start.digests,
            answer: Answer::new(start.stop, start.stop_tokens, start.max_tokens),
            ended: false,
            begun: false,
            waits: true,
            copy: None,
            cached: Some(0),
            lookup: Lookup::new(),
            draft: (Vec::new(), false),
            drafted: (0, 0),
            read: tokens.len(),
            cells: 0,
            public: (start.public_prefix as usize).min(start.prompt.len()),
            scope: start.scope,
            adapter,
            tokens,
        })
    }

    /// What it has to decode next. One that has not begun waits for another's cells.
    pub fn wish(&self) -> Wish {
        let due = match self.read.saturating_sub(self.cells) {
            _ if !self.begun || self.waits => Due::Nothing,
            0 => Due::Token { drafted: self.draft.0.len() },
            rest => Due::Prompt(rest),
        };
        Wish { due, priority: self.priority }
    }

    /// Whether its prompt is read, and what it has to read beside.
    pub fn answering(&self) -> bool {
        self.cells >= self.read
    }

    /// Gives up its cells until there is room; `copy` is what is kept of them. Without one it reads them again.
    pub fn park(&mut self, copy: Option<Parked>) {
        (self.waits, self.copy) = (true, copy);
        self.draft = (Vec::new(), false);
        self.cells = 0;
        if copy.is_none() {
            (self.begun, self.read) = (false, self.tokens.len());
        }
    }

    /// Goes on, with the cells of its copy if it has them back.
    pub fn unpark(&mut self, back: Option<Parked>) {
        (self.waits, self.copy) = (false, None);
        match back {
            Some(copy) => self.cells = copy.cells,
            None => (self.begun, self.read) = (false, self.tokens.len()),
        }
    }

    /// Tokens that it may come to have in the KV cache, of at most `context`.
    pub fn most(&self, context: usize) -> usize {
        (self.tokens.len() + self.answer.left()).min(context.max(self.tokens.len()))
    }

    /// The next `count` tokens to decode, drafted ones at the end, with their positions, each with whether it wants
    /// logits.
    pub fn next(&self, count: usize) -> impl Iterator<Item = (LlamaToken, i32, bool)> {
        let tokens = self.tokens.iter().chain(&self.draft.0).enumerate().skip(self.cells).take(count);
        let last = self.tokens.len() - 1;
        tokens.map(move |(at, token)| (*token, i32::try_from(at).unwrap_or(i32::MAX), at >= last))
    }

    /// Notes that `count` tokens of the prompt, or the token sampled last, are in the KV cache.
    pub fn decoded(&mut self, count: usize) {
        self.cells += count;
    }

    /// The token that follows. Where it is the next drafted one, its cell is filled already.
    pub fn follow_with(&mut self, token: LlamaToken) {
        self.tokens.push(token);
    }

    /// Takes over the first `count` cells of another.
    pub fn take_over(&mut self, count: usize) {
        self.cells = count;
        if let Some(cached) = &mut self.cached {
            *cached = count;
        }
    }

    /// Tokens of it in the KV cache: all that precede the token to be sampled.
    pub fn cells(&self) -> usize {
        self.cells
    }

    /// Tokens that are read before one is sampled.
    pub fn to_read(&self) -> usize {
        self.read
    }

    /// All its tokens.
    pub fn tokens(&self) -> &[LlamaToken] {
        &self.tokens
    }

    /// What it has to read, for finding what it may take over. The last token is read in any case: its logits are needed.
    pub fn wanted(&self) -> Owned<'_> {
        self.owned(self.read.saturating_sub(1))
    }

    /// What its copy lacks.
    pub fn lacking(&self, copy: Parked) -> Owned<'_> {
        self.owned(copy.prefix)
    }

    /// What is in the KV cache.
    pub fn held(&self) -> Owned<'_> {
        self.owned(self.cells)
    }

    /// What will be in the KV cache once the prompt is read.
    pub fn promised(&self) -> Owned<'_> {
        self.owned(self.read.max(self.cells))
    }

    fn owned(&self, count: usize) -> Owned<'_> {
        let tokens = self.tokens.get(..count).unwrap_or(&self.tokens);
        Owned { tokens, public: self.public, scope: self.scope, adapter: self.adapter }
    }

    /// Takes in what another engine wrote, of which nothing is reported again, as far as it is text: `render` gives the
    /// bytes of a token, and whether it ends an answer. Says why the answer has ended with it, if it has.
    ///
    /// # Errors
    /// A token that the constraint does not allow.
    pub fn resume(
        &mut self,
        written: &[u32],
        mut render: impl FnMut(u32, &mut Vec<u8>) -> bool,
    ) -> Result<Option<&'static str>, String> {
        let mut bytes = Vec::new();
        for token in written {
            bytes.clear();
            let ends = render(*token, &mut bytes);
            let mut taken = self.answer.take(*token, &bytes, ends, false);
            self.obey(*token, &mut taken)?;
            if taken.end.is_some() {
                return Ok(taken.end);
            }
        }
        Ok(None)
    }

    /// What of its own text may follow, at most `most` tokens.
    pub fn look_up(&mut self, most: usize) -> Option<Draft> {
        self.lookup.draft(&self.tokens, most)
    }

    /// Drafts the first `length` tokens of what was looked up.
    pub fn expect(&mut self, draft: Option<Draft>, length: usize) {
        self.draft = match draft {
            Some(mut draft) if length > 0 => {
                draft.tokens.truncate(length);
                (draft.tokens, draft.long)
            }
            _ => (Vec::new(), false),
        };
    }

    /// Notes how many of the drafted tokens were right.
    pub fn learn(&mut self, long: bool, drafted: usize, accepted: usize) {
        if drafted == 0 {
            self.lookup.forgive();
            return;
        }
        self.lookup.learn(long, drafted, accepted);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        self.drafted.0 = self.drafted.0.saturating_add(count(drafted));
        self.drafted.1 = self.drafted.1.saturating_add(count(accepted));
    }

    /// What stays when it has ended.
    pub fn as_kept(&self) -> Kept {
        Kept {
            slot: self.slot,
            public: self.public,
            scope: self.scope,
            adapter: self.adapter,
            tokens: self.tokens.iter().take(self.cells).copied().collect(),
            since: 0.0,
            parked: false,
            named: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::NONE;

    fn start(prompt: Vec<u32>) -> Start {
        Start { sequence: 1, prompt, max_tokens: 4, ..Start::default() }
    }

    fn next(sequence: &Sequence, count: usize) -> Vec<(i32, i32, bool)> {
        sequence.next(count).map(|(token, position, logits)| (token.0, position, logits)).collect()
    }

    #[test]
    fn a_prompt_is_read_in_parts_and_only_its_last_token_wants_logits() {
        let mut sequence = Sequence::new(start(vec![5, 6, 7]), 0, NONE, 10, 8).expect("it fits");
        assert_eq!(sequence.wish().due, Due::Nothing);
        begin(&mut sequence);
        assert_eq!(sequence.wish().due, Due::Prompt(3));
        assert_eq!(next(&sequence, 2), [(5, 0, false), (6, 1, false)]);
        sequence.decoded(2);
        assert_eq!(sequence.wish().due, Due::Prompt(1));
        assert_eq!(next(&sequence, 1), [(7, 2, true)]);
        sequence.decoded(1);
        sequence.follow_with(LlamaToken(9));
        assert_eq!(sequence.wish().due, Due::Token { drafted: 0 });
        assert_eq!(next(&sequence, 1), [(9, 3, true)]);
        sequence.draft = (vec![LlamaToken(1), LlamaToken(2)], false);
        assert_eq!(next(&sequence, 3), [(9, 3, true), (1, 4, true), (2, 5, true)]);
        sequence.decoded(1);
        assert_eq!(sequence.as_kept().tokens.len(), 4);
    }

    #[test]
    fn the_last_prompt_token_is_never_taken_over() {
        let mut sequence = Sequence::new(start(vec![5, 6, 7]), 0, NONE, 10, 8).expect("it fits");
        assert_eq!(sequence.wanted().tokens.len(), 2);
        begin(&mut sequence);
        sequence.take_over(2);
        assert_eq!((sequence.wish().due, sequence.cached), (Due::Prompt(1), Some(2)));
        assert_eq!(next(&sequence, 1), [(7, 2, true)]);
    }

    fn begin(sequence: &mut Sequence) {
        sequence.unpark(None);
        sequence.begun = true;
    }

    #[test]
    fn parked_without_a_copy_it_reads_all_again_and_samples_from_the_last() {
        let mut sequence = Sequence::new(start(vec![5, 6]), 0, NONE, 10, 8).expect("it fits");
        begin(&mut sequence);
        sequence.take_over(1);
        assert_eq!(sequence.cached.take(), Some(1));
        sequence.decoded(1);
        sequence.follow_with(LlamaToken(7));
        assert_eq!(sequence.most(8), 7);
        sequence.draft = (vec![LlamaToken(1)], false);
        sequence.park(None);
        assert_eq!((sequence.wish().due, sequence.cells()), (Due::Nothing, 0));
        begin(&mut sequence);
        assert_eq!(sequence.wish().due, Due::Prompt(3));
        assert_eq!(sequence.wanted().tokens.len(), 2);
        sequence.take_over(2);
        assert_eq!(sequence.cached, None, "it has been told");
        assert_eq!(next(&sequence, 1), [(7, 2, true)]);
        sequence.decoded(1);
        assert_eq!(sequence.wish().due, Due::Token { drafted: 0 });
    }

    #[test]
    fn parked_with_a_copy_it_goes_on_where_it_was() {
        let mut sequence = Sequence::new(start(vec![5, 6, 7]), 0, NONE, 10, 8).expect("it fits");
        begin(&mut sequence);
        sequence.decoded(2);
        let copy = Parked { prefix: 1, cells: 2 };
        sequence.park(Some(copy));
        assert_eq!((sequence.cells(), copy.own(), sequence.lacking(copy).tokens.len()), (0, 1, 1));
        sequence.unpark(Some(copy));
        assert_eq!((sequence.wish().due, sequence.cells()), (Due::Prompt(1), 2));
        sequence.park(Some(copy));
        sequence.unpark(None);
        assert_eq!((sequence.begun, sequence.cells(), sequence.copy), (false, 0, None), "its copy could not be used");
    }

    #[test]
    fn what_another_engine_wrote_is_read_counted_and_not_reported() {
        let stop = vec!["bc".to_owned()];
        let start = Start { written: vec![1, 2], stop, ..start(vec![5]) };
        let mut sequence = Sequence::new(start.clone(), 0, NONE, 10, 8).expect("it fits");
        let render = |token: u32, bytes: &mut Vec<u8>| {
            bytes.push(b"abc"[token as usize % 3]);
            token == 9
        };
        assert_eq!(sequence.resume(&[0, 1], render), Ok(None));
        begin(&mut sequence);
        assert_eq!((sequence.wish().due, sequence.answer.left()), (Due::Prompt(3), 2));
        // The half of the stop string was written before.
        let taken = sequence.answer.take(2, b"c", false, false);
        assert_eq!((taken.text.as_str(), taken.end), ("", Some("stop")));
        let fresh = || Sequence::new(start.clone(), 0, NONE, 10, 8).expect("it fits");
        assert_eq!(fresh().resume(&[0; 4], render), Ok(Some("length")));
        assert_eq!(fresh().resume(&[0, 9], render), Ok(Some("stop")));
        assert!(Sequence::new(Start { prompt: Vec::new(), ..start.clone() }, 0, NONE, 10, 8).is_err());
        assert!(Sequence::new(Start { written: vec![1; 8], ..start }, 0, NONE, 10, 8).is_err());
    }

    #[test]
    fn a_prompt_that_cannot_run_is_refused_with_the_numbers() {
        let refused = |prompt| Sequence::new(start(prompt), 0, NONE, 10, 8).err().expect("refused");
        assert!(refused(vec![]).contains("empty"));
        assert!(refused(vec![10]).contains("vocabulary of 10"));
        assert_eq!(refused(vec![1; 9]), "the prompt has 9 tokens, the context 8");
        assert!(Sequence::new(start(vec![1; 8]), 0, NONE, 10, 8).is_ok());
    }
}
