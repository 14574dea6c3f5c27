//! Where the engine's binary is.

use std::{
    env,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

const NAME: &str = "temperd-engine";
/// Where a package puts it.
const INSTALLED: &str = "/usr/lib/temperd";

/// No engine's binary was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no engine: looked for an executable {}; install temperd-engine there, or name it in `engine.path`", list(.0))]
pub struct NotFound(pub Vec<PathBuf>);

/// Finds the binary: `configured` alone where it is given, else beside our own executable, else where a package puts
/// it.
///
/// # Errors
/// The places that were looked at.
pub fn locate(configured: Option<&Path>) -> Result<PathBuf, NotFound> {
    let places = places(configured, env::current_exe().ok().as_deref());
    places.iter().find(|path| is_executable(path)).cloned().ok_or(NotFound(places))
}

fn places(configured: Option<&Path>, own: Option<&Path>) -> Vec<PathBuf> {
    match configured {
        Some(path) => vec![path.into()],
        None => {
            let beside = own.and_then(Path::parent).map(|folder| folder.join(NAME));
            beside.into_iter().chain([Path::new(INSTALLED).join(NAME)]).collect()
        }
    }
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, Access::EXEC_OK).is_ok()
}

fn list(places: &[PathBuf]) -> String {
    places.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn beside_us_then_where_a_package_puts_it() {
        let own = Path::new("/opt/bin/temperd");
        assert_eq!(
            places(None, Some(own)),
            [Path::new("/opt/bin/temperd-engine"), Path::new("/usr/lib/temperd/temperd-engine")]
        );
        assert_eq!(places(Some(Path::new("/e")), Some(own)), [Path::new("/e")]);
    }

    #[test]
    fn only_an_executable_file_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine");
        assert_eq!(locate(Some(&path)), Err(NotFound(vec![path.clone()])));
        fs::write(&path, "").unwrap();
        assert!(locate(Some(&path)).unwrap_err().to_string().contains("engine.path"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(locate(Some(&path)), Ok(path));
        assert!(locate(Some(folder.path())).is_err());
    }
}
