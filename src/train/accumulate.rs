//! A batch taken in parts, one after the other: the gradients of the whole, the memory of a part.

use std::ops::Range;

use crate::autograd::{Gradients, Pass, Var};
use crate::error::{Error, Result};
use crate::ops::call;
use crate::ops::elementwise::{ADD, Affine};
use crate::tensor::Tensor;

/// Rows of each of `parts` parts of a batch, which differ by one at most.
pub fn parts(batch: usize, parts: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = parts.clamp(1, batch.max(1));
    (0..parts).map(move |i| i * batch / parts..(i + 1) * batch / parts)
}

/// The sums over the parts so far.
#[derive(Default)]
pub struct Sums(Option<(Gradients, Tensor)>);

impl Sums {
    /// Adds a part by its loss, a mean over its rows, which are this share of the batch.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn add(&mut self, pass: Pass, loss: &Var, share: f64) -> Result<()> {
        // All at once: the bits of a batch that was never cut.
        let scaled = match share {
            1.0 => loss.clone(),
            _ => pass.op(Affine { scale: share, shift: 0.0 }, &[loss])?,
        };
        let (grads, loss) = (pass.backward(&scaled)?, scaled.into_value());
        self.0 = Some(match self.0.take() {
            None => (grads, loss),
            Some((sum, all)) => (sum.plus(&grads)?, call(&ADD, &[&all, &loss])?),
        });
        Ok(())
    }

    /// Gradients and loss of the whole batch.
    ///
    /// # Errors
    /// No part was added.
    pub fn whole(self) -> Result<(Gradients, Tensor)> {
        self.0.ok_or_else(|| Error::Internal("a batch without parts".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_rows_in_order_and_none_is_empty() {
        for (batch, n, want) in [(7, 3, vec![2, 2, 3]), (4, 9, vec![1; 4]), (5, 0, vec![5])] {
            let all: Vec<_> = parts(batch, n).collect();
            assert_eq!(all.iter().map(ExactSizeIterator::len).collect::<Vec<_>>(), want);
            assert_eq!(
                all.into_iter().flatten().collect::<Vec<_>>(),
                (0..batch).collect::<Vec<_>>()
            );
        }
    }
}
