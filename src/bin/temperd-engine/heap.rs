//! Memory that was freed goes back to the system: it is short on the machines we run on.

/// Blocks from this size on, in bytes, are mapped by themselves and unmapped when they are freed.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 1 << 20;

/// Has freed blocks of some size given back at once. glibc raises that size with each such block that is freed, up to
/// 32 MiB, unless it is told one (mallopt(3)).
pub fn settle() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no other thread runs yet, and the parameter is one that mallopt knows.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
    }
}

/// Gives back what the heap holds of freed blocks, as after a load, which frees many.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time from any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
