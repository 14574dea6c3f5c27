//! Which board this is, and which release of L4T (NVIDIA's Linux for Tegra) runs on it.

use std::{fmt, path::Path};

use super::file::{Known, Reader, Reading, TABLE, VALUE, text};

/// Board and release; neither changes while the system runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// By the device tree's `compatible`.
    pub kind: Kind,
    /// The device tree's `model`, for people: makers of carrier boards write here what they like.
    pub model: Option<String>,
    /// From `/etc/nv_tegra_release`; `None` where there is no such file.
    pub l4t: Option<Reading<L4t>>,
}

/// What the board is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A Jetson Orin module that is known.
    Orin(Module),
    /// Another board with a Tegra; its first `compatible`.
    Tegra(String),
    /// No Jetson: a PC, or a board without a device tree.
    Other,
}

/// Modules of the Jetson Orin family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// Orin NX 16 GB, p3767-0000.
    Nx16,
    /// Orin NX 8 GB, p3767-0001.
    Nx8,
    /// Orin Nano 8 GB, p3767-0003, and that of the developer kit, p3767-0005.
    Nano8,
    /// Orin Nano 4 GB, p3767-0004.
    Nano4,
    /// AGX Orin 32 GB, p3701-0004, and that of the developer kit, p3701-0000.
    Agx32,
    /// AGX Orin 64 GB, p3701-0005.
    Agx64,
    /// AGX Orin Industrial, p3701-0008.
    AgxIndustrial,
}

/// A release of L4T: 36.4.7 is written there as `R36 (release), REVISION: 4.7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct L4t {
    /// R.
    pub release: u32,
    /// REVISION in front of the point.
    pub major: u32,
    /// REVISION behind the point.
    pub minor: u32,
}

/// A release whose memory allocator is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadAllocator {
    /// The release that has it right again, where one is known.
    pub fixed_in: Option<L4t>,
}

impl Identity {
    pub(super) fn read(root: &Path, reader: &mut Reader) -> Self {
        // The second is a link to the first on a device, but an absolute one, which leads out of a copied tree.
        let tree = |name: &str| {
            Known::first(["sys/firmware/devicetree/base", "proc/device-tree"].map(|dir| root.join(dir).join(name)))
        };
        let kind = reader.bytes(&tree("compatible"), VALUE).map_or(Kind::Other, kind);
        let model = reader.name(&tree("model")).ok();
        let release = Known::at(root.join("etc/nv_tegra_release"));
        let l4t = release.is_there().then(|| reader.parse(&release, TABLE, "a release of L4T", l4t));
        Self { kind, model, l4t }
    }

    /// Whether it is a board that has the sensors of a Jetson.
    #[must_use]
    pub fn is_jetson(&self) -> bool {
        self.kind != Kind::Other
    }

    /// A defect of the release that runs.
    #[must_use]
    pub fn bad_allocator(&self) -> Option<(L4t, BadAllocator)> {
        let l4t = self.l4t?.ok()?;
        Some((l4t, l4t.bad_allocator()?))
    }
}

impl L4t {
    const fn new(release: u32, major: u32, minor: u32) -> Self {
        Self { release, major, minor }
    }

    /// 35.6.3, 36.4.7 and 38.2.2: the fix of CVE-2025-33177 and -33182 broke large allocations of nvmap. `cudaMalloc`
    /// fails while memory is free (llama.cpp discussion 16706).
    #[must_use]
    pub fn bad_allocator(self) -> Option<BadAllocator> {
        let fixed_in = match (self.release, self.major, self.minor) {
            (35, 6, 3) => Some(Self::new(35, 6, 4)),
            (36, 4, 7) => Some(Self::new(36, 5, 0)),
            (38, 2, 2) => None,
            _ => return None,
        };
        Some(BadAllocator { fixed_in })
    }
}

/// From the NUL-separated `compatible`, most specific first: `nvidia,p3768-0000+p3767-0000-super`,
/// `nvidia,p3767-0000`, `nvidia,tegra234`.
pub(super) fn kind(compatible: &[u8]) -> Kind {
    let entries = || compatible.split(|byte| *byte == 0).filter_map(|entry| text(entry).ok());
    if !entries().any(|entry| entry.starts_with("nvidia,tegra")) {
        return Kind::Other;
    }
    if let Some(module) = entries().find_map(|entry| module(entry.strip_prefix("nvidia,")?)) {
        return Kind::Orin(module);
    }
    Kind::Tegra(entries().next().unwrap_or_default().into())
}

/// A module stands alone, or behind its carrier and a plus; what follows a further dash is a variant.
fn module(entry: &str) -> Option<Module> {
    let entry = entry.rsplit('+').next().unwrap_or(entry);
    let mut parts = entry.splitn(3, '-');
    Some(match (parts.next()?, parts.next()?) {
        ("p3767", "0000") => Module::Nx16,
        ("p3767", "0001") => Module::Nx8,
        ("p3767", "0003" | "0005") => Module::Nano8,
        ("p3767", "0004") => Module::Nano4,
        ("p3701", "0000" | "0004") => Module::Agx32,
        ("p3701", "0005") => Module::Agx64,
        ("p3701", "0008") => Module::AgxIndustrial,
        _ => return None,
    })
}

/// R and REVISION of the first line; what follows them differs between releases.
pub(super) fn l4t(text: &str) -> Option<L4t> {
    let line = text.lines().next()?;
    let release = line.trim_start_matches(['#', ' ']).strip_prefix('R')?;
    let (release, rest) = release.split_once(' ')?;
    let (_, revision) = rest.split_once("REVISION:")?;
    let revision = revision.split(',').next()?.trim();
    let (major, minor) = revision.split_once('.').unwrap_or((revision, "0"));
    Some(L4t::new(release.parse().ok()?, major.parse().ok()?, minor.parse().ok()?))
}

impl fmt::Display for L4t {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.release, self.major, self.minor)
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nx16 => "Orin NX 16 GB",
            Self::Nx8 => "Orin NX 8 GB",
            Self::Nano8 => "Orin Nano 8 GB",
            Self::Nano4 => "Orin Nano 4 GB",
            Self::Agx32 => "AGX Orin 32 GB",
            Self::Agx64 => "AGX Orin 64 GB",
            Self::AgxIndustrial => "AGX Orin Industrial",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Orin(module) => write!(f, "{module}"),
            Self::Tegra(compatible) => write!(f, "a Tegra that is not known ({compatible})"),
            Self::Other => f.write_str("no Jetson"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_by_compatible() {
        for (compatible, module) in [
            ("nvidia,p3768-0000+p3767-0000-super\0nvidia,p3767-0000\0nvidia,tegra234\0", Module::Nx16),
            ("nvidia,p3768-0000+p3767-0001\0nvidia,p3767-0001\0nvidia,tegra234\0nvidia,tegra23x\0", Module::Nx8),
            ("nvidia,p3768-0000+p3767-0003\0nvidia,tegra234\0", Module::Nano8),
            ("nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0", Module::Nano8),
            ("nvidia,p3767-0004\0nvidia,tegra234\0", Module::Nano4),
            ("nvidia,p3737-0000+p3701-0000\0nvidia,p3701-0000\0nvidia,tegra234\0", Module::Agx32),
            ("nvidia,p3701-0004\0nvidia,tegra234\0", Module::Agx32),
            ("nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0", Module::Agx64),
            ("maker,box\0nvidia,p3701-0008\0nvidia,tegra234\0", Module::AgxIndustrial),
        ] {
            assert_eq!(kind(compatible.as_bytes()), Kind::Orin(module), "{compatible}");
        }
    }

    #[test]
    fn other_boards() {
        let thor = b"nvidia,p3971-0080\0nvidia,tegra264\0";
        assert_eq!(kind(thor), Kind::Tegra("nvidia,p3971-0080".into()));
        for other in [&b""[..], b"\0\0", b"raspberrypi,4-model-b\0brcm,bcm2711\0", b"\xff\0", b"nvidia,p3767-0000\0"] {
            assert_eq!(kind(other), Kind::Other);
        }
    }

    #[test]
    fn releases_by_r_and_revision_alone() {
        let line = "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, EABI: aarch64, DATE: Thu Sep 18";
        assert_eq!(l4t(line), Some(L4t::new(36, 4, 7)));
        assert_eq!(l4t("# R39 (release), REVISION: 2.1, DATE: 05:06:07 PM UTC\nmore"), Some(L4t::new(39, 2, 1)));
        assert_eq!(l4t("# R35 (release), REVISION: 3, X"), Some(L4t::new(35, 3, 0)));
        for bad in ["", "# R36", "# Rx (release), REVISION: 4.7", "# R36 (release), REVISION: x", "R36 (r) REVISION:"] {
            assert_eq!(l4t(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_releases_with_a_bad_allocator_are_known() {
        let fixed = |l4t: L4t| l4t.bad_allocator().map(|bad| bad.fixed_in.map(|fixed| fixed.to_string()));
        assert_eq!(fixed(L4t::new(36, 4, 7)), Some(Some("36.5.0".into())));
        assert_eq!(fixed(L4t::new(35, 6, 3)), Some(Some("35.6.4".into())));
        assert_eq!(fixed(L4t::new(38, 2, 2)), Some(None));
        for good in [L4t::new(36, 4, 4), L4t::new(36, 5, 0), L4t::new(35, 6, 4), L4t::new(39, 2, 1)] {
            assert_eq!(fixed(good), None, "{good}");
        }
    }
}
