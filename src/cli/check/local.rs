//! Findings on this machine: model file, engine, memory, CPUs, socket.

use std::{
    fmt, fs,
    io::ErrorKind,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::Path,
};

use rustix::fs::{Access, access};

use super::Finding;
use crate::{
    board::{self, Reading, memory::Memory, units::Bytes},
    config::{Engine, KvType},
    engine::locate::{flavours, is_executable},
    gguf::{self, Summary},
};

/// The model file; its header where that can be read.
pub(super) fn model(path: &Path) -> (Finding, Option<Summary>) {
    match gguf::inspect(path) {
        Ok(summary) => (described(path, &summary), Some(summary)),
        Err(error) => (Finding::problem("model", error.to_string()), None),
    }
}

fn described(path: &Path, summary: &Summary) -> Finding {
    let name = summary.name.as_deref().or(summary.architecture.as_deref()).unwrap_or("without a name");
    let trained = summary.context_length.map(|n| format!(", trained for {n} tokens")).unwrap_or_default();
    let text = format!("{}, {name}, {}{trained}", path.display(), mib(summary.file_bytes));
    if summary.chat_template {
        return Finding::ok("model", text);
    }
    Finding::warn("model", format!("{text}; it has no chat template: only raw prompts will be answered"))
}

/// What an engine takes: the file and the whole KV cache, where the header tells its size. Working memory comes on top.
pub(super) fn need(summary: &Summary, engine: &Engine) -> Need {
    // llama.cpp rounds up.
    let cells = u64::from(engine.context.next_multiple_of(256));
    let quantised = match engine.kv_type {
        KvType::F16 => [false, false],
        KvType::Q8_0 => [true, true],
        KvType::F16Q8_0 => [false, true],
    };
    Need { model: summary.file_bytes, cache: summary.cache_bytes(cells, quantised).unwrap_or(0) }
}

/// Bytes that an engine takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    model: u64,
    cache: u64,
}

/// The engine, or its flavours in the order in which they are tried.
pub(super) fn engine(engine: &Engine) -> Finding {
    match flavours(engine.path.as_deref(), engine.gpu_layers != Some(0), is_executable) {
        Ok(found) => {
            let each: Vec<_> = found.iter().map(|path| path.display().to_string()).collect();
            Finding::ok("engine", each.join(", else "))
        }
        Err(error) => Finding::problem("engine", error.to_string()),
    }
}

/// The board's; limits of our cgroup are those of this shell, and not of the daemon.
pub(super) fn memory(root: &Path, reading: &Reading<Memory>, need: Option<Need>) -> Finding {
    match reading {
        Ok(memory) => enough(memory.meminfo.total, memory.meminfo.available(), need),
        Err(error) => unreadable("memory", root, "proc/meminfo", error),
    }
}

fn enough(Bytes(total): Bytes, Bytes(available): Bytes, need: Option<Need>) -> Finding {
    const THING: &str = "memory";
    let have = format!("{} of {} available", mib(available), mib(total));
    let Some(Need { model, cache }) = need else { return low(available, total, have) };
    let sum = model.saturating_add(cache);
    let text = format!("{have}, needed {} (model {}, KV cache {})", mib(sum), mib(model), mib(cache));
    if sum > total {
        let remedy = "it cannot run on this board: lower `engine.context`, or take a smaller model or quantisation";
        Finding::problem(THING, format!("{text}; {remedy}"))
    } else if sum > available {
        let remedy = "where temperd is not running already: end other programs, or lower `engine.context`";
        Finding::warn(THING, format!("{text}; {remedy}"))
    } else {
        low(available, total, text)
    }
}

/// A tenth is where earlyoom, where it is installed, begins to end programs.
fn low(available: u64, total: u64, text: String) -> Finding {
    if available <= total / 10 {
        let remedy = "that is little: end other programs, or earlyoom and the kernel soon will";
        return Finding::warn("memory", format!("{text}; {remedy}"));
    }
    Finding::ok("memory", text)
}

pub(super) fn cpus(root: &Path, engine: &Engine) -> Finding {
    match board::cpus(root) {
        Ok(cpus) => match engine.threads.max(engine.threads_batch) {
            Some(count) => threads(cpus, count),
            None => Finding::ok("cpu", format!("{cpus} CPUs; how many threads help is measured once nothing runs")),
        },
        Err(error) => unreadable("cpu", root, "sys/devices/system/cpu/online", &error),
    }
}

fn threads(cpus: u32, threads: u32) -> Finding {
    if threads > cpus {
        let remedy = "they wait for each other; lower `engine.threads` and `engine.threads_batch`";
        return Finding::warn("cpu", format!("{cpus} CPUs for {threads} threads: {remedy}"));
    }
    Finding::ok("cpu", format!("{cpus} CPUs for {threads} threads"))
}

fn unreadable(thing: &'static str, root: &Path, file: &str, error: &impl fmt::Display) -> Finding {
    let path = root.join(file);
    Finding::warn(thing, format!("{}: {error}; is `--board-root` right?", path.display()))
}

pub(super) fn socket(path: &Path) -> Finding {
    const THING: &str = "socket";
    let shown = path.display();
    if UnixStream::connect(path).is_ok() {
        return Finding::ok(THING, format!("{shown}, a daemon listens there"));
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Finding::problem(
                THING,
                format!("{shown} is there and is no socket; move it, or choose another path"),
            );
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Finding::problem(THING, format!("{shown}: {error}; run as the user that may enter its folder"));
        }
        _ => {}
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        let remedy = "create it (under systemd: RuntimeDirectory=temperd), or choose another path with `--socket`";
        return Finding::problem(THING, format!("the folder {} does not exist; {remedy}", folder.display()));
    }
    if access(folder, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let remedy = "run as its owner, or choose another path with `--socket`";
        return Finding::problem(THING, format!("this user may not write to {}; {remedy}", folder.display()));
    }
    Finding::ok(THING, format!("{shown} can be made"))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1024 * 1024))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, time::Instant};

    use super::*;
    use crate::{
        board::Board,
        cli::check::Grade,
        config::{self, Machine, Overrides},
    };

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_can_never_fit_is_a_problem_what_does_not_fit_now_a_warning() {
        let grade = |model, cache| enough(Bytes(8 * GIB), Bytes(4 * GIB), Some(Need { model, cache })).grade;
        assert_eq!(grade(7 * GIB, 2 * GIB), Grade::Problem);
        assert_eq!(grade(3 * GIB, 2 * GIB), Grade::Warn);
        assert_eq!(grade(3 * GIB, GIB), Grade::Ok);
        assert_eq!(enough(Bytes(8 * GIB), Bytes(4 * GIB), None).text, "4096 MiB of 8192 MiB available");
    }

    #[test]
    fn little_memory_is_a_warning_whatever_is_needed() {
        let grade = |available, need| enough(Bytes(10 * GIB), Bytes(available), need).grade;
        assert_eq!(grade(GIB, None), Grade::Warn);
        assert_eq!(grade(GIB, Some(Need { model: 1, cache: 1 })), Grade::Warn);
        assert_eq!(grade(GIB + 1, None), Grade::Ok);
    }

    fn summary(kv_bytes_per_token: Option<u64>) -> Summary {
        Summary {
            architecture: Some("llama".into()),
            name: None,
            kind: None,
            adapter: None,
            chat_template: true,
            tokenizer: None,
            context_length: Some(32_768),
            block_count: Some(32),
            tensors: 291,
            file_bytes: 3 * GIB,
            needed_bytes: 3 * GIB,
            kv_bytes_per_token,
            weights: crate::gguf::Weights::default(),
        }
    }

    #[test]
    fn the_cache_counts_by_its_type() {
        let config = |kv_type| {
            let text = format!("[engine]\nmodel = \"m\"\nkv_type = \"{kv_type}\"\n[socket]\npath = \"/s\"");
            let machine = Machine { hostname: "h".into(), default_socket: None, state_directory: None };
            config::parse(&text, Overrides::default(), &machine).unwrap().engine
        };
        // Mistral 7B: 128 KiB for each of 8192 tokens.
        let cache = |kv_type| need(&summary(Some(128 << 10)), &config(kv_type)).cache;
        assert_eq!(cache("f16"), GIB);
        assert_eq!(cache("q8_0"), GIB * 34 / 64);
        assert_eq!(cache("f16/q8_0"), GIB * 98 / 128);
        assert_eq!(need(&summary(None), &config("f16")), Need { model: 3 * GIB, cache: 0 });
        assert_eq!(need(&summary(Some(u64::MAX)), &config("f16")).cache, 0);
    }

    #[test]
    fn a_model_without_a_chat_template_is_a_warning() {
        let plain = Summary { chat_template: false, ..summary(None) };
        assert_eq!(described(Path::new("m"), &plain).grade, Grade::Warn);
        assert_eq!(described(Path::new("m"), &summary(None)).text, "m, llama, 3072 MiB, trained for 32768 tokens");
    }

    #[test]
    fn more_threads_than_cpus_is_a_warning() {
        assert_eq!(threads(4, 4).grade, Grade::Ok);
        assert_eq!(threads(4, 6).grade, Grade::Warn);
    }

    #[test]
    fn readings_come_from_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        let memory = |root| memory(root, &Board::open(root, "").sample(Instant::now()).memory, None);
        assert_eq!(memory(root.path()).grade, Grade::Warn);
        fs::create_dir_all(root.path().join("proc")).unwrap();
        fs::write(root.path().join("proc/meminfo"), "MemTotal: 2048 kB\nMemAvailable: 1024 kB\n").unwrap();
        assert_eq!(memory(root.path()), Finding::ok("memory", "1 MiB of 2 MiB available"));
    }

    #[test]
    fn a_socket_that_is_live_stale_absent_or_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        assert!(socket(&path).text.ends_with("can be made"));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(socket(&path).text.ends_with("a daemon listens there"));
        drop(listener);
        assert_eq!(socket(&path).grade, Grade::Ok);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(socket(&path).grade, Grade::Problem);
        assert_eq!(socket(&folder.path().join("no/s")).grade, Grade::Problem);
    }

    #[test]
    fn a_model_that_is_not_there_or_no_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        assert!(model(&path).0.text.contains("fetch-model"));
        fs::write(&path, "not a model").unwrap();
        let (finding, summary) = model(&path);
        assert_eq!((finding.grade, summary), (Grade::Problem, None));
    }
}
