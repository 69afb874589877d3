//! Layers: parameters with the ops that use them. A layer is made from
//! [`Params`](crate::autograd::Params) and run in a [`Pass`](crate::autograd::Pass); it holds no
//! state of its own, but for what it can make again.

mod attention;
pub mod conv;
mod linear;
pub mod norm;
mod tables;
mod transformer;

pub use attention::{CrossAttention, KvCache, SelfAttention};
pub use linear::{Init, Linear, Onto, Stack};
pub use tables::{Joined, Tables};
pub use transformer::{AdaLn, Mlp, layer_norm, norm_modulate};
