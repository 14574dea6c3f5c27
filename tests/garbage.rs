//! Peers that say nonsense, or half of something, or nothing, or too much: each has its answer or its end, none costs more
//! than its place, and who asks properly is served.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::{path::Path, time::Duration};

use http_body_util::BodyExt;
use hyper::{Method, StatusCode, body::Bytes};
use serde_json::{Value, json};
use support::{
    daemon::{Daemon, PATIENCE, until},
    http,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};

const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1";
const CHAT: &str = "/v1/chat/completions";

fn question() -> Value {
    json!({"model": MODEL, "temperature": 0, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello."}]})
}

/// A request that runs until somebody ends it: no token that ends an answer may be drawn.
fn endless() -> String {
    let never: serde_json::Map<String, Value> = (0..17).map(|token| (token.to_string(), json!(-100))).collect();
    let body = json!({"model": MODEL, "prompt": "Count: one, two,", "max_tokens": 4000, "temperature": 0,
        "stream": true, "logit_bias": never})
    .to_string();
    format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

async fn is_served(daemon: &Daemon) {
    let (status, answer) = http::post(&daemon.socket, CHAT, &question()).await;
    assert_eq!(status, StatusCode::OK, "{answer}\n{}", daemon.log_text());
}

async fn connect(socket: &Path) -> UnixStream {
    UnixStream::connect(socket).await.unwrap()
}

/// What comes until the other side closes. A reset is as good as an end.
async fn rest(stream: &mut UnixStream) -> String {
    let mut rest = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "still open after {PATIENCE:?}, having said {:?}", String::from_utf8_lossy(&rest));
    String::from_utf8_lossy(&rest).into_owned()
}

/// Says one thing and hears the answer to its end.
async fn talk(socket: &Path, says: &[u8]) -> String {
    let mut stream = connect(socket).await;
    // It may have heard enough before all is said.
    let _ = stream.write_all(says).await;
    let _ = stream.shutdown().await;
    rest(&mut stream).await
}

/// A byte now and then until the other side closes; what it has said by then.
async fn dribble(socket: &Path, head: &str) -> String {
    let (mut reader, mut writer) = connect(socket).await.into_split();
    writer.write_all(head.as_bytes()).await.unwrap();
    let drops = tokio::spawn(async move {
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut said = Vec::new();
    let ended = timeout(PATIENCE, reader.read_to_end(&mut said)).await;
    drops.abort();
    assert!(ended.is_ok(), "{head:?} is listened to for ever");
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn who_speaks_too_slowly_is_ended_and_others_are_served() {
    let daemon = Daemon::ready("[socket]\nread_timeout_s = 1\n").await;
    let socket = daemon.socket.clone();
    let post = |more: &str| format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\n{more}\r\n");
    let slow = [
        (String::new(), ""),
        ("GET /v1/status HTTP/1.1\r\nx-slow: ".into(), ""),
        (post("content-length: 100000\r\nconnection: close\r\n"), "HTTP/1.1 400"),
        (post("content-length: 100000\r\nconnection: close\r\ncontent-type: application/grpc\r\n"), "HTTP/1.1 200"),
        (post("transfer-encoding: chunked\r\nconnection: close\r\n") + "ffff\r\n", "HTTP/1.1 400"),
    ];
    let slow = slow.map(|(head, answer)| {
        let socket = socket.clone();
        tokio::spawn(async move { (dribble(&socket, &head).await, head, answer) })
    });
    for _ in 0..3 {
        is_served(&daemon).await;
    }
    for one in slow {
        let (said, head, answer) = one.await.unwrap();
        assert!(said.starts_with(answer), "{head:?}: {said}");
        if !answer.is_empty() {
            // gRPC writes spaces as %20.
            assert!(said.contains("arrive") && said.contains("read_timeout_s"), "{head:?}: {said}");
        }
    }
    is_served(&daemon).await;
}

#[tokio::test]
async fn half_a_connection_is_none() {
    let daemon = Daemon::ready("[engine]\nparallel = 1\n").await;
    for half in [std::net::Shutdown::Write, std::net::Shutdown::Read] {
        let mut stream = connect(&daemon.socket).await;
        stream.write_all(endless().as_bytes()).await.unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        until(&daemon, "running", |status| status["running"] == 1).await;
        let stream = stream.into_std().unwrap();
        stream.shutdown(half).unwrap();
        until(&daemon, "ended with its peer", |status| status["running"] == 0).await;
    }
    is_served(&daemon).await;
}

/// This process needs a descriptor for each connection too.
fn with_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let room = getrlimit(Resource::Nofile).current;
    assert!(
        room.is_none_or(|room| room >= 2100),
        "at most {room:?} open files here: raise the hard limit (ulimit -Hn)"
    );
}

const IDLE: usize = 1000;

#[tokio::test]
async fn a_thousand_idle_connections_keep_nobody_out() {
    with_many_files();
    let daemon = Daemon::ready(&format!("[limits]\nconnections = {IDLE}\n")).await;
    let beginnings: [&[u8]; 4] = [
        b"",
        b"GET /v1/sta",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n",
    ];
    let mut idle = Vec::new();
    for beginning in beginnings.into_iter().cycle().take(IDLE) {
        let mut stream = connect(&daemon.socket).await;
        stream.write_all(beginning).await.unwrap();
        idle.push(stream);
    }
    // Each try has an answer: served, or told when to come again, and by then somebody makes room.
    let served = async {
        let mut served = 0;
        while served < 5 {
            let response = http::send(&daemon.socket, Method::POST, CHAT, question().to_string()).await;
            match response.status() {
                StatusCode::OK => served += 1,
                StatusCode::TOO_MANY_REQUESTS => {
                    let seconds: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                }
                other => panic!("{other}"),
            }
        }
    };
    timeout(PATIENCE, served).await.expect("served in the end");
    let closed = idle.iter().filter(|stream| is_closed(stream)).count();
    assert!((1..=20).contains(&closed), "{closed} idle connections were given up for 5 requests one after the other");
    drop(idle);
    is_served(&daemon).await;
}

/// Whether the other side has said its last word.
fn is_closed(stream: &UnixStream) -> bool {
    let mut heard = [0; 4096];
    loop {
        match stream.try_read(&mut heard) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

/// Frames of HTTP/2: kind, flags, stream, and what is in it.
fn h2(frames: &[(u8, u8, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for (kind, flags, stream, payload) in frames {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        bytes.extend(&length[1..]);
        bytes.extend([*kind, *flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(*payload);
    }
    bytes
}

#[tokio::test]
async fn garbage_has_its_end_and_hurts_nobody() {
    let daemon = Daemon::ready("").await;
    let get = |more: &str| format!("GET /v1/status HTTP/1.1\r\nhost: x\r\n{more}\r\n").into_bytes();
    let post = |more: &str| format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}").into_bytes();
    let mut random = fastrand::Rng::with_seed(6);
    let mut noise = |n: usize| (0..n).map(|_| random.u8(..)).collect::<Vec<u8>>();
    // HEADERS of `:method: GET` alone, ended; the same without an end.
    let (headers, no_end) = ((1, 5, 1, &b"\x82"[..]), (1, 0, 1, &b"\x82"[..]));
    let resets: Vec<_> =
        (0..2000).flat_map(|n| [(1, 5, 2 * n + 1, &b"\x82\x86\x84"[..]), (3, 0, 2 * n + 1, &[0; 4][..])]).collect();
    let continuations: Vec<_> =
        std::iter::once(no_end).chain((0..2000).map(|_| (9, 0, 1, &b"\x40\x01a\x01b"[..]))).collect();
    let settings: Vec<_> = (0..2000).map(|_| (4, 0, 0, &[0, 3, 0, 0, 0, 9][..])).collect();
    let pings: Vec<_> = (0..2000).map(|_| (6, 0, 0, &[1; 8][..])).collect();
    for (name, says) in [
        ("nothing", Vec::new()),
        ("noise", noise(10)),
        ("much noise", noise(300_000)),
        ("zeros", vec![0; 100_000]),
        ("line ends", b"\r\n".repeat(50_000)),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("an MQTT connect", b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03abc".to_vec()),
        ("another version", b"GET / HTTP/9.9\r\n\r\n".to_vec()),
        ("no version", b"GET /\r\n\r\n".to_vec()),
        ("a method without end", vec![b'A'; 200_000]),
        ("a path without end", [b"GET /".to_vec(), vec![b'a'; 200_000]].concat()),
        ("one huge header", get(&format!("x: {}\r\n", "y".repeat(200_000)))),
        ("many headers", get(&"x: y\r\n".repeat(5_000))),
        ("a name with a NUL", get("x\0y: z\r\n")),
        ("folded headers", get("x: y\r\n z\r\n")),
        ("a length below zero", post("content-length: -1\r\n\r\n")),
        ("a length beyond numbers", post("content-length: 99999999999999999999999\r\n\r\n")),
        ("two lengths", post("content-length: 1\r\ncontent-length: 2\r\n\r\nab")),
        ("a length and chunks", post("content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
        ("a chunk without a size", post("transfer-encoding: chunked\r\n\r\nxyz\r\n")),
        ("a chunk of all sizes", post("transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nx")),
        (
            "a size with much behind it",
            post(&format!("transfer-encoding: chunked\r\n\r\n1;{}\r\nx", "y".repeat(300_000))),
        ),
        ("a body that breaks off", post("content-length: 100\r\n\r\n{")),
        ("a preface alone", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("a preface and noise", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), noise(1000)].concat()),
        ("a frame that is too long", [h2(&[]), b"\xff\xff\xff\0\0\0\0\0\x01".to_vec(), vec![0; 70_000]].concat()),
        ("settings of a bad size", h2(&[(4, 0, 0, b"\0")])),
        ("settings that are none", h2(&[(4, 0, 0, b"\0\x05\xff\xff\xff\xff")])),
        ("a window that overflows", h2(&[(8, 0, 0, b"\x7f\xff\xff\xff"), (8, 0, 0, b"\x7f\xff\xff\xff")])),
        ("headers of too little", h2(&[headers])),
        ("headers that cannot be read", h2(&[(1, 5, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff")])),
        ("data on no stream", h2(&[(0, 0, 7, b"x")])),
        ("a stream that waits for itself", h2(&[(1, 0x25, 1, b"\0\0\0\x01\0\x82\x86\x84")])),
        ("streams reset at once", h2(&resets)),
        ("headers that go on and on", h2(&continuations)),
        ("settings again and again", h2(&settings)),
        ("pings again and again", h2(&pings)),
        ("a push", h2(&[(5, 4, 1, b"\0\0\0\x02\x82")])),
    ] {
        let said = talk(&daemon.socket, &says).await;
        let told = said.is_empty()
            || said.starts_with("HTTP/1.1 4")
            || said.starts_with("HTTP/1.1 5")
            || !said.starts_with("HTTP");
        assert!(told, "{name}: {said}");
    }
    is_served(&daemon).await;
    let log = daemon.log_text();
    assert!(!log.contains("panicked"), "{log}");
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn bodies_that_are_no_requests_have_their_error() {
    let daemon = Daemon::ready("").await;
    let message =
        |content: &str| format!(r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":{content}}}]}}"#);
    let schema = |schema: &str| {
        format!(
            r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"x"}}],"response_format":{{"type":"json_schema","json_schema":{{"schema":{schema}}}}}}}"#
        )
    };
    let nested = |depth: usize, open: &str, close: &str| format!("{}1{}", open.repeat(depth), close.repeat(depth));
    let bodies: Vec<(&str, Vec<u8>, u16)> = vec![
        ("nothing", Vec::new(), 400),
        ("no UTF-8", b"{\"model\":\"\xff\xfe\"}".to_vec(), 400),
        ("half a character", message("\"\\ud800\"").into(), 400),
        ("a NUL in a text is a text", message("\"a\\u0000b\"").into(), 200),
        ("a bare NUL", message("\"a\0b\"").into(), 400),
        ("arrays within each other", nested(100_000, "[", "]").into(), 400),
        ("objects within each other", nested(40_000, "{\"a\":", "}").into(), 400),
        ("a content that is deep", message(&nested(40_000, "[", "]")).into(), 400),
        ("a schema that is deep", schema(&nested(100, "{\"items\":", "}")).into(), 400),
        ("a schema that is deeper", schema(&nested(20_000, "{\"not\":", "}")).into(), 400),
        ("a number of many digits", format!(r#"{{"model":"{MODEL}","seed":{}}}"#, "9".repeat(100_000)).into(), 400),
        ("a key many times", format!("{{{}\"a\":1}}", "\"messages\":[],".repeat(10_000)).into(), 400),
        ("two bodies", format!("{}{}", question(), question()).into(), 400),
        ("text behind it", format!("{}x", question()).into(), 400),
        ("over the limit", vec![b' '; 262_145], 413),
        ("far over it", vec![b' '; 20_000_000], 413),
    ];
    for (name, body, status) in bodies {
        let request = [
            format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len())
                .into_bytes(),
            body,
        ]
        .concat();
        let mut stream = connect(&daemon.socket).await;
        let (mut reader, mut writer) = stream.split();
        // Who sends far too much is told before the end, and not listened to any longer.
        let (_, said) = tokio::join!(writer.write_all(&request), async {
            let mut said = Vec::new();
            let _ = timeout(PATIENCE, reader.read_to_end(&mut said)).await.expect("an answer and an end");
            String::from_utf8_lossy(&said).into_owned()
        });
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {said}");
        if status == 413 {
            assert!(said.contains("262144") && said.contains("limits.payload_bytes"), "{name}: {said}");
        }
    }
    is_served(&daemon).await;
}

/// gRPC puts a flag and a length before a message.
fn grpc(flag: u8, length: u32, message: &[u8]) -> Bytes {
    [&[flag][..], &length.to_be_bytes(), message].concat().into()
}

#[tokio::test]
async fn grpc_that_is_none_has_its_status() {
    let daemon = Daemon::ready("").await;
    let stream = connect(&daemon.socket).await;
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut client, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let connection = tokio::spawn(connection);
    let groups = [0x9b, 0x06].repeat(50_000);
    for (name, path, body) in [
        ("nothing", "/temperd.v1.Inference/Chat", Bytes::new()),
        ("noise", "/temperd.v1.Inference/Chat", grpc(0, 4, b"\xff\xff\xff\xff")),
        ("another length", "/temperd.v1.Inference/Chat", grpc(0, 400, b"\x0a\x01x")),
        ("the longest length", "/temperd.v1.Inference/Chat", grpc(0, u32::MAX, b"\x0a\x01x")),
        ("compressed, it says", "/temperd.v1.Inference/Chat", grpc(1, 3, b"\x0a\x01x")),
        ("another flag", "/temperd.v1.Inference/Chat", grpc(77, 3, b"\x0a\x01x")),
        ("no UTF-8", "/temperd.v1.Control/Cancel", grpc(0, 3, b"\x0a\x01\xff")),
        ("groups within each other", "/temperd.v1.Inference/Complete", grpc(0, 100_000, &groups)),
        ("no such method", "/temperd.v1.Inference/Dance", grpc(0, 0, b"")),
        ("no such service", "/x", grpc(0, 0, b"")),
    ] {
        let request = hyper::Request::post(format!("http://x{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let response = client.send_request(request.body(http_body_util::Full::new(body)).unwrap()).await.unwrap();
        let in_head = response.headers().get("grpc-status").cloned();
        let collected = timeout(PATIENCE, response.into_body().collect()).await.expect("an end").unwrap();
        let status = in_head.or_else(|| collected.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()));
        let status = status.map(|status| status.to_str().unwrap().to_owned());
        assert!(status.as_deref().is_some_and(|status| status != "0"), "{name}: {status:?}");
    }
    connection.abort();
    is_served(&daemon).await;
    assert!(!daemon.log_text().contains("panicked"), "{}", daemon.log_text());
}

/// Good and bad ones, as they come: each tenth is good, and each hundredth wants an answer of the model.
async fn tiny(daemon: &Daemon, n: usize) {
    let socket = &daemon.socket;
    let expected = match n % 10 {
        _ if n.is_multiple_of(100) => {
            let body = json!({"model": MODEL, "prompt": "x", "max_tokens": 1});
            http::post(socket, "/v1/completions", &body).await.0 == StatusCode::OK
        }
        0 => http::get(socket, "/v1/models").await.0 == StatusCode::OK,
        1 => http::json(socket, Method::POST, CHAT, "{").await.0 == StatusCode::BAD_REQUEST,
        2 => http::post(socket, CHAT, &json!({"colour": n})).await.0 == StatusCode::BAD_REQUEST,
        3 => http::get(socket, &format!("/nothing/{n}")).await.0 == StatusCode::NOT_FOUND,
        4 => http::json(socket, Method::DELETE, CHAT, "").await.0 == StatusCode::METHOD_NOT_ALLOWED,
        5 => {
            http::post(socket, CHAT, &json!({"model": format!("m{n}"), "messages": []})).await.0
                == StatusCode::NOT_FOUND
        }
        6 => !talk(socket, format!("GET /{n} HTTP/9\r\n\r\n").as_bytes()).await.starts_with("HTTP/1.1 2"),
        7 => talk(socket, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff").await.len() < 200,
        8 => {
            http::post(socket, "/v1/embeddings", &json!({"model": MODEL, "input": n})).await.0
                == StatusCode::BAD_REQUEST
        }
        _ => {
            drop(connect(socket).await);
            true
        }
    };
    assert!(expected, "request {n}");
}

/// Requests at a time, and in all.
const HANDS: usize = 8;
const TINY: usize = 10_000;
/// Bytes by which the daemon may have grown after the first tenth.
const GROWTH: u64 = 2 * 1024 * 1024;

#[tokio::test]
async fn ten_thousand_tiny_requests_leave_memory_as_it_was() {
    let daemon = Daemon::ready("").await;
    let all = async |from: usize, to: usize| {
        let hands = (0..HANDS).map(|hand| {
            let daemon = &daemon;
            async move {
                for n in (from..to).skip(hand).step_by(HANDS) {
                    tiny(daemon, n).await;
                }
            }
        });
        futures_util::future::join_all(hands).await;
        until(&daemon, "at rest", |status| status["running"] == 0 && status["queue"]["depth"] == 0).await;
        daemon.anonymous_bytes()
    };
    let first = all(0, TINY / 10).await;
    let last = all(TINY / 10, TINY).await;
    assert!(last <= first + GROWTH, "{first} bytes after the first {}, {last} after all {TINY}", TINY / 10);
    assert!(!daemon.log_text().contains("panicked"), "{}", daemon.log_text());
}
