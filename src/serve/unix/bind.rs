//! The socket's file: made with its mode and group before anyone can connect, and removed with the daemon.
//!
//! A file that is already there is probed by connecting to it. Only a refused connect proves that nobody listens: that
//! file is stale and replaced. Probe and replacement happen under a lock on the folder, so that of two daemons that
//! start at once exactly one wins.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{
    fs::FlockOperation,
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

use crate::config;

/// Connections that the kernel holds for us until they are accepted, where it holds so many (`net.core.somaxconn`); who
/// comes then waits, or is told to try again.
const BACKLOG: i32 = 4096;
/// How often, and how far apart, the folder's lock is tried; another daemon holds it for milliseconds.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error(
        "socket {}: another daemon is running there; stop it, or name another path with --socket or `socket.path`",
        path.display()
    )]
    Live {
        /// The socket's path.
        path: PathBuf,
    },
    /// Another daemon is starting in the same folder and does not get on.
    #[error("socket {}: another process holds the lock of its folder; try again", path.display())]
    Locked {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something else is there, which is left alone.
    #[error("socket {}: there is a file that is not a socket; remove it, or name another path", path.display())]
    NotASocket {
        /// The socket's path.
        path: PathBuf,
    },
    /// A `socket.group` that the system does not know.
    #[error("socket.group: there is no group `{group}`; name one of /etc/group, or its number")]
    UnknownGroup {
        /// The group as configured.
        group: String,
    },
    /// The path does not fit into a socket address.
    #[error("socket {}: the path is too long for a Unix socket (at most 107 bytes); name a shorter one", path.display())]
    TooLong {
        /// The socket's path.
        path: PathBuf,
    },
    /// The system refuses a step.
    #[error("socket {}: cannot {step}: {error}", path.display())]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// A listening socket. Its file goes with it, unless another daemon has put its own in that place.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    file: (u64, u64),
}

impl Listener {
    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A second handle of the socket, non-blocking; the file stays this value's.
    ///
    /// # Errors
    /// Those of duplicating a descriptor.
    pub(super) fn handle(&self) -> io::Result<UnixListener> {
        self.socket.try_clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!(target: "temperd::socket", path:% = self.path.display(), error:%; "socket file left behind");
        }
    }
}

/// Listens at the configured path. A missing folder is made (mode 0755), a stale socket replaced.
///
/// # Errors
/// [`BindError`], which names the path and the way out. Blocks for two seconds at most.
pub fn bind(config: &config::Socket) -> Result<Listener, BindError> {
    let path = &config.path;
    let failed = |step: &'static str| move |error: io::Error| BindError::Io { path: config.path.clone(), step, error };
    let address = SocketAddrUnix::new(path.as_path()).map_err(|error| match error {
        Errno::NAMETOOLONG => BindError::TooLong { path: path.clone() },
        error => failed("use this path")(error.into()),
    })?;
    let group = config.group.as_deref().map(group).transpose()?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed("make its folder"))?;

    let lock = fs::File::open(folder).map_err(failed("open its folder"))?;
    hold(&lock, path)?;
    if occupied(path, &address)? {
        fs::remove_file(path).map_err(failed("remove the stale file"))?;
    }
    let socket = new_socket().map_err(failed("make a socket"))?;
    rustix::net::bind(&socket, &address).map_err(|error| failed("bind it")(error.into()))?;
    // From here the file is ours and goes again if a step fails. Nobody can connect before `listen`: the mode is set by
    // then.
    let file = identity(path).map_err(failed("read its file"))?;
    let listener = Listener { socket: UnixListener::from(socket), path: path.clone(), file };
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group)).map_err(failed("give it to `socket.group`"))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(config.mode)).map_err(failed("set `socket.mode`"))?;
    rustix::net::listen(&listener.socket, BACKLOG).map_err(|error| failed("listen")(error.into()))?;
    Ok(listener)
}

/// Takes the folder's lock; it is released when the file is closed.
fn hold(folder: &fs::File, path: &Path) -> Result<(), BindError> {
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) => thread::sleep(LOCK_PAUSE),
            Err(error) => {
                return Err(BindError::Io { path: path.into(), step: "lock its folder", error: error.into() });
            }
        }
    }
    Err(BindError::Locked { path: path.into() })
}

/// Whether there is a stale file to remove; an error where somebody else's is.
fn occupied(path: &Path, address: &SocketAddrUnix) -> Result<bool, BindError> {
    let io = |step, error| BindError::Io { path: path.into(), step, error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io("read its file", error)),
        Ok(file) if !file.file_type().is_socket() => return Err(BindError::NotASocket { path: path.into() }),
        Ok(_) => {}
    }
    let probe = new_socket().map_err(|error| io("make a socket", error))?;
    match rustix::net::connect(&probe, address) {
        // A full backlog is somebody's too.
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => Err(BindError::Live { path: path.into() }),
        Err(Errno::CONNREFUSED) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(io("find out whether somebody listens there", error.into())),
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// The number of a group that is given by number or name.
fn group(name: &str) -> Result<u32, BindError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) | Err(_) => Err(BindError::UnknownGroup { group: name.into() }),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, os::unix::net::UnixStream};

    use super::*;

    fn config(path: PathBuf) -> config::Socket {
        config::Socket {
            path,
            mode: 0o660,
            group: None,
            allow_uids: None,
            gateways: BTreeSet::new(),
            raw_prompt: true,
            read_timeout: Duration::from_secs(30),
        }
    }

    #[test]
    fn makes_its_folder_and_takes_mode_and_group() {
        let temp = tempfile::tempdir().unwrap();
        let mut config = config(temp.path().join("a/b/temperd.sock"));
        config.mode = 0o640;
        config.group = Some(rustix::process::getgid().as_raw().to_string());
        let listener = bind(&config).unwrap();
        let file = fs::metadata(listener.path()).unwrap();
        assert_eq!(file.permissions().mode() & 0o7777, 0o640);
        assert_eq!(file.gid(), rustix::process::getgid().as_raw());
        UnixStream::connect(&config.path).unwrap();
    }

    #[test]
    fn replaces_a_stale_file_and_refuses_a_live_one() {
        let temp = tempfile::tempdir().unwrap();
        let config = config(temp.path().join("s"));
        drop(UnixListener::bind(&config.path).unwrap());
        assert!(config.path.exists(), "std leaves its file behind: the case of a killed daemon");
        let first = bind(&config).unwrap();
        assert!(matches!(bind(&config), Err(BindError::Live { .. })));
        UnixStream::connect(&config.path).unwrap();
        drop(first);
        assert!(!config.path.exists());
        bind(&config).unwrap();
    }

    #[test]
    fn leaves_files_alone_that_are_not_its_own() {
        let temp = tempfile::tempdir().unwrap();
        let config = config(temp.path().join("s"));
        fs::write(&config.path, "precious").unwrap();
        assert!(matches!(bind(&config), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&config.path).unwrap(), "precious");

        fs::remove_file(&config.path).unwrap();
        let ours = bind(&config).unwrap();
        fs::remove_file(&config.path).unwrap();
        let other = UnixListener::bind(&config.path).unwrap();
        drop(ours);
        assert!(config.path.exists(), "the file of a successor stays");
        drop(other);
    }

    #[test]
    fn of_many_that_start_at_once_one_wins() {
        let temp = tempfile::tempdir().unwrap();
        let config = config(temp.path().join("s"));
        drop(UnixListener::bind(&config.path).unwrap());
        let results: Vec<_> = thread::scope(|scope| {
            let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| bind(&config))).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(BindError::Live { .. }))));
        UnixStream::connect(&config.path).unwrap();
    }

    #[test]
    fn errors_name_the_thing() {
        let temp = tempfile::tempdir().unwrap();
        let mut bad = config(temp.path().join("s"));
        bad.group = Some("no such group".into());
        assert!(bind(&bad).unwrap_err().to_string().contains("`no such group`"));
        assert!(!bad.path.exists());
        let long = config(temp.path().join("x".repeat(120)));
        assert!(matches!(bind(&long), Err(BindError::TooLong { .. })));
        assert_eq!(group("0").unwrap(), 0);
        assert_eq!(group("root").unwrap(), 0);
    }
}
