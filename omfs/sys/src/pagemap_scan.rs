//! The PAGEMAP_SCAN ioctl on /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A run of pages of the same categories.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRegion {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// [`category`] bits.
    pub categories: u64,
}

#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<PmScanArg>() == 96);
const _: () = assert!(size_of::<PageRegion>() == 24);

/// What a page is (linux/fs.h, `PAGE_IS_*`).
pub mod category {
    /// In a range registered for asynchronous write protection.
    pub const WPALLOWED: u64 = 1 << 0;
    /// Written since it was protected.
    pub const WRITTEN: u64 = 1 << 1;
    /// A page of a file or shared memory, not a private copy.
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// In swap.
    pub const SWAPPED: u64 = 1 << 4;
    /// The shared page of zeroes.
    pub const PFNZERO: u64 = 1 << 5;
    /// Part of a huge page.
    pub const HUGE: u64 = 1 << 6;
    /// A guard page (MADV_GUARD_INSTALL).
    pub const GUARD: u64 = 1 << 8;
}

/// Write-protect what matched, in the same walk.
pub const WP_MATCHING: u64 = 1 << 0;
/// Fail with EPERM where asynchronous write protection is not registered.
pub const CHECK_WPASYNC: u64 = 1 << 1;

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// What to look for: every category of `all` must hold (after flipping those of `inverted`), and
/// one of `any` unless it is 0; runs are split by the categories of `report`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Query {
    /// [`WP_MATCHING`], [`CHECK_WPASYNC`].
    pub flags: u64,
    /// Categories to be taken as their opposite.
    pub inverted: u64,
    /// Categories that must all hold.
    pub all: u64,
    /// Categories of which one must hold.
    pub any: u64,
    /// Categories reported in the regions.
    pub report: u64,
}

/// Scans [start, end) until `regions` is full; answers how many were filled and the address
/// where the walk ended.
///
/// # Errors
/// EINVAL, EPERM, EFAULT, ENOTTY before kernel 6.7, ESRCH when the process' memory is gone.
pub fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    query: Query,
    regions: &mut [PageRegion],
) -> io::Result<(usize, u64)> {
    let mut arg = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        flags: query.flags,
        start,
        end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_inverted: query.inverted,
        category_mask: query.all,
        category_anyof_mask: query.any,
        return_mask: query.report,
        ..PmScanArg::default()
    };
    // SAFETY: `arg` has the size it states and `vec` describes `regions`, exclusively borrowed.
    // libc and nix know neither the request nor the structure.
    let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
    if count < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok((count as usize, arg.walk_end))
    }
}
