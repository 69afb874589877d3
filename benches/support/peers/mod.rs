//! Pieces of work that another implementation can be held against and raced with.

pub mod ops;
pub mod steps;

use genevar::Result;
use genevar::tensor::Tensor;
use serde_json::Value;

/// Tensors with names.
pub type Named = Vec<(String, Tensor)>;

/// One piece of work, as often as it is wanted.
pub trait Job {
    /// What else must be known to do the same.
    fn about(&self) -> Value;
    /// What it works on.
    fn inputs(&self) -> Result<Named>;
    /// Does it; results may still be on the way on a GPU.
    fn run(&mut self) -> Result<Named>;
    /// Forgets what earlier runs have changed.
    fn again(&mut self) -> Result<()> {
        Ok(())
    }
}
