//! Sessions that follow each other on one mount.
//!
//! The kernel shakes hands once per mount, and the FUSE crate once per session. So a session that
//! takes over a mount shakes hands with ourselves, over a socket, which is then replaced by the
//! mount's own descriptor. What the kernel granted to the first session holds for all.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

use fuser::{InitFlags, SessionACL};

use super::passthrough::Modes;
use super::{Adapter, CAPABILITIES, Session, options, start, threads};
use crate::config::FsConfig;
use crate::journal::{Journal, Left};
use omfs_sys as sys;

/// `FUSE_INIT` of fuse_kernel.h.
const INIT: u32 = 26;
/// The version of that protocol that we pretend to be offered.
const VERSION: (u32, u32) = (7, 40);
const READAHEAD_BYTES: u32 = 128 << 10;

/// Serves a new mount as [`super::serve`], and leaves in `journal` what [`resume`] needs.
///
/// # Errors
/// Those of [`super::serve`], and of making the journal.
pub fn serve_first(fuse: OwnedFd, config: FsConfig, journal: &Path) -> io::Result<Session> {
    let options = options(threads(&config));
    let adapter = Adapter::new(&fuse, config, Journal::create(journal)?)?;
    let core = Arc::clone(&adapter.core);
    let session = fuser::Session::from_fd(adapter, fuse, SessionACL::All, options)?;
    start(session, core)
}

/// Serves a mount that an earlier session has served until its process ended. Requests that it had
/// taken and not answered are handled now: those that it had carried out nevertheless are carried
/// out twice, as on NFS.
///
/// # Errors
/// The journal cannot be read.
pub fn resume(fuse: OwnedFd, config: FsConfig, journal: &Path) -> io::Result<Session> {
    let options = options(threads(&config));
    let left = Left::read(journal)?;
    let adapter = Adapter::new(&fuse, config, Journal::succeed(journal, &left))?;
    let core = Arc::clone(&adapter.core);
    inherit(&adapter.modes, &left);
    adapter.core.inherit(left);
    let (kernel, ours) = UnixDatagram::pair()?;
    kernel.send(&init_request())?;
    let session = fuser::Session::from_fd(adapter, ours.into(), SessionACL::All, options)?;
    sys::fuse::replace(session.as_fd(), fuse.as_fd())?;
    if let Err(error) = sys::fuse::resend(fuse.as_fd()) {
        tracing::warn!("requests that the last daemon had taken are lost: {error}");
    }
    start(session, core)
}

fn inherit(modes: &Modes, left: &Left) {
    for open in left.opens.iter().filter(|open| !open.directory) {
        modes.inherit(open.id, open.backing, open.unmappable);
    }
}

/// struct fuse_in_header and struct fuse_init_in, in this machine's byte order.
pub(super) fn init_request() -> Vec<u8> {
    let wanted = CAPABILITIES
        .into_iter()
        .chain([InitFlags::FUSE_PASSTHROUGH, InitFlags::FUSE_INIT_EXT]);
    let flags = wanted.fold(0, |all, flag| all | flag.bits());
    let (low, high) = (flags & 0xffff_ffff, flags >> 32);
    let low = u32::try_from(low).unwrap_or_default();
    let high = u32::try_from(high).unwrap_or_default();
    let words = [
        104, // bytes in all
        INIT,
        1, // unique, 64 bits
        0,
        0, // node, 64 bits
        0,
        0, // uid, gid, pid
        0,
        0,
        0, // extensions
        VERSION.0,
        VERSION.1,
        READAHEAD_BYTES,
        low,
        high,
    ];
    let mut bytes: Vec<u8> = words
        .iter()
        .flat_map(|word: &u32| word.to_ne_bytes())
        .collect();
    bytes.resize(104, 0);
    bytes
}
