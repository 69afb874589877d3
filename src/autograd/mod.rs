//! Four passes over one model text: eval, tape, dual and dual_tape.
//!
//! Model code calls [`Pass::op`]. What happens beside the values is the pass's business: `tape`
//! records for a reverse pass, `dual` carries a tangent beside each value, `dual_tape` does both
//! and tapes primals only. A [`Tangent`] is not a [`Var`]: it cannot be fed back into a model, so a
//! derivative of a derivative cannot be written. Tangents that are zero are absent and cost
//! nothing.

mod param;
mod pass;
mod segment;
mod tape;

pub use param::{Param, Params};
pub use pass::{Pass, Tangent, Var};
pub use tape::Gradients;
