//! Little-endian values from a source of known length, each bounded before it is read.

use std::io::{self, Read, Seek};

use super::{HEADER_BYTES, KEPT_TEXT, NAME_BYTES};

/// What is wrong with a source.
#[derive(Debug)]
pub(super) enum Fault {
    Io(io::Error),
    NotGguf,
    Version(u32),
    Corrupt { offset: u64, what: String },
    Truncated { needed: u64 },
}

/// Reads a header and knows where it is.
pub(super) struct Reader<R> {
    source: R,
    position: u64,
    length: u64,
}

impl<R: Read + Seek> Reader<R> {
    pub(super) fn new(source: R, length: u64) -> Self {
        Self { source, position: 0, length }
    }

    /// Bytes read or skipped so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// A fault at the present place.
    pub(super) fn corrupt(&self, what: impl Into<String>) -> Fault {
        Fault::Corrupt { offset: self.position, what: what.into() }
    }

    /// Steps over the next bytes' places, which are then read or skipped.
    fn advance(&mut self, bytes: u64) -> Result<(), Fault> {
        let end = self.position.checked_add(bytes).ok_or_else(|| self.corrupt("a length beyond all files"))?;
        if end > HEADER_BYTES {
            return Err(self.corrupt(format!("the header takes more than {HEADER_BYTES} bytes")));
        }
        if end > self.length {
            return Err(Fault::Truncated { needed: end });
        }
        self.position = end;
        Ok(())
    }

    /// The next `N` bytes.
    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.advance(N as u64)?;
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes).map_err(Fault::Io)?;
        Ok(bytes)
    }

    /// Leaves out the next bytes.
    pub(super) fn skip(&mut self, bytes: u64) -> Result<(), Fault> {
        self.advance(bytes)?;
        let bytes = i64::try_from(bytes).map_err(|_| self.corrupt("a length beyond all files"))?;
        self.source.seek_relative(bytes).map_err(Fault::Io)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A number of things, up to a limit.
    pub(super) fn count(&mut self, of: &str, limit: u64) -> Result<u64, Fault> {
        let count = self.u64()?;
        if count > limit {
            return Err(self.corrupt(format!("{count} {of}, the limit is {limit}")));
        }
        Ok(count)
    }

    /// A key or a tensor's name.
    pub(super) fn name(&mut self) -> Result<String, Fault> {
        let length = self.count("bytes in a name", NAME_BYTES)?;
        self.text_of(length, NAME_BYTES)
    }

    /// A text value, its beginning where it is long.
    pub(super) fn text(&mut self) -> Result<String, Fault> {
        let length = self.u64()?;
        self.text_of(length, KEPT_TEXT)
    }

    fn text_of(&mut self, length: u64, limit: u64) -> Result<String, Fault> {
        let kept = length.min(limit);
        self.advance(kept)?;
        let mut bytes = Vec::new();
        let read = self.source.by_ref().take(kept).read_to_end(&mut bytes).map_err(Fault::Io)?;
        if (read as u64) < kept {
            // It has become shorter since its length was asked for.
            return Err(Fault::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        self.skip(length - kept)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Leaves out a text.
    pub(super) fn skip_text(&mut self) -> Result<(), Fault> {
        let length = self.u64()?;
        self.skip(length)
    }
}
