//! What the defaults take from the machine that temperd runs on.

use std::{
    env,
    path::{Path, PathBuf},
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
        Self { hostname: System::host_name().unwrap_or_default(), default_socket }
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
