//! `omfs block`, `unblock`, `stay`, `nostay`, `lstay`, `nolstay`, `quiet`, `noquiet`.

use proto::v1::{PolicyRequest, StatusReply};

use crate::admin;
use crate::cli::Global;
use crate::commands::status;
use crate::error::{CommandError, CommandResult};

/// What these commands have in common.
pub const AFTER_HELP: &str = "\
Root only. It holds until the opposite is said, also after a restart of the daemon; the
configuration file's [policy] holds until the first such command. `omfs status` shows it.";

/// Nothing: the command says it all.
#[derive(clap::Args, Debug)]
pub struct PolicyArgs {}

/// What is changed.
#[derive(Clone, Copy, Debug)]
pub enum Verb {
    /// Guests come in or not.
    Block,
    /// Anything leaves by itself or not.
    Stay,
    /// Own processes leave by themselves or not.
    LocalStay,
    /// The load is told or not.
    Quiet,
}

/// Changes the policy and, with `--json`, prints the new status.
///
/// # Errors
/// The daemon does not answer, or the caller is not root.
pub fn run(global: &Global, _args: &PolicyArgs, verb: Verb, on: bool) -> CommandResult {
    let reply = admin::block_on(set(global, verb, on))?;
    if global.json {
        status::print(global, &reply)?;
    }
    Ok(())
}

async fn set(global: &Global, verb: Verb, on: bool) -> Result<StatusReply, CommandError> {
    let mut request = PolicyRequest::default();
    let field = match verb {
        Verb::Block => &mut request.block,
        Verb::Stay => &mut request.stay,
        Verb::LocalStay => &mut request.local_stay,
        Verb::Quiet => &mut request.quiet,
    };
    *field = Some(on);
    let mut client = admin::connect(&global.config()?).await?;
    let reply = client.set_policy(request).await.map_err(admin::failed)?;
    Ok(reply.into_inner())
}
