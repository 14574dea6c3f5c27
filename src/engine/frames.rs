//! The frames between daemon and engine: a little-endian `u32` length, then that many bytes of protobuf. The engine
//! has no async runtime and uses [`read`] and [`write`]; the daemon uses [`codec`].

use std::io::{self, Read, Write};

use prost::Message;
use tokio_util::codec::LengthDelimitedCodec;

/// Changes with every change of the frames that an older peer would misread.
pub const PROTOCOL: u32 = 2;

/// What both sides compare beside the protocol.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// Longest frame. The largest ones are a prompt's text (payload limit) and its tokens (at most 5 bytes each).
pub const MAX_FRAME: usize = 16 * 1024 * 1024;

/// Writes one frame in one call.
///
/// # Errors
/// Those of the writer, and `InvalidInput` for a frame over [`MAX_FRAME`].
pub fn write(writer: &mut impl Write, frame: &impl Message) -> io::Result<()> {
    let body = frame.encoded_len();
    let length = u32::try_from(body).ok().filter(|_| body <= MAX_FRAME).ok_or_else(|| too_long(body))?;
    let mut bytes = Vec::with_capacity(4 + body);
    bytes.extend_from_slice(&length.to_le_bytes());
    frame.encode(&mut bytes).map_err(io::Error::other)?;
    writer.write_all(&bytes)
}

/// Reads one frame; `None` where the peer has closed between two frames.
///
/// # Errors
/// Those of the reader, `UnexpectedEof` inside a frame, `InvalidData` for one that is too long or does not parse.
pub fn read<M: Message + Default>(reader: &mut impl Read) -> io::Result<Option<M>> {
    let mut length = [0; 4];
    let first = loop {
        match reader.read(&mut length) {
            // A signal, such as the one that lets a stopped process go on; `read_exact` does the same.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    reader.read_exact(length.get_mut(first..).unwrap_or_default())?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(too_long(length));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    M::decode(body.as_slice()).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn too_long(length: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("frame of {length} bytes, the limit is {MAX_FRAME}"))
}

/// The same frames for an async stream.
#[must_use]
pub fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().little_endian().length_field_length(4).max_frame_length(MAX_FRAME).new_codec()
}
