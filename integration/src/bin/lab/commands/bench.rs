//! `lab bench`

use anyhow::Result;
use integration::bench;

/// Compare omfs with what the same link, disk and machine do without it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    let quiet = args.json;
    let figures = bench::run(&|text| {
        if !quiet {
            eprintln!("{text}");
        }
    })?;
    if args.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        print!("{}", bench::table(&figures));
    }
    Ok(())
}
