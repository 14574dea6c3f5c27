//! Drives the real engine process over a socket pair, with a real model.

#[path = "engine/embed.rs"]
mod embed;
#[path = "engine/harness.rs"]
mod harness;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{Read as _, Write as _},
    process::{Command, Stdio},
    time::Duration,
};

use harness::{CONTEXT, Engine, greedy, hello, load, model, start};
use temperd::{
    engine::frames,
    wire::engine::{Load, Sampling, Segment, Start, Stop, from_engine, to_engine},
};

#[test]
fn vocabulary_comes_before_ready_and_says_what_the_model_is() {
    let (mut engine, vocabulary, ready) = Engine::loaded();
    assert!(vocabulary.chat_template.as_deref().is_some_and(|template| template.contains("<|im_start|>")));
    assert_eq!((vocabulary.bos.as_str(), vocabulary.eos.as_str()), ("<|im_start|>", "<|im_end|>"));
    assert_eq!((vocabulary.tokenizer.as_str(), vocabulary.add_space_prefix), ("gpt2", false));
    assert_eq!((vocabulary.n_vocab, vocabulary.n_ctx_train), (49152, 8192));
    assert!(!vocabulary.name.is_empty());
    let control: HashMap<&str, u32> =
        vocabulary.control_tokens.iter().map(|token| (token.text.as_str(), token.id)).collect();
    assert!(control.len() > 2 && !control.contains_key("the"));
    let end = control["<|im_end|>"];
    assert_eq!(engine.tokenise("<|im_end|>", true), [end]);

    assert_eq!((ready.context, ready.gpu_layers, ready.threads, ready.threads_batch), (CONTEXT, 0, 1, 1));
    assert_eq!((ready.n_batch, ready.n_ubatch), (512, 512));
    assert!(ready.load_s > 0.0 && ready.description.contains("llama"), "{ready:?}");
    // llama.cpp's own log arrives by level, without its debug lines.
    assert!(engine.logs.iter().any(|log| log.level == "debug" && log.message.contains("llama_context")));
    // Our own lines alone.
    assert!(engine.logs.iter().filter(|log| log.level == "info").all(|log| !log.message.contains("llama")));
}

#[test]
fn control_tokens_are_parsed_only_where_told() {
    let (mut engine, _, _) = Engine::loaded();
    let parsed = engine.tokenise("<|im_start|>user", true);
    let plain = engine.tokenise("<|im_start|>user", false);
    assert_eq!(parsed.len(), 2);
    assert!(plain.len() > 2 && !plain.contains(&parsed[0]), "{plain:?}");

    let segments = vec![
        Segment { text: "<|im_start|>".to_owned(), special: true },
        Segment { text: "<|im_start|>user".to_owned(), special: false },
    ];
    let mixed = engine.tokenise_all(segments, true);
    // This model wants no BOS, so none is added either.
    assert_eq!(mixed, [&parsed[..1], &plain].concat());
    assert!(engine.tokenise("", true).is_empty());
}

#[test]
fn texts_are_tokenised_while_a_decode_runs_however_long_they_are() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("Tell me a long story.");
    engine.start(start(1, prompt, 400));
    for text in ["word ".repeat(50_000), "x".repeat(250_000), "1".repeat(250_000), "好".repeat(80_000)] {
        assert!(engine.tokenise(&text, false).len() > 1000);
    }
    engine.finish(1);
}

#[test]
fn a_greedy_answer_knows_the_capital_of_france() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("What is the capital of France?");
    let answer = engine.answer(start(1, prompt, 40));
    assert!(answer.text().contains("Paris"), "{answer:?}");
    assert_eq!(answer.reason, "stop");
    assert!(!answer.text().contains("<|im_end|>"));
    assert!(answer.tokens.len() < 40);
    assert!(answer.logprobs.is_empty());
}

#[test]
fn a_long_prompt_is_read_in_several_steps() {
    let (mut engine, _, _) = Engine::loaded();
    let filler = "The sky is blue. ".repeat(200);
    let prompt = engine.chat(&format!("{filler} What is the capital of France?"));
    assert!(prompt.len() > 512 && prompt.len() < CONTEXT as usize - 60);
    let answer = engine.answer(start(1, prompt, 60));
    assert!(answer.tokens.len() > 1 && answer.error.is_none(), "{answer:?}");
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_another() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("Write a poem about the sea.");
    let sampled = |sequence, seed| Start {
        sampling: Some(Sampling { temperature: 1.0, top_k: 40, top_p: 0.95, min_p: 0.05, seed, ..greedy() }),
        ..start(sequence, prompt.clone(), 40)
    };
    let first = engine.answer(sampled(1, 7)).tokens;
    assert_eq!(engine.answer(sampled(2, 7)).tokens, first);
    assert_ne!(engine.answer(sampled(3, 8)).tokens, first);

    // Started again with half of its answer in the prompt, it draws the same rest.
    let mut continued = sampled(4, 7);
    continued.prompt.extend(&first[..20]);
    continued.max_tokens = 20;
    assert_eq!(engine.answer(continued).tokens, first[20..]);
}

#[test]
fn eight_sequences_run_at_once_and_a_ninth_is_refused() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("Count to a hundred in words.");
    for sequence in 1..=9 {
        let seed = u32::try_from(sequence).expect("small");
        let sampling = Sampling { temperature: 0.8, seed, ..greedy() };
        engine.start(Start { sampling: Some(sampling), ..start(sequence, prompt.clone(), 60) });
    }
    let refused = engine.finish(9);
    assert_eq!(refused.reason, "error");
    assert!(refused.error.as_deref().is_some_and(|error| error.contains("all 8 slots")), "{refused:?}");
    for sequence in 1..=8 {
        let answer = engine.finish(sequence);
        assert!(["stop", "length"].contains(&answer.reason.as_str()), "{answer:?}");
        assert!(!answer.text().is_empty());
    }
    // All slots are free and their cells empty: a prompt of nearly the whole context fits.
    let filler = engine.tokenise(&" blue".repeat(2000), false);
    assert_eq!(engine.answer(start(10, filler, 5)).error, None);
}

#[test]
fn one_decode_step_brings_one_frame_for_all() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("Tell me a long story.");
    engine.start(start(1, prompt.clone(), 100));
    engine.start(start(2, prompt, 100));
    let mut most = 0;
    let mut ended = HashSet::new();
    while ended.len() < 2 {
        if let from_engine::Frame::Step(step) = engine.next_but_logs() {
            most = most.max(step.outputs.len());
            let finished = step.outputs.iter().filter(|output| output.finished.is_some());
            ended.extend(finished.map(|output| output.sequence));
        }
    }
    assert_eq!(most, 2);
}

#[test]
fn a_stopped_sequence_frees_its_slot_and_its_cells() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("Tell me a very long story about a dragon.");
    for round in 0..20 {
        // More in sum than slots and cells: it passes only if both come back.
        engine.start(Start { stop_tokens: Vec::new(), ..start(round, prompt.clone(), 1000) });
        while !engine.outputs.iter().any(|output| output.sequence == round) {
            engine.read();
        }
        engine.send(to_engine::Frame::Stop(Stop { sequence: round }));
        let answer = engine.finish(round);
        assert_eq!((answer.reason.as_str(), answer.error), ("cancelled", None));
    }
    // A stop that comes too late, or for nobody, does no harm.
    engine.send(to_engine::Frame::Stop(Stop { sequence: 3 }));
    assert_eq!(engine.answer(start(99, prompt, 3)).reason, "length");
}

#[test]
fn a_stop_string_across_tokens_ends_the_answer_and_is_not_sent() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("What is the capital of France?");
    let whole = engine.answer(start(1, prompt.clone(), 40));
    let text = whole.text();
    // From the middle of one token to the middle of another.
    let from = text.find("aris").expect("Paris is in the answer");
    let stop = text.get(from - 4..from + 2).expect("ASCII").to_owned();
    assert!(!whole.pieces.iter().any(|piece| piece.contains(&stop)), "{stop:?} is within one token");
    let answer = engine.answer(Start { stop: vec![stop.clone()], ..start(2, prompt, 40) });
    assert_eq!(answer.text(), text[..text.find(&stop).expect("it is there")]);
    assert_eq!(answer.reason, "stop");
}

#[test]
fn a_stop_token_ends_the_answer() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("What is the capital of France?");
    let whole = engine.answer(start(1, prompt.clone(), 40)).tokens;
    let stop_token = whole[3];
    let at = whole.iter().position(|token| *token == stop_token).expect("it is there");
    let answer = engine.answer(Start { stop_tokens: vec![stop_token], ..start(2, prompt, 40) });
    assert_eq!((answer.tokens.as_slice(), answer.reason.as_str()), (&whole[..at], "stop"));
}

#[test]
fn characters_of_several_tokens_are_never_broken() {
    let (mut engine, _, _) = Engine::loaded();
    for (sequence, pattern) in (1..).zip(["🦀", "🚀", "世", "好"]) {
        let tokens = engine.tokenise(pattern, false);
        assert!(tokens.len() > 1, "{pattern}: one token proves nothing");
        // Only the character's own tokens are possible; their order is the model's, which goes on repeating it.
        let logit_bias = tokens.iter().map(|token| (*token, 100.0)).collect();
        let sampling = Some(Sampling { logit_bias, ..greedy() });
        let prompt = engine.tokenise(&pattern.repeat(20), false);
        let answer = engine.answer(Start { sampling, logprobs: true, ..start(sequence, prompt, 41) });
        let text = answer.text();
        // Whatever the model writes, the pieces are the text that its bytes are in one piece.
        let bytes: Vec<u8> = answer.logprobs.iter().flat_map(|info| info.bytes.clone()).collect();
        assert_eq!(text, String::from_utf8_lossy(&bytes), "{pattern}");
        // The limit may fall within the last character, which is then a replacement character.
        let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        assert!(
            whole.matches(pattern).count() > 5 && !whole.contains(char::REPLACEMENT_CHARACTER),
            "{pattern}: {text}"
        );
        assert!(answer.pieces.iter().any(String::is_empty), "{pattern}: {answer:?}");
    }
}

#[test]
fn max_tokens_is_exact_and_zero_is_an_empty_answer() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("Tell me a long story.");
    for max_tokens in [1, 2, 17] {
        let answer = engine.answer(start(u64::from(max_tokens), prompt.clone(), max_tokens));
        assert_eq!((answer.tokens.len(), answer.reason.as_str()), (max_tokens as usize, "length"));
    }
    let answer = engine.answer(start(99, prompt, 0));
    assert_eq!((answer.tokens.len(), answer.reason.as_str()), (0, "length"));
}

#[test]
fn a_full_context_ends_an_answer_with_length() {
    let (mut engine, _, _) = Engine::loaded();
    let mut prompt = engine.tokenise(&"one two three four ".repeat(600), false);
    prompt.truncate(CONTEXT as usize - 10);
    // The end tokens are out of the question, so that only the context can end it.
    let ends: Vec<u32> = engine.tokenise("<|im_end|><|endoftext|>", true);
    let logit_bias = ends.into_iter().map(|token| (token, f32::NEG_INFINITY)).collect();
    let answer =
        engine.answer(Start { sampling: Some(Sampling { logit_bias, ..greedy() }), ..start(1, prompt.clone(), 500) });
    // Ten tokens fill the context, and one more is sampled from it.
    assert_eq!((answer.tokens.len(), answer.reason.as_str()), (11, "length"));

    prompt.resize(CONTEXT as usize + 1, 1);
    let answer = engine.answer(start(2, prompt, 5));
    assert_eq!(answer.error.as_deref(), Some("the prompt has 2049 tokens, the context 2048"));
}

#[test]
fn where_not_all_have_room_the_younger_waits_for_the_older() {
    // The younger reads in other steps; with these it writes the same all the same.
    let load = Load { batch_invariant: true, gpu_layers: 0, kv_type_v: "q8_0".to_owned(), ..load(&model()) };
    let (mut engine, _, _) = Engine::loaded_with(load);
    let mut prompt = engine.tokenise(&"one two three four ".repeat(600), false);
    prompt.truncate(1010);
    let ends: Vec<u32> = engine.tokenise("<|im_end|><|endoftext|>", true);
    let logit_bias: HashMap<u32, f32> = ends.into_iter().map(|token| (token, f32::NEG_INFINITY)).collect();
    let endless = |id, prompt| Start {
        sampling: Some(Sampling { logit_bias: logit_bias.clone(), ..greedy() }),
        ..start(id, prompt, 500)
    };
    engine.start(endless(1, prompt.clone()));
    engine.start(endless(2, prompt));
    let older = engine.finish(1);
    assert!(!engine.outputs.iter().any(|output| output.sequence == 2), "the younger runs beside it");
    let younger = engine.finish(2);
    assert_eq!((older.error, older.tokens.len()), (None, 500));
    assert_eq!((younger.error, younger.tokens), (None, older.tokens));
}

#[test]
fn logprobs_are_sorted_and_the_greedy_token_is_the_best() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("What is the capital of France?");
    let answer = engine.answer(Start { logprobs: true, top_logprobs: 5, ..start(1, prompt.clone(), 12) });
    assert_eq!(answer.logprobs.len(), answer.tokens.len());
    for info in &answer.logprobs {
        assert!(info.logprob <= 0.0 && info.top.len() == 5);
        assert!(info.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
        assert_eq!((&info.top[0].bytes, info.top[0].logprob), (&info.bytes, info.logprob));
        let mass: f32 = info.top.iter().map(|top| top.logprob.exp()).sum();
        assert!(mass > 0.0 && mass < 1.001, "{mass}");
    }
    let bytes: Vec<u8> = answer.logprobs.iter().flat_map(|info| info.bytes.clone()).collect();
    assert_eq!(String::from_utf8(bytes).expect("an ASCII answer"), answer.text());

    // They are those of the model, whatever the sampler does.
    let sampling = Sampling { temperature: 2.0, repeat_penalty: 1.5, seed: 3, ..greedy() };
    let start = Start { logprobs: true, top_logprobs: 1, sampling: Some(sampling), ..start(2, prompt, 1) };
    let warm = engine.answer(start);
    let difference = (warm.logprobs[0].top[0].logprob - answer.logprobs[0].top[0].logprob).abs();
    assert!(difference < 0.05, "{difference}");
}

#[test]
fn penalties_change_an_answer() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.tokenise("ha ha ha ha ha ha ha ha ha ha ha ha ha", false);
    let plain = engine.answer(start(1, prompt.clone(), 10));
    let sampling = Sampling { repeat_penalty: 1.8, presence_penalty: 1.0, frequency_penalty: 1.0, ..greedy() };
    let other = engine.answer(Start { sampling: Some(sampling), ..start(2, prompt, 10) });
    assert!(plain.text().contains("ha ha"), "{plain:?}");
    assert!(!other.text().contains("ha ha"), "{other:?}");
}

#[test]
fn what_cannot_run_is_refused_and_the_engine_goes_on() {
    let (mut engine, _, _) = Engine::loaded();
    let nan = Sampling { temperature: f32::NAN, ..greedy() };
    let refusals = [
        (Start { sampling: Some(nan), ..start(1, vec![1], 5) }, "temperature"),
        (start(2, vec![], 5), "empty"),
        (start(3, vec![1, 49152], 5), "vocabulary"),
    ];
    for (start, named) in refusals {
        let answer = engine.answer(start);
        assert_eq!(answer.reason, "error");
        assert!(answer.error.as_deref().is_some_and(|error| error.contains(named)), "{answer:?}");
    }
    let prompt = engine.chat("What is the capital of France?");
    assert!(engine.answer(start(4, prompt, 40)).text().contains("Paris"));
}

#[test]
fn a_bad_file_fails_to_load_with_its_reason_and_the_engine_lives() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = Engine::new();

    let missing = folder.path().join("missing.gguf");
    let message = engine.load_failure(&missing);
    assert!(message.contains("missing.gguf") && message.contains("No such file"), "{message}");

    let other = folder.path().join("other.gguf");
    fs::write(&other, "this is not a model").expect("it can be written");
    let message = engine.load_failure(&other);
    assert!(message.contains("other.gguf") && message.contains("not a GGUF file"), "{message}");

    let bytes = |n: u64| {
        let mut bytes = Vec::new();
        File::open(model()).expect("the model").take(n).read_to_end(&mut bytes).expect("its bytes");
        bytes
    };
    // Cut within the weights and within the metadata.
    for length in [60_000_000, 20_000] {
        let truncated = folder.path().join("truncated.gguf");
        fs::write(&truncated, bytes(length)).expect("it can be written");
        let message = engine.load_failure(&truncated);
        assert!(message.contains("truncated.gguf") && message.len() > 80, "{message}");
    }

    // Noise in the metadata, behind a good header.
    let corrupt = folder.path().join("corrupt.gguf");
    let mut file = File::create(&corrupt).expect("it can be written");
    file.write_all(&bytes(24)).expect("it can be written");
    file.write_all(&[0xa5; 100_000]).expect("it can be written");
    let message = engine.load_failure(&corrupt);
    assert!(message.contains("corrupt.gguf"), "{message}");

    // A context that no memory holds (180 GB), and one that no model has.
    for (context, named) in [(1 << 23, "a context of 8388608 tokens"), (u32::MAX, "context 4294967295")] {
        engine.send(to_engine::Frame::Load(Load { context, ..load(&model()) }));
        let message = loop {
            match engine.next_but_logs() {
                from_engine::Frame::LoadFailed(failed) => break failed.message,
                from_engine::Frame::Ready(ready) => panic!("it came to be: {ready:?}"),
                _ => {}
            }
        };
        assert!(message.contains(named), "{message}");
    }

    // Without a model a request gets an answer too, and the good file still loads.
    assert_eq!(engine.answer(start(1, vec![1], 5)).error.as_deref(), Some("no model is loaded"));
    engine.send(to_engine::Frame::Load(load(&model())));
    while !matches!(engine.next_but_logs(), from_engine::Frame::Ready(_)) {}
    let prompt = engine.chat("What is the capital of France?");
    assert!(engine.answer(start(2, prompt, 40)).text().contains("Paris"));
}

#[test]
fn every_load_mode_kv_type_and_flash_attention_answers() {
    let mut engine = Engine::new();
    // One process, so this also shows that a model can be replaced.
    let modes = [("mmap", "q8_0", "on"), ("read", "f16", "off"), ("auto", "q8_0", "auto")];
    for (sequence, (load_mode, kv_type, flash_attention)) in (1..).zip(modes) {
        engine.send(to_engine::Frame::Load(Load {
            load_mode: load_mode.to_owned(),
            kv_type_v: kv_type.to_owned(),
            flash_attention: flash_attention.to_owned(),
            ..load(&model())
        }));
        while !matches!(engine.next_but_logs(), from_engine::Frame::Ready(_)) {}
        let prompt = engine.chat("What is the capital of France?");
        let answer = engine.answer(start(sequence, prompt, 40));
        assert!(answer.text().contains("Paris"), "{load_mode}: {answer:?}");
    }
}

#[test]
fn the_engine_ends_when_the_daemon_closes_even_in_the_midst_of_a_decode() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("Tell me a long story.");
    engine.start(start(1, prompt, 1500));
    while engine.outputs.is_empty() {
        engine.read();
    }
    engine.socket.shutdown(std::net::Shutdown::Write).expect("it is open");
    assert_eq!(engine.ended(), Some(0));

    let mut idle = Engine::new();
    idle.socket.shutdown(std::net::Shutdown::Both).expect("it is open");
    assert_eq!(idle.ended(), Some(0));
}

/// Processor time of a process, in clock ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let fields: Vec<_> = stat.rsplit(')').next().expect("the name ends").split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

#[test]
fn an_idle_engine_needs_no_processor_and_its_threads_do_not_spin() {
    let (mut engine, _, ready) = Engine::loaded_with(Load { threads: 2, threads_batch: 2, ..load(&model()) });
    assert_eq!((ready.threads, ready.threads_batch), (2, 2));
    let prompt = engine.chat("Good day.");
    engine.answer(start(1, prompt, 2));
    engine.until_measured();
    // Heartbeats come every five seconds while nothing runs.
    let beat = |engine: &mut Engine| while !matches!(engine.next(), from_engine::Frame::Heartbeat(_)) {};
    beat(&mut engine);
    let before = ticks(engine.process.id());
    beat(&mut engine);
    let spent = ticks(engine.process.id()) - before;
    assert!(spent <= 2, "{spent} ticks in five idle seconds");
}

#[test]
fn threads_that_are_not_named_are_measured() {
    let (mut engine, _, ready) = Engine::loaded_with(Load { threads: 0, threads_batch: 0, ..load(&model()) });
    let all = u32::try_from(std::thread::available_parallelism().expect("known").get()).expect("few");
    assert!(ready.threads == ready.threads_batch && (1..=all).contains(&ready.threads), "{ready:?}");
    let measured = engine.until_measured();
    assert!((1..=ready.threads).contains(&measured), "{measured} of {ready:?}");
    let said = engine.logs.iter().any(|log| log.level == "info" && log.message.contains("threads of a step"));
    assert_eq!(said, measured != ready.threads);
}

/// Requests before, amid and behind the measuring: nothing of what is kept is lost by it, and no cell of its own is left.
#[test]
fn measuring_leaves_alone_what_is_kept_and_whoever_comes() {
    for (flash_attention, batch_invariant) in [("on", false), ("off", false), ("on", true)] {
        let gpu_layers = if batch_invariant { 0 } else { -1 };
        let kv_type_v = if batch_invariant { "q8_0" } else { "f16" }.to_owned();
        let load = Load {
            threads: 0,
            flash_attention: flash_attention.to_owned(),
            batch_invariant,
            gpu_layers,
            kv_type_v,
            ..load(&model())
        };
        let (mut engine, _, _) = Engine::loaded_with(load);
        let prompt =
            engine.chat("Name the colours of the rainbow, one after the other, and what each of them is like.");
        let ask = |id| Start { scope: 7, digests: true, ..start(id, prompt.clone(), 12) };
        let first = engine.answer(ask(1));
        assert_eq!(first.cached, Some(0));
        let mut id = 2;
        let mut again = Vec::new();
        while engine.measured.is_none() {
            // Between two questions there is time for the first pieces, but not for all: the next one comes amid them.
            std::thread::sleep(Duration::from_millis(540));
            again.push(engine.answer(ask(id)));
            id += 1;
            if again.len() == 4 {
                engine.until_measured();
            }
        }
        again.push(engine.answer(ask(id)));
        for answer in &again {
            assert!(answer.cached > Some(20), "{flash_attention}");
            // Without the mode a prompt that is read behind kept cells may round otherwise than one that is read whole.
            assert_eq!(answer.digests.len(), first.digests.len(), "{flash_attention}");
            assert!(!batch_invariant || (answer.text(), &answer.digests) == (first.text(), &first.digests));
        }
        let beat = engine.beat(|beat| beat.sequences == 0);
        assert!(beat.cached_tokens <= beat.kept_cells, "{beat:?}");
    }
}

#[test]
fn a_daemon_of_another_build_is_told_so() {
    let mut engine = Engine::silent(&[]);
    engine.send(hello(frames::PROTOCOL + 1));
    let log = loop {
        match engine.next() {
            from_engine::Frame::Log(log) if log.level == "error" => break log,
            from_engine::Frame::Log(_) => {}
            other => panic!("before the refusal came {other:?}"),
        }
    };
    assert!(log.message.contains("install both from one build"), "{log:?}");
    assert_eq!(engine.ended(), Some(1));
}

#[test]
fn heartbeats_come_from_inside_the_loop() {
    let (mut engine, _, _) = Engine::loaded();
    let prompt = engine.chat("Tell me a very long story about a dragon.");
    let ends: Vec<u32> = engine.tokenise("<|im_end|><|endoftext|>", true);
    let logit_bias = ends.into_iter().map(|token| (token, f32::NEG_INFINITY)).collect();
    engine.start(Start { sampling: Some(Sampling { logit_bias, ..greedy() }), ..start(1, prompt, 1900) });
    let mut beats = Vec::new();
    while beats.len() < 2 {
        if let from_engine::Frame::Heartbeat(beat) = engine.next()
            && beat.sequences > 0
        {
            beats.push(beat);
        }
    }
    assert!(beats[1].steps > beats[0].steps && beats[1].used_cells > beats[0].used_cells, "{beats:?}");
}

#[test]
fn people_are_sent_to_the_daemon() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_temperd-engine")).stdin(Stdio::null()).output().expect("the engine starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("started by temperd"));
}
