//! Readings of the board, all from below one root, so that tests read copies of real boards' trees.

use std::{fs, io, path::Path};

pub mod memory;

/// CPUs that the kernel runs on.
///
/// # Errors
/// Where `/sys/devices/system/cpu/online` cannot be read, or is no list of ranges such as `0-3,6`.
pub fn cpus(root: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(root.join("sys/devices/system/cpu/online"))?;
    ranges(text.trim()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a list of CPUs"))
}

fn ranges(text: &str) -> Option<u32> {
    text.split(',').try_fold(0_u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(ranges("0-7"), Some(8));
        assert_eq!(ranges("0"), Some(1));
        assert_eq!(ranges("0-3,6,8-9"), Some(7));
        for bad in ["", "a", "3-1", "0-4294967295", "-"] {
            assert_eq!(ranges(bad), None, "{bad}");
        }
    }
}
