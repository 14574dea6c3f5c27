//! Requests for embeddings, where they differ from others.

use std::time::Instant;

use super::{
    job::{End, Job, Limits},
    owner::Owner,
    prompt::Prompt,
};
use crate::{
    request::{ErrorCode, Outcome, RequestError},
    wire::{
        engine::{Embed, Embedded},
        v1,
    },
};

/// Short texts are read side by side, up to so many tokens.
const BESIDE: u32 = 512;

impl Prompt {
    /// Tokens that the context for these texts must hold. They count against the context as those of other requests do:
    /// it is the same memory, in another place.
    pub(super) fn embedding_cells(&self, context: u32) -> u32 {
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        let all = u32::try_from(self.tokens.len()).unwrap_or(u32::MAX);
        all.min(BESIDE).min(context).max(longest)
    }
}

impl Job {
    /// The texts, for the engine. Another engine reads all of them again.
    pub(super) fn embed(&mut self, key: u64, limits: Limits, now: Instant) -> Embed {
        self.begin(limits, now);
        self.embeddings.clear();
        let prompt = self.prompt.as_ref();
        Embed {
            sequence: key,
            tokens: prompt.map_or_else(Vec::new, |prompt| prompt.tokens.to_vec()),
            lengths: prompt.map_or_else(Vec::new, |prompt| prompt.lengths.clone()),
            cells: prompt.map_or(0, |prompt| prompt.embedding_cells(limits.context)),
        }
    }
}

impl Owner {
    pub(super) fn embedded(&mut self, embedded: Embedded) {
        let key = embedded.sequence;
        if let Some(job) = self.job_mut(key) {
            job.embeddings.extend(embedded.vectors.into_iter().map(|vector| v1::Embedding { values: vector.values }));
        }
        let Some(finished) = embedded.finished else { return };
        let numbers = embedded.limit.zip(embedded.actual);
        self.sequence_ended(
            key,
            match (finished.reason.as_str(), finished.error, numbers) {
                ("stop", ..) => End::Completed { finish_reason: finished.reason },
                (_, Some(message), Some((limit, actual))) => failed(
                    RequestError::new(ErrorCode::ContextLengthExceeded, message)
                        .with_numbers(limit as usize, actual as usize),
                ),
                (_, Some(message), None) => failed(RequestError::new(ErrorCode::Internal, message)),
                (reason, None, _) => {
                    let message = format!("the engine ended the request: {reason}");
                    failed(RequestError::new(ErrorCode::Internal, message))
                }
            },
        );
    }
}

fn failed(error: RequestError) -> End {
    End::Other { outcome: Outcome::Failed, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_holds_the_longest_text_and_some_short_ones() {
        let cells = |lengths: &[u32], context| {
            let tokens = vec![1; lengths.iter().sum::<u32>() as usize];
            Prompt { tokens: tokens.into(), lengths: lengths.to_vec(), public_prefix: 0 }.embedding_cells(context)
        };
        assert_eq!(cells(&[3, 4], 2048), 7);
        assert_eq!(cells(&[100; 20], 2048), 512);
        assert_eq!(cells(&[100; 20], 256), 256);
        assert_eq!(cells(&[2000, 100], 2048), 2000);
    }
}
