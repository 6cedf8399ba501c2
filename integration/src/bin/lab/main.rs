//! `lab`: emulated nodes on this machine.

mod commands;

use clap::{Parser, Subcommand};

/// Emulated nodes on this machine that run the real omfs.
#[derive(Debug, Parser)]
#[command(name = "lab", version)]
struct Cli {
    /// Which lab, when there are several.
    #[arg(long, default_value = "default", global = true, value_name = "NAME")]
    lab: String,
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    Up(commands::up::Args),
    Exec(commands::exec::Args),
    Status(commands::status::Args),
    Kill(commands::power::KillArgs),
    Start(commands::power::StartArgs),
    Cut(commands::power::CutArgs),
    Heal(commands::power::HealArgs),
    Freeze(commands::power::FreezeArgs),
    Thaw(commands::power::ThawArgs),
    Down(commands::down::Args),
    Demo(commands::demo::Args),
    Bench(commands::bench::Args),
    #[command(name = integration::lab::GUARD_SUBCOMMAND, hide = true)]
    Guard(commands::internal::Args),
    #[command(name = integration::bench::probe::SUBCOMMAND, hide = true)]
    Probe(commands::internal::ProbeArgs),
    #[command(name = integration::forge::SUBCOMMAND, hide = true)]
    Forge(commands::internal::ForgeArgs),
    #[command(name = integration::lab::init::SUBCOMMAND, hide = true)]
    Node(commands::internal::Args),
}

fn main() {
    let cli = Cli::parse();
    let lab = &cli.lab;
    let result = match &cli.command {
        LabCommand::Up(args) => commands::up::run(lab, args),
        LabCommand::Exec(args) => commands::exec::run(lab, args),
        LabCommand::Status(args) => commands::status::run(lab, args),
        LabCommand::Kill(args) => commands::power::kill(lab, args),
        LabCommand::Start(args) => commands::power::start(lab, args),
        LabCommand::Cut(args) => commands::power::cut(lab, args),
        LabCommand::Heal(args) => commands::power::heal(lab, args),
        LabCommand::Freeze(args) => commands::power::freeze(lab, args),
        LabCommand::Thaw(args) => commands::power::thaw(lab, args),
        LabCommand::Down(args) => commands::down::run(lab, args),
        LabCommand::Demo(args) => commands::demo::run(args),
        LabCommand::Bench(args) => commands::bench::run(args),
        LabCommand::Probe(args) => commands::internal::probe(args),
        LabCommand::Forge(args) => commands::internal::forge(args),
        LabCommand::Guard(args) => commands::internal::guard(args),
        LabCommand::Node(args) => commands::internal::node(args),
    };
    if let Err(error) = result {
        eprintln!("lab: {error:#}");
        std::process::exit(1);
    }
}
