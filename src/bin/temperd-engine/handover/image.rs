//! Images of system prompts on the disk: the cells of one sequence, with the same table in front as what one engine leaves to
//! the next, and checked in the same way before llama.cpp sees a byte of it. The text is the operator's own.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use llama_cpp_2::token::LlamaToken;

use super::{Identity, table};
use crate::{adapters, prefix::Kept};

/// Bytes of the largest image that is read or written: some 16,000 tokens of a 7B model.
const LARGEST: u64 = 2 << 30;

/// What the cells of a prompt of the operator's are kept as.
pub fn kept(slot: i32, tokens: Vec<LlamaToken>) -> Kept {
    let (public, adapter) = (tokens.len(), adapters::NONE);
    Kept { slot, tokens, public, scope: 0, adapter, since: 0.0, parked: false, named: true }
}

/// An image of these tokens, of whose state `write` fills `length` bytes.
///
/// # Errors
/// Why there is none.
pub fn make(
    identity: &Identity,
    tokens: &[LlamaToken],
    length: usize,
    write: impl FnOnce(&mut [u8]) -> Result<usize, String>,
) -> Result<Vec<u8>, String> {
    let names: Vec<usize> = (0..tokens.len()).collect();
    let table = table::encode(identity, vec![table::sequence(&kept(0, tokens.to_vec()), &names)]);
    let front = table::HEADER + table.len();
    if (front + length) as u64 > LARGEST {
        return Err(format!("it would have {} bytes, more than {LARGEST}", front + length));
    }
    let mut memory = Vec::new();
    memory.try_reserve_exact(front + length).map_err(|error| error.to_string())?;
    memory.resize(front + length, 0);
    let written = write(memory.get_mut(front..).unwrap_or_default())?;
    if written != length {
        return Err(format!("llama.cpp wrote {written} bytes of its state and had announced {length}"));
    }
    table::finish(&mut memory, &table);
    Ok(memory)
}

/// The state in an image of these tokens. `None` where there is no file.
///
/// # Errors
/// Why it is of no use.
pub fn read(path: &Path, identity: &Identity, tokens: &[LlamaToken]) -> Result<Option<Vec<u8>>, String> {
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| error.to_string())?,
    };
    let about = file.metadata().map_err(|error| error.to_string())?;
    if !about.is_file() || about.len() > LARGEST {
        return Err(format!("it is no file of at most {LARGEST} bytes"));
    }
    let mut memory = Vec::new();
    let length = usize::try_from(about.len()).unwrap_or(usize::MAX);
    memory.try_reserve_exact(length).map_err(|error| error.to_string())?;
    file.take(LARGEST).read_to_end(&mut memory).map_err(|error| error.to_string())?;
    let (handed, state) = table::read(&memory, identity)?;
    let same =
        |ids: &[u32]| ids.iter().copied().eq(tokens.iter().map(|token| u32::try_from(token.0).unwrap_or(u32::MAX)));
    match handed.sequences.as_slice() {
        [one] if same(&one.tokens) => {}
        _ => return Err("it is of another text".to_owned()),
    }
    let front = memory.len() - state.len();
    memory.drain(..front);
    Ok(Some(memory))
}

/// Puts an image in its place, whole or not at all.
///
/// # Errors
/// Why not.
pub fn store(path: &Path, image: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    let written = write(&beside, image).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _not_there = fs::remove_file(&beside);
        return written;
    }
    // The name is as safe as the bytes.
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn write(path: &Path, image: &[u8]) -> io::Result<()> {
    let _not_there = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(image)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use temperd::wire::engine::Load;

    use super::*;

    fn identity() -> Identity {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").to_owned();
        Identity::of_images(&Load { model, ..Load::default() })
    }

    fn tokens(ids: &[i32]) -> Vec<LlamaToken> {
        ids.iter().copied().map(LlamaToken).collect()
    }

    fn image(ids: &[i32]) -> Vec<u8> {
        let write = |memory: &mut [u8]| {
            memory.copy_from_slice(b"state");
            Ok(5)
        };
        make(&identity(), &tokens(ids), 5, write).expect("made")
    }

    #[test]
    fn what_was_stored_is_read_again_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("one.kv");
        assert_eq!(read(&path, &identity(), &tokens(&[1, 2])), Ok(None));
        store(&path, &image(&[1, 2])).expect("stored");
        assert_eq!(read(&path, &identity(), &tokens(&[1, 2])), Ok(Some(b"state".to_vec())));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
        for other in [&[1, 2, 3][..], &[1], &[1, 3]] {
            assert!(read(&path, &identity(), &tokens(other)).is_err_and(|error| error.contains("another text")));
        }
        // Another one takes its place.
        store(&path, &image(&[7])).expect("stored");
        assert!(read(&path, &identity(), &tokens(&[7])).is_ok());
        let whole = fs::read(&path).expect("there");
        for length in [0, 10, whole.len() - 1] {
            fs::write(&path, &whole[..length]).expect("written");
            assert!(read(&path, &identity(), &tokens(&[7])).is_err_and(|error| error.contains("damaged")));
        }
        let link = folder.path().join("link.kv");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert!(read(&link, &identity(), &tokens(&[7])).is_err());
    }

    #[test]
    fn what_llama_cpp_does_not_fill_is_no_image() {
        assert!(make(&identity(), &tokens(&[1]), 5, |_| Ok(4)).is_err());
        assert!(make(&identity(), &tokens(&[1]), 5, |_| Err("no".to_owned())).is_err());
        assert!(store(Path::new("/nowhere/at/all.kv"), b"x").is_err());
    }
}
