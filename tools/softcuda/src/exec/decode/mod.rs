//! From instructions as read to instructions as run.

mod alu;
mod builder;
mod cfg;
mod control;
mod convert;
mod float;
mod hopper;
mod matrix;
mod memory;
mod mods;
mod moves;
mod warp;

pub(crate) use builder::decode_entry;

/// Why one instruction was refused.
pub(super) type Refused<T> = Result<T, String>;
