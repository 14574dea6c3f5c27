//! `temperd-engine`: the process that owns the model and the KV cache, and nothing that cannot be rebuilt.
//!
//! Started by the daemon with one end of a socket pair as its standard input; `proto/temperd/engine/v1/engine.proto`
//! is the contract. It ends when the daemon closes the socket.
//!
//! ```text
//!            ┌ reader ──▶ commands ──▶ owner (main thread): model, context, batch loop ─┐
//!  socket ──▶│                                                                          ├─▶ link ──▶ socket
//!            └──────────▶ jobs ─────▶ tokeniser: vocabulary alone ──────────────────────┤
//!                                      log: lines of llama.cpp and our own ─────────────┘
//! ```
//!
//! This is the only part of temperd that calls into C++, so the only one that may hold `unsafe`.

mod able;
mod adapters;
mod answer;
mod attention;
mod batch;
mod buffers;
mod cells;
mod constraint;
mod contexts;
mod curve;
mod decode;
mod elastic;
mod embed;
mod gpu;
mod handover;
mod heap;
mod invariance;
mod ledger;
mod link;
mod load;
mod log;
mod lookup;
mod lora;
mod measure;
mod owner;
mod pace;
mod park;
mod prefix;
mod sampler;
mod sequence;
mod text;
mod threads;
mod vocabulary;
mod work;

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::{
        fd::AsFd,
        unix::{fs::FileTypeExt, net::UnixStream},
    },
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
};

use llama_cpp_2::{LogOptions, llama_backend::LlamaBackend, send_logs_to_tracing};
use temperd::{
    engine::frames,
    wire::engine::{Hello, from_engine::Frame},
};

use crate::{handover::Handover, link::Link};

/// Frames that wait for the owner while it decodes. Running sequences are few, so this is room enough; where it is not,
/// the reader waits, and with it the daemon's writer.
const COMMANDS: usize = 1024;

/// Texts that wait for the tokeniser; further ones are answered with an error (see [`link::read`]).
const JOBS: usize = 1024;

/// The regex engine behind some tokenizers recurses once per character of a long run.
const TOKENISER_STACK: usize = 512 * 1024 * 1024;

/// As `ps` and `top` show it: the daemon starts a file that it keeps open, whose name is a number.
const NAME: &CStr = c"temperd-engine";

fn main() -> ExitCode {
    // What it is called is of no other use.
    let _unnamed = rustix::thread::set_name(NAME);
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("temperd-engine: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    heap::settle();
    let handover = Handover::from_environment();
    let socket = socket_on_stdin()?;
    end_with_any_thread();
    let link = Arc::new(Link::new(socket.try_clone()?));
    link.send(Frame::Hello(Hello {
        protocol: frames::PROTOCOL,
        build: frames::BUILD.to_owned(),
        flavour: gpu::FLAVOUR.to_owned(),
    }));

    let heard = log::install(Arc::clone(&link))?;
    send_logs_to_tracing(LogOptions::default());
    let backend = LlamaBackend::init()?;

    let (commands, to_owner) = mpsc::sync_channel(COMMANDS);
    let (jobs, to_tokeniser) = mpsc::sync_channel(JOBS);
    let tokeniser = thread::Builder::new().name("tokeniser".into()).stack_size(TOKENISER_STACK);
    tokeniser.spawn({
        let link = Arc::clone(&link);
        move || vocabulary::tokenise(&to_tokeniser, &link)
    })?;
    thread::Builder::new().name("reader".into()).spawn({
        let (link, jobs) = (Arc::clone(&link), jobs.clone());
        move || link::read(socket, &link, &commands, &jobs)
    })?;
    owner::run(&owner::Surroundings { backend, link, heard, jobs, handover }, &to_owner);
    Ok(())
}

fn socket_on_stdin() -> io::Result<UnixStream> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let stdin = File::from(stdin);
    if !stdin.metadata()?.file_type().is_socket() {
        return Err(io::Error::other("is started by temperd, with a socket as standard input; run `temperd` instead"));
    }
    Ok(UnixStream::from(std::os::fd::OwnedFd::from(stdin)))
}

/// Without its reader or its tokeniser the process would live on deaf: a panic anywhere ends it, and the daemon starts
/// another.
fn end_with_any_thread() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
