//! Embeddings: a second context, beside running answers.

use std::time::Instant;

use temperd::wire::engine::{Embed, Load, Segment, Start, Stop, Tokenise, from_engine, to_engine};

use super::harness::{CONTEXT, Engine, load, model, start};

const PUMP: &str = "The pump in the cellar moves water out of the house.";

/// What came of a job.
struct Vectors {
    vectors: Vec<Vec<f32>>,
    reason: String,
    error: Option<String>,
}

impl Engine {
    fn text(&mut self, text: &str) -> Vec<u32> {
        let id = 2_000_000 + self.tokenised.len() as u64;
        let segments = vec![Segment { text: text.to_owned(), special: false }];
        let ask = Tokenise { id, segments, add_special: true, ..Tokenise::default() };
        self.send(to_engine::Frame::Tokenise(ask));
        while !self.tokenised.contains_key(&id) {
            self.read();
        }
        self.tokenised[&id].tokens.clone()
    }

    fn embed(&mut self, sequence: u64, texts: &[Vec<u32>]) {
        self.send(to_engine::Frame::Embed(job(sequence, texts)));
    }

    fn has_embedded(&self, sequence: u64) -> bool {
        self.embedded.iter().any(|embedded| embedded.sequence == sequence && embedded.finished.is_some())
    }

    fn vectors(&mut self, sequence: u64) -> Vectors {
        while !self.has_embedded(sequence) {
            self.read();
        }
        let mut all = Vectors { vectors: Vec::new(), reason: String::new(), error: None };
        for embedded in self.embedded.extract_if(.., |embedded| embedded.sequence == sequence) {
            assert_eq!(all.reason, "", "more after the end");
            all.vectors.extend(embedded.vectors.into_iter().map(|vector| vector.values));
            if let Some(finished) = embedded.finished {
                (all.reason, all.error) = (finished.reason, finished.error);
            }
        }
        all
    }

    fn embedded_at_once(&mut self, texts: &[Vec<u32>]) -> Vec<Vec<f32>> {
        self.embed(77, texts);
        let Vectors { vectors, reason, error } = self.vectors(77);
        assert_eq!((reason.as_str(), error), ("stop", None));
        vectors
    }
}

fn job(sequence: u64, texts: &[Vec<u32>]) -> Embed {
    let lengths: Vec<u32> = texts.iter().map(|text| u32::try_from(text.len()).expect("few tokens")).collect();
    let cells = lengths.iter().sum::<u32>().min(512).max(lengths.iter().copied().max().unwrap_or(0));
    Embed { sequence, tokens: texts.concat(), lengths, cells }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn long(engine: &mut Engine, words: usize) -> Vec<u32> {
    let text: String = (0..words).map(|n| format!("Line {n}: the pump ran for {} minutes. ", n * 7 % 60)).collect();
    engine.text(&text)
}

#[test]
fn vectors_have_the_models_length_and_length_one_and_tell_texts_apart() {
    let (mut engine, _, ready) = Engine::loaded();
    let texts = [PUMP, "Water is carried away from the basement by a pump.", "She plays the piano every evening."];
    let tokens = texts.map(|text| engine.text(text));
    let vectors = engine.embedded_at_once(&tokens);
    assert_eq!(vectors.len(), 3);
    for vector in &vectors {
        assert_eq!(vector.len(), ready.embedding_length as usize);
        assert!((cosine(vector, vector) - 1.0).abs() < 1e-5);
    }
    let (near, far) = (cosine(&vectors[0], &vectors[1]), cosine(&vectors[0], &vectors[2]));
    assert!(near > far, "same subject {near}, another {far}");
}

#[test]
fn a_batch_gives_what_one_by_one_gives() {
    let (mut engine, ..) = Engine::loaded();
    let mut texts: Vec<Vec<u32>> =
        (0..40).map(|n| engine.text(&format!("Sensor {n} reads {} degrees.", n * 3))).collect();
    texts.insert(7, long(&mut engine, 60));
    let together = engine.embedded_at_once(&texts);
    assert_eq!(together.len(), texts.len());
    for nth in [0, 6, 7, 8, 23, 40] {
        let alone = engine.embedded_at_once(&texts[nth..=nth]);
        let near = cosine(&alone[0], &together[nth]);
        assert!(near > 0.999, "text {nth}: {near}");
    }
}

#[test]
fn a_long_text_has_the_same_vector_whatever_the_batch_is() {
    let (mut engine, ..) = Engine::loaded();
    let text = long(&mut engine, 50);
    assert!(text.len() > 600 && text.len() <= CONTEXT as usize, "{}", text.len());
    let whole = engine.embedded_at_once(std::slice::from_ref(&text));
    let short = engine.embedded_at_once(&[text[text.len() - 100..].to_vec()]);
    drop(engine);
    for n_ubatch in [16, 100] {
        let (mut engine, ..) = Engine::loaded_with(Load { n_ubatch, ..load(&model()) });
        let other = engine.embedded_at_once(std::slice::from_ref(&text));
        let near = cosine(&whole[0], &other[0]);
        assert!(near > 0.999, "{n_ubatch}: {near}");
    }
    // Were only the end of it pooled, this would be near 1.
    let end = cosine(&whole[0], &short[0]);
    assert!(end < 0.999, "the end alone: {end}");
}

#[test]
fn answers_flow_on_beside_and_are_the_same() {
    let (mut engine, ..) = Engine::loaded();
    let prompt = engine.chat("Count from one to thirty in words.");
    let alone = engine.answer(start(1, prompt.clone(), 24));
    let texts: Vec<_> = (0..2).map(|_| long(&mut engine, 80)).collect();
    engine.start(start(2, prompt, 24));
    // The first token: it runs.
    while engine.outputs.is_empty() {
        engine.read();
    }
    engine.embed(3, &texts);
    let mut longest = std::time::Duration::ZERO;
    let mut last = Instant::now();
    while !engine.outputs.iter().any(|output| output.finished.is_some()) {
        let before = engine.outputs.len();
        engine.read();
        if engine.outputs.len() > before {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    }
    assert!(!engine.has_embedded(3), "the answer waited for the embeddings; longest gap {longest:?}");
    let beside = engine.finish(2);
    assert_eq!((beside.text(), beside.reason), (alone.text(), alone.reason));
    let Vectors { vectors, reason, .. } = engine.vectors(3);
    assert_eq!((vectors.len(), reason.as_str()), (2, "stop"));
    assert!((cosine(&vectors[0], &vectors[1]) - 1.0).abs() < 1e-3, "one text, twice");
}

#[test]
fn heartbeats_go_on_and_a_stop_ends_what_runs_and_what_waits() {
    let (mut engine, ..) = Engine::loaded();
    let texts: Vec<_> = (0..16).map(|_| long(&mut engine, 100)).collect();
    let one = engine.text(PUMP);
    engine.embed(1, &texts);
    engine.embed(2, std::slice::from_ref(&one));
    engine.embed(3, std::slice::from_ref(&one));
    while !matches!(engine.next(), from_engine::Frame::Heartbeat(_)) {}
    for sequence in [2, 1] {
        engine.send(to_engine::Frame::Stop(Stop { sequence }));
        assert_eq!(engine.vectors(sequence).reason, "cancelled");
    }
    let Vectors { vectors, reason, .. } = engine.vectors(3);
    assert_eq!((vectors.len(), reason.as_str()), (1, "stop"));
    // What has ended is nobody's any more.
    engine.send(to_engine::Frame::Stop(Stop { sequence: 3 }));
    engine.embedded_at_once(&[one]);
    assert!(engine.embedded.is_empty(), "{:?}", engine.embedded);
}

#[test]
fn a_job_that_cannot_be_is_refused_and_the_next_one_is_served() {
    let (mut engine, ..) = Engine::loaded();
    let one = vec![vec![1, 2, 3]];
    let wrong: [Embed; 5] = [
        Embed { lengths: vec![4], ..job(9, &one) },
        Embed { lengths: vec![3, 0], ..job(9, &one) },
        Embed { cells: 2, ..job(9, &one) },
        Embed { tokens: vec![1, 2, 49_152], ..job(9, &one) },
        job(9, &[]),
    ];
    for wrong in wrong {
        engine.send(to_engine::Frame::Embed(wrong));
        let Vectors { reason, error, .. } = engine.vectors(9);
        assert!(reason == "error" && error.is_some(), "{reason} {error:?}");
    }
    assert_eq!(engine.embedded_at_once(&one).len(), 1);
    let mut empty = Engine::new();
    empty.embed(1, &one);
    assert!(empty.vectors(1).error.is_some_and(|error| error.contains("no model")));
}

#[test]
fn another_model_ends_what_is_read() {
    let (mut engine, ..) = Engine::loaded();
    let texts: Vec<_> = (0..8).map(|_| long(&mut engine, 100)).collect();
    engine.embed(1, &texts);
    engine.start(Start { sequence: 2, ..start(2, vec![1, 2, 3], 1) });
    engine.finish(2);
    engine.send(to_engine::Frame::Load(load(&model())));
    let Vectors { reason, error, .. } = engine.vectors(1);
    assert!(reason == "error" && error.is_some_and(|error| error.contains("another model")));
}
