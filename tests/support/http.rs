//! HTTP/1.1 over the Unix socket, with the body as it comes.

use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// Sends one request on a connection of its own. Dropping the response closes the connection.
pub async fn send(socket: &Path, method: Method, path: &str, body: impl Into<Bytes>) -> Response<Incoming> {
    let stream = UnixStream::connect(socket).await.expect("connected");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
    // It ends once the response's body is read or dropped.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .expect("a request");
    sender.send_request(request).await.expect("a response")
}

/// Status and JSON of a whole response.
pub async fn json(socket: &Path, method: Method, path: &str, body: impl Into<Bytes>) -> (StatusCode, Value) {
    let response = send(socket, method, path, body).await;
    let status = response.status();
    let (_parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into())))
}

pub async fn get(socket: &Path, path: &str) -> (StatusCode, Value) {
    json(socket, Method::GET, path, Bytes::new()).await
}

pub async fn post(socket: &Path, path: &str, body: &Value) -> (StatusCode, Value) {
    json(socket, Method::POST, path, body.to_string()).await
}
