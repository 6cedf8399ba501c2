//! `lab down`

use anyhow::Result;
use integration::lab::Lab;

/// End the lab; nothing of it is left.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs it.
pub fn run(lab: &str, _args: &Args) -> Result<()> {
    Lab::attach(lab)?.down()
}
