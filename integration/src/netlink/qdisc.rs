//! Link rates by a token bucket (`tc-tbf(8)`).

use std::io;

use nix::net::if_::if_nametoindex;

use super::Netlink;
use super::message::Message;

const RTM_NEWQDISC: u16 = 36;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_BURST: u16 = 6;
const TC_H_ROOT: u32 = 0xffff_ffff;
const LINKLAYER_ETHERNET: u8 = 1;
/// Below this the kernel's segmentation of large packets costs more than the rate is worth.
const BURST_BYTES_MIN: u64 = 64 * 1024;
/// How long a packet may wait before it is dropped, as a home router's buffer does.
const QUEUE_MS: u64 = 50;
const QUEUE_BYTES_MIN: u64 = 256 * 1024;

/// `struct tc_tbf_qopt` for a rate, and its burst.
fn parameters(bytes_per_s: u64) -> ([u8; 36], u32) {
    let clamp = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let burst_bytes = clamp((bytes_per_s / 250).max(BURST_BYTES_MIN));
    let queue_bytes = clamp((bytes_per_s * QUEUE_MS / 1000).max(QUEUE_BYTES_MIN));
    let mut options = [0; 36];
    options[1] = LINKLAYER_ETHERNET;
    options[8..12].copy_from_slice(&clamp(bytes_per_s).to_ne_bytes());
    options[24..28].copy_from_slice(&queue_bytes.to_ne_bytes());
    (options, burst_bytes)
}

impl Netlink {
    /// Limits what leaves by a link to `mbit` megabits per second (at most 34,000).
    ///
    /// # Errors
    /// `ENODEV`; `ENOENT` when the kernel has no such queue.
    pub fn limit_rate(&mut self, name: &str, mbit: u32) -> io::Result<()> {
        let mut body = [0; 20];
        body[4..8].copy_from_slice(&if_nametoindex(name)?.to_ne_bytes());
        body[8..12].copy_from_slice(&(1_u32 << 16).to_ne_bytes());
        body[12..16].copy_from_slice(&TC_H_ROOT.to_ne_bytes());
        let (options, burst_bytes) = parameters(u64::from(mbit) * 125_000);
        let mut message = Message::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, &body);
        message.text(TCA_KIND, "tbf");
        message.nested(TCA_OPTIONS, &[], |tbf| {
            tbf.attr(TCA_TBF_PARMS, &options);
            tbf.attr(TCA_TBF_BURST, &burst_bytes.to_ne_bytes());
        });
        self.request(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_queue_are_where_the_kernel_looks() {
        let (options, burst_bytes) = parameters(125_000_000);
        assert_eq!(options[1], 1);
        assert_eq!(options[8..12], 125_000_000_u32.to_ne_bytes());
        assert_eq!(options[24..28], 6_250_000_u32.to_ne_bytes());
        assert_eq!(burst_bytes, 500_000);
    }

    #[test]
    fn slow_links_still_take_a_whole_large_packet() {
        assert_eq!(parameters(125_000).1, 64 * 1024);
    }
}
