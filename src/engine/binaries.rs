//! The engine's binaries, kept open from the first time that they are seen: an upgrade replaces the files under a daemon that
//! runs, and what it starts then has to be of its own build still. Where one cannot be kept (a script, whose interpreter opens
//! it by its name), it is started by its path.

use std::{
    fs::File,
    io::Read as _,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, open};

use super::locate::{self, NotFound};

/// How a binary is started.
#[derive(Debug)]
pub struct Program<'a> {
    /// Where it is, or was.
    pub path: &'a Path,
    /// The file itself, where it is kept open.
    kept: Option<&'a OwnedFd>,
}

impl<'a> Program<'a> {
    /// What is at a path when it is started.
    #[must_use]
    pub fn at(path: &'a Path) -> Self {
        Self { path, kept: None }
    }

    /// A name of the file itself, as long as this process lives, for itself and what it becomes by `exec`.
    #[must_use]
    pub fn by_descriptor(&self) -> Option<PathBuf> {
        self.kept.map(|file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())))
    }
}

/// All that were found so far.
#[derive(Debug, Default)]
pub struct Binaries {
    kept: Vec<(PathBuf, OwnedFd)>,
}

impl Binaries {
    /// As [`locate::flavours`], but that one that is kept is there whatever became of its file.
    ///
    /// # Errors
    /// The places that were looked at.
    pub fn find(&mut self, configured: Option<&Path>, gpu: bool) -> Result<Vec<PathBuf>, NotFound> {
        let found = locate::flavours(configured, gpu, |path| self.keeps(path) || locate::is_executable(path))?;
        for path in &found {
            if !self.keeps(path)
                && let Some(file) = keep(path)
            {
                self.kept.push((path.clone(), file));
            }
        }
        Ok(found)
    }

    /// The one of this path.
    #[must_use]
    pub fn program<'a>(&'a self, path: &'a Path) -> Program<'a> {
        Program { path, kept: self.kept.iter().find(|(kept, _)| kept == path).map(|(_, file)| file) }
    }

    /// This one is not ours: the next one at its path may be.
    pub fn forget(&mut self, path: &Path) {
        self.kept.retain(|(kept, _)| kept != path);
    }

    fn keeps(&self, path: &Path) -> bool {
        self.kept.iter().any(|(kept, _)| kept == path)
    }
}

/// Opens a file that the kernel runs by itself, for nothing but that.
fn keep(path: &Path) -> Option<OwnedFd> {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).ok()?;
    if magic != *b"\x7fELF" {
        return None;
    }
    open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .inspect_err(|error| {
            log::warn!(target: "temperd::engine", path:% = path.display();
                "is not kept open, restart temperd after an upgrade: {error}");
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
        process::Command,
    };

    use super::*;

    /// Puts a program there in the place of another. A link, since a file that was just written may still be open for that in
    /// a child of another test, and cannot be run then.
    fn put(path: &Path, program: &str) {
        let beside = path.with_extension("new");
        symlink(program, &beside).unwrap();
        fs::rename(&beside, path).unwrap();
    }

    fn runs(program: &Program<'_>) -> Option<i32> {
        let path = program.by_descriptor().unwrap_or_else(|| program.path.into());
        Command::new(path).status().unwrap().code()
    }

    #[test]
    fn a_program_that_is_replaced_or_removed_is_still_the_one_that_was_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine");
        put(&path, "/bin/true");
        let mut binaries = Binaries::default();
        assert_eq!(binaries.find(Some(&path), true), Ok(vec![path.clone()]));
        put(&path, "/bin/false");
        assert_eq!((runs(&binaries.program(&path)), runs(&Program::at(&path))), (Some(0), Some(1)));
        fs::remove_file(&path).unwrap();
        assert_eq!(binaries.find(Some(&path), true), Ok(vec![path.clone()]));
        assert_eq!(runs(&binaries.program(&path)), Some(0));
        binaries.forget(&path);
        assert!(binaries.find(Some(&path), true).is_err());
        put(&path, "/bin/false");
        binaries.find(Some(&path), true).unwrap();
        assert_eq!(runs(&binaries.program(&path)), Some(1));
    }

    #[test]
    fn a_script_is_started_by_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine");
        fs::write(&path, "#!/bin/sh\nexit 3\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let mut binaries = Binaries::default();
        binaries.find(Some(&path), true).unwrap();
        assert!(binaries.program(&path).by_descriptor().is_none());
    }
}
