//! `cargo bench`: omfs against what the same link, disk and machine do without it. The same as
//! `cargo lab bench`, which needs no build of its own.

use std::process::ExitCode;

use integration::bench;

fn main() -> ExitCode {
    // `cargo test --benches` only wants to know that this compiles.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("measures under `cargo bench` only");
        return ExitCode::SUCCESS;
    }
    match bench::run(&|step| eprintln!("{step}")) {
        Ok(figures) => {
            print!("{}", bench::table(&figures));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
