//! The address space.

use crate::image::{PAGE_BYTES, ProcessImage, USER_END, VmaImage, VmaKind};
use crate::tracee::procfs::{Mapping, Maps};
use crate::tracee::{Call, Frozen, TraceeError};

use super::files::Finder;
use super::mapped::MappedFiles;
use super::{RestoreError, maps_of};

/// The kernel's own mappings, in the order in which they are moved.
const KERNEL_NAMES: [&str; 3] = ["[vvar]", "[vvar_vclock]", "[vdso]"];
/// Lowest address used for what has no place of its own.
const SEARCH_START: u64 = 0x1_0000_0000;

/// A range of addresses.
pub(super) type Range = (u64, u64);

/// The lowest free range of `bytes` that meets none of `taken`, a page apart from each.
pub(super) fn free_range(taken: &mut [Range], bytes: u64) -> Option<u64> {
    taken.sort_unstable();
    let mut at = SEARCH_START;
    for (start, end) in taken.iter() {
        if at + bytes + PAGE_BYTES <= *start {
            break;
        }
        at = at.max(end + PAGE_BYTES);
    }
    (at + bytes < USER_END).then_some(at)
}

/// All ranges in use now or later.
pub(super) fn taken_ranges(maps: &Maps, image: &ProcessImage) -> Vec<Range> {
    let now = maps.0.iter().map(|map| (map.start, map.end));
    let later = image.vmas.iter().map(|vma| {
        // A growing stack needs room below it.
        let below = if vma.grows_down { 64 << 20 } else { 0 };
        (vma.start.saturating_sub(below), vma.end)
    });
    now.chain(later).collect()
}

/// Unmaps everything outside `keep` (besides what the kernel put there itself).
pub(super) fn unmap_all_but(frozen: &mut Frozen, keep: &[Range]) -> Result<(), TraceeError> {
    let stub = frozen.stub()?;
    let mut keep = keep.to_vec();
    keep.push((stub.code, stub.scratch + stub.scratch_bytes));
    let maps = maps_of(frozen)?;
    let ours = maps
        .0
        .iter()
        .filter(|map| map.end <= USER_END && !is_kernels(map));
    let ranges = subtract(ours.map(|map| (map.start, map.end)).collect(), keep);
    let unmap = |(start, end): Range| {
        let args = [start, end - start, 0, 0, 0, 0];
        Call::new(("munmap", libc::SYS_munmap), args)
    };
    let calls: Vec<Call> = ranges.into_iter().map(unmap).collect();
    frozen.calls_checked(0, &calls).map(drop)
}

pub(super) fn is_kernels(map: &Mapping) -> bool {
    KERNEL_NAMES
        .iter()
        .any(|name| map.name.as_os_str() == *name)
}

/// `ranges` without `holes`; neighbours are joined, so that one call unmaps many.
pub(super) fn subtract(ranges: Vec<Range>, mut holes: Vec<Range>) -> Vec<Range> {
    holes.sort_unstable();
    let mut left: Vec<Range> = Vec::new();
    let mut add = |start: u64, end: u64| match left.last_mut() {
        _ if start >= end => {}
        Some(last) if last.1 == start => last.1 = end,
        _ => left.push((start, end)),
    };
    for (from, end) in ranges {
        let mut start = from;
        for hole in holes.iter().filter(|hole| hole.1 > from && hole.0 < end) {
            add(start, hole.0.min(end));
            start = start.max(hole.1);
        }
        add(start, end);
    }
    left
}

/// Moves the kernel's own mappings to where the image has them.
pub(super) fn move_kernel_mappings(
    frozen: &mut Frozen,
    image: &ProcessImage,
) -> Result<(), RestoreError> {
    let maps = maps_of(frozen)?;
    let mut moves = Vec::new();
    for (name, kind) in KERNEL_NAMES
        .iter()
        .zip([VmaKind::Vvar, VmaKind::VvarClock, VmaKind::Vdso])
    {
        let wanted = image.vmas.iter().find(|vma| vma.kind() == kind);
        match (maps.named(name), wanted) {
            (Some(map), Some(vma)) if map.bytes() == vma.end - vma.start => {
                moves.push((map.start, vma.start, map.bytes()));
            }
            (None, None) => {}
            _ => {
                return Err(RestoreError::Incompatible(format!(
                    "its kernel's {name} differs"
                )));
            }
        }
    }
    // By way of a free place, since old and new places may overlap.
    let total = moves.iter().map(|(_, _, bytes)| bytes + PAGE_BYTES).sum();
    let mut taken = taken_ranges(&maps, image);
    let mut between = free_range(&mut taken, total)
        .ok_or_else(|| RestoreError::Incompatible("no free address space".into()))?;
    let mut second = Vec::new();
    for (from, to, bytes) in moves.into_iter().filter(|(from, to, _)| from != to) {
        remap(frozen, from, between, bytes)?;
        second.push((between, to, bytes));
        between += bytes + PAGE_BYTES;
    }
    for (from, to, bytes) in second {
        remap(frozen, from, to, bytes)?;
    }
    Ok(())
}

fn remap(frozen: &mut Frozen, from: u64, to: u64, bytes: u64) -> Result<(), TraceeError> {
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    frozen
        .call(
            0,
            ("mremap", libc::SYS_mremap),
            [from, bytes, bytes, flags, to, 0],
        )
        .map(drop)
}

/// Maps one mapping of the image. Nothing may be mapped there.
pub(super) fn map_vma(
    frozen: &mut Frozen,
    vma: &VmaImage,
    finder: &Finder,
    mapped: &mut MappedFiles,
) -> Result<(), RestoreError> {
    let bytes = vma.end - vma.start;
    let mut flags = libc::MAP_FIXED_NOREPLACE;
    flags |= if vma.shared {
        libc::MAP_SHARED
    } else {
        libc::MAP_PRIVATE
    };
    flags |= if vma.grows_down {
        libc::MAP_GROWSDOWN
    } else {
        0
    };
    flags |= if vma.no_reserve {
        libc::MAP_NORESERVE
    } else {
        0
    };
    let (fd, offset) = match vma.kind() {
        VmaKind::File => (mapped.open(frozen, vma, finder)? as u64, vma.offset),
        VmaKind::Anon | VmaKind::Heap | VmaKind::Stack => {
            flags |= libc::MAP_ANONYMOUS;
            (u64::MAX, 0)
        }
        VmaKind::Vvar | VmaKind::VvarClock | VmaKind::Vdso => return Ok(()),
    };
    let args = [
        vma.start,
        bytes,
        vma.protection.into(),
        flags as u64,
        fd,
        offset,
    ];
    let address = frozen.call(0, ("mmap", libc::SYS_mmap), args)?;
    if address != vma.start {
        let what = format!("mapping {:#x} came to {address:#x}", vma.start);
        return Err(TraceeError::Unexpected {
            tid: frozen.pid(),
            what,
        }
        .into());
    }
    for advice in &vma.advice {
        let args = [vma.start, bytes, *advice as u64, 0, 0, 0];
        frozen.call(0, ("madvise", libc::SYS_madvise), args)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_left_out_and_neighbours_joined() {
        let ranges = vec![(10, 20), (20, 30), (40, 50)];
        assert_eq!(subtract(ranges.clone(), vec![]), [(10, 30), (40, 50)]);
        assert_eq!(
            subtract(ranges.clone(), vec![(15, 25), (40, 50)]),
            [(10, 15), (25, 30)]
        );
        assert_eq!(subtract(ranges.clone(), vec![(0, 100)]), []);
        assert_eq!(
            subtract(ranges, vec![(25, 26), (12, 14)]),
            [(10, 12), (14, 25), (26, 30), (40, 50)]
        );
    }

    #[test]
    fn a_free_range_meets_nothing() {
        let page = PAGE_BYTES;
        let base = SEARCH_START;
        let mut taken = vec![
            (base + 10 * page, base + 20 * page),
            (base + 2 * page, base + 3 * page),
        ];
        assert_eq!(free_range(&mut taken, page), Some(base));
        assert_eq!(free_range(&mut taken, 4 * page), Some(base + 4 * page));
        assert_eq!(free_range(&mut taken, 100 * page), Some(base + 21 * page));
        assert_eq!(free_range(&mut [(0, USER_END)], page), None);
    }
}
