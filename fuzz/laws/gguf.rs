//! The header of a model's file. The first byte says whether the file is as long as what follows, or far longer.

use std::{io::Cursor, path::Path};

use temperd::gguf::{self, GgufError, Summary};

/// Longer than any header, and than what weights could take.
const LONG: u64 = 1 << 50;

/// Reads a header.
pub fn holds(data: &[u8]) {
    let Some((long, file)) = data.split_first() else { return };
    let bytes = if long % 2 == 0 { file.len() as u64 } else { LONG };
    let path = Path::new("model.gguf");
    match gguf::read(Cursor::new(file), bytes, path) {
        Ok(summary) => is_bounded(&summary, bytes),
        Err(error) => {
            if let GgufError::Truncated { needed, actual, .. } = &error {
                assert!(needed > actual, "{error}");
            }
            let text = error.to_string();
            assert!(text.contains("model.gguf") && text.len() < 2048 && !text.contains('\n'), "{text:?}");
        }
    }
    // What is cut off before the end of its header is nothing that can be loaded.
    let cut = file.len() / 2;
    if let Ok(summary) = gguf::read(Cursor::new(&file[..cut]), cut as u64, path) {
        assert!(summary.needed_bytes <= cut as u64, "{summary:?}");
    }
}

fn is_bounded(summary: &Summary, bytes: u64) {
    assert!(summary.needed_bytes <= bytes && summary.file_bytes == bytes, "{summary:?}");
    let texts = [&summary.architecture, &summary.name, &summary.kind, &summary.adapter, &summary.tokenizer];
    // 4,096 bytes, each of which may have become a replacement character.
    assert!(texts.into_iter().flatten().all(|text| text.len() <= 3 * 4096), "a text as long as the file says");
    let weights = &summary.weights;
    assert!(weights.layers.len() <= 4096, "{} layers", weights.layers.len());
    let to_gpu: u64 = weights.to_gpu().fold(0, u64::saturating_add);
    assert!(weights.of_a_layer() <= to_gpu, "the mean is over the sum");
    for cells in [1, 8192, u64::MAX] {
        let (half, whole) = (summary.cache_bytes(cells, [true; 2]), summary.cache_bytes(cells, [false; 2]));
        assert!(half.is_none_or(|half| whole.is_none_or(|whole| half <= whole)), "{half:?} {whole:?}");
    }
}
