//! Who may have how many connections and requests, at the control port and the admin socket.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Extensions;
use omfs_limits::connections::Policy;
use omfs_limits::permits::{Caps, Permit, Permits};
use omfs_limits::rate::{KeyedRate, Rate};
use omfs_limits::source::Source;
use omfs_pki::TlsIdentity;
use proto::ids::NodeId;
use tonic::Status;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo};

use super::port_guard::{GuardInfo, UnderWay};
use super::request_limits::Gate;

/// The kernel's number of the superuser.
const ROOT: u32 = 0;

/// Connections to the control port. A client has to show a certificate, or ask the `Join` service,
/// before it counts as silent for too long.
pub const CONTROL_CONNECTIONS: Policy = Policy {
    per_key: 32,
    common: 128,
    reserved: 256,
    known: 1024,
    silent_max: Duration::from_secs(10),
    idle_max: Duration::from_secs(10),
    idle_min: Duration::from_secs(1),
};
/// Requests of one member, and of all.
const MEMBER_REQUESTS: Caps = Caps {
    per_key: 128,
    total: 1024,
};
/// Requests from one address without a certificate, and from all.
const STRANGER_REQUESTS: Caps = Caps {
    per_key: 4,
    total: 32,
};

/// Connections to the admin socket, by user; root has room of its own.
pub const ADMIN_CONNECTIONS: Policy = Policy {
    per_key: 64,
    common: 512,
    reserved: 64,
    known: 0,
    silent_max: Duration::from_secs(5),
    idle_max: Duration::from_secs(60),
    idle_min: Duration::ZERO,
};
/// Admin requests under way of one user, and of all but root.
const USER_REQUESTS: Caps = Caps {
    per_key: 64,
    total: 256,
};
/// Those of root, which count beyond.
const ROOT_REQUESTS: Caps = Caps {
    per_key: 512,
    total: 768,
};
/// Admin requests that one user may begin.
const USER_RATE: Rate = Rate {
    burst: 200,
    interval: Duration::from_millis(1),
};
/// Users whose rates are remembered.
const USERS_MAX: usize = 1024;

/// By what connections to the control port are counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ControlKey {
    /// No certificate was shown yet.
    Stranger(Source),
    /// The node of the certificate.
    Member(NodeId),
}

impl fmt::Display for ControlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stranger(source) => source.fmt(f),
            Self::Member(node) => write!(f, "node {node}"),
        }
    }
}

/// What a request to the control port tells of its connection.
pub type ControlInfo = GuardInfo<TcpConnectInfo, ControlKey>;
/// What one to the admin socket tells.
pub type AdminInfo = GuardInfo<UdsConnectInfo, u32>;

/// The chain that the client of a request has shown, verified by TLS.
pub fn peer_chain(
    extensions: &Extensions,
) -> Option<std::sync::Arc<Vec<rustls_pki_types::CertificateDer<'static>>>> {
    let info = extensions.get::<TlsConnectInfo<ControlInfo>>();
    info.and_then(TlsConnectInfo::peer_certs)
}

/// Where the client of a request to the control port is.
pub fn peer_address(extensions: &Extensions) -> Option<std::net::SocketAddr> {
    let info = extensions.get::<ControlInfo>();
    info.and_then(|info| info.inner.remote_addr())
}

/// The control port's.
#[derive(Debug)]
pub struct ControlGate {
    identity: TlsIdentity,
    members: Permits<NodeId>,
    strangers: Permits<Source>,
}

impl ControlGate {
    /// Of the node with this certificate.
    pub fn new(identity: TlsIdentity) -> Self {
        Self {
            identity,
            members: Permits::new(MEMBER_REQUESTS),
            strangers: Permits::new(STRANGER_REQUESTS),
        }
    }
}

/// A request to the control port under way.
pub struct ControlRequest {
    _under_way: UnderWay<ControlKey>,
    _permit: Result<Permit<NodeId>, Permit<Source>>,
}

impl Gate for ControlGate {
    type Held = ControlRequest;

    fn enter(&self, extensions: &mut Extensions, _path: &str) -> Result<ControlRequest, Status> {
        let chain = peer_chain(extensions);
        let info = extensions.get::<ControlInfo>();
        let info = info.ok_or_else(|| Status::internal("a connection without a place"))?;
        let chain = chain.as_ref().map(|chain| chain.as_slice());
        let permit = match self.identity.peer_node(chain) {
            Ok(node) => {
                let identified = info.place.identify(ControlKey::Member(node));
                identified.map_err(|_| too_many("connections", &node))?;
                let permit = self.members.take(node);
                Ok(permit.map_err(|_| too_many("requests", &node))?)
            }
            Err(_) => {
                let address = info.inner.remote_addr();
                let address = address.ok_or_else(|| Status::internal("no address"))?;
                let source = Source::from(address.ip());
                let permit = self.strangers.take(source);
                Err(permit.map_err(|_| too_many("requests", &source))?)
            }
        };
        Ok(ControlRequest {
            _under_way: UnderWay::new(info.place.clone()),
            _permit: permit,
        })
    }
}

fn too_many(what: &str, whose: &dyn fmt::Display) -> Status {
    Status::resource_exhausted(format!("too many {what} of {whose}"))
}

/// The admin socket's.
#[derive(Debug)]
pub struct AdminGate {
    requests: Permits<u32>,
    rates: Mutex<KeyedRate<u32>>,
}

impl Default for AdminGate {
    fn default() -> Self {
        Self {
            requests: Permits::new(USER_REQUESTS),
            rates: Mutex::new(KeyedRate::new(USER_RATE, USERS_MAX)),
        }
    }
}

impl AdminGate {
    fn take(&self, uid: u32) -> Result<Permit<u32>, Status> {
        if uid != ROOT {
            let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = rates.take(&uid, Instant::now());
            taken.map_err(|_| Status::resource_exhausted("too many requests a second: wait"))?;
        }
        let caps = match uid {
            ROOT => ROOT_REQUESTS,
            _ => USER_REQUESTS,
        };
        let permit = self.requests.take_within(uid, caps);
        permit.map_err(|_| {
            let text = format!("user {uid} has too many requests under way: wait for some to end");
            Status::resource_exhausted(text)
        })
    }
}

/// An admin request under way.
pub struct AdminRequest {
    _under_way: UnderWay<u32>,
    _permit: Permit<u32>,
}

impl Gate for AdminGate {
    type Held = AdminRequest;

    fn enter(&self, extensions: &mut Extensions, _path: &str) -> Result<AdminRequest, Status> {
        let info = extensions.get::<AdminInfo>().cloned();
        let info = info.ok_or_else(|| Status::internal("a connection without a place"))?;
        let credentials = info.inner.peer_cred;
        let nobody = || Status::unauthenticated("the kernel does not say who you are");
        let uid = credentials.ok_or_else(nobody)?.uid();
        let held = AdminRequest {
            _under_way: UnderWay::new(info.place),
            _permit: self.take(uid)?,
        };
        extensions.insert(info.inner);
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_who_asks_without_end_leaves_room_for_others_and_root() {
        let gate = AdminGate::default();
        let mut held = Vec::new();
        let mut refusals = 0;
        for _ in 0..1000 {
            match gate.take(1000) {
                Ok(permit) => held.push(permit),
                Err(status) => {
                    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
                    refusals += 1;
                }
            }
        }
        assert_eq!(
            (held.len(), refusals),
            (USER_REQUESTS.per_key, 1000 - held.len())
        );
        assert!(gate.take(1001).is_ok());
        for uid in 2000..2100 {
            held.extend((0..10).filter_map(|_| gate.take(uid).ok()));
        }
        assert_eq!(gate.requests.held(), USER_REQUESTS.total);
        assert!(gate.take(1001).is_err());
        assert!(gate.take(ROOT).is_ok());
    }
}
