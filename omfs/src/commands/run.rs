//! `omfs run`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use proto::v1::{Empty, MigrateRequest};

use crate::admin;
use crate::cli::Global;
use crate::commands::migrate;
use crate::error::{CommandError, CommandResult, Exit};
use crate::output;

/// Marks a job for the balancer; children inherit it.
pub const JOB_VARIABLE: &str = "OMFS_JOB";

/// Start a program that may move to other nodes
///
/// Starts a program that moves to idle nodes by itself, with all its children.
///
/// The program replaces `omfs run`: same PID, same terminal, and its own exit status.
#[derive(clap::Args, Debug)]
pub struct RunArgs {
    /// Start it and move it to this node at once; it stays there until moved by hand
    #[arg(long, value_name = "NODE", group = "place")]
    pub on: Option<String>,
    /// Keep it on this node: it cannot be moved
    #[arg(long, group = "place")]
    pub home: bool,
    /// It does not move by itself, but `omfs migrate` moves it
    #[arg(long, group = "place")]
    pub stay: bool,
    /// The program and its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "COMMAND"
    )]
    pub command: Vec<OsString>,
}

/// The helper that moves what `omfs run --on` has become.
#[derive(clap::Args, Debug)]
pub struct MoverArgs {
    /// The process to move
    #[arg(long)]
    pub pid: i32,
    /// Where to
    #[arg(long)]
    pub on: String,
    /// Start a second helper and end, so that the program gets no child it does not know
    #[arg(long)]
    pub detach: bool,
}

/// Becomes the program.
///
/// # Errors
/// It cannot be started; with `--on`, the node is not there.
pub fn run(global: &Global, args: &RunArgs) -> CommandResult {
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(CommandError::usage("which command shall be run?"));
    };
    match &args.on {
        Some(node) => {
            check_node(global, node)?;
            return run_and_move(global, node, program, arguments);
        }
        None => warn_if_nothing_moves(global),
    }
    let job = match (args.home, args.stay) {
        (true, _) => "home",
        (_, true) => "stay",
        _ => "balance",
    };
    become_program(program, arguments, job)
}

fn become_program(program: &OsStr, arguments: &[OsString], job: &str) -> CommandResult {
    let error = Command::new(program)
        .args(arguments)
        .env(JOB_VARIABLE, job)
        .exec();
    cannot_start(program, &error)
}

/// Ends the process as env(1) does when a program cannot be started.
///
/// # Errors
/// Never returns success.
pub fn cannot_start(program: &OsStr, error: &io::Error) -> CommandResult {
    output::warn(format_args!(
        "error: cannot start {}: {error}",
        program.display()
    ));
    std::process::exit(if error.kind() == io::ErrorKind::NotFound {
        127
    } else {
        126
    });
}

/// A job that could never move is not what the user wants, but it is better than no job.
pub fn warn_if_nothing_moves(global: &Global) {
    let reach = global.config().and_then(|config| {
        if nix::unistd::geteuid().is_root() && !config.balance.root_jobs {
            output::warn(
                "warning: root's jobs do not move by themselves\n\
                 hint: start them as an ordinary user, or set balance.root_jobs",
            );
        }
        std::os::unix::net::UnixStream::connect(config.admin_socket())
            .map_err(|error| CommandError::new(Exit::Unavailable, error))
    });
    if reach.is_err() {
        output::warn(
            "warning: the omfs daemon does not run here: jobs stay on this node\n\
             hint: start it with `omfs daemon`",
        );
    }
}

/// Refuses a node that is not there before anything is started.
fn check_node(global: &Global, node: &str) -> CommandResult {
    let nodes = admin::block_on(async {
        let mut client = admin::connect(&global.config()?).await?;
        Ok(client
            .nodes(Empty {})
            .await
            .map_err(admin::failed)?
            .into_inner()
            .nodes)
    })?;
    let found = nodes.iter().find(|status| {
        let (id, name) = match &status.node {
            Some(node) => (node.id.to_string(), node.name.as_str()),
            None => return false,
        };
        id == node || name == node
    });
    match found {
        None => Err(
            CommandError::failure(format_args!("there is no node {node}"))
                .hint("`omfs nodes` lists them"),
        ),
        Some(status) if status.state == "dead" => Err(CommandError::new(
            Exit::Unavailable,
            format_args!("node {node} does not answer"),
        )),
        Some(_) => Ok(()),
    }
}

/// Becomes the program, with a helper beside it that notices the exec (a pipe end closes) and
/// then asks the daemon to move this PID.
fn run_and_move(
    global: &Global,
    node: &str,
    program: &OsStr,
    arguments: &[OsString],
) -> CommandResult {
    let (reader, writer) = io::pipe()?;
    let mut helper = Command::new(std::env::current_exe()?);
    if let Some(config) = &global.config_path {
        helper.arg("--config").arg(config);
    }
    let own_pid = std::process::id().to_string();
    helper.args(["mover", "--detach", "--pid", &own_pid, "--on", node]);
    let status = helper.stdin(reader).stdout(Stdio::null()).status()?;
    if !status.success() {
        return Err(CommandError::failure(
            "the helper that moves the program did not start",
        ));
    }
    let result = become_program(program, arguments, "stay");
    drop(writer);
    result
}

/// Waits until the program has replaced `omfs run`, then moves it.
///
/// # Errors
/// It could not be moved, which is also said on standard error; the program runs on here.
pub fn mover(global: &Global, args: &MoverArgs) -> CommandResult {
    if args.detach {
        let mut second = Command::new(std::env::current_exe()?);
        if let Some(config) = &global.config_path {
            second.arg("--config").arg(config);
        }
        let pid = args.pid.to_string();
        second.args(["mover", "--pid", &pid, "--on", &args.on]);
        second.stdout(Stdio::null()).spawn()?;
        return Ok(());
    }
    // Nothing is ever written: the end of the file is the exec, or the death, of the other side.
    let _ = io::stdin().lock().read(&mut [0]);
    let moved = admin::block_on(async {
        let mut client = admin::connect(&global.config()?).await?;
        let request = MigrateRequest {
            pid: args.pid,
            target: args.on.clone(),
            automatic: false,
        };
        let stream = client.migrate(request).await.map_err(admin::failed)?;
        migrate::follow_quietly(stream.into_inner()).await
    });
    match moved {
        // It had nothing more to do, or could not even be started, and that was said.
        Err(_) if !std::path::Path::new(&format!("/proc/{}", args.pid)).exists() => Ok(()),
        moved => moved.map_err(|error| stays(args, &error)),
    }
}

fn stays(args: &MoverArgs, reason: &impl fmt::Display) -> CommandError {
    let reason = reason.to_string();
    let reason = reason.strip_prefix("error: ").unwrap_or(&reason);
    CommandError::failure(format_args!(
        "process {} runs on here and not on {}: {reason}",
        args.pid, args.on
    ))
}
