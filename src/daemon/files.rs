//! File descriptors: each connection needs one, and the soft limit of a process is 1,024 by default, for the sake of programs
//! that cannot count further. This one can.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors beside those of connections: the engine's, the broker's, the board's readings, the log, the state.
const OTHERS: u64 = 128;

/// Raises the soft limit to the hard one. Warns where that does not reach for so many connections: what is over it waits
/// to be accepted.
pub(super) fn raise_limit(connections: u32) {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::warn!(target: "temperd::daemon", error:%; "the limit of open files stays as it is");
    }
    let (has, needs) = (getrlimit(Resource::Nofile).current, u64::from(connections) + OTHERS);
    if let Some(limit) = has.filter(|limit| *limit < needs) {
        log::warn!(target: "temperd::daemon", limit, needs;
            "too few open files for `limits.connections`: raise LimitNOFILE of the service, or lower the setting");
    }
}
