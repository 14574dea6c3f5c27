//! Errors as gRPC statuses. The metadata carries what a status has no place for: `temperd-code`, `temperd-param`,
//! `temperd-limit`, `temperd-actual`, `retry-after-ms`.

use axum::http::Response;
use tonic::{Code, Status, metadata::MetadataValue};

use crate::request::{ErrorCode, RequestError};

const CODE: &str = "temperd-code";
const PARAM: &str = "temperd-param";
const LIMIT: &str = "temperd-limit";
const ACTUAL: &str = "temperd-actual";
const RETRY_AFTER: &str = "retry-after-ms";

/// The status that refuses a request for this reason.
#[must_use]
pub fn from(error: &RequestError) -> Status {
    let mut status = Status::new(code(error.code), error.message.clone());
    let metadata = status.metadata_mut();
    metadata.insert(CODE, MetadataValue::from_static(error.code.as_str()));
    if let Some(param) = error.param.as_deref().and_then(|param| param.parse().ok()) {
        metadata.insert(PARAM, param);
    }
    let numbers = [(LIMIT, error.limit), (ACTUAL, error.actual), (RETRY_AFTER, error.retry_after_ms)];
    for (name, number) in numbers {
        if let Some(number) = number {
            metadata.insert(name, MetadataValue::from(number));
        }
    }
    status
}

fn code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::InvalidRequest | ErrorCode::ContextLengthExceeded | ErrorCode::TopicNotAllowed => {
            Code::InvalidArgument
        }
        ErrorCode::PayloadTooLarge | ErrorCode::QueueFull | ErrorCode::ShareExceeded => Code::ResourceExhausted,
        ErrorCode::ModelUnavailable | ErrorCode::Draining => Code::Unavailable,
        ErrorCode::UnknownModel => Code::NotFound,
        ErrorCode::Forbidden => Code::PermissionDenied,
        ErrorCode::Unauthorized => Code::Unauthenticated,
        ErrorCode::IdConflict | ErrorCode::AlreadyAnswered => Code::AlreadyExists,
        ErrorCode::Expired => Code::DeadlineExceeded,
        ErrorCode::Cancelled => Code::Cancelled,
        ErrorCode::Poison | ErrorCode::Internal => Code::Internal,
    }
}

/// tonic answers what it cannot read before a handler of ours sees it, with `INTERNAL` or `OUT_OF_RANGE` as if the fault
/// were the server's: the error that it really is.
#[must_use]
pub fn unreadable<B>(response: &Response<B>) -> Option<RequestError> {
    let headers = response.headers();
    if headers.contains_key(CODE) {
        return None;
    }
    let status = Status::from_header_map(headers)?;
    match status.code() {
        Code::Internal => {
            let message = format!("malformed message: {}", status.message());
            Some(RequestError::new(ErrorCode::InvalidRequest, message))
        }
        Code::OutOfRange => Some(RequestError::new(ErrorCode::PayloadTooLarge, status.message())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_carries_code_and_numbers() {
        let error = RequestError::invalid("max_tokens", "is 0").with_numbers(8192, 0).retry_after(5);
        let status = from(&error);
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "max_tokens: is 0"));
        let value = |name: &str| status.metadata().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(value("temperd-code"), Some("invalid_request"));
        assert_eq!(value("temperd-param"), Some("max_tokens"));
        assert_eq!(value("temperd-limit"), Some("8192"));
        assert_eq!(value("temperd-actual"), Some("0"));
        assert_eq!(value("retry-after-ms"), Some("5"));
    }

    #[test]
    fn only_errors_that_are_not_ours_are_put_right() {
        let ours = from(&RequestError::new(ErrorCode::Internal, "lost")).into_http::<String>();
        assert_eq!(unreadable(&ours), None);
        let theirs = Status::internal("failed to decode").into_http::<String>();
        assert_eq!(unreadable(&theirs).unwrap().code, ErrorCode::InvalidRequest);
        let theirs = Status::out_of_range("too large").into_http::<String>();
        assert_eq!(unreadable(&theirs).unwrap().code, ErrorCode::PayloadTooLarge);
        let theirs = Status::unimplemented("").into_http::<String>();
        assert_eq!(unreadable(&theirs), None);
        assert_eq!(unreadable(&Response::new(String::new())), None);
    }
}
