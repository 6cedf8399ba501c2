//! Trees on overlayfs, as nodes in containers have them, in a mount namespace of the test's own.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use proto::v1::SetAttr;

use super::client::{Client, ROOT, need_root};
use crate::Errno;
use crate::limits::Limits;

/// Runs `test` on an overlay with `lower` directories `d/e` and files `a` and `d/f`. The namespace,
/// and with it the mounts, ends with the thread.
fn on_overlay(options: &str, limits: Limits, test: impl FnOnce(Client) + Send) {
    need_root();
    let dir = tempfile::tempdir().expect("temporary directory");
    let run = || {
        unshare(CloneFlags::CLONE_NEWNS).expect("mount namespace");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private");
        let merged = mount_overlay(dir.path(), options);
        let target = Arc::new(tempfile::TempDir::with_prefix_in("x", dir.path()).expect("dir"));
        let bind = MsFlags::MS_BIND;
        mount(
            Some(&merged),
            target.path(),
            None::<&str>,
            bind,
            None::<&str>,
        )
        .expect("bind");
        test(Client::on(target, limits));
    };
    std::thread::scope(|scope| scope.spawn(run).join().expect("the test passes"));
}

fn mount_overlay(base: &Path, options: &str) -> std::path::PathBuf {
    let none = MsFlags::empty();
    mount(Some("t"), base, Some("tmpfs"), none, None::<&str>).expect("tmpfs");
    for name in ["lower/d/e", "upper", "work", "merged"] {
        fs::create_dir_all(base.join(name)).expect("mkdir");
    }
    fs::write(base.join("lower/a"), "lower").expect("write");
    fs::write(base.join("lower/d/f"), "lower").expect("write");
    let at = |name: &str| base.join(name).display().to_string();
    let data = format!(
        "lowerdir={},upperdir={},workdir={},{options}",
        at("lower"),
        at("upper"),
        at("work")
    );
    mount(
        Some("o"),
        &base.join("merged"),
        Some("overlay"),
        none,
        Some(data.as_str()),
    )
    .expect("overlay");
    base.join("merged")
}

/// Nodes stay what they are when their inodes are copied up, moved and removed.
fn check_identity(client: &Client) {
    let idle = || (0..3).for_each(|_| client.session.nodes.sweep());
    let a = client.lookup(ROOT, "a").expect("lookup");
    let d = client.lookup(ROOT, "d").expect("lookup");
    let f = client.lookup(d.node, "f").expect("lookup");
    let e = client.lookup(d.node, "e").expect("lookup");
    idle();
    let reading = client.open(a.node, libc::O_RDONLY).expect("open");
    let chmod = SetAttr {
        node: a.node,
        mode: Some(0o600),
        ..SetAttr::default()
    };
    client.set_attr(chmod).expect("copies it up");
    idle();
    assert_eq!(client.get_attr(a.node).expect("found").mode & 0o777, 0o600);
    assert_eq!(client.lookup(ROOT, "a").expect("lookup").node, a.node);
    assert_eq!(client.read(reading, 0, 10).as_deref(), Ok(&b"lower"[..]));
    let chmod = SetAttr {
        node: d.node,
        mode: Some(0o700),
        ..SetAttr::default()
    };
    client.set_attr(chmod).expect("copies the directory up");
    idle();
    assert_eq!(client.lookup(ROOT, "d").expect("lookup").node, d.node);
    client
        .rename((d.node, "f"), (ROOT, "moved"), 0)
        .expect("rename");
    idle();
    assert_eq!(client.lookup(ROOT, "moved").expect("lookup").node, f.node);
    let fh = client.open(f.node, libc::O_RDWR).expect("open");
    client.write(fh, 0, b"UPPER").expect("write");
    assert_eq!(fs::read(client.path("moved")).expect("native"), b"UPPER");
    client.unlink(ROOT, "moved").expect("unlink");
    client.rmdir(d.node, "e").expect("rmdir");
    idle();
    assert_eq!(client.read(fh, 0, 10).as_deref(), Ok(&b"UPPER"[..]));
    assert!(
        client.get_attr(f.node).is_ok(),
        "known, though it has no name"
    );
    assert!(
        client.get_attr(e.node).is_ok(),
        "known, though it has no name"
    );
}

#[test]
fn identity_survives_on_an_overlay_with_handles() {
    on_overlay("index=on,nfs_export=on", Limits::new(50, 4, 2), |client| {
        check_identity(&client);
        for n in 0..100 {
            let name = format!("{n}");
            client
                .create(ROOT, &name, 0o644, libc::O_RDWR)
                .and_then(|f| client.release(f.fh))
                .expect("create");
        }
        assert_eq!(client.session.nodes.len(), 105);
    });
}

#[test]
fn identity_survives_on_a_plain_overlay() {
    on_overlay(
        "index=off,nfs_export=off",
        Limits::new(50, 50, 2),
        |client| check_identity(&client),
    );
}

#[test]
fn inodes_without_handles_are_bounded() {
    on_overlay(
        "index=off,nfs_export=off",
        Limits::new(50, 2, 2),
        |client| {
            let a = client.lookup(ROOT, "a").expect("first");
            let d = client.lookup(ROOT, "d").expect("second");
            assert_eq!(client.lookup(d.node, "f").err(), Some(Errno(libc::ENFILE)));
            assert_eq!(client.lookup(ROOT, "a").expect("known").node, a.node);
            client.forget(a.node, 2);
            assert!(client.lookup(d.node, "f").is_ok(), "there is room again");
        },
    );
}
