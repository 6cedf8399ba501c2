//! The control socket: a thread per connection reads commands and writes their events.

use std::io::{self, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use super::answers::Answers;
use super::inbox::{InboxSender, Input};
use crate::control::{Command, Event, read_line, write_line};

/// How long the process waits for its last answers to be written.
const FINISH_LIMIT: Duration = Duration::from_secs(2);
/// Most control connections at a time.
const CONNECTIONS_MAX: usize = 32;

/// A served control socket.
#[derive(Debug)]
pub struct Desk {
    unanswered: Arc<AtomicUsize>,
}

impl Desk {
    /// Waits until answers that were given are written, so that the process may end.
    pub fn finish(&self) {
        let deadline = Instant::now() + FINISH_LIMIT;
        while self.unanswered.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Serves a control socket until the process ends.
///
/// # Errors
/// No thread could be started.
pub fn serve(listener: UnixListener, inbox: InboxSender) -> io::Result<Desk> {
    let connections = Arc::new(AtomicUsize::new(0));
    let unanswered = Arc::new(AtomicUsize::new(0));
    let desk = Desk {
        unanswered: Arc::clone(&unanswered),
    };
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            if connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
                connections.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (inbox, count) = (inbox.clone(), Arc::clone(&connections));
            let unanswered = Arc::clone(&unanswered);
            let serve_one = move || {
                let _ = converse(&stream, &inbox, &unanswered);
                count.fetch_sub(1, Ordering::Relaxed);
            };
            let _ = thread::Builder::new()
                .name("control".to_owned())
                .stack_size(256 << 10)
                .spawn(serve_one);
        }
    };
    let builder = thread::Builder::new().name("desk".to_owned());
    builder.stack_size(128 << 10).spawn(accept)?;
    Ok(desk)
}

fn converse(stream: &UnixStream, inbox: &InboxSender, unanswered: &AtomicUsize) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream.try_clone()?;
    loop {
        let command: Command = match read_line(&mut reader) {
            Ok(command) => command,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => {
                let refusal = Event::Failed {
                    error: format!("no such command: {error}"),
                    cantmove: false,
                };
                return write_line(&mut writer, &refusal);
            }
        };
        let (answers, events) = Answers::channel();
        unanswered.fetch_add(1, Ordering::AcqRel);
        let answered = if inbox.put(Input::Command(command, answers)) {
            answer(&mut writer, &events)
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        };
        unanswered.fetch_sub(1, Ordering::AcqRel);
        answered?;
    }
}

fn answer(writer: &mut UnixStream, events: &Receiver<Event>) -> io::Result<()> {
    loop {
        let Ok(event) = events.recv() else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        write_line(writer, &event)?;
        if !matches!(event, Event::Progress { .. }) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Inbox;
    use super::*;

    #[test]
    fn commands_reach_the_loop_and_events_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1.sock");
        let inbox = Inbox::new().unwrap();
        serve(UnixListener::bind(&path).unwrap(), inbox.sender()).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let soon = Instant::now() + Duration::from_secs(10);
        write_line(&mut stream, &Command::Home).unwrap();
        let Some(Input::Command(Command::Home, answers)) = inbox.next(soon).unwrap() else {
            panic!("no command");
        };
        answers.send(Event::Done { freeze_us: 3 });
        let done = read_line::<Event>(&mut reader).unwrap();
        assert_eq!(done, Event::Done { freeze_us: 3 });
        write_line(&mut stream, &Command::Status).unwrap();
        let Some(Input::Command(_, answers)) = inbox.next(soon).unwrap() else {
            panic!("no command");
        };
        drop(answers);
        let closed = read_line::<Event>(&mut reader).unwrap_err();
        assert_eq!(closed.kind(), io::ErrorKind::UnexpectedEof);
    }
}
