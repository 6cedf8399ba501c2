//! Tests of the parts together: a cluster is made, joined, loaded, and refused.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use proto::ids::NodeId;

use super::join::{PendingJoin, fetch_ca};
use super::store::Store;
use super::testing::{TestCluster, pki_dir};
use super::{PkiError, TlsIdentity, TokenError};
use omfs_testing::lateness::Lateness;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[test]
fn a_cluster_is_made_once_and_loads_again() {
    let cluster = TestCluster::new("lab");
    let store = Store::new(cluster.dir.path());
    let identity = store.load().unwrap();
    assert_eq!((identity.node(), identity.node_name()), (NodeId(1), "n1"));
    assert_eq!(identity.cluster(), &cluster.name);
    assert!(store.is_authority());
    let again = store.init_cluster(&cluster.name, NodeId(1), "n1");
    assert!(matches!(again, Err(PkiError::AlreadyMember { .. })));
    for file in fs::read_dir(pki_dir(cluster.dir.path())).unwrap() {
        let mode = file.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn a_joined_node_loads_its_identity_and_holds_no_ca_key() {
    let cluster = TestCluster::new("lab");
    cluster.join(7);
    let store = Store::new(&cluster.dir.path().join("7"));
    assert_eq!(store.load().unwrap().node(), NodeId(7));
    assert!(store.is_member() && !store.is_authority());
    assert!(matches!(store.authority(), Err(PkiError::NotAuthority(_))));
    assert!(matches!(
        PendingJoin::new(&store, "n7"),
        Err(PkiError::AlreadyMember { .. })
    ));
}

#[test]
fn a_machine_outside_any_cluster_is_told_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = Store::new(dir.path()).load().unwrap_err();
    assert!(matches!(error, PkiError::NotJoined(_)));
    assert!(error.to_string().contains("omfs cluster join"));
}

#[test]
fn every_missing_or_damaged_file_is_named() {
    let cluster = TestCluster::new("lab");
    for name in ["ca.pem", "node.pem", "node-key.pem", "cluster.json"] {
        let path = pki_dir(cluster.dir.path()).join(name);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, "junk").unwrap();
        assert!(
            Store::new(cluster.dir.path()).load().is_err(),
            "{name} damaged"
        );
        fs::remove_file(&path).unwrap();
        let missing = Store::new(cluster.dir.path()).load().unwrap_err();
        assert!(missing.to_string().contains(name), "{missing}");
        fs::write(&path, whole).unwrap();
    }
    assert!(Store::new(cluster.dir.path()).load().is_ok());
}

#[test]
fn expired_early_foreign_and_misnamed_certificates_are_told_apart() {
    let (lab, other) = (TestCluster::new("lab"), TestCluster::new("lab"));
    let now = SystemTime::now();
    let good = lab.certificate_valid(5, now - DAY, now + DAY);
    assert!(lab.identity(5, &good).is_ok());
    let expired = lab.certificate_valid(5, now - 2 * DAY, now - DAY);
    assert!(matches!(lab.identity(5, &expired), Err(PkiError::Expired)));
    let early = lab.certificate_valid(5, now + DAY, now + 2 * DAY);
    assert!(matches!(
        lab.identity(5, &early),
        Err(PkiError::NotYetValid)
    ));
    let foreign = other.certificate_valid(5, now - DAY, now + DAY);
    assert!(matches!(lab.identity(5, &foreign), Err(PkiError::Foreign)));
    let (expected, found) = (NodeId(6), NodeId(5));
    match lab.identity(6, &good) {
        Err(PkiError::WrongNode {
            expected: e,
            found: f,
        }) => assert_eq!((e, f), (expected, found)),
        other => panic!("{other:?}"),
    }
    let wrong_key = (
        good.0.clone(),
        lab.certificate_valid(5, now - DAY, now + DAY).1,
    );
    assert!(matches!(lab.identity(5, &wrong_key), Err(PkiError::Tls(_))));
}

#[test]
fn a_certificate_with_a_reserved_name_is_refused() {
    let lab = TestCluster::new("lab");
    for name in ["here", "HOME", "17", "a/b", ""] {
        let named = lab.certificate_named(5, name);
        let own = lab.identity(5, &named);
        assert!(
            matches!(own, Err(PkiError::BadNodeName(_) | PkiError::NoNode(_))),
            "{name}: {own:?}"
        );
        let chain = super::identity::certificates(&named.0).unwrap();
        assert!(lab.first.peer(Some(&chain)).is_err(), "{name}");
    }
    let good = super::identity::certificates(&lab.certificate_named(5, "n5").0).unwrap();
    let peer = lab.first.peer(Some(&good)).unwrap();
    assert_eq!((peer.node, peer.name.as_str()), (NodeId(5), "n5"));
}

#[test]
fn a_request_signs_only_what_the_authority_says() {
    let cluster = TestCluster::new("lab");
    let store = Store::new(&cluster.dir.path().join("9"));
    let pending = PendingJoin::new(&store, "n9").unwrap();
    let sign = |csr: &[u8], id, name| cluster.authority.sign(csr, NodeId(id), name);
    assert!(matches!(
        sign(b"junk", 9, "n9"),
        Err(PkiError::BadRequest(_))
    ));
    assert!(matches!(
        sign(&[0; 20_000], 9, "n9"),
        Err(PkiError::BadRequest(_))
    ));
    let mut flipped = pending.csr_der().to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    assert!(matches!(
        sign(&flipped, 9, "n9"),
        Err(PkiError::BadRequest(_))
    ));
    assert!(matches!(
        sign(pending.csr_der(), 0, "n9"),
        Err(PkiError::BadNodeId(0))
    ));
    assert!(matches!(
        sign(pending.csr_der(), 9, "a/b"),
        Err(PkiError::BadNodeName(_))
    ));
    let pem = sign(pending.csr_der(), 9, "n9").unwrap();
    let token = cluster.token();
    // The id that the answer claims must be the one in the certificate.
    let lied = pending.finish(&store, &token, NodeId(8), &cluster.ca_pem(), &pem);
    assert!(matches!(lied, Err(PkiError::WrongNode { .. })));
    assert!(!store.is_member());
}

#[test]
fn an_answer_from_another_ca_than_the_tokens_is_refused() {
    let (lab, other) = (TestCluster::new("lab"), TestCluster::new("lab"));
    let store = Store::new(&lab.dir.path().join("9"));
    let pending = PendingJoin::new(&store, "n9").unwrap();
    let pem = other
        .authority
        .sign(pending.csr_der(), NodeId(9), "n9")
        .unwrap();
    let result = pending.finish(&store, &lab.token(), NodeId(9), &other.ca_pem(), &pem);
    assert!(matches!(result, Err(PkiError::Foreign)));
}

/// Serves one TLS handshake as the control plane would: no client certificate needed.
fn serve_once(identity: &TlsIdentity) -> std::net::SocketAddr {
    use rustls_pki_types::pem::PemObject;
    let pem = identity.pem();
    let chain = super::identity::certificates(&pem.certificate_chain).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(super::identity::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut tls = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let _ = tls.complete_io(&mut stream);
    });
    address
}

#[test]
fn the_token_finds_its_own_ca_and_refuses_others() {
    let (lab, other) = (TestCluster::new("lab"), TestCluster::new("lab"));
    let deadline = Duration::from_secs(5);
    let ca = fetch_ca(serve_once(&lab.first), &lab.token(), deadline).unwrap();
    let der = |pem: &str| super::identity::certificates(pem).unwrap();
    assert_eq!(der(&ca), der(&lab.ca_pem()));
    let wrong = fetch_ca(serve_once(&other.first), &lab.token(), deadline);
    assert!(matches!(wrong, Err(PkiError::Foreign)), "{wrong:?}");
    // Another node of the right cluster is not the one that signs.
    let elsewhere = fetch_ca(serve_once(&lab.join(2)), &lab.token(), deadline);
    assert!(
        matches!(elsewhere, Err(PkiError::WrongName)),
        "{elsewhere:?}"
    );
    let mut expired = lab.token();
    expired.expires_s = 1;
    let result = fetch_ca(serve_once(&lab.first), &expired, deadline);
    assert!(matches!(result, Err(PkiError::Token(TokenError::Expired))));
}

#[test]
fn a_silent_control_port_costs_the_deadline_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let cluster = TestCluster::new("lab");
    let (began, late) = (std::time::Instant::now(), Lateness::watch());
    let address = listener.local_addr().unwrap();
    let result = fetch_ca(address, &cluster.token(), Duration::from_millis(200));
    assert!(matches!(result, Err(PkiError::Io { .. })), "{result:?}");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3) + late.total(), "{took:?}");
}
