//! The ways in. Each turns what comes in into a checked [`Request`](crate::request::Request), hands it to the
//! dispatcher and writes what comes back in its own form. None keeps a request.

pub mod grpc;
pub mod http;
pub mod mqtt;
pub mod openai;
pub mod unix;

/// Where the daemon stands, for parts that announce it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Serving.
    Running,
    /// Nothing new is admitted; what runs may finish.
    Draining,
    /// Everything has its outcome: say goodbye and end.
    Stopping,
}
