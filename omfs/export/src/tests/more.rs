//! Extended attributes, ACLs, space, links, special files.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use proto::v1::fs_request::Op;
use proto::v1::{
    Access, CopyFileRange, Fallocate, GetXattr, Link, ListXattr, Lseek, MkNod, NameArg, NodeArg,
    SetAttr, SetXattr, Symlink,
};

use super::client::{Client, ROOT, need_root};
use crate::Errno;

fn set_xattr(client: &Client, node: u64, name: &str, value: &[u8]) -> Result<(), Errno> {
    let op = Op::SetXattr(SetXattr {
        node,
        name: name.into(),
        flags: 0,
    });
    client.call_with(op, value).map(drop)
}

fn get_xattr(client: &Client, node: u64, name: &str, max_bytes: u32) -> Result<Vec<u8>, Errno> {
    let op = Op::GetXattr(GetXattr {
        node,
        name: name.into(),
        max_bytes,
    });
    Ok(client.call(op)?.payload.to_vec())
}

#[test]
fn attributes_are_set_listed_and_removed() {
    let client = Client::new();
    let node = client
        .create(ROOT, "a", 0o644, libc::O_RDWR)
        .expect("create")
        .node;
    set_xattr(&client, node, "user.colour", b"green").expect("set");
    assert_eq!(
        get_xattr(&client, node, "user.colour", 100).as_deref(),
        Ok(&b"green"[..])
    );
    assert_eq!(
        get_xattr(&client, node, "user.colour", 2),
        Err(Errno(libc::ERANGE))
    );
    let size = GetXattr {
        node,
        name: b"user.colour".to_vec(),
        max_bytes: 0,
    };
    assert_eq!(client.count_with(Op::GetXattr(size), &[]), Ok(5));
    let list = Op::ListXattr(ListXattr {
        node,
        max_bytes: 1000,
    });
    let names = client.call(list).expect("list").payload;
    assert!(
        names
            .split(|byte| *byte == 0)
            .any(|name| name == b"user.colour")
    );
    let remove = || {
        Op::RemoveXattr(NameArg {
            node,
            name: b"user.colour".to_vec(),
        })
    };
    client.call(remove()).expect("remove");
    assert_eq!(client.call(remove()).err(), Some(Errno(libc::ENODATA)));
}

#[test]
fn users_may_not_set_what_is_the_administrators() {
    need_root();
    let client = Client::new();
    let user = client.user(1000, 1000, &[]);
    fs::write(client.path("a"), "").expect("write");
    std::os::unix::fs::chown(client.path("a"), Some(1000), None).expect("chown");
    let node = client.lookup(ROOT, "a").expect("lookup").node;
    // VFS_CAP_REVISION_2, cap_setuid: a program of one's own that becomes root.
    let capability = [
        1, 0, 0, 2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let eperm = Err(Errno(libc::EPERM));
    assert_eq!(
        set_xattr(&user, node, "security.capability", &capability),
        eperm
    );
    assert_eq!(set_xattr(&user, node, "trusted.x", b"y"), eperm);
    assert_eq!(set_xattr(&user, node, "user.x", b"y"), Ok(()));
    assert_eq!(
        set_xattr(&client, node, "security.capability", &capability),
        Ok(())
    );
}

/// `user::rw-, user:2000:r--, group::---, mask::r--, other::---` as system.posix_acl_access.
fn acl(named_user: u32, perm: u16) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    let entries = [
        (1_u16, 6_u16, u32::MAX),
        (2, perm, named_user),
        (4, 0, u32::MAX),
        (16, perm, u32::MAX),
        (32, 0, u32::MAX),
    ];
    for (tag, perm, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn acls_are_obeyed() {
    need_root();
    let client = Client::new();
    fs::set_permissions(client.dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let node = client
        .create(ROOT, "a", 0o600, libc::O_RDWR)
        .expect("create")
        .node;
    let named = client.user(2000, 2000, &[]);
    assert_eq!(named.open(node, libc::O_RDONLY), Err(Errno(libc::EACCES)));
    set_xattr(&client, node, "system.posix_acl_access", &acl(2000, 4)).expect("set");
    assert!(named.open(node, libc::O_RDONLY).is_ok());
    assert_eq!(named.open(node, libc::O_RDWR), Err(Errno(libc::EACCES)));
    let access = |mask| Op::Access(Access { node, mask });
    assert!(named.call(access(libc::R_OK as u32)).is_ok());
    assert_eq!(
        named.call(access(libc::W_OK as u32)).err(),
        Some(Errno(libc::EACCES))
    );
    let stranger = client.user(2001, 2001, &[]);
    assert_eq!(
        stranger.call(access(libc::R_OK as u32)).err(),
        Some(Errno(libc::EACCES))
    );
    assert!(client.call(access(libc::W_OK as u32)).is_ok(), "root");
}

#[test]
fn a_default_acl_replaces_the_umask() {
    let client = Client::new();
    let dir = client.mkdir(ROOT, "d", 0o755).expect("mkdir").node;
    set_xattr(&client, dir, "system.posix_acl_default", &acl(2000, 6)).expect("set");
    let mut masked = client.user(client.caller.uid, client.caller.gid, &[]);
    masked.caller.umask = 0o077;
    let file = masked
        .create(dir, "f", 0o666, libc::O_RDWR)
        .expect("create");
    // The group bits show the ACL's mask: umask 077 would have cleared them.
    assert_eq!(file.attr.expect("attributes").mode & 0o777, 0o660);
    let plain = masked
        .create(ROOT, "f", 0o666, libc::O_RDWR)
        .expect("create");
    assert_eq!(plain.attr.expect("attributes").mode & 0o777, 0o600);
}

#[test]
fn holes_are_made_found_and_kept() {
    let client = Client::new();
    let file = client
        .create(ROOT, "a", 0o644, libc::O_RDWR)
        .expect("create");
    let fh = file.fh;
    let allocate = Fallocate {
        fh,
        offset: 0,
        length: 1 << 20,
        mode: 0,
    };
    client.call(Op::Fallocate(allocate)).expect("fallocate");
    client.write(fh, 0, &[1; 1 << 16]).expect("write");
    client.write(fh, 1 << 19, &[2; 1 << 16]).expect("write");
    let mode = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
    let punch = Fallocate {
        fh,
        offset: 0,
        length: 1 << 16,
        mode,
    };
    client.call(Op::Fallocate(punch)).expect("punch");
    assert_eq!(
        client.get_attr(file.node).expect("attributes").size,
        1 << 20
    );
    assert_eq!(client.read(fh, 0, 4).as_deref(), Ok(&[0; 4][..]));
    let seek = |whence: i32, offset| {
        client.count_with(
            Op::Lseek(Lseek {
                fh,
                offset,
                whence: whence as u32,
            }),
            &[],
        )
    };
    assert_eq!(seek(libc::SEEK_DATA, 0), Ok(1 << 19));
    assert_eq!(seek(libc::SEEK_HOLE, 1 << 19), Ok((1 << 19) + (1 << 16)));
    assert_eq!(seek(libc::SEEK_DATA, 1 << 30), Err(Errno(libc::ENXIO)));
    assert_eq!(seek(libc::SEEK_SET, 0), Err(Errno(libc::EINVAL)));
    let bad = Fallocate {
        fh,
        offset: 0,
        length: 0,
        mode: 0,
    };
    assert_eq!(
        client.call(Op::Fallocate(bad)).err(),
        Some(Errno(libc::EINVAL))
    );
}

#[test]
fn ranges_are_copied() {
    let client = Client::new();
    let from = client
        .create(ROOT, "from", 0o644, libc::O_RDWR)
        .expect("create")
        .fh;
    let to = client
        .create(ROOT, "to", 0o644, libc::O_RDWR)
        .expect("create")
        .fh;
    client.write(from, 0, b"0123456789").expect("write");
    let copy = CopyFileRange {
        fh_in: from,
        offset_in: 2,
        fh_out: to,
        offset_out: 1,
        length: 100,
    };
    assert_eq!(client.count_with(Op::CopyFileRange(copy), &[]), Ok(8));
    assert_eq!(client.read(to, 0, 100).as_deref(), Ok(&b"\x0023456789"[..]));
}

#[test]
fn links_of_both_kinds() {
    let client = Client::new();
    let a = client
        .create(ROOT, "a", 0o644, libc::O_RDWR)
        .expect("create");
    let symlink = Symlink {
        parent: ROOT,
        name: b"s".to_vec(),
        target: b"no/../where".to_vec(),
    };
    let link = client.entry_by(Op::Symlink(symlink)).expect("symlink");
    let target = client
        .call(Op::ReadLink(NodeArg { node: link.node }))
        .expect("readlink");
    assert_eq!(&target.payload[..], b"no/../where");
    let no_link = client.call(Op::ReadLink(NodeArg { node: a.node }));
    assert_eq!(no_link.err(), Some(Errno(libc::EINVAL)));
    for (node, name) in [(a.node, "a2"), (link.node, "s2")] {
        let hard = Link {
            node,
            new_parent: ROOT,
            new_name: name.into(),
        };
        let entry = client.entry_by(Op::Link(hard.clone())).expect("link");
        assert_eq!(
            (entry.node, entry.attr.expect("attributes").nlink),
            (node, 2)
        );
        assert_eq!(client.call(Op::Link(hard)).err(), Some(Errno(libc::EEXIST)));
    }
    let chmod = SetAttr {
        node: link.node,
        mode: Some(0o600),
        ..SetAttr::default()
    };
    assert_eq!(client.set_attr(chmod).err(), Some(Errno(libc::EOPNOTSUPP)));
    let now = proto::v1::TimeOrNow {
        when: Some(proto::v1::time_or_now::When::Now(true)),
    };
    let touch = SetAttr {
        node: link.node,
        mtime: Some(now),
        ..SetAttr::default()
    };
    assert!(client.set_attr(touch).is_ok(), "the link itself");
}

#[test]
fn rename_has_its_flags() {
    let client = Client::new();
    let dir = client.mkdir(ROOT, "d", 0o755).expect("mkdir").node;
    fs::write(client.path("a"), "a").expect("write");
    fs::write(client.path("d/b"), "b").expect("write");
    let (a, b) = ((ROOT, "a"), (dir, "b"));
    assert_eq!(
        client.rename(a, b, libc::RENAME_NOREPLACE),
        Err(Errno(libc::EEXIST))
    );
    assert_eq!(client.rename(a, b, libc::RENAME_EXCHANGE), Ok(()));
    assert_eq!(fs::read(client.path("a")).expect("read"), b"b");
    let victim = client.lookup(dir, "b").expect("lookup").node;
    assert_eq!(client.rename(a, b, 0), Ok(()));
    assert_eq!(
        client.get_attr(victim).expect("replaced but known").nlink,
        0
    );
    assert_eq!(client.rename(b, a, 1 << 20), Err(Errno(libc::EINVAL)));
    assert_eq!(
        client.rename((ROOT, "d"), (dir, "x"), 0),
        Err(Errno(libc::EINVAL))
    );
}

#[test]
fn special_files_are_made_with_the_callers_rights() {
    need_root();
    let client = Client::new();
    fs::set_permissions(client.dir.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let user = client.user(1000, 1000, &[]);
    let make = |mode, rdev, name: &str| {
        Op::MkNod(MkNod {
            parent: ROOT,
            name: name.into(),
            mode,
            rdev,
        })
    };
    user.call(make(libc::S_IFIFO | 0o666, 0, "fifo"))
        .expect("fifo");
    user.call(make(libc::S_IFSOCK | 0o666, 0, "socket"))
        .expect("socket");
    user.call(make(libc::S_IFREG | 0o666, 0, "regular"))
        .expect("regular");
    let zero = libc::makedev(1, 5);
    let denied = user.call(make(libc::S_IFCHR | 0o666, zero, "zero"));
    assert_eq!(denied.err(), Some(Errno(libc::EPERM)));
    let entry = client
        .entry_by(make(libc::S_IFCHR | 0o666, zero, "zero"))
        .expect("device");
    assert_eq!(entry.attr.expect("attributes").rdev, zero);
    let fifo = fs::metadata(client.path("fifo")).expect("stat");
    assert!(fifo.file_type().is_fifo() && fifo.mode() & 0o777 == 0o644 && fifo.uid() == 1000);
    assert_eq!(
        client.open(entry.node, libc::O_RDONLY),
        Err(Errno(libc::ENXIO))
    );
}

#[test]
fn space_is_told() {
    let client = Client::new();
    let answer = client
        .call(Op::StatFs(NodeArg { node: ROOT }))
        .expect("statfs");
    let native = nix::sys::statvfs::statvfs(client.dir.path()).expect("statvfs");
    match answer.reply.result {
        Some(proto::v1::fs_reply::Result::StatFs(stat)) => {
            assert_eq!((stat.blocks, stat.files), (native.blocks(), native.files()));
            assert_eq!(stat.namelen, 255);
        }
        other => panic!("no statfs: {other:?}"),
    }
}

#[test]
fn programs_need_not_be_readable() {
    need_root();
    let client = Client::new();
    fs::write(client.path("tool"), "text").expect("write");
    fs::set_permissions(client.path("tool"), fs::Permissions::from_mode(0o711)).expect("chmod");
    let user = client.user(1000, 1000, &[]);
    let node = client.lookup(ROOT, "tool").expect("lookup").node;
    let execute = libc::O_RDONLY | 0x20;
    assert_eq!(user.open(node, libc::O_RDONLY), Err(Errno(libc::EACCES)));
    let fh = user.open(node, execute).expect("open to execute");
    assert_eq!(user.read(fh, 0, 4).as_deref(), Ok(&b"text"[..]));
    assert_eq!(user.write(fh, 0, b"x"), Err(Errno(libc::EBADF)));
    fs::set_permissions(client.path("tool"), fs::Permissions::from_mode(0o700)).expect("chmod");
    assert_eq!(user.open(node, execute), Err(Errno(libc::EACCES)));
}
