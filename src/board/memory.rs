//! Memory of the board, as the kernel counts it.

use std::{fs, io, path::Path};

/// A reading of `/proc/meminfo`, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What can be had without swapping, less the free part of the contiguous area: that one serves devices, and
    /// the kernel counts it as available to everyone.
    pub available: u64,
}

/// Reads it from below `root`.
///
/// # Errors
/// Where the file cannot be read, or lacks a line.
pub fn read(root: &Path) -> io::Result<Memory> {
    let text = fs::read_to_string(root.join("proc/meminfo"))?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "lacks MemTotal or MemAvailable"))
}

fn parse(text: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    let total = bytes("MemTotal")?;
    let available = bytes("MemAvailable")?.saturating_sub(bytes("CmaFree").unwrap_or(0));
    Some(Memory { total, available })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contiguous_area_is_not_available() {
        let text = "MemTotal:       16032256 kB\nMemAvailable:   14716180 kB\nCmaFree:          131072 kB\n";
        let expected = Memory { total: 16_032_256 << 10, available: (14_716_180 - 131_072) << 10 };
        assert_eq!(parse(text), Some(expected));
    }

    #[test]
    fn a_kernel_without_such_an_area() {
        let text = "MemTotal: 2 kB\nMemFree: 1 kB\nMemAvailable: 1 kB\n";
        assert_eq!(parse(text), Some(Memory { total: 2048, available: 1024 }));
    }

    #[test]
    fn damaged_text_is_no_reading() {
        for bad in ["", "MemTotal: 1 kB", "MemTotal: x kB\nMemAvailable: 1 kB", "MemTotal: 1\nMemAvailable: 1 kB"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
