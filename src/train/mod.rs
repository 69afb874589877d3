//! Training: one loop for every stage, and what a long run needs around it.
//!
//! What a long run needs: learning rates, a log without clock times, a progress bar, Ctrl-C.

pub mod interrupt;
pub mod log;
pub mod progress;
pub mod schedule;
