//! gRPC: the services of `proto/temperd/v1`, health and reflection. Refusals are statuses ([`status`]); an accepted
//! request always ends in a `final` event.

use std::{pin::Pin, sync::Arc};

use axum::Router;
use futures_util::{Stream, stream};
use tonic::{Request, Response, Status, metadata::MetadataMap, service::Routes};
use tonic_health::{pb::health_server::HealthServer, server::HealthService};

use crate::{
    dispatch::{Event, Ticket},
    request::{self, Client, ErrorCode, RequestError, WayIn, check},
    serve::{
        openai::answer::failure_of,
        unix::{self, Peer, Shared},
    },
    wire::v1::{
        self, CancelReply, CancelRequest, ChatEvent, ChatRequest, CompleteRequest, DeleteSessionReply,
        DeleteSessionRequest, EmbedReply, EmbedRequest, SetOperatingPointRequest, StatusRequest, chat_event,
        control_server::{Control, ControlServer},
        inference_server::{Inference, InferenceServer},
    },
};

pub mod health;
pub mod status;
pub mod timeout;

type InferenceService = InferenceServer<Service>;
type ControlService = ControlServer<Service>;
type Events = Pin<Box<dyn Stream<Item = Result<ChatEvent, Status>> + Send>>;

/// Everything that is served over gRPC. Messages are bounded by the gate, which reads them as a whole.
pub(super) fn routes(shared: &Arc<Shared>, health: HealthServer<HealthService>) -> Router {
    let service = Service { shared: Arc::clone(shared) };
    let limit = shared.bounds.payload_bytes;
    let mut routes = Routes::builder();
    routes
        .add_service(InferenceServer::new(service.clone()).max_decoding_message_size(limit))
        .add_service(ControlServer::new(service).max_decoding_message_size(limit))
        .add_service(health);
    // Older clients, the Python package among them, ask the alpha version.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(current), Ok(alpha)) => {
            routes.add_service(current).add_service(alpha);
        }
        (Err(error), _) | (_, Err(error)) => {
            log::error!(target: "temperd::socket", error:%; "gRPC reflection is off");
        }
    }
    routes.routes().prepare().into_axum_router()
}

/// Both services.
#[derive(Debug, Clone)]
struct Service {
    shared: Arc<Shared>,
}

impl Service {
    fn refuse(&self, peer: Peer, error: &RequestError) -> Status {
        unix::refused(&self.shared.metrics, WayIn::Grpc, peer, error);
        status::from(error)
    }

    /// Hands a checked request over; what comes back becomes the response's stream.
    async fn ask(
        &self,
        peer: Peer,
        checked: Result<request::Request, RequestError>,
    ) -> Result<Response<Events>, Status> {
        let request = checked.map_err(|error| self.refuse(peer, &error))?;
        let ticket = self.shared.dispatcher.submit(request).await.map_err(|error| status::from(&error))?;
        let id = ticket.id().parse();
        let mut response = Response::new(events(ticket));
        if let Ok(id) = id {
            response.metadata_mut().insert("x-request-id", id);
        }
        Ok(response)
    }
}

#[tonic::async_trait]
impl Inference for Service {
    type ChatStream = Events;
    type CompleteStream = Events;

    async fn chat(&self, request: Request<ChatRequest>) -> Result<Response<Events>, Status> {
        let peer = peer(&request)?;
        let deadline = deadline(request.metadata());
        let mut request = request.into_inner();
        request.deadline_ms = sooner(request.deadline_ms, deadline);
        let checked = over_mqtt_only(request.max_reply_bytes)
            .and_then(|()| check::chat(request, Client::uid(peer.uid), WayIn::Grpc, &self.shared.bounds));
        self.ask(peer, checked).await
    }

    async fn complete(&self, request: Request<CompleteRequest>) -> Result<Response<Events>, Status> {
        let peer = peer(&request)?;
        let deadline = deadline(request.metadata());
        let mut request = request.into_inner();
        request.deadline_ms = sooner(request.deadline_ms, deadline);
        let checked = raw_prompt(&self.shared)
            .and_then(|()| over_mqtt_only(request.max_reply_bytes))
            .and_then(|()| check::complete(request, Client::uid(peer.uid), WayIn::Grpc, &self.shared.bounds));
        self.ask(peer, checked).await
    }

    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedReply>, Status> {
        let peer = peer(&request)?;
        let deadline = deadline(request.metadata());
        let mut request = request.into_inner();
        request.deadline_ms = sooner(request.deadline_ms, deadline);
        let request = check::embed(request, Client::uid(peer.uid), WayIn::Grpc, &self.shared.bounds)
            .map_err(|error| self.refuse(peer, &error))?;
        let ticket = self.shared.dispatcher.submit(request).await.map_err(|error| status::from(&error))?;
        let id = ticket.id().parse();
        let reply = ticket.embedded().await;
        match failure_of(&reply.outcome, reply.error.as_ref(), reply.retry_after_ms) {
            Some(error) => Err(status::from(&error)),
            None => {
                let mut response = Response::new(reply);
                if let Ok(id) = id {
                    response.metadata_mut().insert("x-request-id", id);
                }
                Ok(response)
            }
        }
    }
}

#[tonic::async_trait]
impl Control for Service {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<v1::Status>, Status> {
        Ok(Response::new(self.shared.status.get()))
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<CancelReply>, Status> {
        let peer = peer(&request)?;
        let id = request.into_inner().id;
        if id.is_empty() {
            return Err(self.refuse(peer, &RequestError::invalid("id", "must name the request to end")));
        }
        let found = self.shared.dispatcher.cancel(&Client::uid(peer.uid), &id).await;
        let result = if found { "cancelled" } else { "unknown" };
        Ok(Response::new(CancelReply { id, result: result.into() }))
    }

    async fn set_operating_point(
        &self,
        request: Request<SetOperatingPointRequest>,
    ) -> Result<Response<v1::Status>, Status> {
        let peer = peer(&request)?;
        let pin = request.into_inner().operating_point.unwrap_or_default();
        log::info!(target: "temperd::socket", uid = peer.uid, pin:? = pin; "an operator sets the operating point");
        let status = self.shared.keeper.set_pin(&pin).await.map_err(|error| self.refuse(peer, &error))?;
        Ok(Response::new(status))
    }

    async fn delete_session(
        &self,
        request: Request<DeleteSessionRequest>,
    ) -> Result<Response<DeleteSessionReply>, Status> {
        Err(self.refuse(peer(&request)?, &later("session", "DeleteSession")))
    }
}

/// The gate puts it there.
fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    request.extensions().get().copied().ok_or_else(|| Status::internal("the peer of this connection is not known"))
}

/// The pieces and the final of an accepted request. Dropping the stream drops the ticket, which cancels.
fn events(ticket: Ticket) -> Events {
    Box::pin(stream::unfold(Some(ticket), |ticket| async {
        let mut ticket = ticket?;
        match ticket.next().await {
            Some(Event::Chunk(chunk)) => Some((Ok(event(chat_event::Event::Chunk(chunk))), Some(ticket))),
            Some(Event::Final(last)) => Some((Ok(event(chat_event::Event::Final(*last))), None)),
            // Embeddings are no answer to a prompt.
            Some(Event::Embedded(_)) | None => Some((Err(status::from(&lost())), None)),
        }
    }))
}

fn event(event: chat_event::Event) -> ChatEvent {
    ChatEvent { event: Some(event) }
}

/// A ticket that ends without its final breaks invariant 1; the client is at least told.
pub(super) fn lost() -> RequestError {
    RequestError::new(ErrorCode::Internal, "the request was lost inside the daemon; its log says more")
}

/// The nearer of the request's deadline and the one that gRPC's own time-out sets, in milliseconds.
fn sooner(field: Option<u32>, timeout: Option<u32>) -> Option<u32> {
    match (field, timeout) {
        (Some(field), Some(timeout)) => Some(field.min(timeout)),
        (field, timeout) => field.or(timeout),
    }
}

fn deadline(metadata: &MetadataMap) -> Option<u32> {
    metadata.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(timeout::milliseconds)
}

/// Whether raw prompts are taken on the socket.
pub(super) fn raw_prompt(shared: &Shared) -> Result<(), RequestError> {
    if shared.socket.raw_prompt {
        return Ok(());
    }
    Err(RequestError::new(ErrorCode::Forbidden, "raw prompts are not taken on this socket (`socket.raw_prompt`)"))
}

/// A bound that would not be kept is better refused than ignored.
fn over_mqtt_only(max_reply_bytes: Option<u32>) -> Result<(), RequestError> {
    match max_reply_bytes {
        None => Ok(()),
        Some(_) => Err(RequestError::invalid("max_reply_bytes", "holds for MQTT only; use `max_tokens` here")),
    }
}

fn later(param: &str, what: &str) -> RequestError {
    RequestError::invalid(param, format_args!("{what} is not available yet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_deadline_holds() {
        assert_eq!(sooner(None, None), None);
        assert_eq!(sooner(Some(5), None), Some(5));
        assert_eq!(sooner(None, Some(7)), Some(7));
        assert_eq!(sooner(Some(5), Some(7)), Some(5));
        assert_eq!(sooner(Some(9), Some(7)), Some(7));
    }
}
