//! Memory limits of the cgroup that the daemon and its engine run in, version 1 or 2. Every limit on the way up to the
//! root counts: the kernel charges a page to all of them.

use std::path::{Path, PathBuf};

use crate::board::{
    file::{Known, Reader, Reading, TABLE, VALUE},
    units::Bytes,
};

/// A limit, and what has been used of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimit {
    /// `memory.max` or `memory.high`, whichever is lower (above `high` the kernel slows allocations down);
    /// `memory.limit_in_bytes` in version 1.
    pub limit: Bytes,
    /// What is charged, less the part of the page cache that is dropped first (`inactive_file`). Kubernetes measures
    /// a working set in this way. Most of a model file that is mapped and in use stays in it.
    pub used: Bytes,
}

impl GroupLimit {
    /// What is left.
    #[must_use]
    pub fn headroom(&self) -> Bytes {
        Bytes(self.limit.0.saturating_sub(self.used.0))
    }
}

/// The two ways to write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Files of a group.
#[derive(Debug)]
struct Group {
    limits: Vec<Known>,
    usage: Known,
    stat: Known,
}

/// Our group and those above it, as far as they may have a limit.
#[derive(Debug)]
pub(super) struct Cgroups {
    version: Version,
    groups: Vec<Group>,
}

impl Cgroups {
    /// `own` is the text of `/proc/self/cgroup`; the groups themselves are looked up below `root`. In a container the
    /// path may be that of the host, which is not seen inside: what is there of it counts.
    pub(super) fn discover(root: &Path, own: &str) -> Self {
        let mount = root.join("sys/fs/cgroup");
        let (version, base) = if mount.join("cgroup.controllers").exists() {
            (Version::V2, mount)
        } else {
            (Version::V1, mount.join("memory"))
        };
        let groups = own_path(own, version).map(|path| chain(&base, path)).unwrap_or_default();
        Self { version, groups: groups.iter().filter_map(|folder| Group::at(folder, version)).collect() }
    }

    /// The limit with the least headroom.
    pub(super) fn tightest(&self, reader: &mut Reader) -> Reading<Option<GroupLimit>> {
        let mut tightest: Option<GroupLimit> = None;
        for group in &self.groups {
            let Some(found) = group.read(self.version, reader)? else { continue };
            if tightest.is_none_or(|tightest| found.headroom() < tightest.headroom()) {
                tightest = Some(found);
            }
        }
        Ok(tightest)
    }
}

impl Group {
    /// The root of version 2 has no limit, and no file for it.
    fn at(folder: &Path, version: Version) -> Option<Self> {
        let (limits, usage): (&[_], _) = match version {
            Version::V1 => (&["memory.limit_in_bytes"], "memory.usage_in_bytes"),
            Version::V2 => (&["memory.max", "memory.high"], "memory.current"),
        };
        let limits: Vec<_> =
            limits.iter().map(|name| Known::at(folder.join(name))).filter(|file| file.is_there()).collect();
        let usage = Known::at(folder.join(usage));
        let stat = Known::at(folder.join("memory.stat"));
        (!limits.is_empty()).then_some(Self { limits, usage, stat })
    }

    fn read(&self, version: Version, reader: &mut Reader) -> Reading<Option<GroupLimit>> {
        let mut lowest: Option<u64> = None;
        for file in &self.limits {
            if let Some(bytes) = reader.parse(file, VALUE, "a limit", limit)? {
                lowest = Some(lowest.map_or(bytes, |lowest| lowest.min(bytes)));
            }
        }
        let Some(limit) = lowest else { return Ok(None) };
        let usage: u64 = reader.number(&self.usage)?;
        let name = match version {
            Version::V1 => "total_inactive_file",
            Version::V2 => "inactive_file",
        };
        let parse = |text: &str| entry(text, name);
        let reclaimable = reader.parse(&self.stat, TABLE, "a memory.stat with inactive_file", parse).unwrap_or(0);
        Ok(Some(GroupLimit { limit: Bytes(limit), used: Bytes(usage.saturating_sub(reclaimable)) }))
    }
}

/// Our path in the hierarchy that accounts for memory: `0::/system.slice/temperd.service`, in version 1
/// `4:memory:/system.slice/temperd.service`.
fn own_path(text: &str, version: Version) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let ours = match version {
            Version::V1 => controllers.split(',').any(|name| name == "memory"),
            Version::V2 => hierarchy == "0" && controllers.is_empty(),
        };
        ours.then_some(path)
    })
}

/// The folders from the root of the hierarchy down to ours. A path that leads out of it (`/../x`: the process is outside
/// of its cgroup namespace) tells nothing but the root.
fn chain(base: &Path, path: &str) -> Vec<PathBuf> {
    let mut folders = vec![base.to_path_buf()];
    let steps = path.split('/').filter(|step| !step.is_empty() && *step != ".");
    if steps.clone().any(|step| step == "..") {
        return folders;
    }
    folders.extend(steps.scan(base.to_path_buf(), |folder, step| {
        folder.push(step);
        Some(folder.clone())
    }));
    folders
}

/// `Some(None)`: no limit, `max` in version 2, and in version 1 the largest multiple of a page below 2^63.
pub(in crate::board) fn limit(text: &str) -> Option<Option<u64>> {
    const NONE_FROM: u64 = 1 << 62;
    if text == "max" {
        return Some(None);
    }
    let bytes: u64 = text.parse().ok()?;
    Some((bytes < NONE_FROM).then_some(bytes))
}

pub(in crate::board) fn entry(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::board::file::Unreadable;

    const HYBRID: &str = "9:name=systemd:/\n4:memory:/box/temperd\n1:cpu,cpuacct:/\n0::/elsewhere\n";

    fn write(root: &Path, path: &str, content: &str) {
        let path = root.join("sys/fs/cgroup").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn tightest(root: &Path, own: &str) -> Reading<Option<GroupLimit>> {
        Cgroups::discover(root, own).tightest(&mut Reader::default())
    }

    fn found(limit: u64, used: u64) -> Reading<Option<GroupLimit>> {
        Ok(Some(GroupLimit { limit: Bytes(limit), used: Bytes(used) }))
    }

    #[test]
    fn our_path_by_version() {
        assert_eq!(own_path(HYBRID, Version::V1), Some("/box/temperd"));
        assert_eq!(own_path(HYBRID, Version::V2), Some("/elsewhere"));
        assert_eq!(own_path("4:memory", Version::V1), None);
        assert_eq!(own_path("0::/a:b", Version::V2), Some("/a:b"));
    }

    #[test]
    fn a_path_never_leads_out() {
        let base = Path::new("/base");
        assert_eq!(chain(base, "/../../etc"), [base]);
        assert_eq!(chain(base, "/a//b"), [base.to_path_buf(), base.join("a"), base.join("a/b")]);
        assert_eq!(chain(base, "/"), [base]);
    }

    #[test]
    fn every_limit_on_the_way_up_counts_in_version_2() {
        let root = tempfile::tempdir().unwrap();
        let own = "0::/box.slice/temperd.service\n";
        write(root.path(), "cgroup.controllers", "cpu memory\n");
        for (name, content) in [("memory.max", "max\n"), ("memory.high", "max\n"), ("memory.current", "500\n")] {
            write(root.path(), &format!("box.slice/temperd.service/{name}"), content);
        }
        assert_eq!(tightest(root.path(), own), Ok(None));
        write(root.path(), "box.slice/memory.max", "4000\n");
        write(root.path(), "box.slice/memory.current", "3000\n");
        assert_eq!(tightest(root.path(), own), found(4000, 3000));
        write(root.path(), "box.slice/memory.stat", "anon 1\ninactive_file 600\nactive_file 9\n");
        assert_eq!(tightest(root.path(), own), found(4000, 2400));
        write(root.path(), "box.slice/temperd.service/memory.high", "900\n");
        assert_eq!(tightest(root.path(), own), found(900, 500));
        write(root.path(), "box.slice/temperd.service/memory.max", "plenty\n");
        assert_eq!(tightest(root.path(), own), Err(Unreadable::Malformed("a limit")));
        assert_eq!(tightest(root.path(), ""), Ok(None));
    }

    #[test]
    fn version_1_has_a_number_for_no_limit() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "memory/memory.limit_in_bytes", "9223372036854771712\n");
        write(root.path(), "memory/memory.usage_in_bytes", "7\n");
        assert_eq!(tightest(root.path(), HYBRID), Ok(None));
        write(root.path(), "memory/box/temperd/memory.limit_in_bytes", "1000\n");
        write(root.path(), "memory/box/temperd/memory.usage_in_bytes", "300\n");
        write(root.path(), "memory/box/temperd/memory.stat", "inactive_file 5\ntotal_inactive_file 100\n");
        assert_eq!(tightest(root.path(), HYBRID), found(1000, 200));
    }
}
