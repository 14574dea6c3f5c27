//! Frames between daemon and engine. The first byte chooses the direction, the second where the stream is cut in two.

use std::{path::PathBuf, time::Duration};

use bytes::BytesMut;
use prost::Message;
use temperd::{
    board::identity::Kind,
    chat::Prompter,
    config::{self, Machine, Overrides},
    engine::{
        frames::{self, MAX_FRAME},
        operate::Vitals,
    },
    governor::{Board, Bytes, Celsius, Governor, Heat, Input, Limits, Memory, Pin},
    keeper::input::Observer,
    request::{Role, Turn},
    wire::engine::{FromEngine, ToEngine, from_engine::Frame},
};
use tokio_util::codec::Decoder as _;

/// Reads a stream, and takes in what the daemon takes in of it.
pub fn holds(data: &[u8]) {
    let [direction, cut, stream @ ..] = data else { return };
    if direction % 2 == 0 {
        let frames = both_ways::<FromEngine>(stream, usize::from(*cut));
        follow(frames);
    } else {
        both_ways::<ToEngine>(stream, usize::from(*cut));
    }
}

/// The engine's reader and the daemon's find the same frames; and what is written is read.
fn both_ways<M: Message + Default>(stream: &[u8], cut: usize) -> Vec<M> {
    let (frames, clean) = blocking::<M>(stream);
    let (pieces, ends_clean) = in_pieces::<M>(stream, cut);
    // A stream that is cut behind a length ends cleanly for the codec, which keeps the length in itself.
    let same = written(&frames) == written(&pieces);
    assert!(same && (ends_clean || !clean), "{} frames, {} in pieces", frames.len(), pieces.len());
    let (again, clean) = blocking::<M>(&written(&frames));
    assert!(clean && written(&again) == written(&frames), "what was written is read");
    frames
}

/// As bytes, by which frames are compared too: a number that is none equals nothing.
fn written<M: Message>(frames: &[M]) -> Vec<u8> {
    let mut written = Vec::new();
    for frame in frames {
        frames::write(&mut written, frame).expect("what was read is short enough");
    }
    written
}

fn blocking<M: Message + Default>(mut stream: &[u8]) -> (Vec<M>, bool) {
    let mut read = Vec::new();
    loop {
        match frames::read::<M>(&mut stream) {
            Ok(Some(frame)) => read.push(frame),
            Ok(None) => return (read, true),
            Err(_) => return (read, false),
        }
    }
}

fn in_pieces<M: Message + Default>(stream: &[u8], cut: usize) -> (Vec<M>, bool) {
    let mut codec = frames::codec();
    let mut buffer = BytesMut::new();
    let mut read = Vec::new();
    let (head, tail) = stream.split_at(cut.min(stream.len()));
    for piece in [head, tail] {
        buffer.extend_from_slice(piece);
        loop {
            match codec.decode(&mut buffer) {
                Ok(None) => break,
                Ok(Some(frame)) => match M::decode(frame) {
                    Ok(frame) => read.push(frame),
                    Err(_) => return (read, false),
                },
                Err(_) => return (read, false),
            }
        }
        assert!(buffer.capacity() <= MAX_FRAME + 64 * 1024, "room for a frame that is too long");
    }
    (read, matches!(codec.decode_eof(&mut buffer), Ok(None)))
}

/// What does not wait for anything else: the vocabulary becomes a prompter, numbers become what the governor decides by.
fn follow(frames: Vec<FromEngine>) {
    let mut vitals = Vitals::default();
    let mut observer = Observer::default();
    let mut governor = governor();
    vitals.begin(Some(1));
    for (second, frame) in (0..).zip(frames.into_iter().filter_map(|frame| frame.frame)) {
        match frame {
            Frame::Vocabulary(vocabulary) => {
                if let Ok(prompter) = Prompter::new(&vocabulary) {
                    let turns = [Turn { role: Role::User, content: "Is it ok?".into() }];
                    let (_rendered, _public) = (prompter.chat(&turns), prompter.public(&turns));
                    let raw: String = prompter.raw("Is it ok?").into_iter().map(|segment| segment.text).collect();
                    assert!(raw.len() <= "Is it ok?".len(), "{raw}");
                }
            }
            Frame::Ready(ready) => vitals.is_ready(&ready, Duration::from_secs(1), ready.gpu_layers),
            Frame::Resized(resized) => vitals.allocated_context = resized.allocated_context,
            Frame::Heartbeat(heartbeat) => vitals.beat(heartbeat, 1.0),
            _ => {}
        }
        assert!((0.0..=1.0).contains(&vitals.busy), "busy {}", vitals.busy);
        let (_state, _degraded) = (vitals.state(), vitals.degraded(false));
        let seen = observer.observe(&Kind::Other, None, &vitals, 1);
        let scarce = Memory { available: Bytes::mib(300), swap: None, major_faults: 0, alloc_stalls: 0 };
        let input = Input {
            memory: Some(scarce),
            heat: Heat::Reading(Celsius(90.0)),
            ..seen.input(Duration::from_secs(second), Pin::default())
        };
        assert!((0.0..=1.0).contains(&input.engine.busy), "busy {}", input.engine.busy);
        let point = governor.step(&input).point;
        assert!(point.context <= 8192 && point.gpu_layers <= vitals.layers, "{point:?}");
        assert!((0.0..=1.0).contains(&point.pace), "{point:?}");
    }
}

fn governor() -> Governor {
    let machine = Machine { hostname: "edge".into(), default_socket: Some(PathBuf::from("/s")), state_directory: None };
    let config = config::parse("[engine]\nmodel = \"m.gguf\"\ncontext = 8192\n", Overrides::default(), &machine);
    let config = config.expect("a model is enough");
    let board = Board { memory: Bytes::mib(8192), throttle_trip: Some(Celsius(99.0)) };
    Governor::new(Limits::new(&config.engine, &config.governor, board))
}
