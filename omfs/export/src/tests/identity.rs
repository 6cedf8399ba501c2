//! Operations have the rights of their caller, no more and no less.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use proto::v1::fs_request::Op;
use proto::v1::{SetAttr, Write};

use super::client::{Client, ROOT, need_root};
use crate::Errno;

const DENIED: Errno = Errno(libc::EACCES);

/// A tree that everybody may enter, with `secret` (0600) and `group` (0640, group 5000) of 1000.
fn tree() -> Client {
    need_root();
    let client = Client::new();
    set_mode(&client, "", 0o777);
    for (name, gid, mode) in [("secret", 1000, 0o600), ("group", 5000, 0o640)] {
        fs::write(client.path(name), "x").expect("write");
        chown(client.path(name), Some(1000), Some(gid)).expect("chown");
        set_mode(&client, name, mode);
    }
    client
}

fn set_mode(client: &Client, name: &str, mode: u32) {
    fs::set_permissions(client.path(name), fs::Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn another_user_is_denied() {
    let root = tree();
    let (owner, other) = (root.user(1000, 1000, &[]), root.user(1001, 1001, &[]));
    let secret = root.lookup(ROOT, "secret").expect("lookup").node;
    assert!(owner.open(secret, libc::O_RDWR).is_ok());
    assert_eq!(other.open(secret, libc::O_RDONLY), Err(DENIED));
    assert!(
        root.open(secret, libc::O_RDWR).is_ok(),
        "root keeps its capabilities"
    );
    let size = SetAttr {
        node: secret,
        size: Some(0),
        ..SetAttr::default()
    };
    assert_eq!(other.set_attr(size).err(), Some(DENIED));
    let mode = SetAttr {
        node: secret,
        mode: Some(0o777),
        ..SetAttr::default()
    };
    assert_eq!(other.set_attr(mode).err(), Some(Errno(libc::EPERM)));
}

#[test]
fn supplementary_groups_count() {
    let root = tree();
    let group = root.lookup(ROOT, "group").expect("lookup").node;
    assert_eq!(
        root.user(1001, 1001, &[]).open(group, libc::O_RDONLY),
        Err(DENIED)
    );
    let member = root.user(1001, 1001, &[7, 5000]);
    assert!(member.open(group, libc::O_RDONLY).is_ok());
    assert_eq!(member.open(group, libc::O_RDWR), Err(DENIED));
    assert!(
        root.user(1001, 5000, &[])
            .open(group, libc::O_RDONLY)
            .is_ok()
    );
}

#[test]
fn directories_must_be_searchable() {
    let root = tree();
    let dir = root.mkdir(ROOT, "private", 0o700).expect("mkdir");
    fs::write(root.path("private/file"), "x").expect("write");
    let other = root.user(1001, 1001, &[]);
    assert_eq!(other.lookup(dir.node, "file").err(), Some(DENIED));
    assert_eq!(
        other.create(dir.node, "new", 0o600, libc::O_RDWR).err(),
        Some(DENIED)
    );
    assert_eq!(other.unlink(dir.node, "file").err(), Some(DENIED));
    assert_eq!(other.list(dir.node, 4096, false).err(), Some(DENIED));
    // Reading needs no right to search, so names are shown, but no entries.
    set_mode(&root, "private", 0o704);
    let items = other.list(dir.node, 4096, true).expect("readable");
    assert!(items.len() == 3 && items.iter().all(|item| item.entry.is_none()));
}

#[test]
fn new_files_belong_to_their_maker() {
    let root = tree();
    let user = root.user(1234, 4321, &[99]);
    let file = user
        .create(ROOT, "mine", 0o4666, libc::O_RDWR)
        .expect("create");
    let attr = file.attr.expect("attributes");
    assert_eq!(
        (attr.uid, attr.gid, attr.mode & 0o7777),
        (1234, 4321, 0o4644)
    );
    let dir = user
        .mkdir(ROOT, "dir", 0o1777)
        .expect("mkdir")
        .attr
        .expect("attributes");
    assert_eq!((dir.uid, dir.gid, dir.mode & 0o7777), (1234, 4321, 0o1755));
    let native = fs::metadata(root.path("mine")).expect("stat");
    assert_eq!((native.uid(), native.gid()), (1234, 4321));
}

#[test]
fn the_thread_is_itself_again_afterwards() {
    let root = tree();
    let other = root.user(1001, 1001, &[5, 6]);
    let before = fs::read_to_string("/proc/thread-self/status").expect("status");
    let secret = root.lookup(ROOT, "secret").expect("lookup").node;
    assert_eq!(other.open(secret, libc::O_RDONLY), Err(DENIED));
    other
        .create(ROOT, "new", 0o666, libc::O_RDWR)
        .expect("create");
    let after = fs::read_to_string("/proc/thread-self/status").expect("status");
    for key in ["Uid:", "Gid:", "Groups:", "CapEff:", "Umask:"] {
        let line = |text: &str| {
            text.lines()
                .find(|line| line.starts_with(key))
                .map(str::to_owned)
                .expect("key")
        };
        assert_eq!(line(&before), line(&after));
    }
}

#[test]
fn writing_clears_setuid_for_users_only() {
    let root = tree();
    let user = root.user(1000, 1000, &[]);
    for (writer, left) in [(&user, 0o777), (&root, 0o6777)] {
        fs::write(root.path("tool"), "x").expect("write");
        chown(root.path("tool"), Some(1000), Some(1000)).expect("chown");
        set_mode(&root, "tool", 0o6777);
        let node = root.lookup(ROOT, "tool").expect("lookup").node;
        let fh = writer.open(node, libc::O_WRONLY).expect("open");
        writer.write(fh, 0, b"y").expect("write");
        assert_eq!(root.get_attr(node).expect("attributes").mode & 0o7777, left);
        fs::remove_file(root.path("tool")).expect("unlink");
    }
}

#[test]
fn chown_is_roots_and_clears_setuid() {
    let root = tree();
    let user = root.user(1000, 1000, &[5000]);
    let node = root.lookup(ROOT, "secret").expect("lookup").node;
    set_mode(&root, "secret", 0o6755);
    let give = SetAttr {
        node,
        uid: Some(1001),
        ..SetAttr::default()
    };
    assert_eq!(user.set_attr(give).err(), Some(Errno(libc::EPERM)));
    let group = SetAttr {
        node,
        gid: Some(5000),
        ..SetAttr::default()
    };
    let attr = user.set_attr(group).expect("a group of the own");
    assert_eq!((attr.gid, attr.mode & 0o7777), (5000, 0o755));
    set_mode(&root, "secret", 0o6755);
    let attr = root.set_attr(give).expect("root may");
    assert_eq!((attr.uid, attr.mode & 0o7777), (1001, 0o755));
}

#[test]
fn sticky_directories_protect() {
    let root = tree();
    let dir = root.mkdir(ROOT, "tmp", 0o777).expect("mkdir").node;
    set_mode(&root, "tmp", 0o1777);
    let (user, other) = (root.user(1000, 1000, &[]), root.user(1001, 1001, &[]));
    user.create(dir, "f", 0o666, libc::O_RDWR).expect("create");
    assert_eq!(other.unlink(dir, "f"), Err(Errno(libc::EPERM)));
    assert_eq!(
        other.rename((dir, "f"), (dir, "g"), 0),
        Err(Errno(libc::EPERM))
    );
    assert_eq!(user.unlink(dir, "f"), Ok(()));
}

#[test]
fn a_writer_that_may_not_keep_set_id_bits_clears_them_whoever_opened() {
    let root = tree();
    fs::write(root.path("program"), "x").expect("write");
    let node = root.lookup(ROOT, "program").expect("lookup").node;
    let fh = root.open(node, libc::O_WRONLY).expect("open");
    for (kill_suidgid, before, after) in [
        (false, 0o6775, 0o6775),
        (true, 0o6775, 0o775),
        (true, 0o6765, 0o2765),
    ] {
        set_mode(&root, "program", before);
        let write = Write {
            fh,
            kill_suidgid,
            ..Write::default()
        };
        root.count_with(Op::Write(write), b"y").expect("write");
        let mode = fs::metadata(root.path("program")).expect("stat").mode();
        assert_eq!(mode & 0o7777, after);
    }
}

#[test]
fn who_may_remove_nothing_holds_nothing() {
    let root = tree();
    set_mode(&root, "", 0o755);
    fs::create_dir(root.path("dir")).expect("mkdir");
    let user = root.user(1001, 1001, &[]);
    for name in ["secret", "group", "dir"] {
        user.lookup(ROOT, name).expect("lookup");
        let removed = match name {
            "dir" => user.rmdir(ROOT, name),
            _ => user.unlink(ROOT, name),
        };
        assert_eq!(removed, Err(DENIED));
    }
    let renamed = user.rename((ROOT, "secret"), (ROOT, "group"), 0);
    assert_eq!(renamed, Err(DENIED));
    let [_, pinned, _] = root.export.limits.in_use();
    assert_eq!(pinned, 0);
}
