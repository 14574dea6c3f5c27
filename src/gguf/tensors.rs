//! The tensor part of a header: where the last tensor ends, and what each layer takes.

use std::io::{Read, Seek};

use super::{
    reader::{Fault, Reader},
    weights::Weights,
};

/// The dimensions that ggml knows.
const DIMENSIONS: u32 = 4;

/// Bytes that a file with these tensors takes, header included, and those of its weights.
pub(super) fn read<R: Read + Seek>(
    reader: &mut Reader<R>,
    tensors: u64,
    alignment: u64,
) -> Result<(u64, Weights), Fault> {
    let mut weights = Weights::default();
    // Offsets count from the end of the header; each tensor begins where the one before ends, aligned.
    let mut next: u64 = 0;
    let mut end: u64 = 0;
    for _ in 0..tensors {
        let full = reader.name()?;
        // A name is the file's and may hold anything.
        let name: String = full.chars().take(64).collect();
        let name = name.escape_debug();
        let bytes =
            size(reader)?.ok_or_else(|| reader.corrupt(format!("tensor `{name}` has an impossible shape or type")))?;
        let offset = reader.u64()?;
        if offset != next {
            return Err(reader.corrupt(format!("tensor `{name}` begins at {offset}, expected {next}")));
        }
        weights.count(&full, bytes);
        end = offset.checked_add(bytes).ok_or_else(|| reader.corrupt(format!("tensor `{name}` is too large")))?;
        next = end
            .checked_next_multiple_of(alignment)
            .ok_or_else(|| reader.corrupt(format!("tensor `{name}` is too large")))?;
    }
    let header = reader.position();
    if tensors == 0 {
        return Ok((header, weights));
    }
    let needed = header.checked_next_multiple_of(alignment).and_then(|start| start.checked_add(end));
    Ok((needed.ok_or_else(|| reader.corrupt("tensors beyond all files"))?, weights))
}

/// Reads dimensions and type of a tensor; its bytes, `None` where they cannot be.
fn size<R: Read + Seek>(reader: &mut Reader<R>) -> Result<Option<u64>, Fault> {
    let dimensions = reader.u32()?;
    if dimensions > DIMENSIONS {
        return Ok(None);
    }
    let mut row = 1;
    let mut rows: Option<u64> = Some(1);
    for dimension in 0..dimensions {
        let length = reader.u64()?;
        if dimension == 0 {
            row = length;
        } else {
            rows = rows.and_then(|rows| rows.checked_mul(length));
        }
    }
    let Some((values, bytes)) = block(reader.u32()?) else { return Ok(None) };
    if row % values != 0 {
        return Ok(None);
    }
    Ok(rows.and_then(|rows| (row / values).checked_mul(bytes)?.checked_mul(rows)))
}

/// Values and bytes of one block of a ggml type; `None` for those that were removed or are not known.
fn block(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        // F32, I32
        0 | 26 => (1, 4),
        // F16, I16, BF16
        1 | 25 | 30 => (1, 2),
        // I8
        24 => (1, 1),
        // I64, F64
        27 | 28 => (1, 8),
        // Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1
        2 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        9 => (32, 36),
        // Q2_K to Q6_K, Q8_K
        10 => (256, 84),
        11 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        15 => (256, 292),
        // IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, IQ1_M
        16 => (256, 66),
        17 => (256, 74),
        18 => (256, 98),
        19 => (256, 50),
        20 => (32, 18),
        21 => (256, 110),
        22 => (256, 82),
        23 => (256, 136),
        29 => (256, 56),
        // TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0, Q2_0
        34 => (256, 54),
        35 => (256, 66),
        39 => (32, 17),
        40 => (64, 36),
        41 => (128, 18),
        42 => (64, 18),
        _ => return None,
    })
}
