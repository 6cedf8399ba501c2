//! `omfs manpages`.

use std::io;
use std::path::PathBuf;

use crate::cli;
use crate::error::{CommandError, CommandResult};

/// Write the manual pages into a directory
///
/// Writes omfs.1 and one page per command into a directory.
#[derive(clap::Args, Debug)]
pub struct ManpagesArgs {
    /// The directory, made if it is missing, e.g. /usr/local/share/man/man1
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// Writes the pages.
///
/// # Errors
/// The directory cannot be written to.
pub fn run(args: &ManpagesArgs) -> CommandResult {
    let written = std::fs::create_dir_all(&args.dir)
        .and_then(|()| clap_mangen::generate_to(cli::definition(), &args.dir));
    written.map_err(|error| {
        let exit = CommandError::from(io::Error::from(error.kind())).exit;
        CommandError::new(exit, format_args!("{}: {error}", args.dir.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_gets_a_page() {
        let dir = tempfile::tempdir().unwrap();
        run(&ManpagesArgs {
            dir: dir.path().join("man/man1"),
        })
        .unwrap();
        let dir = dir.path().join("man/man1");
        for page in [
            "omfs.1",
            "omfs-migrate.1",
            "omfs-cluster-join.1",
            "omfs-ps.1",
        ] {
            let text = std::fs::read_to_string(dir.join(page)).unwrap();
            assert!(text.contains(".TH"), "{page}");
        }
        assert!(!dir.join("omfs-shim.1").exists());
    }
}
