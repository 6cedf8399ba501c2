//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser};
use omfs_client::mount_helper::is_helper_name;
use omfs_config::Config;

use crate::commands::Command;
use crate::error::{CommandError, CommandResult, Exit};

const AFTER_HELP: &str = "\
Exit status:
  0   done
  1   tried, and it went wrong
  2   the command line or the configuration file makes no sense
  69  the daemon, or the node in question, does not answer
  75  the process cannot be moved now; it runs on where it was (the reason is on standard error)
  77  you may not do that
`omfs run` and `omfs shell` end as the program they start; 126 and 127 mean that it could not be started.

Getting started:
  first node:   omfs cluster init NAME; omfs daemon; omfs cluster token
  other nodes:  omfs cluster join ADDRESS --token -; omfs daemon
  everywhere:   mount -t fuse.omfs omfs /mfs; omfs nodes; omfs run COMMAND";

/// A rack of Linux machines that behaves like one.
///
/// omfs shows every node's files below /mfs on every node, and moves running processes between
/// nodes while they keep their PID, terminal and files.
#[derive(Parser, Debug)]
#[command(name = "omfs", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub struct Cli {
    /// Configuration file; /etc/omfs/omfs.toml if not given.
    #[arg(long, global = true, value_name = "FILE", env = "OMFS_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print JSON instead of tables and sentences.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    command: Command,
}

/// What every command gets.
#[derive(Debug)]
pub struct Global {
    /// The configuration file that was asked for.
    pub config_path: Option<PathBuf>,
    /// Whether programs read our output.
    pub json: bool,
}

impl Global {
    /// The node's settings.
    ///
    /// # Errors
    /// The file is wrong, with line and key.
    pub fn config(&self) -> Result<Config, CommandError> {
        Ok(Config::load_or_default(self.config_path.as_deref())?)
    }
}

/// The whole command line's definition, for manual pages and tests.
pub fn definition() -> clap::Command {
    crate::help::with_examples(Cli::command())
}

/// Runs what the arguments say.
///
/// # Errors
/// What the command gives.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> CommandResult {
    let arguments: Vec<_> = arguments.into_iter().collect();
    if let Some((program, rest)) = arguments.split_first()
        && is_helper_name(program)
    {
        return crate::commands::mount_helper::run_as_helper(rest);
    }
    let parsed = definition()
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    let global = Global {
        config_path: cli.config,
        json: cli.json,
    };
    cli.command.run(&global)
}

/// Help and version are no errors.
fn explain(error: &clap::Error) -> CommandResult {
    if error.use_stderr() {
        let text = error.render().to_string();
        let text = text.trim_end().strip_prefix("error: ").unwrap_or(&text);
        return Err(CommandError::new(Exit::Usage, text.trim_end()));
    }
    crate::output::print(&error.render().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
    }

    #[test]
    fn every_command_and_option_has_help() {
        fn look(command: &clap::Command, path: &str) {
            assert!(command.get_about().is_some(), "{path}");
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{path} {}",
                    argument.get_id()
                );
            }
            for inner in command
                .get_subcommands()
                .filter(|inner| !inner.is_hide_set())
            {
                look(inner, &format!("{path} {}", inner.get_name()));
            }
        }
        look(&definition(), "omfs");
    }

    #[test]
    fn the_long_help_tells_what_the_short_one_leaves_out() {
        let mut omfs = definition();
        let mut long = |name: &str| {
            let command = omfs.find_subcommand_mut(name).unwrap();
            command.render_long_help().to_string()
        };
        assert!(long("migrate").contains("75"));
        assert!(long("bring").contains("lstay"));
        assert!(long("expel").contains("Returns when"));
        assert!(long("top").contains("Keys"));
        assert!(long("block").contains("restart"));
        assert!(long("unlock").contains("balancer"));
    }

    #[test]
    fn every_command_has_examples_that_parse() {
        fn look(command: &mut clap::Command, path: &str) {
            let visible: Vec<_> = command
                .get_subcommands()
                .filter(|inner| !inner.is_hide_set() && inner.get_name() != "help")
                .map(|inner| inner.get_name().to_owned())
                .collect();
            for name in visible {
                let path = format!("{path} {name}");
                let inner = command.find_subcommand_mut(&name).unwrap();
                let help = inner.render_long_help().to_string();
                let (_, examples) = help.split_once("Examples:\n").expect(&path);
                let is_shown = examples.contains(&path) || name == "mount-helper";
                assert!(is_shown, "{path}: {examples}");
                assert!(examples.contains("Exit status"), "{path}: {examples}");
                for line in examples.lines() {
                    let line = line.split(['#', ';', '|', '&']).next().unwrap().trim();
                    if line.starts_with("omfs ") && !line.contains('\'') {
                        let words = line.split_whitespace();
                        definition().try_get_matches_from(words).expect(line);
                    }
                }
                look(inner, &path);
            }
        }
        look(&mut definition(), "omfs");
    }

    #[test]
    fn wrong_usage_has_its_own_status() {
        let error = run(["omfs", "fly"].map(OsString::from)).unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        assert!(error.message.contains("fly"), "{error}");
    }
}
