//! Options and error words of the data plane's sockets.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

/// How often a blocked sender looks whether its deadline has passed.
pub(super) const SEND_TICK: Duration = Duration::from_millis(250);
/// Without traffic, the kernel asks the peer after so many seconds,
const KEEPALIVE_IDLE_S: u32 = 5;
/// then every so many seconds,
const KEEPALIVE_INTERVAL_S: u32 = 2;
/// and gives up after so many unanswered probes.
const KEEPALIVE_PROBES: u32 = 3;
/// Bytes that the peer has not acknowledged for this long end the connection: keepalive does not
/// work while some are on their way (tcp(7), TCP_USER_TIMEOUT).
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// Prepares a connected socket for frames: no delay, bounded sends, dead peers noticed.
///
/// # Errors
/// setsockopt(2).
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(SEND_TICK))?;
    stream.set_read_timeout(None)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    set_unacknowledged(stream, UNACKNOWLEDGED)
}

/// Sets how long the peer's kernel may acknowledge nothing before the connection ends.
///
/// # Errors
/// setsockopt(2).
pub(super) fn set_unacknowledged(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    setsockopt(stream, sockopt::TcpUserTimeout, &limit_ms)?;
    Ok(())
}
