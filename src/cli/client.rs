//! The way from a command to the daemon, gRPC over the Unix socket, and what comes back from there.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::CliError;
use crate::{config::machine::socket_places, wire::v1};

/// Connects to the daemon at `socket`, else to the first of the usual places where one listens.
///
/// # Errors
/// [`CliError::Nobody`] where no daemon listens, [`CliError::Failed`] where one may, and cannot be reached.
pub async fn connect(socket: Option<PathBuf>) -> Result<Channel, CliError> {
    let places = match socket {
        Some(path) => vec![path],
        None => socket_places(),
    };
    let mut tried = Vec::new();
    let mut denied = false;
    for path in places {
        match UnixStream::connect(&path).await {
            Ok(stream) => return over(stream).await,
            Err(error) => {
                denied |= !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused);
                tried.push(format!("{}: {}", path.display(), reason(&error)));
            }
        }
    }
    let tried = tried.join("; ");
    Err(if denied { CliError::Failed(format!("cannot connect to {tried}")) } else { CliError::Nobody(tried) })
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "no socket".into(),
        ErrorKind::ConnectionRefused => "nobody listens".into(),
        ErrorKind::PermissionDenied => {
            "permission denied; this user must be in the socket's group (`socket.group`, `socket.mode`)".into()
        }
        _ => error.to_string(),
    }
}

/// One connection and no second one: to connect again behind the caller's back would hide that the daemon has gone.
async fn over(stream: UnixStream) -> Result<Channel, CliError> {
    let once = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::from(ErrorKind::NotConnected)) }
    });
    // The address is only the `:authority` of the requests.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|error| CliError::Failed(format!("cannot speak to what listens there: {error}")))
}

/// What a failed call means that has no outcome of its own.
#[must_use]
pub fn failure(status: &Status) -> CliError {
    match refusal(status).and_then(|last| verdict(&last)) {
        Err(error) => error,
        Ok(()) => broken(status),
    }
}

/// The final of a request that the daemon has refused, from the metadata that it puts beside the status.
///
/// # Errors
/// A status without them is not the daemon's: the connection or the server broke.
pub fn refusal(status: &Status) -> Result<v1::Final, CliError> {
    let text = |name: &str| status.metadata().get(name).and_then(|value| value.to_str().ok());
    let number = |name: &str| text(name).and_then(|value| value.parse().ok());
    let Some(code) = text("temperd-code") else { return Err(broken(status)) };
    Ok(v1::Final {
        outcome: if code == "internal" { "failed" } else { "refused" }.into(),
        error: Some(v1::Error {
            code: code.into(),
            message: status.message().into(),
            limit: number("temperd-limit"),
            actual: number("temperd-actual"),
        }),
        retry_after_ms: number("retry-after-ms"),
        ..v1::Final::default()
    })
}

/// What an outcome is worth.
///
/// # Errors
/// Every outcome but `completed`.
pub fn verdict(last: &v1::Final) -> Result<(), CliError> {
    let why = || {
        let (code, message) = last.error.as_ref().map_or(("", "no reason given"), |e| (&e.code, &e.message));
        let again = last.retry_after_ms.map(|ms| format!(" (again in {} s)", ms.div_ceil(1000))).unwrap_or_default();
        if code.is_empty() { message.into() } else { format!("{message} [{code}]{again}") }
    };
    match last.outcome.as_str() {
        "completed" => Ok(()),
        "refused" => Err(CliError::Refused(why())),
        "cancelled" => Err(CliError::Cancelled),
        "expired" => Err(CliError::Expired(why())),
        _ => Err(CliError::Failed(format!("failed: {}", why()))),
    }
}

fn broken(status: &Status) -> CliError {
    CliError::Failed(format!("the connection to the daemon broke: {}", status.message()))
}

#[cfg(test)]
mod tests {
    use tonic::{Code, metadata::MetadataMap};

    use super::*;

    #[test]
    fn each_outcome_has_its_exit_code() {
        for (outcome, code) in [("failed", 1), ("refused", 3), ("cancelled", 4), ("expired", 5), ("", 1)] {
            let last = v1::Final { outcome: outcome.into(), ..v1::Final::default() };
            assert_eq!(verdict(&last).unwrap_err().exit_code(), code, "{outcome}");
        }
        verdict(&v1::Final { outcome: "completed".into(), ..v1::Final::default() }).unwrap();
    }

    #[test]
    fn a_refusal_keeps_code_numbers_and_the_time_to_come_again() {
        let mut metadata = MetadataMap::new();
        metadata.insert("temperd-code", "queue_full".parse().unwrap());
        metadata.insert("temperd-limit", 64.into());
        metadata.insert("retry-after-ms", 1500.into());
        let status = Status::with_metadata(Code::ResourceExhausted, "64 requests are waiting", metadata);
        let last = refusal(&status).unwrap();
        assert_eq!((last.error.as_ref().unwrap().limit, last.retry_after_ms), (Some(64), Some(1500)));
        let error = failure(&status);
        assert_eq!(error.to_string(), "refused: 64 requests are waiting [queue_full] (again in 2 s)");
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn a_status_that_is_not_ours_is_a_broken_connection() {
        assert_eq!(refusal(&Status::unavailable("gone")).unwrap_err().exit_code(), 1);
        assert_eq!(failure(&Status::unavailable("gone")).exit_code(), 1);
    }
}
