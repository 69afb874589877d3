//! What the op tests are made of; `tests/ops.rs` is the program.

pub mod composed;
pub mod coverage;
pub mod data;
pub mod derivative;
pub mod faces;
pub mod floor;
pub mod gpu;
pub mod inputs;
pub mod planted;
pub mod soft;
pub mod special;
pub mod value;
