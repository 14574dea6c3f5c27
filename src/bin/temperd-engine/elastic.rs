//! How large the KV cache is allocated: it starts small, grows to what running sequences need, and shrinks when nothing
//! runs, so that an idle box holds no empty cells. Pure; `cells` does the work.

/// Cells that are allocated at first, and at rest.
pub const FIRST: u32 = 2048;
/// llama.cpp rounds contexts up to this (`GGML_PAD` in llama-context.cpp).
const ROUND: u32 = 256;
/// What runs may fill this share of the cells, in eighths, before more are allocated; below it, cells of ended sequences
/// are given up instead.
const FULL: (usize, usize) = (6, 8);

/// Cells of a context of so many tokens, as llama.cpp rounds.
pub fn rounded(context: u32) -> u32 {
    context.checked_next_multiple_of(ROUND).unwrap_or(context)
}

/// The size to grow to where no cell is free for `rows` more tokens: `live` cells are those of running sequences. `None`
/// where others have cells to give, or there are no more than `most`.
pub fn larger(allocated: u32, live: usize, rows: usize, most: u32) -> Option<u32> {
    let needed = live + rows;
    if allocated >= most || needed * FULL.1 <= allocated as usize * FULL.0 {
        return None;
    }
    let mut size = allocated.max(1);
    while size < most && needed * FULL.1 > size as usize * FULL.0 {
        size = size.saturating_mul(2);
    }
    Some(size.min(most))
}

/// The size to shrink to at rest, where `kept` cells are of use; `None` where it is small already.
pub fn smaller(allocated: u32, kept: usize, most: u32) -> Option<u32> {
    let kept = u32::try_from(kept).ok()?;
    let size = rounded(kept.checked_mul(2)?).max(FIRST.min(most));
    (size * 2 <= allocated).then_some(size)
}

/// The size that is left where all that is not of use shall be given back: `wanted` cells are, of at most `most`.
pub fn trimmed(allocated: u32, wanted: usize, most: u32) -> u32 {
    let wanted = u32::try_from(wanted.max(1)).unwrap_or(u32::MAX);
    rounded(wanted).min(most).min(allocated)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_doubles_where_what_runs_needs_it_and_stays_where_others_can_give() {
        assert_eq!(larger(2048, 2000, 40, 8192), Some(4096));
        assert_eq!(larger(2048, 600, 40, 8192), None);
        assert_eq!(larger(2048, 2000, 2000, 16384), Some(8192));
        assert_eq!(larger(2048, 2000, 40, 2560), Some(2560));
        assert_eq!(larger(8192, 8190, 40, 8192), None);
    }

    #[test]
    fn it_shrinks_to_what_is_kept_and_not_for_a_little() {
        assert_eq!(smaller(8192, 0, 8192), Some(2048));
        assert_eq!(smaller(8192, 1500, 8192), Some(3072));
        assert_eq!(smaller(4096, 1500, 8192), None);
        assert_eq!(smaller(2048, 0, 8192), None);
        assert_eq!(smaller(512, 0, 512), None);
    }

    #[test]
    fn trimmed_it_has_what_is_of_use_within_what_is_allowed() {
        assert_eq!(trimmed(8192, 1500, 8192), 1536);
        assert_eq!(trimmed(8192, 0, 8192), 256);
        assert_eq!(trimmed(8192, 5000, 4096), 4096);
        assert_eq!(trimmed(2048, 5000, 8192), 2048);
        assert_eq!(trimmed(2048, usize::MAX, 8192), 2048);
    }

    proptest! {
        #[test]
        fn what_runs_fits_behind_it(
            allocated in 256u32..20_000, live in 0usize..20_000, rows in 1usize..600, most in 256u32..20_000,
        ) {
            if let Some(size) = larger(allocated, live, rows, most) {
                prop_assert!(size > allocated && size <= most);
                prop_assert!(size == most || live + rows <= size as usize);
            }
            if let Some(size) = smaller(allocated, live, most) {
                prop_assert!(size < allocated && size as usize >= live);
            }
        }
    }
}
