//! Many threads in one session: nothing is mixed up, nothing is left.

use proto::v1::fs_request::Op;
use proto::v1::{Flush, Lock, Release};

use super::client::{Client, ROOT, need_root};
use crate::limits::Limits;

const THREADS: u32 = 8;
const ROUNDS: u32 = 60;

/// One user's life: creates, writes, locks, reads back, lists, removes, forgets.
fn live(client: &Client, round: u32) {
    let uid = client.caller.uid;
    let name = format!("{uid}-{round}");
    let flags = libc::O_RDWR | libc::O_EXCL;
    let file = client.create(ROOT, &name, 0o600, flags).expect("create");
    assert_eq!(
        file.attr.expect("attributes").uid,
        uid,
        "somebody else's identity"
    );
    client.write(file.fh, 0, name.as_bytes()).expect("write");
    let lock = Lock {
        fh: file.fh,
        owner: uid.into(),
        end: u64::MAX,
        r#type: libc::F_WRLCK as u32,
        ..Lock::default()
    };
    client
        .call(Op::SetLock(lock))
        .expect("nobody else has this file");
    let found = client.lookup(ROOT, &name).expect("lookup");
    assert_eq!(found.node, file.node);
    let fh = client.open(found.node, libc::O_RDONLY).expect("open");
    assert_eq!(client.read(fh, 0, 100).as_deref(), Ok(name.as_bytes()));
    if round.is_multiple_of(8) {
        for item in client.list(ROOT, 4096, true).expect("list") {
            item.entry
                .iter()
                .for_each(|entry| client.forget(entry.node, 1));
        }
    }
    client.unlink(ROOT, &name).expect("unlink");
    assert_eq!(client.get_attr(file.node).expect("attributes").nlink, 0);
    client
        .call(Op::Flush(Flush {
            fh,
            lock_owner: uid.into(),
            lease: 0,
        }))
        .expect("flush");
    for fh in [fh, file.fh] {
        client
            .call(Op::Release(Release {
                fh,
                flock_owner: None,
            }))
            .expect("release");
    }
    client.forget(file.node, 2);
}

#[test]
fn threads_of_a_session_leave_nothing_behind() {
    need_root();
    let dir = Client::new().dir;
    let root = Client::on(dir, Limits::new(200, 100, 8));
    std::os::unix::fs::chown(root.dir.path(), Some(0), Some(3000)).expect("chown");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o775);
    std::fs::set_permissions(root.dir.path(), mode).expect("chmod");
    std::thread::scope(|scope| {
        for n in 0..THREADS {
            let user = root.user(2000 + n, 2000 + n, &[3000]);
            scope.spawn(move || (0..ROUNDS).for_each(|round| live(&user, round)));
        }
    });
    assert_eq!(root.session.nodes.len(), 1, "the root alone is left");
    assert_eq!(root.export.limits.in_use(), [0, 0, 0]);
    let left = std::fs::read_dir(root.dir.path()).expect("list").count();
    assert_eq!(left, 0);
}
