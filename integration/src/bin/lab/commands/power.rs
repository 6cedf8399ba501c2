//! `lab kill`, `lab start`, `lab cut`, `lab heal`, `lab freeze`, `lab thaw`

use anyhow::Result;
use integration::lab::Lab;

/// Turn a node's power off: its link dies first, then all its processes at once.
#[derive(Debug, clap::Args)]
pub struct KillArgs {
    /// Which.
    node: String,
}

/// Turn a node on again; its disk is as it was.
#[derive(Debug, clap::Args)]
pub struct StartArgs {
    /// Which.
    node: String,
}

/// Pull a node's network cable: packets vanish without a sign.
#[derive(Debug, clap::Args)]
pub struct CutArgs {
    /// Which.
    node: String,
}

/// Plug a node's network cable in again.
#[derive(Debug, clap::Args)]
pub struct HealArgs {
    /// Which.
    node: String,
}

/// Stop all processes of a node where they are; its kernel goes on answering.
#[derive(Debug, clap::Args)]
pub struct FreezeArgs {
    /// Which.
    node: String,
}

/// Let the processes of a frozen node go on.
#[derive(Debug, clap::Args)]
pub struct ThawArgs {
    /// Which.
    node: String,
}

/// Runs `lab kill`.
pub fn kill(lab: &str, args: &KillArgs) -> Result<()> {
    Lab::attach(lab)?.kill(&args.node)
}

/// Runs `lab start`.
pub fn start(lab: &str, args: &StartArgs) -> Result<()> {
    Lab::attach(lab)?.start(&args.node)
}

/// Runs `lab cut`.
pub fn cut(lab: &str, args: &CutArgs) -> Result<()> {
    Lab::attach(lab)?.cut(&args.node)
}

/// Runs `lab heal`.
pub fn heal(lab: &str, args: &HealArgs) -> Result<()> {
    Lab::attach(lab)?.heal(&args.node)
}

/// Runs `lab freeze`.
pub fn freeze(lab: &str, args: &FreezeArgs) -> Result<()> {
    Lab::attach(lab)?.freeze(&args.node)
}

/// Runs `lab thaw`.
pub fn thaw(lab: &str, args: &ThawArgs) -> Result<()> {
    Lab::attach(lab)?.thaw(&args.node)
}
