//! What the fuzz targets are fed with at first (`fuzz/seeds`), and what they have found (`fuzz/regressions`), through the
//! same laws.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../fuzz/laws/mod.rs"]
mod laws;

use std::{
    collections::BTreeSet,
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

/// Bytes of all files together: they are there to be read.
const ALL_BYTES: u64 = 200_000;

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_seed_and_every_finding_keeps_the_laws() {
    let mut broken = Vec::new();
    let mut bytes = 0;
    for (target, holds) in laws::ALL {
        assert!(files(&folder("seeds").join(target)).len() >= 3, "{target} has nothing to begin with");
        for kind in ["seeds", "regressions"] {
            for file in files(&folder(kind).join(target)) {
                let data = fs::read(&file).unwrap();
                bytes += data.len() as u64;
                if catch_unwind(|| holds(&data)).is_err() {
                    broken.push(file);
                }
            }
        }
    }
    assert!(broken.is_empty(), "the panics above are those of {broken:#?}");
    assert!(bytes <= ALL_BYTES, "{bytes} bytes of seeds and regressions, {ALL_BYTES} at most");
}

#[test]
fn every_law_has_its_target_and_no_file_is_without_one() {
    let names: BTreeSet<String> = laws::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    let stems = |folder: &Path| -> BTreeSet<String> {
        files(folder).iter().map(|file| file.file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(stems(&folder("fuzz_targets")), names);
    for kind in ["seeds", "regressions"] {
        let strange: Vec<String> = stems(&folder(kind)).difference(&names).cloned().collect();
        assert!(strange.is_empty(), "no law is called {strange:?}");
    }
}
