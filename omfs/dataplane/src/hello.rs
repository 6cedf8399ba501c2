//! The first frame in each direction: who speaks, which versions, what for.

use std::io;
use std::time::{Duration, Instant};

use prost::Message;
use proto::frame::FrameKind;
use proto::ids::{NodeId, RequestId};
use proto::link::{FrameSink, send_message};
use proto::v1::Hello;

use super::reader::{Idle, TlsSource};
use omfs_pki::PkiError;

/// The oldest version of data-plane messages spoken here.
pub const VERSION_MIN: u32 = 1;
/// The newest version of data-plane messages spoken here.
pub const VERSION_MAX: u32 = 1;
/// `Hello.purpose` of file operations.
pub const PURPOSE_FS: &str = "fs";
/// `Hello.purpose` of migration and home calls.
pub const PURPOSE_JOB: &str = "job";

/// What a node says first. `boot_epoch` differs with every start of its daemon.
#[must_use]
pub fn hello(node: NodeId, purpose: &str, token: &[u8], boot_epoch: u64) -> Hello {
    Hello {
        min_version: VERSION_MIN,
        max_version: VERSION_MAX,
        node_id: node.0,
        purpose: purpose.to_owned(),
        token: token.to_vec(),
        boot_epoch,
    }
}

pub(super) fn send(sink: &dyn FrameSink, ours: &Hello) -> io::Result<()> {
    send_message(sink, FrameKind::Hello, RequestId(0), ours, &[])
}

/// Receives the peer's Hello and checks that it says the node its certificate says.
pub(super) fn receive(source: &mut TlsSource, peer: NodeId, until: Instant) -> io::Result<Hello> {
    const TICK: Duration = Duration::from_millis(50);
    source.set_tick(Some(TICK))?;
    source.set_until(Some(until));
    let frame = source
        .recv_until(&mut |_| Ok(Idle::Wait))?
        .ok_or(io::ErrorKind::TimedOut)?;
    source.set_until(None);
    source.set_tick(None)?;
    let bad = |reason| io::Error::new(io::ErrorKind::InvalidData, reason);
    if frame.kind != FrameKind::Hello {
        return Err(bad("the first frame is no Hello"));
    }
    let hello = Hello::decode(frame.header).map_err(|_| bad("malformed Hello"))?;
    if hello.node_id != peer.0 {
        let found = NodeId(hello.node_id);
        return Err(PkiError::WrongNode {
            expected: peer,
            found,
        }
        .into());
    }
    Ok(hello)
}

/// The version both sides speak: the newest common one.
///
/// # Errors
/// `Unsupported`, naming both ranges.
pub fn agree(ours: &Hello, theirs: &Hello) -> io::Result<u32> {
    let newest = ours.max_version.min(theirs.max_version);
    if newest >= ours.min_version.max(theirs.min_version) {
        return Ok(newest);
    }
    let reason = format!(
        "node {} speaks data-plane versions {} to {}, we speak {} to {}: upgrade the older node",
        theirs.node_id, theirs.min_version, theirs.max_version, ours.min_version, ours.max_version
    );
    Err(io::Error::new(io::ErrorKind::Unsupported, reason))
}
