//! Layers: parameters with the ops that use them. A layer is made from
//! [`Params`](crate::autograd::Params) and run in a [`Pass`](crate::autograd::Pass); it holds no
//! state of its own.

mod attention;
pub mod conv;
mod linear;
pub mod norm;
mod tables;
mod transformer;

pub use attention::{CrossAttention, KvCache, SelfAttention};
pub use linear::{Init, Linear, Onto};
pub use tables::Tables;
pub use transformer::{AdaLn, Mlp, layer_norm, norm_modulate};
