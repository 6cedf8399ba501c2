//! A job, its shim, and as many hosts as are asked for, on one machine.

use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use migrator::capture::identity;
use migrator::control::{self, Event, JobState};

/// The most any step of a test may take.
pub const LIMIT: Duration = Duration::from_secs(120);

/// One job away from home, or about to be.
pub struct Lab {
    pub directory: tempfile::TempDir,
    pub pid: i32,
    shim: Option<Child>,
    hosts: Vec<Child>,
    next_host: u32,
    /// What hosts take for home's tree.
    pub root: PathBuf,
}

fn keeper(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_two_nodes"))
        .args(args)
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until something is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !so() {
        assert!(Instant::now() < deadline, "timeout: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Lab {
    pub fn new(pid: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            directory,
            pid: i32::try_from(pid).unwrap(),
            shim: None,
            hosts: Vec::new(),
            next_host: 1,
            root: PathBuf::from("/"),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn socket(&mut self) -> PathBuf {
        let socket = self.path("shim.sock");
        let over = |shim: &mut Child| shim.try_wait().unwrap().is_some();
        if self.shim.as_mut().is_none_or(over) {
            let _ = std::fs::remove_file(&socket);
            let directory = self.directory.path().to_str().unwrap();
            self.shim = Some(keeper(&["shim", &self.pid.to_string(), directory]));
            until("the shim's socket", || UnixStream::connect(&socket).is_ok());
        }
        socket
    }

    /// Sends a command; a shim that has just ended is replaced.
    pub fn command(&mut self, command: &control::Command) -> Event {
        for _ in 0..10 {
            let socket = self.socket();
            match Self::send(&socket, command) {
                Ok(event) => return event,
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        panic!("no shim answers");
    }

    /// Sends commands at the same time to the shim there is.
    pub fn commands_at_once(&mut self, commands: Vec<control::Command>) -> Vec<Event> {
        let socket = self.socket();
        let send = |command| {
            let socket = socket.clone();
            std::thread::spawn(move || Self::send(&socket, &command).unwrap())
        };
        let all: Vec<_> = commands.into_iter().map(send).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    }

    fn send(socket: &Path, command: &control::Command) -> std::io::Result<Event> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        control::write_line(&mut stream, command)?;
        stream.flush()?;
        let mut reader = BufReader::new(stream);
        loop {
            match control::read_line(&mut reader)? {
                Event::Progress { .. } => {}
                event => return Ok(event),
            }
        }
    }

    /// Moves the job to a new host; `token` may ask for faults.
    pub fn try_migrate(&mut self, token: &str) -> Event {
        let order = self.new_host(token);
        self.command(&order)
    }

    /// A new host, and the order that sends the job there.
    pub fn new_host(&mut self, token: &str) -> control::Command {
        let name = format!("host{}", self.next_host);
        self.next_host += 1;
        let socket = self.path(&name);
        let address = socket.to_str().unwrap().to_owned();
        let pid = self.pid.to_string();
        let root = self.root.to_str().unwrap();
        let host = keeper(&["supervisor", &pid, &address, &name, root]);
        self.hosts.push(host);
        until("the supervisor's socket", || socket.exists());
        control::Command::Migrate {
            node: name,
            address,
            token: token.to_owned(),
            expected: self.expected(),
        }
    }

    /// Moves the job to where nobody listens.
    pub fn try_migrate_to(&mut self, address: &str) -> Event {
        self.command(&control::Command::Migrate {
            node: "nowhere".into(),
            address: address.to_owned(),
            token: String::new(),
            expected: self.expected(),
        })
    }

    /// The job as it is now.
    fn expected(&self) -> Option<control::ExpectedProcess> {
        identity::expected(self.pid).ok()
    }

    pub fn migrate(&mut self) {
        let event = self.try_migrate("");
        assert!(matches!(event, Event::Done { .. }), "{event:?}");
    }

    pub fn home(&mut self) {
        let event = self.command(&control::Command::Home);
        assert!(matches!(event, Event::Done { .. }), "{event:?}");
        if let Some(mut shim) = self.shim.take() {
            wait(&mut shim);
        }
    }

    pub fn state(&self) -> JobState {
        control::read_state(&self.path("shim.json")).unwrap()
    }

    /// The supervisor that was started last.
    pub fn last_host(&mut self) -> &mut Child {
        self.hosts.last_mut().unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in self.hosts.iter_mut().chain(&mut self.shim) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits for a child with a limit.
pub fn wait(child: &mut Child) -> ExitStatus {
    let mut status = None;
    until("the end of a process", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// Ends a job that a failed test would leave behind.
pub struct Job(pub Child);

impl Job {
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.0)
    }

    /// Waits until it sleeps, as programs do that have nothing to do.
    pub fn until_asleep(&self) {
        let stat = format!("/proc/{}/stat", self.0.id());
        until("a sleeping job", || {
            let text = std::fs::read_to_string(&stat).unwrap();
            text.rsplit_once(") ").unwrap().1.starts_with('S')
        });
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id()));
        tasks.map_or(0, Iterator::count)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Real bytes of the machine, as many as asked for.
pub fn real_data(path: &Path, bytes: usize) {
    let mut data = Vec::with_capacity(bytes);
    for directory in ["/usr/bin", "/usr/lib/x86_64-linux-gnu"] {
        let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().flatten().collect();
        files.sort_by_key(std::fs::DirEntry::path);
        for file in files {
            if data.len() < bytes && file.path().is_file() {
                data.extend(std::fs::read(file.path()).unwrap_or_default());
            }
        }
    }
    data.truncate(bytes);
    std::fs::write(path, data).unwrap();
}

/// Becomes true at the end of a scope, failed or not.
pub struct OnDrop<'b>(pub &'b AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
