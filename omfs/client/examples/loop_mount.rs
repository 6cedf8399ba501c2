//! Mounts a directory tree twice in one process, for test suites and measurements: as this
//! node's own files (`/n1`, `/here`) and as another node's (`/n2`), without network.
//!
//! `loop_mount EXPORTED_DIR MOUNT_POINT [--no-passthrough]`, as root; ends when unmounted.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use omfs_client::options::MountOptions;
use omfs_client::{FsConfig, NoGuests, NoStatus, RemoteServices, RemoteSession};
use omfs_export::exports::Exports;
use omfs_export::{Export, ExportConfig, ExportSession};
use omfs_service::peers::{Liveness, Peer, PeerDirectory};
use omfs_service::{Errno, SessionPeer};
use proto::ids::NodeId;

#[derive(Debug)]
struct Two;

impl PeerDirectory for Two {
    fn myself(&self) -> NodeId {
        NodeId(1)
    }

    fn peers(&self) -> Vec<Peer> {
        let peer = |id: u32, liveness| Peer {
            id: NodeId(id),
            name: format!("n{id}"),
            control: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            data: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            liveness,
        };
        vec![peer(1, Liveness::Myself), peer(2, Liveness::Alive)]
    }
}

#[derive(Debug)]
struct Loop(Arc<ExportSession>);

impl RemoteServices for Loop {
    fn session(&self, _node: NodeId) -> Result<RemoteSession, Errno> {
        Ok(RemoteSession {
            epoch: 1,
            service: self.0.clone(),
        })
    }
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [exported, target, flags @ ..] = args.as_slice() else {
        anyhow::bail!("usage: loop_mount EXPORTED_DIR MOUNT_POINT [--no-passthrough]");
    };
    let target = PathBuf::from(target);
    let mut config = ExportConfig::new(exported);
    config.exports = Arc::new(Exports::unsquashed());
    let export = Export::new(config)?;
    let session = |is_local| {
        export.session(SessionPeer {
            node: NodeId(1),
            is_local,
        })
    };
    let fuse = omfs_client::mount::mount_fuse("omfs", &target, MountOptions::default())?;
    let session = omfs_client::serve(
        fuse,
        FsConfig {
            peers: Arc::new(Two),
            local: session(true),
            remote: Arc::new(Loop(session(false))),
            guests: Arc::new(NoGuests),
            status: Arc::new(NoStatus),
            threads: 4,
            owner_wait: std::time::Duration::from_secs(5),
            passthrough: !flags.iter().any(|flag| flag == "--no-passthrough"),
        },
    )?;
    println!("mounted");
    session.join()?;
    Ok(())
}
