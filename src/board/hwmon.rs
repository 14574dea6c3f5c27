//! Devices of the kernel's hardware monitoring, by their names: their numbers differ from boot to boot.

use std::path::{Path, PathBuf};

use super::file::{Known, Reader, names};

/// Folders of the devices of that name.
pub(super) fn devices(root: &Path, name: &str, reader: &mut Reader) -> Vec<PathBuf> {
    let class = root.join("sys/class/hwmon");
    let folders = names(&class).into_iter().map(|entry| class.join(entry));
    folders.filter(|folder| reader.name(&Known::at(folder.join("name"))).is_ok_and(|its| its == name)).collect()
}
