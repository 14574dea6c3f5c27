//! What the defaults take from the machine that temperd runs on.

use std::{
    env,
    path::{Path, PathBuf},
    thread,
};

use rustix::fs::{Access, access};
use sysinfo::System;

use super::Machine;

/// The folder that the service manager makes for us.
const RUN: &str = "/run/temperd";
/// The socket's name in whichever folder.
const SOCKET: &str = "temperd.sock";

impl Machine {
    /// Asks the system.
    #[must_use]
    pub fn detect() -> Self {
        let run = Path::new(RUN);
        let default_socket = if access(run, Access::WRITE_OK | Access::EXEC_OK).is_ok() {
            Some(run.join(SOCKET))
        } else {
            user_socket()
        };
        Self { cores: cores(), hostname: System::host_name().unwrap_or_default(), default_socket }
    }
}

/// Where a client looks for the daemon, in this order.
#[must_use]
pub fn socket_places() -> Vec<PathBuf> {
    [Some(Path::new(RUN).join(SOCKET)), user_socket()].into_iter().flatten().collect()
}

fn user_socket() -> Option<PathBuf> {
    let folder = PathBuf::from(env::var_os("XDG_RUNTIME_DIR")?);
    folder.is_absolute().then(|| folder.join(SOCKET))
}

/// Physical cores, since two threads of one core only get in each other's way in matrix products; fewer where a CPU
/// set or quota leaves us fewer.
fn cores() -> u32 {
    let usable = thread::available_parallelism().map_or(1, usize::from);
    let cores = System::physical_core_count().map_or(usable, |physical| physical.min(usable));
    u32::try_from(cores).unwrap_or(1).max(1)
}
