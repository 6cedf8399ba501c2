//! `omfs cluster token`, `tokens`, and where `join` takes its token from.

use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use omfs_pki::{Authority, PkiError, Store, Token, TokenEntry};
use proto::v1::admin_client::AdminClient;
use proto::v1::{Empty, TokenRequest, WithdrawTokenRequest};
use serde_json::json;
use tonic::transport::Channel;

use super::pki;
use crate::admin;
use crate::cli::Global;
use crate::error::{CommandError, CommandResult, Exit};
use crate::output;

/// The environment variable with a token.
const VARIABLE: &str = "OMFS_TOKEN";
/// No token is so long.
const TOKEN_BYTES_MAX: u64 = 1024;

/// Print a token that lets a machine join; on the node that made the cluster
///
/// Prints a token on one line. Whoever has it can make a machine a node of the cluster until it
/// has been used or expires, so hand it over as you would a password.
#[derive(clap::Args, Debug)]
pub struct TokenArgs {
    /// How long the token works: a number with s, m, h or d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    valid: Duration,
    /// How many machines may join with it
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// Instead of making one, make the token of this id worthless; `omfs cluster tokens` lists ids
    #[arg(long, value_name = "ID")]
    withdraw: Option<String>,
}

/// List the join tokens that still work
///
/// Lists the join tokens that still work, without their secrets; on the node that made the cluster.
#[derive(clap::Args, Debug)]
pub struct TokensArgs {}

/// Where `join` takes the token from.
#[derive(clap::Args, Debug)]
pub struct TokenSource {
    /// `-`: read the token from standard input
    #[arg(long, value_name = "-", conflicts_with = "token_file")]
    token: Option<String>,
    /// Read the token from this file. Without either option it is in the environment, OMFS_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is no time: a number with s, m, h or d, as in 90s, 10m, 1h, 7d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    count
        .checked_mul(factor)
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

/// Asks the daemon; without one, root works on the files.
fn ask<T>(
    global: &Global,
    call: impl AsyncFnOnce(AdminClient<Channel>) -> Result<T, tonic::Status>,
    by_hand: impl FnOnce(&Authority) -> Result<T, PkiError>,
) -> Result<T, CommandError> {
    let config = global.config()?;
    let asked = admin::block_on(async {
        let client = admin::connect(&config).await?;
        call(client).await.map_err(admin::failed)
    });
    match asked {
        Err(error) if error.exit == Exit::Unavailable => {
            let authority = Store::new(&config.node.state_dir).authority();
            authority
                .and_then(|authority| by_hand(&authority))
                .map_err(pki)
        }
        asked => asked,
    }
}

/// Makes a token, or withdraws one.
///
/// # Errors
/// The caller is not root; this node does not hold the CA key.
pub fn token(global: &Global, args: &TokenArgs) -> CommandResult {
    if let Some(id) = &args.withdraw {
        return withdraw(global, id);
    }
    let (valid, uses) = (args.valid, args.uses);
    let request = TokenRequest {
        ttl_s: valid.as_secs(),
        uses,
    };
    let text = ask(
        global,
        async |mut client| Ok(client.token(request).await?.into_inner().token),
        |authority| Ok(authority.issue_token(valid, uses)?.to_string()),
    )?;
    if global.json {
        return output::print_json(&json!({ "token": text }));
    }
    output::print(&format!("{text}\n"))
}

fn withdraw(global: &Global, id: &str) -> CommandResult {
    let request = WithdrawTokenRequest { id: id.to_owned() };
    let found = ask(
        global,
        async |mut client| client.withdraw_token(request).await.map(|_| true),
        |authority| authority.tokens().withdraw(id),
    )?;
    if !found {
        let error = CommandError::failure(format_args!("there is no join token {id:?}"));
        return Err(error.hint("`omfs cluster tokens` lists them"));
    }
    if global.json {
        return output::print_json(&json!({ "withdrawn": id }));
    }
    Ok(())
}

/// Lists the tokens.
///
/// # Errors
/// As for [`token`].
pub fn list(global: &Global, _args: &TokensArgs) -> CommandResult {
    let tokens = ask(
        global,
        async |mut client| {
            let reply = client.tokens(Empty {}).await?.into_inner();
            let entries = reply.tokens.into_iter().map(|token| TokenEntry {
                id: token.id,
                expires_s: token.expires_unix_s,
                uses: token.uses,
            });
            Ok(entries.collect::<Vec<_>>())
        },
        |authority| authority.tokens().list(),
    )?;
    if global.json {
        let entries = tokens.iter().map(|token| {
            json!({ "id": token.id, "expires_unix_s": token.expires_s, "uses": token.uses })
        });
        return output::print_json(&entries.collect::<Vec<_>>());
    }
    let rows = tokens.iter().map(row).collect();
    output::print(&output::table(&["ID", "USES", "EXPIRES"], rows))
}

fn row(token: &TokenEntry) -> Vec<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_s = now.map_or(0, |since| since.as_secs());
    let left_s = token.expires_s.saturating_sub(now_s);
    let left = match left_s {
        0..=119 => format!("in {left_s} s"),
        120..=7199 => format!("in {} min", left_s / 60),
        _ => format!("in {} h", left_s / 3600),
    };
    let uses = token.uses.map_or("any".to_owned(), |uses| uses.to_string());
    vec![token.id.clone(), uses, left]
}

/// The token to join with. It is never an argument: every user sees those.
///
/// # Errors
/// There is none, or it is none.
pub fn read(source: &TokenSource) -> Result<Token, CommandError> {
    let text = match (&source.token, &source.token_file) {
        (Some(dash), _) if dash == "-" => limited(std::io::stdin(), "standard input")?,
        (Some(_), _) => {
            let error = CommandError::usage("a token is no argument: every user could read it");
            return Err(
                error.hint("use `--token -` and standard input, --token-file, or OMFS_TOKEN")
            );
        }
        (None, Some(path)) => {
            let shown = path.display().to_string();
            let file = std::fs::File::open(path)
                .map_err(|error| CommandError::failure(format_args!("{shown}: {error}")))?;
            limited(file, &shown)?
        }
        (None, None) => std::env::var(VARIABLE).map_err(|_| {
            let error = CommandError::usage("there is no token to join with");
            error.hint("use `--token -` and standard input, --token-file, or OMFS_TOKEN")
        })?,
    };
    text.parse().map_err(|error: omfs_pki::TokenError| {
        CommandError::usage(error).hint("make one with `omfs cluster token` on the first node")
    })
}

fn limited(source: impl Read, name: &str) -> Result<String, CommandError> {
    let mut text = String::new();
    let read = source.take(TOKEN_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| CommandError::failure(format_args!("{name}: {error}")))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in ["", "1", "h", "0h", "-1h", "1w", "ü", "99999999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_as_an_argument_is_refused() {
        let source = TokenSource {
            token: Some("omfs1-00".into()),
            token_file: None,
        };
        assert_eq!(read(&source).unwrap_err().exit, Exit::Usage);
    }
}
