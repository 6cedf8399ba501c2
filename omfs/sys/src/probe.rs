//! Harmless tries of kernel features, for `omfs check`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::pagemap_scan::{self, PageRegion, Query, category};
use super::{answer, new_fd, pidfd};

/// `SECCOMP_GET_ACTION_AVAIL`, seccomp(2).
const SECCOMP_GET_ACTION_AVAIL: libc::c_ulong = 2;
/// `SECCOMP_RET_USER_NOTIF`, seccomp(2).
const SECCOMP_RET_USER_NOTIF: u32 = 0x7fc0_0000;
/// Asks whether seccomp filters may hand system calls to another process.
///
/// # Errors
/// The kernel's.
pub fn seccomp_user_notification() -> io::Result<()> {
    let action = SECCOMP_RET_USER_NOTIF;
    // SAFETY: the kernel only reads the four bytes of `action`; no wrapper exists.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    answer(result).map(drop)
}

/// Makes a userfaultfd(2) and closes it.
///
/// # Errors
/// The kernel's.
pub fn userfaultfd() -> io::Result<()> {
    // SAFETY: takes flags only; no wrapper exists.
    new_fd(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) }).map(drop)
}

/// Scans an empty range of this process' own page map.
///
/// # Errors
/// The kernel's.
pub fn pagemap_scan() -> io::Result<()> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let query = Query {
        report: category::PRESENT,
        ..Query::default()
    };
    let mut regions = [PageRegion::default()];
    pagemap_scan::scan(pagemap.as_fd(), 0x1_0000, 0x1_1000, query, &mut regions).map(drop)
}

/// Reads four bytes of this process by process_vm_readv(2).
///
/// # Errors
/// The kernel's.
pub fn process_vm() -> io::Result<()> {
    use nix::sys::uio::{RemoteIoVec, process_vm_readv};
    let source = [1_u8, 2, 3, 4];
    let mut target = [0_u8; 4];
    let remote = RemoteIoVec {
        base: source.as_ptr() as usize,
        len: source.len(),
    };
    let mut local = [io::IoSliceMut::new(&mut target)];
    process_vm_readv(nix::unistd::Pid::this(), &mut local, &[remote])?;
    if target == source {
        Ok(())
    } else {
        Err(io::Error::other("it reads something else"))
    }
}

/// Opens this process by pidfd_open(2), and one of its descriptors by pidfd_getfd(2).
///
/// # Errors
/// The kernel's.
pub fn pidfd() -> io::Result<()> {
    let own = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    let pidfd = pidfd::open(own)?;
    pidfd::get_fd(pidfd.as_fd(), pidfd.as_raw_fd()).map(drop)
}

/// Compares this process with itself by kcmp(2).
///
/// # Errors
/// The kernel's.
pub fn kcmp() -> io::Result<()> {
    const KCMP_VM: libc::c_int = 1;
    let me = std::process::id();
    // SAFETY: takes numbers only; no wrapper exists.
    answer(unsafe { libc::syscall(libc::SYS_kcmp, me, me, KCMP_VM, 0, 0) }).map(drop)
}

/// Makes a network device of the given kind in the caller's network namespace, by one
/// RTM_NEWLINK message, rtnetlink(7).
///
/// # Errors
/// The kernel's; `Unsupported` when it does not know the kind.
pub fn make_link(kind: &str) -> io::Result<()> {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
    };
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    send(
        socket.as_raw_fd(),
        &new_link_message(kind),
        MsgFlags::empty(),
    )?;
    let mut answer = [0; 4096];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // struct nlmsghdr is followed by struct nlmsgerr, whose first member is the error.
    let error = answer.get(..length).and_then(|answer| answer.get(16..20));
    match error
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes)
    {
        Some(0) => Ok(()),
        Some(errno) => {
            let error = io::Error::from_raw_os_error(-errno);
            Err(io::Error::new(error.kind(), format!("{kind}: {error}")))
        }
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn new_link_message(kind: &str) -> Vec<u8> {
    let mut kind_attribute = attribute(1, kind.as_bytes()); // IFLA_INFO_KIND
    kind_attribute.resize(kind_attribute.len().next_multiple_of(4), 0);
    let info = attribute(18, &kind_attribute); // IFLA_LINKINFO
    let length = 16 + 16 + info.len();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&(length as u32).to_ne_bytes());
    message.extend_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&(flags as u16).to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence, port
    message.extend_from_slice(&[0; 16]); // struct ifinfomsg: any family, new index
    message.extend_from_slice(&info);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = (length as u16).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes
}
