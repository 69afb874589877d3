//! Layers: parameters with the ops that use them. A layer is made from [`Params`](crate::autograd::Params) and
//! run in a [`Pass`](crate::autograd::Pass); it holds no state of its own.

pub mod conv;
mod linear;
pub mod norm;

pub use linear::{Init, Linear};
