//! The daemon that ran here before this one, and may not be gone altogether.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use super::patience;

/// The kernel gives back what a killed process held only after its memory, when it has ceased to
/// be seen; on a busy machine that takes a while. Whoever starts the next daemon cannot know.
pub const ENDS_MAX: Duration = Duration::from_secs(2);

/// Listens on a port that a daemon had a moment ago.
///
/// # Errors
/// Those of bind(2): `EADDRINUSE` when it is another program's.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let is_held = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    patience::attempt(ENDS_MAX, is_held, || TcpListener::bind(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_had_when_its_holder_ends_soon() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(40));
            drop(holder);
        });
        listen(address).unwrap();
        ending.join().unwrap();
    }

    #[test]
    fn what_somebody_keeps_is_not_waited_for_for_ever() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = listen(holder.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
