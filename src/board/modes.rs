//! The power mode of a Jetson, as NVIDIA's tool (nvpmodel) keeps it. A mode is a set of caps on cores and clocks; the
//! watts in its name are no budget that anything enforces.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::file::{Known, Reader, Reading, TABLE, VALUE};

/// The mode in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowerMode {
    /// What the board calls it.
    pub id: u32,
    /// From nvpmodel's configuration: `MAXN`, `25W`.
    pub name: Option<Arc<str>>,
}

/// Where it is read, and what the modes are called.
#[derive(Debug)]
pub(super) struct Files {
    status: Known,
    names: BTreeMap<u32, Arc<str>>,
}

impl Files {
    pub(super) fn discover(root: &Path, reader: &mut Reader) -> Self {
        let status = Known::at(root.join("var/lib/nvpmodel/status"));
        let conf = Known::at(root.join("etc/nvpmodel.conf"));
        let names = reader.parse(&conf, TABLE, "a list of modes", |text| Some(names(text))).unwrap_or_default();
        Self { status, names }
    }

    /// `None` where there are no modes.
    pub(super) fn sample(&self, reader: &mut Reader) -> Option<Reading<PowerMode>> {
        let mode = |id| PowerMode { id, name: self.names.get(&id).cloned() };
        self.status.is_there().then(|| reader.parse(&self.status, VALUE, "a mode", id).map(mode))
    }
}

/// `pmode:0002`, maybe with more behind it.
pub(super) fn id(text: &str) -> Option<u32> {
    text.split_whitespace().find_map(|word| word.strip_prefix("pmode:")?.parse().ok())
}

/// Of lines such as `< POWER_MODEL ID=2 NAME=15W >`.
pub(super) fn names(text: &str) -> BTreeMap<u32, Arc<str>> {
    let heads = text.lines().filter_map(|line| line.trim().strip_prefix('<')?.trim().strip_prefix("POWER_MODEL "));
    let name = |head: &str| {
        let value = |key: &str| head.split([' ', '>']).find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        Some((value("ID")?.parse().ok()?, value("NAME")?.into()))
    };
    heads.filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_files() {
        assert_eq!(id("pmode:0002"), Some(2));
        assert_eq!(id("pmode:0000 fmode:quiet"), Some(0));
        for bad in ["", "2", "pmode:", "pmode:x", "pmode:-1"] {
            assert_eq!(id(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_of_modes() {
        let text = "# comment\n< POWER_MODEL ID=0 NAME=MAXN_SUPER >\nCPU_ONLINE CORE_0 1\n<POWER_MODEL ID=3 NAME=25W>\n\
            < POWER_MODEL ID=x NAME=y >\n< POWER_MODEL NAME=y >\n< PM_CONFIG DEFAULT=1 >\n";
        let names: Vec<_> = names(text).into_iter().map(|(id, name)| format!("{id} {name}")).collect();
        assert_eq!(names, ["0 MAXN_SUPER", "3 25W"]);
    }
}
