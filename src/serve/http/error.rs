//! Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`, where `code` is one of ours.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::request::{ErrorCode, RequestError};

/// OpenAI's clients repeat a request on 409, 429 and every 5xx, unless this header says that it is of no use.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Seconds until the next try where nothing better is known.
const RETRY_AFTER: u32 = 1;

/// The body of an error.
#[derive(Debug, Serialize)]
pub struct ErrorBody<'a> {
    error: Inner<'a>,
}

#[derive(Debug, Serialize)]
struct Inner<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

impl<'a> From<&'a RequestError> for ErrorBody<'a> {
    fn from(error: &'a RequestError) -> Self {
        Self {
            error: Inner {
                message: &error.message,
                kind: kind(error.code),
                param: error.param.as_deref(),
                code: error.code.as_str(),
            },
        }
    }
}

/// OpenAI's class of an error.
fn kind(code: ErrorCode) -> &'static str {
    match code.http_status() {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

/// The whole answer, with `Retry-After` in seconds where another try may help.
#[must_use]
pub fn response(error: &RequestError) -> Response {
    let status = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, Json(ErrorBody::from(error))).into_response();
    let headers = response.headers_mut();
    match error.code {
        ErrorCode::QueueFull | ErrorCode::ShareExceeded | ErrorCode::ModelUnavailable | ErrorCode::Draining => {
            let seconds = error.retry_after_ms.map_or(RETRY_AFTER, |ms| ms.div_ceil(1000).max(1));
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        ErrorCode::IdConflict
        | ErrorCode::AlreadyAnswered
        | ErrorCode::Expired
        | ErrorCode::Cancelled
        | ErrorCode::Poison => {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        _ => {}
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(error: &RequestError) -> String {
        serde_json::to_string(&ErrorBody::from(error)).unwrap()
    }

    #[test]
    fn has_openais_form() {
        assert_eq!(
            body(&RequestError::invalid("n", "only 1 is taken")),
            r#"{"error":{"message":"n: only 1 is taken","type":"invalid_request_error","param":"n","code":"invalid_request"}}"#
        );
        assert_eq!(
            body(&RequestError::new(ErrorCode::Draining, "stopping")),
            r#"{"error":{"message":"stopping","type":"server_error","param":null,"code":"draining"}}"#
        );
        assert_eq!(kind(ErrorCode::Forbidden), "permission_error");
        assert_eq!(kind(ErrorCode::ShareExceeded), "rate_limit_error");
        assert_eq!(kind(ErrorCode::UnknownModel), "invalid_request_error");
        assert_eq!(kind(ErrorCode::Cancelled), "invalid_request_error");
    }

    #[test]
    fn says_when_to_come_again_and_when_not() {
        let header = |error: &RequestError, name: &str| {
            response(error).headers().get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        let full = RequestError::new(ErrorCode::QueueFull, "full");
        assert_eq!(header(&full, "retry-after").as_deref(), Some("1"));
        assert_eq!(header(&full.clone().retry_after(1001), "retry-after").as_deref(), Some("2"));
        assert_eq!(header(&full.retry_after(0), "retry-after").as_deref(), Some("1"));
        let expired = RequestError::new(ErrorCode::Expired, "too late");
        assert_eq!(header(&expired, "retry-after"), None);
        assert_eq!(header(&expired, "x-should-retry").as_deref(), Some("false"));
        assert_eq!(response(&expired).status(), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(response(&RequestError::new(ErrorCode::Cancelled, "")).status().as_u16(), 499);
    }
}
