//! The `manifs` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    manifs::cli::main()
}
