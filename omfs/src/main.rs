//! The one program: daemon, admin CLI, mount helper, shim and supervisor.

#![forbid(unsafe_code)]

mod admin;
mod cli;
mod commands;
mod error;
mod help;
mod output;
mod top;

use std::process::ExitCode;

fn main() -> ExitCode {
    let result = cli::run(std::env::args_os());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::warn(&error);
            ExitCode::from(error.exit as u8)
        }
    }
}
