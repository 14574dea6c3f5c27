//! Where the engine's binaries are. A flavour is a build of the same program, for one kind of device.

use std::{
    env,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

const NAME: &str = "temperd-engine";
/// What is put behind the name, in the order in which flavours are tried: the one for the CPU works everywhere.
const FLAVOURS: [&str; 3] = ["-cuda", "-vulkan", ""];
/// Where a package puts it.
const INSTALLED: &str = "/usr/lib/temperd";

/// No engine's binary was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no engine: looked for an executable {}; install temperd-engine there, or name it in `engine.path`", list(.0))]
pub struct NotFound(pub Vec<PathBuf>);

/// The engines of the first place that has any, in the order in which they are to be tried for layers on a GPU; without
/// such layers (`gpu`), the one for the CPU first. `configured` alone where it is given. `is_there` says whether a path has
/// one, as [`is_executable`] does of the disk.
///
/// One place, since the flavours of a build belong together: an older package's would not speak to this daemon.
///
/// # Errors
/// The places that were looked at.
pub fn flavours(
    configured: Option<&Path>,
    gpu: bool,
    is_there: impl Fn(&Path) -> bool,
) -> Result<Vec<PathBuf>, NotFound> {
    let places = places(configured, env::current_exe().ok().as_deref(), gpu);
    first(&places, is_there).ok_or_else(|| NotFound(places.concat()))
}

/// What is there of the first place that has anything.
fn first(places: &[Vec<PathBuf>], is_there: impl Fn(&Path) -> bool) -> Option<Vec<PathBuf>> {
    let mut found = places.iter().map(|place| place.iter().filter(|path| is_there(path)).cloned().collect::<Vec<_>>());
    found.find(|paths| !paths.is_empty())
}

/// Each place with its engines, in the order in which they are tried: `configured` alone, else beside our own executable and
/// where a package puts them.
fn places(configured: Option<&Path>, own: Option<&Path>, gpu: bool) -> Vec<Vec<PathBuf>> {
    if let Some(path) = configured {
        return vec![vec![path.into()]];
    }
    let folders = own.and_then(Path::parent).into_iter().chain([Path::new(INSTALLED)]);
    let engines = folders.map(|folder| FLAVOURS.map(|flavour| folder.join(format!("{NAME}{flavour}"))));
    engines
        .map(|mut engines| {
            if !gpu {
                engines.reverse();
            }
            engines.into()
        })
        .collect()
}

/// Whether a file is there that we may execute.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
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
    fn flavours_are_tried_from_the_fastest_on() {
        let own = Path::new("/opt/bin/temperd");
        let names = |gpu| {
            let places = places(None, Some(own), gpu);
            let folders: Vec<_> = places.iter().map(|place| place[0].parent().unwrap().to_owned()).collect();
            assert_eq!(folders, [Path::new("/opt/bin"), Path::new(INSTALLED)]);
            let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
            places.iter().map(|place| place.iter().map(name).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        let gpu = ["temperd-engine-cuda", "temperd-engine-vulkan", "temperd-engine"];
        assert_eq!(names(true), [gpu, gpu]);
        let cpu = ["temperd-engine", "temperd-engine-vulkan", "temperd-engine-cuda"];
        assert_eq!(names(false), [cpu, cpu]);
        assert_eq!(places(Some(Path::new("/e")), Some(own), true), [[Path::new("/e")]]);
    }

    #[test]
    fn places_are_not_mixed() {
        let places = places(None, Some(Path::new("/opt/bin/temperd")), true);
        let [ours, theirs] = ["/opt/bin/temperd-engine", "/usr/lib/temperd/temperd-engine-cuda"].map(Path::new);
        assert_eq!(first(&places, |path| path == ours || path == theirs), Some(vec![ours.into()]));
        assert_eq!(first(&places, |path| path == theirs), Some(vec![theirs.into()]));
        assert_eq!(first(&places, |_| false), None);
    }

    #[test]
    fn only_an_executable_file_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine");
        let on_disk = |path: &Path| flavours(Some(path), true, is_executable);
        assert_eq!(on_disk(&path), Err(NotFound(vec![path.clone()])));
        fs::write(&path, "").unwrap();
        assert!(on_disk(&path).unwrap_err().to_string().contains("engine.path"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(on_disk(&path), Ok(vec![path.clone()]));
        assert!(on_disk(folder.path()).is_err());
    }
}
