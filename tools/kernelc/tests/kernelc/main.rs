//! Tests of kernelc from outside: what it reads, builds and writes. `rt.rs` and `program.rs` are
//! compiled by the tests with the code that is written.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod building;
mod generated;
mod parsing;
mod repository;
mod support;
