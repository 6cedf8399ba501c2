//! `lab bench`

use anyhow::Result;
use integration::bench;
use serde::Serialize;

/// Compare omfs with what the same link, disk and machine do without it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure.
    #[arg(value_enum, default_value = "ratios")]
    what: What,
    /// Of `abuse`: only the attacks whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// omfs against what the machine does without it.
    Ratios,
    /// What one attacker costs everybody else.
    Abuse,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    let quiet = args.json;
    let say = |text: &str| {
        if !quiet {
            eprintln!("{text}");
        }
    };
    match args.what {
        What::Ratios => {
            let figures = bench::run(&say)?;
            show(args, &figures, bench::table)
        }
        What::Abuse => {
            let figures = bench::abuse::run(&args.only, &say)?;
            show(args, &figures, bench::abuse::table)
        }
    }
}

fn show<F: Serialize>(args: &Args, figures: &[F], table: fn(&[F]) -> String) -> Result<()> {
    if args.json {
        println!("{}", serde_json::to_string(figures)?);
    } else {
        print!("{}", table(figures));
    }
    Ok(())
}
