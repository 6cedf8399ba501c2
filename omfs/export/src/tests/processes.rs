//! Files of this node's processes, procfs, and mounts below the root.

use std::fs;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use proto::v1::deputy_file::What;
use proto::v1::fs_request::Op;
use proto::v1::{DeputyFile, NodeArg};

use super::client::{Client, ROOT, need_root};
use crate::{Errno, Export, ExportConfig, SessionPeer};

fn deputy_file(client: &Client, what: What) -> Result<proto::v1::Entry, Errno> {
    let pid = std::process::id() as i32;
    client.entry_by(Op::DeputyFile(DeputyFile {
        pid,
        what: Some(what),
    }))
}

/// This process, as if it were away at node 2.
fn guest() -> Client {
    let mut client = Client::new();
    client.caller.from_home_guest = true;
    client.caller.guest_pid = std::process::id() as i32;
    client
}

#[test]
fn a_deputys_deleted_file_is_reached() {
    need_root();
    let client = guest();
    let mut native = tempfile::tempfile().expect("a file without a name");
    native.write_all(b"deleted").expect("write");
    let number = native.as_raw_fd() as u32;
    let entry = deputy_file(&client, What::Fd(number)).expect("entry");
    assert_eq!(entry.attr.expect("attributes").nlink, 0);
    let fh = client.open(entry.node, libc::O_RDWR).expect("open");
    assert_eq!(client.read(fh, 0, 100).as_deref(), Ok(&b"deleted"[..]));
    client.write(fh, 0, b"D").expect("write");
    native.rewind().expect("rewind");
    let mut text = String::new();
    native.read_to_string(&mut text).expect("read");
    assert_eq!(text, "Deleted");
    drop(native);
    assert!(
        client.open(entry.node, libc::O_RDONLY).is_ok(),
        "as long as the node is known"
    );
    let user = client.user(1000, 1000, &[]);
    assert_eq!(
        deputy_file(&user, What::Exe(true)).err(),
        Some(Errno(libc::EPERM))
    );
}

#[test]
fn only_the_host_of_a_job_gets_its_files() {
    need_root();
    let client = guest();
    assert!(deputy_file(&client, What::Root(true)).is_ok());
    let mut elsewhere = client.elsewhere();
    for claims_guest in [false, true] {
        elsewhere.caller.from_home_guest = claims_guest;
        elsewhere.caller.guest_pid = std::process::id() as i32;
        for what in [What::Fd(0), What::Cwd(true), What::Root(true)] {
            let answer = deputy_file(&elsewhere, what);
            assert_eq!(answer.err(), Some(Errno(libc::EPERM)));
        }
    }
    let mut guest = client.user(0, 0, &[]);
    guest.caller.from_home_guest = false;
    guest.caller.guest_pid = 1;
    guest.caller.foreign_guest = true;
    let answer = deputy_file(&guest, What::Root(true));
    assert_eq!(answer.err(), Some(Errno(libc::EPERM)), "a third node's");
    guest.caller.foreign_guest = false;
    guest.caller.from_home_guest = true;
    let answer = deputy_file(&guest, What::Root(true));
    assert_eq!(answer.err(), Some(Errno(libc::EPERM)), "another guest's");
    let answer = elsewhere.lookup(ROOT, "x");
    assert_eq!(answer.err(), Some(Errno(libc::EPERM)), "no guest is there");
    elsewhere.caller.from_home_guest = false;
    let answer = elsewhere.lookup(ROOT, "x");
    assert_eq!(answer.err(), Some(Errno(libc::ENOENT)));
}

#[test]
fn a_deputys_other_files_are_reached() {
    need_root();
    let client = guest();
    let native = |path: &str| fs::metadata(path).expect("stat").ino();
    for (what, path) in [
        (What::Exe(true), "/proc/self/exe"),
        (What::Cwd(true), "."),
        (What::Root(true), "/"),
    ] {
        let entry = deputy_file(&client, what).expect("entry");
        assert_eq!(entry.attr.expect("attributes").ino, native(path), "{path}");
    }
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let range = maps.split(' ').next().expect("a range");
    let entry = deputy_file(&client, What::MapRange(range.to_owned())).expect("entry");
    assert_eq!(
        entry.attr.expect("attributes").ino,
        native("/proc/self/exe")
    );
}

/// All of this machine, as a process of this node sees it, and as one of another node does.
fn everything() -> (Client, Client) {
    let export = Export::new(ExportConfig::new("/")).expect("export");
    let at = |node, is_local| {
        let mut client = Client::new();
        let node = proto::ids::NodeId(node);
        client.session = export.session(SessionPeer { node, is_local });
        client
    };
    (at(1, true), at(3, false))
}

#[test]
fn mounts_are_entered_and_procfs_works() {
    let (client, _) = everything();
    let proc = client.walk("proc/self/status");
    assert_eq!(
        proc.err(),
        Some(Errno(libc::ENOTDIR)),
        "a symlink is not followed"
    );
    let path = format!("proc/{}", std::process::id());
    let dir = client.walk(&path).expect("lookup").node;
    let status = client.lookup(dir, "status").expect("lookup").node;
    let again = client.lookup(dir, "status").expect("lookup").node;
    assert_eq!(status, again);
    let fh = client.open(status, libc::O_RDONLY).expect("open");
    assert!(
        client
            .read(fh, 0, 4096)
            .expect("read")
            .starts_with(b"Name:")
    );
    assert!(client.list(dir, 4096, true).expect("list").len() > 20);
    let proc_dev = client.get_attr(dir).expect("attributes").dev;
    assert_eq!(proc_dev, fs::metadata("/proc").expect("stat").dev());
}

#[test]
fn views_into_the_kernel_are_empty_directories_to_other_nodes() {
    let (_, stranger) = everything();
    for name in ["proc", "sys"] {
        let entry = stranger.lookup(ROOT, name).expect("the directory itself");
        let listed = stranger.list(entry.node, 4096, true).expect("list");
        let names: Vec<_> = listed.iter().map(|item| item.name.as_slice()).collect();
        assert!(names.iter().all(|name| [&b"."[..], b".."].contains(name)));
        for inside in ["1", "self", "kernel"] {
            let inside = stranger.lookup(entry.node, inside);
            assert_eq!(inside.err(), Some(Errno(libc::ENOENT)));
        }
        let made = stranger.mkdir(entry.node, "x", 0o755);
        assert_eq!(made.err(), Some(Errno(libc::EACCES)));
    }
    assert!(stranger.walk("etc/hostname").is_ok() || stranger.walk("etc/passwd").is_ok());
}

#[test]
fn a_number_of_a_guest_is_of_no_use_to_others() {
    need_root();
    let export = Export::new(ExportConfig::new("/")).expect("export");
    let mut own = Client::new();
    own.session = export.session(SessionPeer {
        node: proto::ids::NodeId(3),
        is_local: true,
    });
    let status = own.walk(&format!("proc/{}/status", std::process::id()));
    let node = status.expect("lookup").node;
    assert!(own.open(node, libc::O_RDONLY).is_ok());
    let mut stranger = own.user(1000, 1000, &[]);
    stranger.caller.foreign_guest = true;
    for flags in [libc::O_RDONLY, libc::O_RDWR] {
        assert_eq!(stranger.open(node, flags), Err(Errno(libc::EACCES)));
    }
    assert_eq!(stranger.get_attr(node).err(), Some(Errno(libc::EACCES)));
}

#[test]
fn proc_self_is_the_callers() {
    let mut client = Client::new();
    let export = Export::new(ExportConfig::new("/")).expect("export");
    let here = SessionPeer {
        node: proto::ids::NodeId(1),
        is_local: true,
    };
    client.session = export.session(here);
    client.caller.pid = 1;
    for (name, target) in [
        ("self", "1"),
        ("thread-self", "1/task/1"),
        ("mounts", "self/mounts"),
    ] {
        let node = client.walk(&format!("proc/{name}")).expect("lookup").node;
        let answer = client
            .call(Op::ReadLink(NodeArg { node }))
            .expect("readlink");
        assert_eq!(&answer.payload[..], target.as_bytes());
    }
}

#[test]
fn refused_devices_are_not_entered() {
    let mut config = ExportConfig::new("/");
    config
        .refused_devices
        .insert(fs::metadata("/proc").expect("stat").dev());
    let mut client = Client::new();
    client.export = Export::new(config).expect("export");
    let client = client.elsewhere();
    assert_eq!(client.lookup(ROOT, "proc").err(), Some(Errno(libc::ELOOP)));
    assert!(client.lookup(ROOT, "tmp").is_ok());
}
