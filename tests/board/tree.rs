//! An unpacked tree of a board: tests/boards/README.md says what is in it.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

/// The trees there are.
pub const ALL: [&str; 4] =
    ["orin-nx-16gb-jp6-idle", "orin-nx-16gb-jp6-load", "agx-orin-64gb-jp6-idle", "orin-nano-8gb-super-jp6"];

/// Lasts as long as it is held, with the pipes that stand for files which cannot be read.
pub struct Tree {
    folder: TempDir,
    name: &'static str,
    _pipes: Vec<File>,
}

impl Tree {
    pub fn unpack(name: &'static str) -> Self {
        let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/boards/{name}.tar.xz"));
        let folder = tempfile::tempdir().expect("a folder");
        let tar = Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(folder.path()).output();
        let tar = tar.expect("tar can be started");
        assert!(tar.status.success(), "{}; is xz installed?", String::from_utf8_lossy(&tar.stderr));
        let mut pipes = Vec::new();
        for file in files(&folder.path().join(name)) {
            if file.extension().is_some_and(|extension| extension == "errno") {
                let pipe = file.with_extension("");
                mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
                pipes.push(OpenOptions::new().read(true).write(true).open(&pipe).expect("open"));
            }
        }
        Self { folder, name, _pipes: pipes }
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join(self.name)
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.root().join(file)
    }

    pub fn write(&self, file: &str, content: &str) {
        fs::write(self.path(file), content).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }
}

/// Plain files of a folder and those below it; links are not followed, they form loops.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}
