//! The `genevar` command.

fn main() {}
