//! `grpc.health.v1`: the whole server and both services serve while the daemon is ready.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService as _;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use super::{ControlService, InferenceService};
use crate::{status::StatusBoard, wire::v1};

/// The server as a whole has the empty name.
const NAMES: [&str; 3] = ["", InferenceService::NAME, ControlService::NAME];

/// Carries readiness from the status board to the health service.
#[derive(Debug)]
pub struct Follow {
    reporter: HealthReporter,
    status: watch::Receiver<v1::Status>,
}

/// The service, and what keeps it up to date once it is run.
#[must_use]
pub fn service(status: &StatusBoard) -> (HealthServer<HealthService>, Follow) {
    let reporter = HealthReporter::new();
    let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    (service, Follow { reporter, status: status.watch() })
}

impl Follow {
    /// Follows until `closing`; then says that nothing is served any more and ends the streams of those who watch,
    /// which would otherwise keep their connections open.
    pub async fn run(mut self, closing: &CancellationToken) {
        loop {
            let ready = self.status.borrow_and_update().ready;
            self.set(if ready { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
            tokio::select! {
                () = closing.cancelled() => break,
                changed = self.status.changed() => if changed.is_err() {
                    break;
                },
            }
        }
        self.set(ServingStatus::NotServing).await;
        for name in NAMES {
            self.reporter.clear_service_status(name).await;
        }
    }

    async fn set(&self, status: ServingStatus) {
        for name in NAMES {
            self.reporter.set_service_status(name, status).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use tonic::Request;
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus as Wire, health_server::Health as _,
    };

    use super::*;

    #[tokio::test]
    async fn follows_readiness_and_ends_the_streams_of_watchers() {
        let board = StatusBoard::new(v1::Status::default());
        let reporter = HealthReporter::new();
        let service = HealthService::from_health_reporter(reporter.clone());
        let follow = Follow { reporter, status: board.watch() };
        let closing = CancellationToken::new();
        let task = tokio::spawn({
            let closing = closing.clone();
            async move { follow.run(&closing).await }
        });
        while service.check(Request::new(HealthCheckRequest { service: NAMES[1].into() })).await.is_err() {
            tokio::task::yield_now().await;
        }
        let asked = Request::new(HealthCheckRequest { service: NAMES[1].into() });
        let mut watched = service.watch(asked).await.unwrap().into_inner().map(|reply| reply.unwrap().status);
        assert_eq!(watched.next().await, Some(Wire::NotServing as i32));
        board.update(|status| status.ready = true);
        assert_eq!(watched.next().await, Some(Wire::Serving as i32));
        closing.cancel();
        let rest: Vec<_> = watched.collect().await;
        assert!(matches!(rest[..], [] | [_]), "the stream ends, with at most a last word");
        task.await.unwrap();
    }
}
