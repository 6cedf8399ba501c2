//! What one user can do with files of the own.

use std::fs;
use std::time::{Duration, Instant};

use proto::v1::SetAttr;

use super::client::{Client, ROOT};
use crate::Errno;

#[test]
fn what_is_written_is_read() {
    let client = Client::new();
    let file = client
        .create(ROOT, "a", 0o644, libc::O_RDWR)
        .expect("create");
    assert_eq!(client.write(file.fh, 3, b"hello"), Ok(5));
    assert_eq!(client.append(file.fh, b"!"), Ok(1));
    assert_eq!(
        client.read(file.fh, 0, 100).as_deref(),
        Ok(&b"\0\0\0hello!"[..])
    );
    assert_eq!(client.read(file.fh, 9, 100).as_deref(), Ok(&b""[..]));
    assert_eq!(
        fs::read(client.path("a")).expect("native read"),
        b"\0\0\0hello!"
    );
    client.release(file.fh).expect("release");
    assert_eq!(client.read(file.fh, 0, 1), Err(Errno(libc::EBADF)));
}

#[test]
fn one_inode_is_one_node() {
    let client = Client::new();
    fs::write(client.path("a"), "x").expect("write");
    fs::hard_link(client.path("a"), client.path("b")).expect("link");
    let a = client.lookup(ROOT, "a").expect("lookup a");
    let b = client.lookup(ROOT, "b").expect("lookup b");
    assert_eq!(a.node, b.node);
    assert_eq!(client.session.nodes.len(), 2);
    client.forget(a.node, 1);
    assert!(client.get_attr(a.node).is_ok(), "one lookup is left");
    client.forget(a.node, 1);
    assert_eq!(client.get_attr(a.node).err(), Some(Errno(libc::ESTALE)));
    assert_eq!(client.session.nodes.len(), 1);
}

#[test]
fn a_node_survives_rename_and_unlink() {
    let client = Client::new();
    fs::write(client.path("a"), "x").expect("write");
    let a = client.lookup(ROOT, "a").expect("lookup");
    client.rename((ROOT, "a"), (ROOT, "b"), 0).expect("rename");
    client.session.nodes.sweep();
    client.session.nodes.sweep();
    assert_eq!(
        client.get_attr(a.node).expect("attributes").ino,
        a.attr.unwrap().ino
    );
    client.unlink(ROOT, "b").expect("unlink");
    assert_eq!(client.get_attr(a.node).expect("attributes").nlink, 0);
    let fh = client
        .open(a.node, libc::O_RDONLY)
        .expect("open without a name");
    assert_eq!(client.read(fh, 0, 10).as_deref(), Ok(&b"x"[..]));
}

#[test]
fn a_number_taken_over_by_a_new_inode_is_another_node() {
    let client = Client::new();
    let mut seen = std::collections::HashMap::new();
    for round in 0..50 {
        let name = format!("f{round}");
        fs::write(client.path(&name), "x").expect("write");
        let entry = client.lookup(ROOT, &name).expect("lookup");
        client.session.nodes.sweep();
        client.session.nodes.sweep();
        fs::remove_file(client.path(&name)).expect("native unlink");
        let ino = entry.attr.expect("attributes").ino;
        assert_ne!(
            seen.insert(ino, entry.node),
            Some(entry.node),
            "inode {ino}"
        );
        // Children of other tests have every descriptor of this process between fork and exec.
        let until = Instant::now() + Duration::from_secs(10);
        while client.get_attr(entry.node).is_ok() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
            client.session.nodes.sweep();
            client.session.nodes.sweep();
        }
        assert_eq!(client.get_attr(entry.node).err(), Some(Errno(libc::ESTALE)));
    }
}

#[test]
fn directories_list_what_is_in_them() {
    let client = Client::new();
    let dir = client.mkdir(ROOT, "d", 0o755).expect("mkdir");
    let mut names: Vec<Vec<u8>> = (0..300).map(|n| format!("name{n}").into_bytes()).collect();
    for name in &names {
        fs::write(
            client.path("d").join(std::str::from_utf8(name).unwrap()),
            "",
        )
        .expect("write");
    }
    names.extend([b".".to_vec(), b"..".to_vec()]);
    names.sort();
    for (max_bytes, plus) in [(1, false), (4096, false), (4096, true), (1 << 20, true)] {
        let items = client.list(dir.node, max_bytes, plus).expect("list");
        let mut found: Vec<_> = items.iter().map(|item| item.name.clone()).collect();
        found.sort();
        assert_eq!(found, names, "{max_bytes} {plus}");
        let entries = items.iter().filter(|item| item.entry.is_some()).count();
        assert_eq!(entries, if plus { 300 } else { 0 });
    }
}

#[test]
fn offsets_survive_removal_of_what_was_read() {
    let client = Client::new();
    let dir = client.mkdir(ROOT, "d", 0o755).expect("mkdir");
    for n in 0..500 {
        fs::write(client.path(&format!("d/{n}")), "").expect("write");
    }
    let mut removed = 0;
    let arg = proto::v1::NodeArg { node: dir.node };
    let fh = client
        .opened(proto::v1::fs_request::Op::OpenDir(arg))
        .expect("opendir");
    let mut offset = 0;
    loop {
        let items = client.list_from(fh, offset, 700, false).expect("readdir");
        let Some(last) = items.last() else { break };
        offset = last.next_offset;
        for item in items.iter().filter(|item| !item.name.starts_with(b".")) {
            let name = std::str::from_utf8(&item.name).unwrap();
            client.unlink(dir.node, name).expect("unlink");
            removed += 1;
        }
    }
    assert_eq!(removed, 500);
    client.rmdir(ROOT, "d").expect("empty now");
}

#[test]
fn names_that_lead_out_are_refused() {
    let client = Client::new();
    for name in ["..", "a/b", "", "/"] {
        assert_eq!(
            client.lookup(ROOT, name).err(),
            Some(Errno(libc::EINVAL)),
            "{name:?}"
        );
        let created = client.create(ROOT, name, 0o644, libc::O_RDWR);
        assert_eq!(created.err(), Some(Errno(libc::EINVAL)), "{name:?}");
    }
    assert_eq!(client.lookup(ROOT, ".").expect("itself").node, ROOT);
    let long = "x".repeat(256);
    assert_eq!(
        client.lookup(ROOT, &long).err(),
        Some(Errno(libc::ENAMETOOLONG))
    );
    std::os::unix::fs::symlink("/etc", client.path("out")).expect("symlink");
    let link = client.lookup(ROOT, "out").expect("the link itself");
    assert_eq!(
        link.attr.expect("attributes").mode & libc::S_IFMT,
        libc::S_IFLNK
    );
    assert_eq!(
        client.lookup(link.node, "passwd").err(),
        Some(Errno(libc::ENOTDIR))
    );
    assert_eq!(
        client.open(link.node, libc::O_RDONLY),
        Err(Errno(libc::ELOOP))
    );
}

#[test]
fn create_honours_excl_trunc_and_umask() {
    let client = Client::new();
    let a = client
        .create(ROOT, "a", 0o666, libc::O_RDWR | libc::O_EXCL)
        .expect("new");
    assert_eq!(a.attr.expect("attributes").mode & 0o777, 0o644);
    client.write(a.fh, 0, b"text").expect("write");
    let again = client.create(ROOT, "a", 0o600, libc::O_RDWR | libc::O_EXCL);
    assert_eq!(again.err(), Some(Errno(libc::EEXIST)));
    let b = client
        .create(ROOT, "a", 0o600, libc::O_RDWR)
        .expect("existing");
    assert_eq!((b.node, b.attr.expect("attributes").size), (a.node, 4));
    let c = client
        .create(ROOT, "a", 0o600, libc::O_RDWR | libc::O_TRUNC)
        .expect("truncated");
    assert_eq!((c.node, c.attr.expect("attributes").size), (a.node, 0));
    fs::create_dir(client.path("d")).expect("mkdir");
    let dir = client.create(ROOT, "d", 0o600, libc::O_RDWR);
    assert_eq!(dir.err(), Some(Errno(libc::ESTALE)));
}

#[test]
fn setattr_sets_what_is_asked() {
    let client = Client::new();
    let a = client
        .create(ROOT, "a", 0o644, libc::O_WRONLY)
        .expect("create");
    let size = SetAttr {
        node: a.node,
        size: Some(5),
        mode: Some(0o600),
        ..SetAttr::default()
    };
    let attr = client.set_attr(size).expect("setattr");
    assert_eq!((attr.size, attr.mode & 0o7777), (5, 0o600));
    let at = |s, ns| {
        let when = proto::v1::time_or_now::When::At(proto::v1::Time { s, ns });
        Some(proto::v1::TimeOrNow { when: Some(when) })
    };
    let times = SetAttr {
        node: a.node,
        mtime: at(-5, 7),
        ..SetAttr::default()
    };
    let set = client.set_attr(times).expect("setattr");
    assert_eq!(set.mtime, Some(proto::v1::Time { s: -5, ns: 7 }));
    assert_eq!(set.atime, attr.atime);
    let bad = SetAttr {
        node: a.node,
        mtime: at(0, 1_000_000_000),
        ..SetAttr::default()
    };
    assert_eq!(client.set_attr(bad).err(), Some(Errno(libc::EINVAL)));
}

#[test]
fn many_nodes_need_few_descriptors() {
    let client = Client::new();
    for n in 0..3000 {
        fs::write(client.path(&n.to_string()), "").expect("write");
    }
    let limits = crate::limits::Limits::new(100, 100, 64);
    let client = Client::on(client.dir, limits);
    let entries: Vec<_> = (0..3000)
        .map(|n| client.lookup(ROOT, &n.to_string()).expect("lookup"))
        .collect();
    assert!(client.session.nodes.cached() <= 32);
    for entry in entries {
        assert_eq!(
            client.get_attr(entry.node).expect("found again").ino,
            entry.attr.unwrap().ino
        );
    }
    assert!(client.session.nodes.cached() <= 32);
}

#[test]
fn open_files_are_bounded() {
    let client = Client::new();
    fs::write(client.path("a"), "").expect("write");
    let limits = crate::limits::Limits::new(3, 3, 3);
    let client = Client::on(client.dir, limits);
    let a = client.lookup(ROOT, "a").expect("lookup");
    let open = || client.open(a.node, libc::O_RDONLY);
    let first = open().expect("first");
    assert!(open().is_ok() && open().is_ok());
    assert_eq!(open(), Err(Errno(libc::ENFILE)));
    client.release(first).expect("release");
    assert!(open().is_ok());
}

#[test]
fn special_files_are_not_opened_here() {
    let client = Client::new();
    let fifo = client.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let fifo = client.lookup(ROOT, "fifo").expect("lookup");
    assert_eq!(
        client.open(fifo.node, libc::O_RDONLY),
        Err(Errno(libc::ENXIO))
    );
}
