//! One sequence's choice of tokens: penalties and bias → top-k → top-p → min-p → temperature → draw. All but the draw
//! is llama.cpp's own.
//!
//! The draw depends on (seed, position) and nothing that ran before, so that a sequence continues after a crash as if
//! nothing had happened. The position counts all tokens before it, prompt included: a sequence that is started again
//! with its answer so far as part of the prompt draws what it would have drawn.

use llama_cpp_2::{
    sampling::LlamaSampler,
    token::{LlamaToken, data::LlamaTokenData, data_array::LlamaTokenDataArray, logit_bias::LlamaLogitBias},
};
use temperd::{constrain::Tokens, wire::engine::Sampling};

/// Tokens of prompt and answer that the penalties see, as in llama-server.
const LAST_N: usize = 64;

/// How one sequence samples.
pub struct Sampler {
    /// Penalties and bias, where there are any; they apply to greedy sampling too.
    adjust: Option<LlamaSampler>,
    /// What narrows the choice; `None` is greedy.
    narrow: Option<LlamaSampler>,
    /// Where a choice is greedy and has no penalties: the biases, by token. No list of candidates is needed for it.
    plain: Option<Vec<(usize, f32)>>,
    seed: u32,
}

impl Sampler {
    /// A sampler that has seen `prompt`. Biases on tokens that do not exist are ignored.
    ///
    /// # Errors
    /// A value that is not a number or out of range, by name.
    pub fn new(sampling: &Sampling, n_vocab: i32, prompt: &[LlamaToken]) -> Result<Self, String> {
        check(sampling)?;
        let mut adjust = Vec::new();
        let narrow = narrow(sampling);
        // 0 is what a sender leaves unset, and llama.cpp would divide by it.
        let repeat = if sampling.repeat_penalty == 0.0 { 1.0 } else { sampling.repeat_penalty };
        if repeat != 1.0 || sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0 {
            let last_n = i32::try_from(LAST_N).expect("64 fits");
            let (frequency, presence) = (sampling.frequency_penalty, sampling.presence_penalty);
            let seen = &prompt[prompt.len().saturating_sub(LAST_N)..];
            adjust.push(LlamaSampler::penalties(n_vocab, last_n, repeat, frequency, presence).with_tokens(seen));
        }
        let exists = |(&token, &bias): (&u32, &f32)| {
            let token = i32::try_from(token).ok().filter(|token| *token < n_vocab)?;
            Some(LlamaLogitBias::new(LlamaToken(token), bias))
        };
        let penalised = !adjust.is_empty();
        let bias: Vec<LlamaLogitBias> = sampling.logit_bias.iter().filter_map(exists).collect();
        if !bias.is_empty() {
            adjust.push(LlamaSampler::logit_bias(n_vocab, &bias));
        }
        let place = |(&token, &bias): (&u32, &f32)| (token as usize, bias);
        let plain = (narrow.is_none() && !penalised).then(|| sampling.logit_bias.iter().map(place).collect());
        let adjust = (!adjust.is_empty()).then(|| LlamaSampler::chain(adjust, true));
        Ok(Self { adjust, narrow, plain, seed: sampling.seed })
    }

    /// The token that follows, by the logits of one row of a step; `position` counts the tokens before it, `allowed` are
    /// those to choose from (`None`: all). `scratch` is overwritten and only there to be reused.
    pub fn sample(
        &mut self,
        logits: &[f32],
        position: usize,
        allowed: Option<&Tokens>,
        scratch: &mut LlamaTokenDataArray,
    ) -> LlamaToken {
        let token = if let (Some(biases), None) = (&self.plain, allowed) {
            LlamaToken(id(argmax_biased(logits, biases)))
        } else {
            fill(scratch, logits, allowed.filter(|_| self.adjust.is_none()));
            if let Some(adjust) = &mut self.adjust {
                // It finds tokens fastest where all are in their places.
                adjust.apply(scratch);
                if let Some(allowed) = allowed {
                    let may = |id: LlamaToken| u32::try_from(id.0).is_ok_and(|id| allowed.is_allowed(id));
                    scratch.data.retain(|candidate| may(candidate.id()));
                }
            }
            let chosen = match &mut self.narrow {
                None => greatest(&scratch.data),
                Some(narrow) => {
                    narrow.apply(scratch);
                    draw(&scratch.data, uniform(self.seed, position))
                }
            };
            scratch.data.get(chosen).map_or(LlamaToken(0), LlamaTokenData::id)
        };
        if let Some(adjust) = &mut self.adjust {
            adjust.accept(token);
        }
        token
    }
}

fn check(sampling: &Sampling) -> Result<(), String> {
    let values = [
        ("temperature", sampling.temperature),
        ("top_p", sampling.top_p),
        ("min_p", sampling.min_p),
        ("repeat_penalty", sampling.repeat_penalty),
        ("presence_penalty", sampling.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty),
    ];
    for (name, value) in values {
        if !value.is_finite() {
            return Err(format!("{name} is not a finite number"));
        }
    }
    if sampling.repeat_penalty < 0.0 {
        return Err(format!("repeat_penalty {} is below 0", sampling.repeat_penalty));
    }
    if sampling.logit_bias.values().any(|bias| bias.is_nan()) {
        return Err("logit_bias holds a value that is not a number".to_owned());
    }
    Ok(())
}

fn narrow(sampling: &Sampling) -> Option<LlamaSampler> {
    if sampling.temperature <= 0.0 {
        return None;
    }
    let mut chain = Vec::new();
    if sampling.top_k > 0 {
        chain.push(LlamaSampler::top_k(sampling.top_k));
    }
    if sampling.top_p < 1.0 {
        chain.push(LlamaSampler::top_p(sampling.top_p, 1));
    }
    if sampling.min_p > 0.0 {
        chain.push(LlamaSampler::min_p(sampling.min_p, 1));
    }
    chain.push(LlamaSampler::temp(sampling.temperature));
    Some(LlamaSampler::chain(chain, true))
}

fn fill(scratch: &mut LlamaTokenDataArray, logits: &[f32], allowed: Option<&Tokens>) {
    scratch.selected = None;
    scratch.sorted = false;
    scratch.data.clear();
    let candidate = |token, logit: &f32| LlamaTokenData::new(LlamaToken(token), *logit, 0.0);
    match allowed {
        None => scratch.data.extend((0..).zip(logits).map(|(token, logit)| candidate(token, logit))),
        Some(allowed) => {
            allowed.iter_set_entries(|at| scratch.data.extend(logits.get(at).map(|logit| candidate(id(at), logit))));
        }
    }
}

/// Index of the greatest value, the first of equals; 0 where nothing is a number.
pub fn argmax(values: &[f32]) -> usize {
    const LANES: usize = 16;
    // Two passes, because a maximum alone is something the compiler turns into vector instructions.
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    let greatest = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    values.iter().position(|value| *value == greatest).unwrap_or_default()
}

/// The same of `values` with biases, by index; those of indices beyond are ignored.
fn argmax_biased(values: &[f32], biases: &[(usize, f32)]) -> usize {
    let best = argmax(values);
    let biased = |&(at, bias): &(usize, f32)| values.get(at).map(|value| (at, value + bias));
    if biases.iter().any(|bias| bias.0 == best) {
        let mut values = values.to_vec();
        for (at, value) in biases.iter().filter_map(biased) {
            values[at] = value;
        }
        return argmax(&values);
    }
    let best = (best, values.get(best).copied().unwrap_or(f32::NEG_INFINITY));
    let greater = |a: (usize, f32), b: (usize, f32)| if b.1 > a.1 || (b.1 == a.1 && b.0 < a.0) { b } else { a };
    biases.iter().filter_map(biased).fold(best, greater).0
}

fn greatest(candidates: &[LlamaTokenData]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, candidate) in candidates.iter().enumerate() {
        if candidate.logit() > best.1 {
            best = (index, candidate.logit());
        }
    }
    best.0
}

/// Index of the candidate at `point` (0 to 1) of the cumulated softmax, in the order of the candidates.
fn draw(candidates: &[LlamaTokenData], point: f64) -> usize {
    let greatest = greatest(candidates);
    let top = candidates.get(greatest).map_or(0.0, LlamaTokenData::logit);
    let weight = |candidate: &LlamaTokenData| f64::from((candidate.logit() - top).exp());
    let total: f64 = candidates.iter().map(weight).sum();
    let mut left = point * total;
    for (index, candidate) in candidates.iter().enumerate() {
        left -= weight(candidate);
        if left < 0.0 {
            return index;
        }
    }
    // Rounding at the very end, or logits that are no numbers.
    greatest
}

/// A number from 0 to below 1 that depends on its arguments alone: output number `position` of SplitMix64 (Steele, Lea
/// and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014; constants of Vigna's splitmix64.c), whose
/// state moves by a constant and can therefore skip ahead. The seed is mixed once first, so that neighbouring seeds
/// are not shifted copies of each other.
fn uniform(seed: u32, position: usize) -> f64 {
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let start = mix(u64::from(seed).wrapping_add(STEP));
    let output = mix(start.wrapping_add(STEP.wrapping_mul(position as u64 + 1)));
    // The upper 53 bits, which is what a double holds exactly.
    (output >> 11) as f64 / (1u64 << 53) as f64
}

fn id(index: usize) -> i32 {
    i32::try_from(index).unwrap_or_default()
}

/// ln of the softmax over raw logits: the chosen token's and the best `top`, best first.
pub fn logprobs(logits: &[f32], token: LlamaToken, top: usize) -> (f32, Vec<(LlamaToken, f32)>) {
    let greatest = logits.get(argmax(logits)).copied().unwrap_or_default();
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - greatest).exp())).sum();
    #[allow(clippy::cast_possible_truncation, reason = "the logarithm of a sum of at most n_vocab ones is small")]
    let norm = sum.ln() as f32;
    let logprob = |logit: f32| (logit - greatest - norm).min(0.0);

    let mut best: Vec<(LlamaToken, f32)> = Vec::with_capacity(top + 1);
    for (index, &logit) in logits.iter().enumerate() {
        if best.len() < top || best.last().is_some_and(|last| logit > last.1) {
            let at = best.partition_point(|other| other.1 >= logit);
            best.insert(at, (LlamaToken(id(index)), logit));
            best.truncate(top);
        }
    }
    for entry in &mut best {
        entry.1 = logprob(entry.1);
    }
    let chosen = usize::try_from(token.0).ok().and_then(|index| logits.get(index)).copied();
    (chosen.map_or(f32::NEG_INFINITY, logprob), best)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn sampled(sampling: &Sampling, logits: &[f32], prompt: &[i32], positions: std::ops::Range<usize>) -> Vec<i32> {
        let prompt: Vec<LlamaToken> = prompt.iter().map(|token| LlamaToken(*token)).collect();
        let n_vocab = i32::try_from(logits.len()).expect("small");
        let mut sampler = Sampler::new(sampling, n_vocab, &prompt).expect("valid sampling");
        let mut scratch = LlamaTokenDataArray::new(Vec::new(), false);
        positions.map(|position| sampler.sample(logits, position, None, &mut scratch).0).collect()
    }

    /// The same for one position, with a choice of these tokens.
    fn among(allowed: &[u32], sampling: &Sampling, logits: &[f32], prompt: &[i32]) -> i32 {
        let prompt: Vec<LlamaToken> = prompt.iter().map(|token| LlamaToken(*token)).collect();
        let n_vocab = i32::try_from(logits.len()).expect("small");
        let mut set = Tokens::alloc(logits.len());
        allowed.iter().for_each(|token| set.allow_token(*token));
        let mut scratch = LlamaTokenDataArray::new(Vec::new(), false);
        let mut sampler = Sampler::new(sampling, n_vocab, &prompt).expect("valid sampling");
        sampler.sample(logits, 0, Some(&set), &mut scratch).0
    }

    fn at(temperature: f32) -> Sampling {
        Sampling { temperature, top_p: 1.0, repeat_penalty: 1.0, ..Sampling::default() }
    }

    #[test]
    fn greedy_takes_the_first_of_the_greatest() {
        assert_eq!(sampled(&at(0.0), &[0.0, 3.0, 3.0, -1.0], &[], 0..2), [1, 1]);
        assert_eq!(argmax(&[f32::NAN, f32::NAN]), 0);
    }

    #[test]
    fn penalties_and_bias_apply_to_greedy_too() {
        let repeat = Sampling { repeat_penalty: 2.0, ..at(0.0) };
        assert_eq!(sampled(&repeat, &[0.0, 4.0, 3.0], &[1], 0..1), [2]);
        // Its own tokens count as well: 2 is penalised after the first step, and so on.
        let presence = Sampling { presence_penalty: 2.0, ..at(0.0) };
        assert_eq!(sampled(&presence, &[0.0, 4.0, 3.0], &[], 0..3), [1, 2, 1]);
        let bias = Sampling { logit_bias: HashMap::from([(0, 9.0), (77, 9.0), (u32::MAX, 9.0)]), ..at(0.0) };
        assert_eq!(sampled(&bias, &[0.0, 4.0, 3.0], &[], 0..1), [0]);
    }

    #[test]
    fn penalties_see_the_last_64_tokens_only() {
        let repeat = Sampling { repeat_penalty: 2.0, ..at(0.0) };
        let prompt = |since: usize| [vec![1], vec![0; since]].concat();
        assert_eq!(sampled(&repeat, &[-9.0, 4.0, 3.0], &prompt(63), 0..1), [2]);
        assert_eq!(sampled(&repeat, &[-9.0, 4.0, 3.0], &prompt(64), 0..1), [1]);
    }

    #[test]
    fn only_what_is_allowed_is_chosen() {
        let logits = [9.0, 4.0, 3.0, f32::NEG_INFINITY, f32::NAN];
        assert_eq!(among(&[1, 2], &at(0.0), &logits, &[]), 1);
        // Penalties and bias choose among them; they allow nothing and forbid nothing.
        let repeat = Sampling { repeat_penalty: 2.0, ..at(0.0) };
        assert_eq!(among(&[1, 2], &repeat, &logits, &[1]), 2);
        let bias = Sampling { logit_bias: HashMap::from([(0, 100.0), (2, -100.0)]), ..at(0.0) };
        assert_eq!(among(&[2], &bias, &logits, &[]), 2);
        for sampling in [at(0.0), at(1.0), Sampling { top_k: 1, ..at(1.0) }, repeat, bias] {
            assert_eq!(among(&[3], &sampling, &logits, &[]), 3, "a token without a chance that is the only one");
            assert_eq!(among(&[4], &sampling, &logits, &[]), 4, "one whose logit is no number");
        }
    }

    #[test]
    fn a_draw_among_allowed_ones_is_that_of_a_vocabulary_of_them() {
        let logits = [5.0, 1.0, 1.1, 1.2, 1.3];
        for seed in 0..50 {
            let sampling = Sampling { seed, ..at(1.0) };
            assert_eq!(among(&[2, 3, 4], &sampling, &logits, &[]), sampled(&sampling, &logits[2..], &[], 0..1)[0] + 2);
        }
    }

    #[test]
    fn top_k_top_p_and_min_p_narrow_the_choice() {
        let logits = [0.0, 1.0, 1.1, 1.2, 1.3];
        let only = |sampling: &Sampling| {
            let mut seen = sampled(sampling, &logits, &[], 0..200);
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        assert_eq!(only(&at(1.0)), [0, 1, 2, 3, 4]);
        assert_eq!(only(&Sampling { top_k: 2, ..at(1.0) }), [3, 4]);
        assert_eq!(only(&Sampling { top_p: 0.3, ..at(1.0) }), [3, 4]);
        assert_eq!(only(&Sampling { min_p: 0.75, ..at(1.0) }), [2, 3, 4]);
    }

    #[test]
    fn draws_follow_the_softmax() {
        // e^0 : e^ln3 = 1 : 3.
        let drawn = sampled(&at(1.0), &[0.0, 3f32.ln()], &[], 0..4000);
        let threes = drawn.iter().filter(|token| **token == 1).count();
        assert!((2880..3120).contains(&threes), "{threes} of 4000 draws, expected about 3000");
    }

    #[test]
    fn a_draw_depends_on_seed_and_position_alone() {
        let sampling = Sampling { seed: 7, ..at(1.0) };
        let logits: Vec<f32> = (0..50u8).map(|i| f32::from(i % 7)).collect();
        let whole = sampled(&sampling, &logits, &[], 10..40);
        assert_eq!(sampled(&sampling, &logits, &[], 25..40), whole[15..]);
        assert_ne!(sampled(&Sampling { seed: 8, ..sampling }, &logits, &[], 10..40), whole);
    }

    #[test]
    fn what_is_no_number_is_refused_by_name() {
        let error = Sampler::new(&at(f32::NAN), 3, &[]).err().expect("refused");
        assert!(error.contains("temperature"), "{error}");
        let sampling = Sampling { logit_bias: HashMap::from([(0, f32::NAN)]), ..at(1.0) };
        assert!(Sampler::new(&sampling, 3, &[]).is_err());
    }

    #[test]
    fn logprobs_are_those_of_the_raw_logits_best_first() {
        let (chosen, top) = logprobs(&[0.0, 3f32.ln(), f32::NEG_INFINITY], LlamaToken(0), 2);
        assert!((chosen - 0.25f32.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|entry| entry.0.0).collect::<Vec<_>>(), [1, 0]);
        assert!((top[0].1 - 0.75f32.ln()).abs() < 1e-6);
        assert!(logprobs(&[1.0, 2.0], LlamaToken(1), 0).1.is_empty());
    }

    proptest! {
        #[test]
        fn uniform_is_within_0_and_1(seed: u32, position in 0usize..1_000_000) {
            let point = uniform(seed, position);
            prop_assert!((0.0..1.0).contains(&point));
        }

        #[test]
        fn argmax_is_the_first_maximum(values in proptest::collection::vec(-5i8..5, 1..100)) {
            let values: Vec<f32> = values.into_iter().map(f32::from).collect();
            let index = argmax(&values);
            prop_assert!(values.iter().all(|value| *value <= values[index]));
            prop_assert!(values[..index].iter().all(|value| *value < values[index]));
        }

        #[test]
        fn argmax_biased_is_that_of_the_biased_values(
            values in proptest::collection::vec(-5i8..5, 1..40),
            biases in proptest::collection::btree_map(0usize..50, -9i8..9, 0..9),
        ) {
            let values: Vec<f32> = values.into_iter().map(f32::from).collect();
            let biases: Vec<(usize, f32)> = biases.into_iter().map(|(at, bias)| (at, f32::from(bias))).collect();
            let mut changed = values.clone();
            for (at, bias) in &biases {
                if let Some(value) = changed.get_mut(*at) {
                    *value += bias;
                }
            }
            prop_assert_eq!(argmax_biased(&values, &biases), argmax(&changed));
        }
    }
}
