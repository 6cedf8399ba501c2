//! Both ends of a migration on one machine, without the rest of omfs: for tests and for trying.
//!
//! ```text
//! two_nodes supervisor PID SOCKET NAME [ROOT]   waits at SOCKET for process PID and hosts it, with
//!                                               ROOT for home's tree
//! two_nodes shim PID DIRECTORY                  holds PID; commands go to DIRECTORY/shim.sock
//! two_nodes send DIRECTORY COMMAND              one line of JSON; prints the events
//! ```
//! The address of a `migrate` command is a supervisor's SOCKET. A token of `cut:N` cuts the
//! connection after N bytes in either direction.

use std::io::{self, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use migrator::capture::identity;
use migrator::control::{self, Event};
use migrator::keeper::SILENCE_MAX;
use migrator::shim::{self, Connector, ShimConfig};
use migrator::supervisor::{self, SupervisorConfig};
use proto::frame::Frame;
use proto::link::{FrameSink, FrameSource, Link, Outgoing, unix_link};

fn main() -> io::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["supervisor", pid, socket, name] => host(parse(pid)?, Path::new(socket), name, "/"),
        ["supervisor", pid, socket, name, root] => host(parse(pid)?, Path::new(socket), name, root),
        ["shim", pid, directory] => hold(parse(pid)?, Path::new(directory)),
        ["send", directory, command] => send(Path::new(directory), command),
        _ => Err(io::Error::other("see the first lines of two_nodes.rs")),
    }
}

fn parse(pid: &str) -> io::Result<i32> {
    pid.parse().map_err(io::Error::other)
}

fn host(pid: i32, socket: &Path, name: &str, root: &str) -> io::Result<()> {
    // Whoever sees the socket can connect: it is there only when it is listened on.
    let early = socket.with_extension("new");
    let listener = UnixListener::bind(&early)?;
    std::fs::rename(&early, socket)?;
    let (stream, _) = listener.accept()?;
    std::fs::remove_file(socket)?;
    let config = SupervisorConfig {
        home_pid: pid,
        home_start_ticks: 0,
        home: "home".into(),
        here: name.into(),
        root: PathBuf::from(root),
        proc_dir: PathBuf::from(format!("/proc/{pid}")),
        mfs: None,
        stage: std::env::temp_dir(),
        cgroups: Vec::new(),
        quota: None,
        state_file: None,
        silence_max: SILENCE_MAX,
    };
    supervisor::run(config, unix_link(stream)?, None)
}

fn hold(pid: i32, directory: &Path) -> io::Result<()> {
    let socket = directory.join("shim.sock");
    let _ = std::fs::remove_file(&socket);
    let control = UnixListener::bind(socket)?;
    let config = ShimConfig {
        pid,
        start_ticks: 0,
        here: "home".into(),
        state_file: Some(directory.join("shim.json")),
        moves_before: 0,
        silence_max: SILENCE_MAX,
    };
    shim::run(config, Arc::new(UnixConnector), control)
}

fn send(directory: &Path, command: &str) -> io::Result<()> {
    let mut stream = UnixStream::connect(directory.join("shim.sock"))?;
    let mut command: control::Command = serde_json::from_str(command)?;
    if let control::Command::Migrate { expected, .. } = &mut command {
        let pid = control::read_state(&directory.join("shim.json"))?.pid;
        *expected = Some(identity::expected(pid)?);
    }
    control::write_line(&mut stream, &command)?;
    let mut reader = BufReader::new(stream);
    loop {
        let event: Event = control::read_line(&mut reader)?;
        println!("{event:?}");
        match event {
            Event::Progress { .. } => {}
            Event::Failed { error, .. } => return Err(io::Error::other(error)),
            Event::Done { .. } | Event::State(_) => return Ok(()),
        }
    }
}

#[derive(Debug)]
struct UnixConnector;

impl Connector for UnixConnector {
    fn connect(&self, address: &str, token: &str) -> io::Result<Link> {
        let link = unix_link(UnixStream::connect(address)?)?;
        match token.strip_prefix("cut:") {
            None => Ok(link),
            Some(bytes) => {
                let left = Arc::new(AtomicI64::new(bytes.parse().map_err(io::Error::other)?));
                Ok(Link {
                    sink: Arc::new(CutSink(link.sink, Arc::clone(&left))),
                    source: Box::new(CutSource(link.source, left)),
                })
            }
        }
    }
}

/// Breaks the connection after so many bytes.
#[derive(Debug)]
struct CutSink(Arc<dyn FrameSink>, Arc<AtomicI64>);

#[derive(Debug)]
struct CutSource(Box<dyn FrameSource>, Arc<AtomicI64>);

fn spend(left: &AtomicI64, bytes: usize) -> io::Result<()> {
    let bytes = i64::try_from(bytes + 32).map_err(io::Error::other)?;
    if left.fetch_sub(bytes, Ordering::Relaxed) < bytes {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    Ok(())
}

impl FrameSink for CutSink {
    fn send(&self, frame: Outgoing<'_>) -> io::Result<()> {
        let bytes = frame.header.len() + frame.payload_bytes();
        spend(&self.1, bytes).inspect_err(|_| self.0.close())?;
        self.0.send(frame)
    }

    fn close(&self) {
        self.0.close();
    }
}

impl FrameSource for CutSource {
    fn recv(&mut self) -> io::Result<Frame> {
        let frame = self.0.recv()?;
        spend(&self.1, frame.header.len() + frame.payload.len())?;
        Ok(frame)
    }
}
