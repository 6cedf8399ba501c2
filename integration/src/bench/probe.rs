//! The part that runs in nodes: each probe prints one figure.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use super::abuse::{attacks, honest};
use crate::lab::Lab;
use crate::lab::run::output;

/// How the lab's program is called for a probe.
pub const SUBCOMMAND: &str = "__probe";
const PORT: u16 = 5099;
const PIECE_BYTES: usize = 1 << 20;
const ROUND_TRIPS: u32 = 5000;
const ROUND_TRIP_BYTES: usize = 64;
/// A probe's time in a node.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How long a probe goes on after its move, so that what comes late is seen.
const AFTERGLOW: Duration = Duration::from_millis(500);

/// The command of a probe, for `lab exec`: this very program, whether or not the node has it.
pub(super) fn command<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let program = ["/proc/self/exe", SUBCOMMAND].into_iter();
    program.chain(arguments).map(String::from).collect()
}

/// Runs a probe in a node and gives its figure.
pub(super) fn in_node<const N: usize>(lab: &Lab, node: &str, arguments: [&str; N]) -> Result<f64> {
    let result = output(&mut lab.command(node, command(arguments))?, TIMEOUT)?;
    let said = String::from_utf8_lossy(&result.stderr);
    ensure!(
        result.status.success(),
        "{node}: {}: {}",
        arguments.join(" "),
        said.trim()
    );
    let text = String::from_utf8_lossy(&result.stdout);
    text.trim()
        .parse()
        .with_context(|| format!("{}: {text}", arguments.join(" ")))
}

/// Runs a probe in this process, which is in a node.
///
/// # Errors
/// It is unknown, or what it tries fails.
pub fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve"] => serve(),
        ["tcp", "copy", node, bytes] => print(tcp_copy(node, bytes.parse()?)?),
        ["tcp", "rtt", node, _] => print(tcp_round_trip(node)?),
        ["read", path, bytes] => print(read(Path::new(path), bytes.parse()?)?),
        ["write", path, bytes] => print(write(Path::new(path), bytes.parse()?)?),
        ["homecalls", calls] => report(home_calls(calls.parse()?)?),
        ["honest", kind, target, seconds] => print(honest::run(kind, target, seconds.parse()?)?),
        ["attack", attack, target, seconds] => {
            print(attacks::run(attack, target, seconds.parse()?)?)
        }
        ["huge"] => attacks::huge(),
        ["heartbeat", bytes] => report(heartbeat(bytes.parse()?)?),
        _ => bail!("no such probe: {}", arguments.join(" ")),
    }
}

fn print(figure: f64) -> Result<()> {
    println!("{figure}");
    Ok(())
}

/// The figure of a probe whose standard output is what is measured.
fn report(figure: f64) -> Result<()> {
    fs::write("/root/probe-figure", format!("{figure}\n"))?;
    Ok(())
}

fn mib_per_s(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

/// Serves `tcp copy` and `tcp rtt` until it is killed: a first byte says which.
fn serve() -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || answer(stream));
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut what = [0];
    stream.read_exact(&mut what)?;
    let mut piece = vec![0; PIECE_BYTES];
    if what == *b"r" {
        loop {
            stream.read_exact(&mut piece[..ROUND_TRIP_BYTES])?;
            stream.write_all(&piece[..ROUND_TRIP_BYTES])?;
        }
    }
    while stream.read(&mut piece)? > 0 {}
    stream.write_all(b"k")?;
    Ok(())
}

fn connect(node: &str, what: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect((node, PORT))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[what])?;
    Ok(stream)
}

fn tcp_copy(node: &str, bytes: u64) -> Result<f64> {
    let mut stream = connect(node, b'c')?;
    let piece = vec![7; PIECE_BYTES];
    let start = Instant::now();
    for _ in 0..bytes / PIECE_BYTES as u64 {
        stream.write_all(&piece)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(mib_per_s(bytes, start.elapsed()))
}

fn tcp_round_trip(node: &str) -> Result<f64> {
    let mut stream = connect(node, b'r')?;
    let mut message = [7; ROUND_TRIP_BYTES];
    let start = Instant::now();
    for _ in 0..ROUND_TRIPS {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS))
}

fn read(path: &Path, bytes: u64) -> Result<f64> {
    let mut piece = vec![0; PIECE_BYTES];
    let start = Instant::now();
    let mut file = File::open(path)?;
    let mut total = 0;
    loop {
        match file.read(&mut piece)? {
            0 => break,
            length => total += length as u64,
        }
    }
    ensure!(total == bytes, "{total} bytes of {bytes} were read");
    Ok(mib_per_s(bytes, start.elapsed()))
}

fn write(path: &Path, bytes: u64) -> Result<f64> {
    let piece = vec![7; PIECE_BYTES];
    let start = Instant::now();
    let mut file = File::create(path)?;
    for _ in 0..bytes / PIECE_BYTES as u64 {
        file.write_all(&piece)?;
    }
    drop(file);
    Ok(mib_per_s(bytes, start.elapsed()))
}

/// Tells who this is and waits, working, until it was moved.
fn wait_for_move(mut work: impl FnMut()) -> Result<()> {
    fs::write("/root/probe-pid", format!("{}\n", std::process::id()))?;
    let mut next_look = Instant::now();
    loop {
        work();
        if Instant::now() >= next_look {
            if Path::new("/root/probe-go").exists() {
                return Ok(());
            }
            next_look = Instant::now() + Duration::from_millis(20);
        }
    }
}

/// Microseconds of a write of one byte to a pipe whose other end is at home.
fn home_calls(calls: u32) -> Result<f64> {
    wait_for_move(|| std::thread::sleep(Duration::from_millis(1)))?;
    let stdout = std::io::stdout();
    let start = Instant::now();
    for _ in 0..calls {
        nix::unistd::write(stdout.as_fd(), b".")?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(calls))
}

/// The longest gap, in milliseconds, between two looks at the clock of a process that changes some
/// of its `bytes` all the time. The wall clock, since a time namespace would hide the gap.
fn heartbeat(bytes: usize) -> Result<f64> {
    let mut memory: Vec<u8> = (0..bytes).map(|index| ((index * 31) >> 5) as u8).collect();
    let mut at = 0;
    let mut last = SystemTime::now();
    let mut longest = Duration::ZERO;
    let mut beat = || {
        at = (at + 4096 * 7) % bytes;
        if let Some(byte) = memory.get_mut(at) {
            *byte = byte.wrapping_add(1);
        }
        let now = SystemTime::now();
        longest = longest.max(now.duration_since(last).unwrap_or_default());
        last = now;
    };
    wait_for_move(&mut beat)?;
    let end = Instant::now() + AFTERGLOW;
    while Instant::now() < end {
        beat();
    }
    Ok(longest.as_secs_f64() * 1000.0)
}
