//! A memfd as memory.

use std::{fs::File, io, os::fd::AsRawFd as _, ptr::NonNull, slice};

use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals};

/// With these nobody can change it any more.
const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// A shared mapping of a whole memfd.
pub struct Shared {
    start: NonNull<u8>,
    length: usize,
    writable: bool,
}

impl Shared {
    /// Gives an empty memfd this length, and maps it to be written.
    ///
    /// # Errors
    /// Why not.
    pub fn new(file: &File, length: usize) -> Result<Self, String> {
        let sized = file.set_len(length as u64);
        sized.map_err(|error| format!("a memfd of {length} bytes: {error}"))?;
        Self::map(file, length, true)
    }

    /// Maps a memfd that nobody can change, to be read.
    ///
    /// # Errors
    /// Why not.
    pub fn sealed(file: &File) -> Result<Self, String> {
        let seals = fcntl_get_seals(file).map_err(|error| format!("it is no memfd: {error}"))?;
        if !seals.contains(SEALS) {
            return Err("it is not sealed".to_owned());
        }
        let length = file.metadata().map_err(|error| error.to_string())?.len();
        let length = usize::try_from(length).map_err(|error| error.to_string())?;
        Self::map(file, length, false)
    }

    fn map(file: &File, length: usize, writable: bool) -> Result<Self, String> {
        if length == 0 {
            return Err("it is empty".to_owned());
        }
        let access = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: the kernel chooses the place, so nothing is overwritten; the descriptor is open, and the length that of the
        // file, which nobody shrinks: while it is written it is ours alone, and later it is sealed.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(format!("{length} bytes could not be mapped: {}", io::Error::last_os_error()));
        }
        let start = NonNull::new(start.cast()).ok_or("it was mapped to nowhere")?;
        Ok(Self { start, length, writable })
    }

    /// What is in it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is as long and lives as long as `self`, and nobody else writes to it.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// The same, to write to it; nothing where it was mapped to be read.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let length = if self.writable { self.length } else { 0 };
        // SAFETY: as in `bytes`; it is mapped to be written where the length is not 0.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), length) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: it is our mapping, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// Has nobody change a memfd any more. It must not be mapped to be written.
///
/// # Errors
/// Why not.
pub fn seal(file: &File) -> Result<(), String> {
    fcntl_add_seals(file, SEALS).map_err(|error| format!("the memfd could not be sealed: {error}"))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _};

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn memfd() -> File {
        memfd_create("test", MemfdFlags::ALLOW_SEALING).expect("a memfd").into()
    }

    #[test]
    fn what_is_written_and_sealed_can_be_read_and_not_changed() {
        let file = memfd();
        let mut memory = Shared::new(&file, 10).expect("mapped");
        memory.bytes_mut().copy_from_slice(b"0123456789");
        assert!(seal(&file).is_err(), "still mapped to be written");
        drop(memory);
        assert!(Shared::sealed(&file).is_err_and(|error| error.contains("not sealed")));
        seal(&file).expect("sealed");
        let mut again = Shared::sealed(&file).expect("it is sealed");
        assert_eq!(again.bytes(), b"0123456789");
        assert_eq!(again.bytes_mut(), b"");
        assert!((&file).write_all(b"x").is_err());
    }

    #[test]
    fn what_is_no_sealed_memfd_is_refused() {
        assert!(Shared::sealed(&File::open("/dev/null").expect("it is there")).is_err());
        assert!(Shared::sealed(&tempfile::tempfile().expect("a file")).is_err());
        let empty = memfd();
        seal(&empty).expect("sealed");
        assert!(Shared::sealed(&empty).is_err_and(|error| error.contains("empty")));
    }
}
