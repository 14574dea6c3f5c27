//! What the layers of a model take, by the names of its tensors.

/// Layers of which the bytes are counted: far more than any model has, and few enough to be kept.
const LAYERS: usize = 4096;

/// Bytes of a file's weights, as far as they belong to a layer or to the output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Weights {
    /// Of each layer (`blk.N.…`).
    pub layers: Vec<u64>,
    /// Of the token embeddings.
    pub embeddings: u64,
    /// Of the output's own tensors.
    pub output: u64,
    /// Whether the output has a matrix of its own; without one, the embeddings serve as it.
    pub output_matrix: bool,
}

impl Weights {
    /// Counts a tensor.
    pub(super) fn count(&mut self, name: &str, bytes: u64) {
        if let Some(layer) = layer(name) {
            if self.layers.len() <= layer {
                self.layers.resize(layer + 1, 0);
            }
            if let Some(sum) = self.layers.get_mut(layer) {
                *sum = sum.saturating_add(bytes);
            }
        } else if name.starts_with("token_embd.") {
            self.embeddings = self.embeddings.saturating_add(bytes);
        } else if name.starts_with("output") {
            self.output_matrix |= name == "output.weight";
            self.output = self.output.saturating_add(bytes);
        }
    }

    /// Bytes of layers in the order in which they go to a GPU: the output layer, then from the last one on.
    pub fn to_gpu(&self) -> impl Iterator<Item = u64> {
        let matrix = if self.output_matrix { 0 } else { self.embeddings };
        [self.output.saturating_add(matrix)].into_iter().chain(self.layers.iter().rev().copied())
    }

    /// Bytes of a layer, the output apart, in the mean.
    #[must_use]
    pub fn of_a_layer(&self) -> u64 {
        let all = self.layers.iter().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
        all.checked_div(self.layers.len() as u64).unwrap_or(0)
    }
}

/// The layer of a tensor of this name.
fn layer(name: &str) -> Option<usize> {
    let number = name.strip_prefix("blk.")?.split('.').next()?;
    number.parse().ok().filter(|layer| *layer < LAYERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(tensors: &[(&str, u64)]) -> Weights {
        let mut weights = Weights::default();
        for (name, bytes) in tensors {
            weights.count(name, *bytes);
        }
        weights
    }

    #[test]
    fn the_output_goes_first_then_the_last_layer() {
        let blocks = [("blk.1.ffn_up.weight", 20), ("blk.0.ffn_up.weight", 10), ("blk.1.attn_norm.weight", 4)];
        let own = weights(
            &[&blocks[..], &[("token_embd.weight", 100), ("output.weight", 200), ("rope_freqs.weight", 1)]].concat(),
        );
        assert_eq!(own.to_gpu().collect::<Vec<_>>(), [200, 24, 10]);
        assert_eq!(own.of_a_layer(), 17);
        let tied = weights(&[&blocks[..], &[("token_embd.weight", 100), ("output_norm.weight", 2)]].concat());
        assert_eq!(tied.to_gpu().collect::<Vec<_>>(), [102, 24, 10]);
    }

    #[test]
    fn a_name_that_is_no_layers_costs_nothing() {
        for name in ["blk.4096.x", "blk.99999999999999999999.x", "blk.-1.x", "blk.", "blk", "enc.blk.0.x", ""] {
            assert_eq!(weights(&[(name, u64::MAX)]), Weights::default(), "{name}");
        }
        assert_eq!(weights(&[("blk.0.a", u64::MAX), ("blk.0.b", 1)]).of_a_layer(), u64::MAX);
        assert_eq!(Weights::default().of_a_layer(), 0);
    }
}
