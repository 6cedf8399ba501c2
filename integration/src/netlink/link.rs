//! Links and addresses.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::net::if_::if_nametoindex;

use super::Netlink;
use super::message::Message;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFF_UP: u32 = 1;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// `struct ifinfomsg` for a link of any family.
fn ifinfomsg(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&change.to_ne_bytes());
    body
}

impl Netlink {
    /// Makes a bridge, down and without ports.
    ///
    /// # Errors
    /// `EEXIST`, `EOPNOTSUPP` without bridges in the kernel.
    pub fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let mut message = Message::new(RTM_NEWLINK, flags, &ifinfomsg(0, 0, 0));
        message.text(IFLA_IFNAME, name);
        message.nested(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "bridge");
        });
        self.request(message)
    }

    /// Makes a pair of links: `name` here as a port of `bridge`, and `peer` with address `mac` in
    /// the namespace `peer_netns`.
    ///
    /// # Errors
    /// `EEXIST`, `EOPNOTSUPP` without veth in the kernel.
    pub fn add_veth(
        &mut self,
        name: &str,
        bridge: &str,
        peer: &str,
        mac: Mac,
        peer_netns: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let mut message = Message::new(RTM_NEWLINK, flags, &ifinfomsg(0, 0, 0));
        message.text(IFLA_IFNAME, name);
        message.attr(IFLA_MASTER, &if_nametoindex(bridge)?.to_ne_bytes());
        message.nested(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "veth");
            info.nested(IFLA_INFO_DATA, &[], |data| {
                data.nested(VETH_INFO_PEER, &ifinfomsg(0, 0, 0), |other| {
                    other.text(IFLA_IFNAME, peer);
                    other.attr(IFLA_ADDRESS, &mac);
                    other.attr(IFLA_NET_NS_FD, &peer_netns.as_raw_fd().to_ne_bytes());
                });
            });
        });
        self.request(message)
    }

    /// Brings a link up or down.
    ///
    /// # Errors
    /// `ENODEV`.
    pub fn set_up(&mut self, name: &str, up: bool) -> io::Result<()> {
        let flags = if up { IFF_UP } else { 0 };
        let body = ifinfomsg(if_nametoindex(name)?, flags, IFF_UP);
        self.request(Message::new(RTM_NEWLINK, 0, &body))
    }

    /// Plugs a link into a bridge, or out of the one it is in.
    ///
    /// # Errors
    /// `ENODEV`.
    pub fn set_master(&mut self, name: &str, bridge: Option<&str>) -> io::Result<()> {
        let master = bridge.map_or(Ok(0), if_nametoindex)?;
        let body = ifinfomsg(if_nametoindex(name)?, 0, 0);
        let mut message = Message::new(RTM_NEWLINK, 0, &body);
        message.attr(IFLA_MASTER, &master.to_ne_bytes());
        self.request(message)
    }

    /// Removes a link (of a pair: both).
    ///
    /// # Errors
    /// `ENODEV`.
    pub fn delete_link(&mut self, name: &str) -> io::Result<()> {
        let body = ifinfomsg(if_nametoindex(name)?, 0, 0);
        self.request(Message::new(RTM_DELLINK, 0, &body))
    }

    /// Gives a link an IPv4 address, and the route to its network with it.
    ///
    /// # Errors
    /// `ENODEV`, `EEXIST`.
    pub fn add_address(&mut self, name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut body = [0; 8];
        body[0] = libc::AF_INET as u8;
        body[1] = prefix;
        body[4..8].copy_from_slice(&if_nametoindex(name)?.to_ne_bytes());
        let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        let broadcast = Ipv4Addr::from(u32::from(address) | host_bits);
        let mut message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body);
        message.attr(IFA_LOCAL, &address.octets());
        message.attr(IFA_ADDRESS, &address.octets());
        message.attr(IFA_BROADCAST, &broadcast.octets());
        self.request(message)
    }
}
