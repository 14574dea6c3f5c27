//! `scripts/fetch-model` against a server that cuts connections, and against a full disk.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use sha2::Digest as _;

const NAME: &str = "Mistral-7B-Instruct-v0.3-Q3_K_S.gguf";

/// Serves one file on loopback, by ranges, and notes where each download began.
struct Server {
    port: u16,
    starts: Arc<Mutex<Vec<usize>>>,
}

impl Server {
    /// Every answer ends after `piece` bytes, as if the network broke.
    fn start(file: Vec<u8>, piece: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let starts = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&starts);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Some(start) = serve(stream, &file, piece) {
                    seen.lock().expect("not poisoned").push(start);
                }
            }
        });
        Self { port, starts }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/{NAME}", self.port)
    }

    fn starts(&self) -> Vec<usize> {
        self.starts.lock().expect("not poisoned").clone()
    }
}

/// Where the answer began; none for the question for one byte, by which the script learns the size.
fn serve(mut stream: TcpStream, file: &[u8], piece: usize) -> Option<usize> {
    let lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let range = lines
        .take_while(|line| !line.is_empty())
        .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let range = range.unwrap_or_else(|| "0-".into());
    let (start, end) = range.split_once('-')?;
    let start: usize = start.parse().ok()?;
    let last = end.parse().unwrap_or(file.len() - 1);
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{last}/{}\r\n\
         ETag: \"1\"\r\nConnection: close\r\n\r\n",
        last + 1 - start,
        file.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&file[start..(start + piece).min(last + 1)]).ok()?;
    end.is_empty().then_some(start)
}

/// No model, but what the script takes for one.
fn gguf(bytes: usize) -> Vec<u8> {
    b"GGUF".iter().copied().chain((0..bytes - 4).map(|i| u8::try_from(i % 251).expect("small"))).collect()
}

fn hex(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fetch(which: &str, dir: &Path, more: &[&str]) -> Output {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/fetch-model"))
        .arg(which)
        .arg("--dir")
        .arg(dir)
        .args(more)
        .stdin(Stdio::null())
        .output()
        .expect("it runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join(NAME);
    (folder, file)
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let model = gguf(100_000);
    let server = Server::start(model.clone(), 60_000);
    let (folder, file) = folder();
    let output = fetch("mistral", folder.path(), &["--url", &server.url(), "--sha256", &hex(&model)]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(server.starts(), [0, 60_000]);
    assert_eq!(fs::read(&file).expect("it is there"), model);
    let left: Vec<_> =
        fs::read_dir(folder.path()).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, [NAME], "nothing else stays");

    let again = fetch("mistral", folder.path(), &["--url", &server.url()]);
    assert!(again.status.success() && said(&again).contains("is there"), "{}", said(&again));
    assert_eq!(server.starts().len(), 2, "nothing is loaded twice");
}

#[test]
fn a_file_with_another_sum_never_gets_the_name() {
    let server = Server::start(gguf(10_000), usize::MAX / 2);
    let (folder, file) = folder();
    let output = fetch("mistral", folder.path(), &["--url", &server.url(), "--sha256", &hex(b"another")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("SHA-256"), "{}", said(&output));
    assert!(!file.exists());
}

#[test]
fn a_full_disk_is_an_error_that_says_so() {
    let server = Server::start(gguf(10_000), usize::MAX / 2);
    let (folder, file) = folder();
    symlink("/dev/full", folder.path().join(format!("{NAME}.part"))).expect("linked");
    let output = fetch("mistral", folder.path(), &["--url", &server.url()]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("is the disk full?"), "{}", said(&output));
    assert!(!file.exists());

    let small = "SmolLM2-135M-Instruct.Q4_1.gguf";
    symlink("/dev/full", folder.path().join(format!(".{small}.part"))).expect("linked");
    let output = fetch("small", folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("is the disk full?"), "{}", said(&output));
    assert!(!folder.path().join(small).exists());
}
