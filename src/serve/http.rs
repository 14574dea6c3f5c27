//! The plain HTTP endpoints, and what holds for all of HTTP: errors are in OpenAI's form, also for unknown paths.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;

use crate::{
    request::{ErrorCode, RequestError, WayIn},
    serve::{
        openai,
        unix::{self, Peer, Shared},
    },
    telemetry::metrics,
    wire,
};

pub mod error;

/// Everything that is served over HTTP.
pub(super) fn routes(shared: &Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/metrics", get(render))
        .route("/v1/status", get(status))
        .merge(openai::routes())
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_path)
        .with_state(Arc::clone(shared))
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    reasons: Vec<String>,
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let status = shared.status.get();
    let code = if status.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Readiness { ready: status.ready, reasons: status.reasons })).into_response()
}

async fn render(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], shared.metrics.render()).into_response()
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], wire::to_json(&shared.status.get())).into_response()
}

async fn unknown_path(State(shared): State<Arc<Shared>>, Extension(peer): Extension<Peer>) -> Response {
    let message = "there is nothing at this path; README.md lists what there is";
    refuse(&shared, peer, &RequestError::new(ErrorCode::InvalidRequest, message), Some(StatusCode::NOT_FOUND))
}

async fn wrong_method(State(shared): State<Arc<Shared>>, Extension(peer): Extension<Peer>) -> Response {
    let message = "this path does not take that method; the `Allow` header says which it takes";
    refuse(&shared, peer, &RequestError::new(ErrorCode::InvalidRequest, message), Some(StatusCode::METHOD_NOT_ALLOWED))
}

/// Counts, logs and writes out a refusal; `status` where it is not the one of the code.
pub(super) fn refuse(shared: &Shared, peer: Peer, error: &RequestError, status: Option<StatusCode>) -> Response {
    unix::refused(&shared.metrics, WayIn::Http, peer, error);
    let mut response = error::response(error);
    if let Some(status) = status {
        *response.status_mut() = status;
    }
    response
}
