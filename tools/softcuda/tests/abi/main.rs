//! The driver through cudarc, an unmodified client: one test program, a file a theme.
#![allow(unsafe_code)] // The driver API is one of pointers; each call is on objects of its test.
#![allow(clippy::expect_used, clippy::panic)] // The functions that tests share are tests, too.

mod graphs;
mod kernels;
mod memory;
mod process;
mod streams;
mod support;
mod table;
mod tensor;
mod watch;
