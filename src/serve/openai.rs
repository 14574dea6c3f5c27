//! OpenAI's endpoints: [`request`] reads their JSON, [`answer`] and [`stream`] write it.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Serialize;

use self::{
    answer::{Head, Shape},
    request::Asked,
    stream::Writer,
};
use crate::{
    dispatch::{Event, Ticket},
    request::{ErrorCode, Input, Request, RequestError, WayIn, check},
    serve::{
        grpc,
        http::{self, error},
        unix::{Peer, Shared},
    },
    wire::v1,
};

pub mod answer;
pub mod embeddings;
mod fields;
mod logprobs;
pub mod request;
pub mod stream;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// OpenAI's endpoints.
pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(embeddings::serve))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
}

type App = State<Arc<Shared>>;
type Who = Extension<Peer>;

async fn chat(State(shared): App, Extension(peer): Who, body: Bytes) -> Response {
    let checked = request::chat(&body, shared.bounds.context).and_then(|asked| {
        asked.check(&shared, peer, |request, client, bounds| check::chat(request, client, WayIn::Http, bounds))
    });
    answer(&shared, peer, Shape::Chat, checked).await
}

async fn completions(State(shared): App, Extension(peer): Who, body: Bytes) -> Response {
    let checked =
        grpc::raw_prompt(&shared).and_then(|()| request::completion(&body, shared.bounds.context)).and_then(|asked| {
            asked.check(&shared, peer, |request, client, bounds| check::complete(request, client, WayIn::Http, bounds))
        });
    answer(&shared, peer, Shape::Text, checked).await
}

/// A request that passed every check, and what the answer has to know.
struct Checked {
    request: Request,
    model: String,
    include_usage: bool,
}

impl<T> Asked<T> {
    fn check(
        self,
        shared: &Shared,
        peer: Peer,
        check: impl FnOnce(T, crate::request::Client, &check::Bounds) -> Result<Request, RequestError>,
    ) -> Result<Checked, RequestError> {
        let served = served(shared)?;
        let by_name = self.model != served;
        if by_name && !shared.dispatcher.adapters().any(|name| name == self.model) {
            return Err(unknown_model(shared, &served));
        }
        let client = self.client(peer.uid, shared.socket.gateways.contains(&peer.uid));
        let mut request = check(self.request, client, &shared.bounds)?;
        if by_name {
            adapter_by_model(&mut request, &self.model)?;
        }
        Ok(Checked { request, model: self.model, include_usage: self.include_usage })
    }
}

/// Hands the request over and answers with what comes of it.
async fn answer(shared: &Shared, peer: Peer, shape: Shape, checked: Result<Checked, RequestError>) -> Response {
    let Checked { request, model, include_usage } = match checked {
        Ok(checked) => checked,
        Err(error) => return http::refuse(shared, peer, &error, None),
    };
    let (stream, logprobs) = (request.stream, request.logprobs.is_some());
    let ticket = match shared.dispatcher.submit(request).await {
        Ok(ticket) => ticket,
        Err(error) => return error::response(&error),
    };
    let head = Head { id: ticket.id().into(), created: seconds(SystemTime::now()), model, logprobs };
    let request_id = HeaderValue::from_str(&head.id);
    let mut response = if stream {
        stream::response(ticket, Writer::new(shape, head, include_usage))
    } else {
        match outcome(ticket).await {
            Ok(last) => answer::response(shape, &head, &last),
            Err(error) => error::response(&error),
        }
    };
    // An id that is no header value is in the body alone.
    if let Ok(id) = request_id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

async fn outcome(mut ticket: Ticket) -> Result<v1::Final, RequestError> {
    loop {
        match ticket.next().await {
            Some(Event::Chunk(_)) => {}
            Some(Event::Final(last)) => return answer::failure(&last).map_or(Ok(*last), Err),
            Some(Event::Embedded(_)) | None => return Err(grpc::lost()),
        }
    }
}

/// Other servers list adapters as models, and their clients choose one by `model`.
fn adapter_by_model(request: &mut Request, model: &str) -> Result<(), RequestError> {
    if let Input::Texts(_) = request.input {
        return Err(RequestError::invalid("model", "is an adapter, which embeddings are made without"));
    }
    match request.adapter.replace(model.into()) {
        Some(other) if other != model => {
            Err(RequestError::invalid("adapter", "differs from the one that `model` names"))
        }
        _ => Ok(()),
    }
}

/// The name of the one model; an error where there is none.
fn served(shared: &Shared) -> Result<String, RequestError> {
    match shared.status.get().model {
        Some(model) if !model.name.is_empty() => Ok(model.name),
        _ => Err(RequestError::new(ErrorCode::ModelUnavailable, "there is no model; see /v1/status")),
    }
}

fn unknown_model(shared: &Shared, served: &str) -> RequestError {
    let names = std::iter::once(served).chain(shared.dispatcher.adapters());
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    let message = format!("model: there is no such model here; {} is served", names.join(", "));
    RequestError { param: Some("model".into()), ..RequestError::new(ErrorCode::UnknownModel, message) }
}

#[derive(Serialize)]
struct Models {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Serialize)]
struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

impl Model {
    fn new(id: String, started: SystemTime) -> Self {
        Self { id, object: "model", created: seconds(started), owned_by: "temperd" }
    }
}

async fn models(State(shared): App) -> Json<Models> {
    let mut names: Vec<String> = served(&shared).into_iter().collect();
    if !names.is_empty() {
        names.extend(shared.dispatcher.adapters().map(String::from));
    }
    let data = names.into_iter().map(|name| Model::new(name, shared.started)).collect();
    Json(Models { object: "list", data })
}

async fn model(State(shared): App, Extension(peer): Who, Path(id): Path<String>) -> Response {
    match served(&shared) {
        Ok(name) if name == id || shared.dispatcher.adapters().any(|name| name == id) => {
            Json(Model::new(id, shared.started)).into_response()
        }
        Ok(name) => http::refuse(&shared, peer, &unknown_model(&shared, &name), None),
        Err(error) => http::refuse(&shared, peer, &error, None),
    }
}

/// Unix time in seconds; a clock before 1970 counts as 0.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
