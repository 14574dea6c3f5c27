//! Every request passes here first: who asks, is the body all there and within its limit, and which protocol it is.
//! Bodies are read as a whole before a handler sees them, so that one place bounds their size and their time.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, HttpBody},
    http::{Request, header},
    response::Response,
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::time::timeout;
use tower::ServiceExt as _;

use super::places::{Place, Turn};
use crate::{
    request::{ErrorCode, RequestError, WayIn},
    serve::{grpc, http},
    telemetry::metrics::Metrics,
    wire::strict,
};

/// Bytes that are read and dropped beyond the limit, since a client that is still writing would not read the refusal.
const DISCARD_BYTES: usize = 4 * 1024 * 1024;
/// gRPC puts a flag and a length before a message.
const GRPC_PREFIX: usize = 5;
/// Services of gRPC itself, whose answers may be streams that last as long as the connection: nobody waits for us there.
const WATCHES: &str = "/grpc.";
/// The one of them whose requests are streams.
const REFLECTION: &str = "/grpc.reflection.";

/// The process at the other end of the connection; an extension of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
}

/// A connection's peer, its place and, where it may not talk to us, why.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub peer: Peer,
    pub place: Arc<Place>,
    pub refusal: Option<Arc<RequestError>>,
}

/// The two protocols behind one door.
#[derive(Debug)]
pub(super) struct Gate {
    pub http: Router,
    pub grpc: Router,
    pub payload_bytes: usize,
    /// A head must have arrived in this time, and so must a body after it.
    pub read_timeout: Duration,
    pub metrics: Arc<Metrics>,
}

impl Gate {
    /// Answers one request.
    pub async fn handle<B>(&self, caller: &Caller, request: Request<B>) -> Response
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let way_in = way_in(&request);
        let request = match self.enter(caller, way_in, request).await {
            Ok(request) => request,
            Err(error) => return self.refuse(caller, way_in, &error),
        };
        let turn = (!request.uri().path().starts_with(WATCHES)).then(|| Turn::ours(&caller.place));
        let router = match way_in {
            WayIn::Grpc => self.grpc.clone(),
            _ => self.http.clone(),
        };
        let Ok(response) = router.oneshot(request).await;
        let response = match turn {
            Some(turn) => response.map(|body| turn.with_body(body)),
            None => response,
        };
        match way_in {
            WayIn::Grpc => match grpc::status::unreadable(&response) {
                Some(error) => self.refuse(caller, way_in, &error),
                None => response,
            },
            _ => response,
        }
    }

    async fn enter<B>(&self, caller: &Caller, way_in: WayIn, request: Request<B>) -> Result<Request<Body>, RequestError>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        if let Some(refusal) = &caller.refusal {
            return Err(RequestError::clone(refusal));
        }
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(caller.peer);
        if way_in == WayIn::Grpc && parts.uri.path().starts_with(REFLECTION) {
            return Ok(Request::from_parts(parts, Body::new(body)));
        }
        let limit = match way_in {
            WayIn::Grpc => self.payload_bytes.saturating_add(GRPC_PREFIX),
            _ => self.payload_bytes,
        };
        let body = match timeout(self.read_timeout, read(body, limit)).await {
            Ok(read) => read?,
            Err(_) => {
                let seconds = self.read_timeout.as_secs();
                let message =
                    format!("the body did not arrive within {seconds} s (`socket.read_timeout_s`); send it at once");
                return Err(RequestError::new(ErrorCode::InvalidRequest, message));
            }
        };
        // A handler sees the decoded message only, where an unknown field is gone.
        if way_in == WayIn::Grpc
            && let Some(message) = body.get(GRPC_PREFIX..)
            && let Some(unknown) = strict::unknown_field_of_call(parts.uri.path(), message)
        {
            return Err(RequestError::new(ErrorCode::InvalidRequest, unknown));
        }
        Ok(Request::from_parts(parts, Body::from(body)))
    }

    fn refuse(&self, caller: &Caller, way_in: WayIn, error: &RequestError) -> Response {
        super::refused(&self.metrics, way_in, caller.peer, error);
        match way_in {
            WayIn::Grpc => grpc::status::from(error).into_http(),
            _ => http::error::response(error),
        }
    }
}

fn way_in<B>(request: &Request<B>) -> WayIn {
    let content_type = request.headers().get(header::CONTENT_TYPE).map(header::HeaderValue::as_bytes);
    if content_type.is_some_and(|value| value.starts_with(b"application/grpc")) { WayIn::Grpc } else { WayIn::Http }
}

async fn read<B>(body: B, limit: usize) -> Result<Bytes, RequestError>
where
    B: HttpBody<Data = Bytes>,
{
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut body = pin!(body);
    let mut kept = BytesMut::new();
    let mut seen = 0_usize;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err(RequestError::new(ErrorCode::InvalidRequest, "the body broke off"));
        };
        let Ok(data) = frame.into_data() else { continue };
        seen = seen.saturating_add(data.len());
        if seen <= limit {
            kept.extend_from_slice(&data);
        } else {
            kept.clear();
            if seen > limit.saturating_add(DISCARD_BYTES) {
                break;
            }
        }
    }
    if seen <= limit {
        return Ok(kept.freeze());
    }
    let message = format!("the body is larger than {limit} bytes (`limits.payload_bytes`); send less");
    Err(RequestError::new(ErrorCode::PayloadTooLarge, message).with_numbers(limit, seen.max(announced)))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use http_body_util::{Full, StreamBody};

    use super::*;

    #[tokio::test]
    async fn a_body_at_the_limit_passes_and_one_over_it_is_counted_to_its_end() {
        let read_full = |n: usize| read(Full::new(Bytes::from(vec![b'x'; n])), 10);
        assert_eq!(read_full(10).await.unwrap().len(), 10);
        let error = read_full(11).await.unwrap_err();
        assert_eq!((error.code, error.limit, error.actual), (ErrorCode::PayloadTooLarge, Some(10), Some(11)));

        let chunks = (0..3).map(|_| Ok::<_, std::io::Error>(hyper::body::Frame::data(Bytes::from_static(b"12345"))));
        let error = read(StreamBody::new(futures_util::stream::iter(chunks)), 10).await.unwrap_err();
        assert_eq!(error.actual, Some(15));
    }

    #[tokio::test]
    async fn a_broken_body_is_no_request() {
        let broken = futures_util::stream::iter([Err::<hyper::body::Frame<Bytes>, _>(std::io::Error::other("gone"))]);
        assert_eq!(read(StreamBody::new(broken), 10).await.unwrap_err().code, ErrorCode::InvalidRequest);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_given_up() {
        let gate = Gate {
            http: Router::new(),
            grpc: Router::new(),
            payload_bytes: 10,
            read_timeout: Duration::from_secs(30),
            metrics: Arc::new(Metrics::default()),
        };
        let caller = Caller { peer: Peer { uid: 1 }, place: Arc::new(Place::new(1)), refusal: None };
        let never = futures_util::stream::pending::<Result<hyper::body::Frame<Bytes>, std::io::Error>>();
        let response = gate.handle(&caller, Request::new(StreamBody::new(never))).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    }
}
