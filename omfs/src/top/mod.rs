//! The live view: asks the daemon once a second, draws, and carries out what keys say.

mod state;
#[cfg(test)]
mod tests;
mod view;

use std::time::Duration;

use proto::v1::admin_client::AdminClient;
use proto::v1::{Empty, MigrateRequest, PsRequest};
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::sync::mpsc;
use tonic::transport::Channel;

use crate::admin;
use crate::commands::migrate;
use crate::error::{CommandError, CommandResult};
use state::{Action, Snapshot, State};

/// How often the daemon is asked.
const REFRESH: Duration = Duration::from_secs(1);
/// Keys that wait while the screen is drawn.
const KEYS_MAX: usize = 64;

/// Asks the daemon for everything that is shown.
///
/// # Errors
/// The daemon's.
pub async fn fetch(client: &mut AdminClient<Channel>) -> Result<Snapshot, CommandError> {
    let status = client
        .status(Empty {})
        .await
        .map_err(admin::failed)?
        .into_inner();
    let nodes = client
        .nodes(Empty {})
        .await
        .map_err(admin::failed)?
        .into_inner()
        .nodes;
    let request = PsRequest { all: false };
    let processes = client
        .ps(request)
        .await
        .map_err(admin::failed)?
        .into_inner()
        .processes;
    Ok(Snapshot {
        status,
        nodes,
        processes,
    })
}

/// Runs until the user quits.
///
/// # Errors
/// The daemon stopped answering at the start, or the terminal's.
pub async fn run(mut client: AdminClient<Channel>) -> CommandResult {
    let mut state = State::new(fetch(&mut client).await?);
    let keys = read_keys();
    let mut terminal = ratatui::init();
    let result = show(&mut terminal, &mut state, client, keys).await;
    ratatui::restore();
    result
}

async fn show(
    terminal: &mut ratatui::DefaultTerminal,
    state: &mut State,
    mut client: AdminClient<Channel>,
    mut keys: mpsc::Receiver<Event>,
) -> CommandResult {
    let mut refresh = tokio::time::interval(REFRESH);
    let (tell, mut told) = mpsc::channel(KEYS_MAX);
    loop {
        terminal.draw(|frame| view::draw(frame, state))?;
        tokio::select! {
            _ = refresh.tick() => match fetch(&mut client).await {
                Ok(snapshot) => state.update(snapshot),
                Err(error) => state.message = Some(error.message),
            },
            Some(text) = told.recv() => state.message = Some(text),
            key = keys.recv() => match key {
                None => return Ok(()),
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => match state.key(key) {
                    Action::Nothing => {}
                    Action::Quit => return Ok(()),
                    action => spawn(client.clone(), action, tell.clone()),
                },
                Some(_) => {}
            },
        }
    }
}

/// Moves take seconds: they go on while the view lives.
fn spawn(client: AdminClient<Channel>, action: Action, tell: mpsc::Sender<String>) {
    tokio::spawn(async move {
        let text = match perform(client, &action).await {
            Ok(()) => format!("{action}: done"),
            Err(error) => format!("{action}: {}", error.message),
        };
        let _ = tell.send(text).await;
    });
}

async fn perform(mut client: AdminClient<Channel>, action: &Action) -> CommandResult {
    let stream = match action {
        Action::Move { pid, target } => {
            let request = MigrateRequest {
                pid: *pid,
                target: target.clone(),
                automatic: false,
            };
            client.migrate(request).await
        }
        Action::Expel => client.expel(Empty {}).await,
        Action::Nothing | Action::Quit => return Ok(()),
    };
    migrate::follow_quietly(stream.map_err(admin::failed)?.into_inner()).await
}

/// Reading a terminal blocks, so it has a thread; it ends with the process.
fn read_keys() -> mpsc::Receiver<Event> {
    let (send, receive) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if send.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receive
}
