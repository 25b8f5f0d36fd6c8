//! The `manifs` command.

fn main() {}
