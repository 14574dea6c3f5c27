//! How the kernel's files are read: never more than expected, never waiting, and never by a guess.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    str::FromStr,
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

/// Bytes of a file with one value: an attribute in sysfs is at most a page.
pub(super) const VALUE: usize = 4096;
/// Bytes of a table such as `/proc/vmstat` (a few KiB today) or a configuration file.
pub(super) const TABLE: usize = 64 * 1024;
/// Entries of a folder; a device has some tens.
const ENTRIES: usize = 1024;

/// Why there is no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The board has no such file.
    #[error("not there")]
    Absent,
    /// Opening or reading failed. `EAGAIN` from a thermal zone: the part it measures has no power.
    #[error("{0}")]
    Failed(Errno),
    /// Too long to be what it should be.
    #[error("longer than {0} bytes")]
    TooLong(usize),
    /// There is nothing in it.
    #[error("empty")]
    Empty,
    /// Not UTF-8.
    #[error("not text")]
    NotText,
    /// Text, but not what it should be.
    #[error("not {0}")]
    Malformed(&'static str),
    /// A sensor without power that reports a number nevertheless.
    #[error("the sensor is off")]
    Off,
}

/// A value, or why there is none.
pub type Reading<T> = Result<T, Unreadable>;

/// A file that was there when the board was looked over, or was not.
#[derive(Debug, Clone, Default)]
pub(super) struct Known(Option<PathBuf>);

impl Known {
    pub(super) fn at(path: PathBuf) -> Self {
        Self(path.exists().then_some(path))
    }

    /// The first of these that is there.
    pub(super) fn first(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(paths.into_iter().find(|path| path.exists()))
    }

    pub(super) fn is_there(&self) -> bool {
        self.0.is_some()
    }
}

/// Reads known files, and notices when one of them has vanished: then its device is gone, or has another number.
#[derive(Debug, Default)]
pub(super) struct Reader {
    buffer: Vec<u8>,
    vanished: bool,
}

impl Reader {
    /// At most `limit` bytes.
    pub(super) fn bytes(&mut self, file: &Known, limit: usize) -> Reading<&[u8]> {
        let path = file.0.as_deref().ok_or(Unreadable::Absent)?;
        match fill(path, limit, &mut self.buffer) {
            Ok(()) => Ok(&self.buffer),
            Err(error) => {
                self.vanished |= error == Unreadable::Absent;
                Err(error)
            }
        }
    }

    /// What `parse` makes of the text; `what` names it for people.
    pub(super) fn parse<T>(
        &mut self,
        file: &Known,
        limit: usize,
        what: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Reading<T> {
        parse(text(self.bytes(file, limit)?)?).ok_or(Unreadable::Malformed(what))
    }

    /// A whole number.
    pub(super) fn number<T: FromStr>(&mut self, file: &Known) -> Reading<T> {
        self.parse(file, VALUE, "a number in range", |text| text.parse().ok())
    }

    /// A word or a name.
    pub(super) fn name(&mut self, file: &Known) -> Reading<String> {
        self.parse(file, VALUE, "a name", |text| Some(text.into()))
    }

    /// Whether a known file was found to have vanished since this was last asked.
    pub(super) fn take_vanished(&mut self) -> bool {
        std::mem::take(&mut self.vanished)
    }
}

/// Text without white space, and without the NUL that ends strings of a device tree, around it.
pub(super) fn text(bytes: &[u8]) -> Reading<&str> {
    let text = std::str::from_utf8(bytes).map_err(|_| Unreadable::NotText)?;
    match text.trim_matches(|char: char| char.is_whitespace() || char == '\0') {
        "" => Err(Unreadable::Empty),
        text => Ok(text),
    }
}

/// Names in a folder, those with numbers in the order of the numbers; nothing where it cannot be read.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
    let mut names: Vec<_> = entries.flatten().take(ENTRIES).filter_map(name).collect();
    names.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    names
}

/// `O_NONBLOCK`: some files of drivers, and pipes that stand for them in tests, wait for an event otherwise.
fn fill(path: &Path, limit: usize, buffer: &mut Vec<u8>) -> Reading<()> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR => Unreadable::Absent,
        errno => Unreadable::Failed(errno),
    })?;
    buffer.clear();
    let more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    File::from(file)
        .take(more)
        .read_to_end(buffer)
        .map_err(|error| Unreadable::Failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    if buffer.len() > limit { Err(Unreadable::TooLong(limit)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, mknodat};

    use super::*;

    fn read(path: &Path) -> Reading<i32> {
        Reader::default().number(&Known::at(path.into()))
    }

    #[test]
    fn what_is_no_number_has_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("value");
        let reads = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            read(&path)
        };
        assert_eq!(reads(b"52875\n"), Ok(52_875));
        assert_eq!(reads(b"-8\n"), Ok(-8));
        assert_eq!(reads(b""), Err(Unreadable::Empty));
        assert_eq!(reads(b"\n\0"), Err(Unreadable::Empty));
        assert_eq!(reads(b"\xff\xfe"), Err(Unreadable::NotText));
        assert_eq!(reads(&[b'1'; VALUE + 1]), Err(Unreadable::TooLong(VALUE)));
        for bad in ["12a", "1.5", "99999999999", "0x10"] {
            assert_eq!(reads(bad.as_bytes()), Err(Unreadable::Malformed("a number in range")), "{bad}");
        }
        assert_eq!(read(folder.path()), Err(Unreadable::Failed(Errno::ISDIR)));
        assert_eq!(read(&folder.path().join("none")), Err(Unreadable::Absent));
    }

    #[test]
    fn a_file_that_would_wait_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let writer = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert_eq!(read(&path), Err(Unreadable::Failed(Errno::AGAIN)));
        drop(writer);
        assert_eq!(read(&path), Err(Unreadable::Empty));
    }

    #[test]
    fn what_was_there_and_is_not_any_more_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("value");
        let mut reader = Reader::default();
        assert_eq!(reader.number::<i32>(&Known::at(path.clone())), Err(Unreadable::Absent));
        assert!(!reader.take_vanished(), "it has never been there");
        fs::write(&path, "1").unwrap();
        let known = Known::at(path.clone());
        fs::remove_file(&path).unwrap();
        assert_eq!(reader.number::<i32>(&known), Err(Unreadable::Absent));
        assert!(reader.take_vanished() && !reader.take_vanished());
    }

    #[test]
    fn numbers_come_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["zone10", "zone2", "zone0"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(names(folder.path()), ["zone0", "zone2", "zone10"]);
        assert!(names(&folder.path().join("none")).is_empty());
    }
}
