//! From the vectors of a text's tokens to the vector of the text. Pure.

/// How a model wants its tokens' vectors joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the first token.
    First,
    /// That of the last token.
    Last,
}

impl Pooling {
    /// By the number that the file gives (`<architecture>.pooling_type`, llama.cpp's `llama_pooling_type`); the mean
    /// where it gives none.
    ///
    /// # Errors
    /// A model that ranks texts, or one of a kind that is not known.
    pub fn of(number: Option<&str>) -> Result<Self, String> {
        match number {
            None | Some("0" | "1" | "-1") => Ok(Self::Mean),
            Some("2") => Ok(Self::First),
            Some("3") => Ok(Self::Last),
            Some("4") => Err("this model ranks texts and gives no embeddings".to_owned()),
            Some(_) => Err("this model's pooling is not known".to_owned()),
        }
    }
}

/// One text in the making.
#[derive(Debug)]
pub struct Pool {
    pooling: Pooling,
    /// In double precision, so that a long text loses nothing to rounding.
    sum: Vec<f64>,
}

impl Pool {
    /// Without a token yet.
    pub fn new(pooling: Pooling) -> Self {
        Self { pooling, sum: Vec::new() }
    }

    /// Takes the next token's vector; `first` begins a text.
    pub fn add(&mut self, values: &[f32], first: bool) {
        if first || self.pooling == Pooling::Last {
            self.sum.clear();
            self.sum.extend(values.iter().copied().map(f64::from));
        } else if self.pooling == Pooling::Mean {
            // The number of tokens is not divided by: the length is made 1 in the end.
            self.sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(*value));
        }
    }

    /// The vector of the text, of length 1; `None` where it has no direction.
    pub fn take(&mut self) -> Option<Vec<f32>> {
        let length = self.sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        if !length.is_finite() || length == 0.0 {
            return None;
        }
        #[allow(clippy::cast_possible_truncation, reason = "single precision is what is wanted")]
        Some(self.sum.drain(..).map(|value| (value / length) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled(number: Option<&str>, tokens: &[[f32; 2]]) -> Option<Vec<f32>> {
        let mut pool = Pool::new(Pooling::of(number).expect("known"));
        tokens.iter().enumerate().for_each(|(nth, values)| pool.add(values, nth == 0));
        pool.take()
    }

    #[test]
    fn each_kind_of_pooling_gives_length_one() {
        let tokens = [[3.0, 0.0], [0.0, 0.0], [0.0, 4.0]];
        assert_eq!(pooled(None, &tokens), Some(vec![0.6, 0.8]));
        assert_eq!(pooled(Some("1"), &tokens), Some(vec![0.6, 0.8]));
        assert_eq!(pooled(Some("2"), &tokens), Some(vec![1.0, 0.0]));
        assert_eq!(pooled(Some("3"), &tokens), Some(vec![0.0, 1.0]));
        assert!(Pooling::of(Some("4")).is_err() && Pooling::of(Some("9")).is_err());
    }

    #[test]
    fn what_has_no_direction_is_no_vector() {
        assert_eq!(pooled(None, &[[1.0, 2.0], [-1.0, -2.0]]), None);
        assert_eq!(pooled(None, &[[f32::NAN, 2.0]]), None);
        assert_eq!(pooled(None, &[]), None);
    }

    #[test]
    fn one_text_leaves_nothing_for_the_next() {
        let mut pool = Pool::new(Pooling::Mean);
        pool.add(&[1.0, 0.0], true);
        assert_eq!(pool.take(), Some(vec![1.0, 0.0]));
        pool.add(&[0.0, 2.0], true);
        assert_eq!(pool.take(), Some(vec![0.0, 1.0]));
    }
}
