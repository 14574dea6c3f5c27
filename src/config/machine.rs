//! What the defaults take from the machine that temperd runs on.

use std::{
    env,
    ffi::OsString,
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
        let state_directory = state_directory(|name| env::var_os(name));
        Self { hostname: System::host_name().unwrap_or_default(), default_socket, state_directory }
    }
}

/// Relative paths are none: XDG says so, and nobody would find them again.
fn state_directory(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let named = |name: &str| variable(name).map(PathBuf::from).and_then(absolute);
    // systemd names several with colons between them, where the unit has several.
    let services = variable("STATE_DIRECTORY").and_then(|paths| env::split_paths(&paths).next()).and_then(absolute);
    services
        .or_else(|| Some(named("XDG_STATE_HOME")?.join("temperd")))
        .or_else(|| Some(named("HOME")?.join(".local/state/temperd")))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<PathBuf> {
        state_directory(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_service_managers_state_directory_goes_first_and_the_users_is_the_last() {
        let home = ("HOME", "/home/me");
        assert_eq!(of(&[home]), Some("/home/me/.local/state/temperd".into()));
        assert_eq!(of(&[home, ("XDG_STATE_HOME", "/state")]), Some("/state/temperd".into()));
        assert_eq!(of(&[home, ("XDG_STATE_HOME", "state")]), Some("/home/me/.local/state/temperd".into()));
        let of_service = ("STATE_DIRECTORY", "/var/lib/temperd:/var/lib/other");
        assert_eq!(of(&[home, ("XDG_STATE_HOME", "/state"), of_service]), Some("/var/lib/temperd".into()));
        assert_eq!(of(&[]), None);
    }
}
