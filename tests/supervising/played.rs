//! The engine that these tests play: what it does is said by files in a folder, where it writes down what it was told.

use std::{
    env, fs,
    io::{Read, Seek, SeekFrom, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use temperd::{
    engine::frames,
    wire::engine::{
        FromEngine, Heartbeat, Hello, Load, LoadFailed, Operate, Ready, Saved, ToEngine, Vocabulary,
        from_engine::Frame, to_engine,
    },
};

/// Layers of the played engine, and of the model's file one less.
pub const LAYERS: u32 = 5;
pub const KV_BYTES: u64 = 1000;

/// Not a test: what is started as the engine. It does what the file of orders beside it says, and writes down what it was
/// told.
#[test]
#[ignore = "it is the engine that the other tests start"]
fn engine() {
    let Some(folder) = env::var_os("PLAYED_IN").map(PathBuf::from) else { return };
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let mut socket = UnixStream::from(stdin);
    let say = |socket: &mut UnixStream, frame| frames::write(socket, &FromEngine { frame: Some(frame) }).unwrap();
    let hello = Hello { protocol: frames::PROTOCOL, build: frames::BUILD.into(), flavour: "cuda".into() };
    say(&mut socket, Frame::Hello(hello));
    while let Some(ToEngine { frame: Some(frame) }) = frames::read(&mut socket).unwrap() {
        match frame {
            to_engine::Frame::Load(load) => {
                note(&folder, &format!("load {} {} {}", load.gpu_layers, load.context, restored(&load)));
                if folder.join("aborts").exists() {
                    std::process::abort();
                }
                if let Some(answer) = refusal(&folder, &load) {
                    say(&mut socket, answer);
                    continue;
                }
                say(&mut socket, Frame::Vocabulary(vocabulary()));
                say(&mut socket, Frame::Ready(ready(&load)));
                say(&mut socket, Frame::Heartbeat(AT_WORK));
                if let Some(bytes) = once(&folder, "says") {
                    // It may have been ended for the first of them.
                    let _ended = socket.write_all(&bytes);
                    let heard_out = Heartbeat { live_tokens: HEARD_OUT, ..AT_WORK };
                    let _ended = frames::write(&mut socket, &FromEngine { frame: Some(Frame::Heartbeat(heard_out)) });
                } else if !folder.join("mute").exists() {
                    beat(socket.try_clone().unwrap());
                }
            }
            to_engine::Frame::Operate(Operate { context, pace, .. }) => {
                note(&folder, &format!("operate {context} {pace}"));
                if let Some(mib) = once(&folder, "grows") {
                    let mib: usize = String::from_utf8(mib).unwrap().parse().unwrap();
                    std::mem::forget(std::hint::black_box(vec![1_u8; mib << 20]));
                }
            }
            to_engine::Frame::Save(_) => {
                note(&folder, "save");
                let mut file = inherited("TEMPERD_SAVE_FD").unwrap();
                file.write_all(b"what it knew").unwrap();
                say(&mut socket, Frame::Saved(Saved { bytes: 12, error: None }));
            }
            _ => {}
        }
    }
}

pub const AT_WORK: Heartbeat = Heartbeat {
    steps: 0,
    sequences: 1,
    used_cells: 0,
    kept_cells: 0,
    live_tokens: 10,
    cached_tokens: 0,
    parked: 0,
    at_s: 0.0,
    computed_s: 0.0,
};
/// Live tokens of the heartbeat behind what the file `says` holds.
pub const HEARD_OUT: u32 = 4711;

/// What a file holds, for the first engine that asks.
fn once(folder: &Path, name: &str) -> Option<Vec<u8>> {
    let taken = folder.join(format!("{name}.taken"));
    fs::rename(folder.join(name), &taken).ok()?;
    fs::read(taken).ok()
}

/// Heartbeats, as long as anybody listens.
fn beat(mut socket: UnixStream) {
    thread::spawn(move || {
        let began = std::time::Instant::now();
        loop {
            thread::sleep(Duration::from_millis(50));
            let beat = Heartbeat { at_s: began.elapsed().as_secs_f64(), ..AT_WORK };
            if frames::write(&mut socket, &FromEngine { frame: Some(Frame::Heartbeat(beat)) }).is_err() {
                return;
            }
        }
    });
}

/// The file that an environment variable names by number.
fn inherited(name: &str) -> Option<fs::File> {
    let number: i32 = env::var(name).ok()?.parse().unwrap();
    Some(fs::OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{number}")).unwrap())
}

fn restored(load: &Load) -> String {
    let Some(mut file) = inherited("TEMPERD_RESTORE_FD").filter(|_| load.restore) else { return "anew".into() };
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// Refuses any layers where there is a file `lacks`, more layers than the file `most` allows, and whatever the file
/// `refuses` says.
fn refusal(folder: &Path, load: &Load) -> Option<Frame> {
    let most: Option<i32> = fs::read_to_string(folder.join("most")).ok().and_then(|text| text.parse().ok());
    let wanted = if load.gpu_layers < 0 { LAYERS.cast_signed() } else { load.gpu_layers };
    if wanted > 0 && folder.join("lacks").exists() {
        return Some(Frame::LoadFailed(LoadFailed { message: "no device".into(), no_device: true }));
    }
    let message = match most {
        Some(most) if wanted > most => "unable to allocate CUDA0 buffer".into(),
        _ => fs::read_to_string(folder.join("refuses")).ok()?,
    };
    Some(Frame::LoadFailed(LoadFailed { message, no_device: false }))
}

fn ready(load: &Load) -> Ready {
    let asked = u32::try_from(load.gpu_layers).unwrap_or(LAYERS);
    Ready {
        context: load.context,
        gpu_layers: asked.min(LAYERS),
        layers: LAYERS,
        allocated_context: 256,
        kv_bytes_per_token: KV_BYTES,
        ..Ready::default()
    }
}

pub fn vocabulary() -> Vocabulary {
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
    Vocabulary { chat_template: Some(template.into()), ..Vocabulary::default() }
}

fn note(folder: &Path, line: &str) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(folder.join("told")).unwrap();
    writeln!(file, "{line}").unwrap();
}
