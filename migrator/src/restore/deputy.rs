//! The deputy's memory: given up when its process runs elsewhere, built again when it comes home.

use std::path::Path;
use std::time::Instant;

use crate::capture::{PageRun, file_id};
use crate::image::{self, PAGE_BYTES, ProcessImage, VmaImage, VmaKind};
use crate::tracee::procfs::{Mapping, Maps, Stat};
use crate::tracee::{CALL_DEADLINE, Call, Frozen, RawSiginfo, TraceeError, procfs};

use super::files::{self, Finder};
use super::guest::write_pages;
use super::mapped::MappedFiles;
use super::space::{self, Range};
use super::{RestoreError, maps_of, process, threads};

/// Releases the memory of a process that runs elsewhere now. What stays: mappings of files (they
/// cost nothing, and bring even unlinked files home again), the kernel's own mappings, the stub,
/// and the pages of arguments and environment, which `ps` shows.
///
/// # Errors
/// [`TraceeError`].
pub fn release_memory(frozen: &mut Frozen) -> Result<(), TraceeError> {
    for index in 0..frozen.threads.len() {
        threads::detach_from_memory(frozen, index)?;
    }
    let maps = maps_of(frozen)?;
    let mut keep = shown_pages(frozen.pid())?;
    let copies = maps.0.iter().filter(|map| map.is_file() && !map.shared);
    // Of locked memory the kernel refuses it: it stays.
    frozen.calls(0, &copies.map(drop_copies).collect::<Vec<Call>>())?;
    keep.extend(
        maps.0
            .iter()
            .filter(|map| map.is_file())
            .map(|map| (map.start, map.end)),
    );
    space::unmap_all_but(frozen, &keep)
}

/// Forgets those of the signals taken from the deputy's queues that its image has taken along; the
/// others came since.
pub fn forget_moved_signals(frozen: &mut Frozen, image: &ProcessImage) {
    let threads = image
        .threads
        .iter()
        .flat_map(|thread| &thread.pending_signals);
    let all = image.pending_signals.iter().chain(threads);
    let mut moved: Vec<RawSiginfo> = all
        .filter_map(|info| RawSiginfo::try_from(&info[..]).ok())
        .collect();
    frozen.signals.retain(|seen| {
        let at = moved.iter().position(|info| *info == seen.info);
        at.map(|at| moved.swap_remove(at)).is_none()
    });
}

/// Where arguments and environment lie, in whole pages.
fn shown_pages(pid: i32) -> Result<Vec<Range>, TraceeError> {
    let stat = Stat::read(pid).map_err(|error| procfs::failed(pid, error))?;
    let pages = |start: u64, end: u64| {
        let aligned = start / PAGE_BYTES * PAGE_BYTES;
        (start != 0 && end > start).then(|| (aligned, end.next_multiple_of(PAGE_BYTES)))
    };
    let arguments = pages(stat.number(48), stat.number(49));
    let environment = pages(stat.number(50), stat.number(51));
    Ok(arguments.into_iter().chain(environment).collect())
}

/// Drops the private copies of a file's pages.
fn drop_copies(map: &Mapping) -> Call {
    let args = [map.start, map.bytes(), libc::MADV_DONTNEED as u64, 0, 0, 0];
    Call::new(("madvise", libc::SYS_madvise), args)
}

/// Gives the deputy the mappings of its process as it comes home; page content follows by
/// [`write_home_pages`]. The deputy can park again if this fails.
///
/// # Errors
/// `File` when a mapped file is not found any more, [`RestoreError`].
pub fn rebuild_memory(frozen: &mut Frozen, image: &ProcessImage) -> Result<(), RestoreError> {
    image::validate(image)?;
    let maps = maps_of(frozen)?;
    let pid = frozen.pid();
    let kept: Vec<&VmaImage> = image
        .vmas
        .iter()
        .filter(|vma| is_still_mapped(pid, &maps, vma))
        .collect();
    let ranges: Vec<Range> = kept.iter().map(|vma| (vma.start, vma.end)).collect();
    space::unmap_all_but(frozen, &ranges)?;
    for vma in &kept {
        protect(frozen, &maps, vma)?;
    }
    let finder = Finder::at_home();
    let missing = image
        .vmas
        .iter()
        .filter(|vma| !ranges.contains(&(vma.start, vma.end)));
    // Opening is cheap here, and the process may be at its limit of open files: one at a time.
    let mapped = MappedFiles::with_own_of(pid);
    let mut mapped = mapped.map_err(|error| procfs::failed(pid, error))?;
    for vma in missing {
        space::map_vma(frozen, vma, &finder, &mut mapped)?;
        mapped.close(frozen)?;
    }
    space::move_kernel_mappings(frozen, image)
}

/// Is exactly this part of this file mapped there, in one piece or in several?
fn is_still_mapped(pid: i32, maps: &Maps, vma: &VmaImage) -> bool {
    if vma.kind() != VmaKind::File {
        return false;
    }
    let mut at = vma.start;
    while at < vma.end {
        let Some(map) = maps.at(at) else { return false };
        let same_place = map.start.wrapping_sub(map.offset) == vma.start.wrapping_sub(vma.offset);
        if !map.is_file() || map.shared != vma.shared || !same_place {
            return false;
        }
        let link = format!("/proc/{pid}/map_files/{:x}-{:x}", map.start, map.end);
        let same = match (&vma.file, file_id(Path::new(&link))) {
            (Some(wanted), Ok(found)) => files::same_file(wanted, &found),
            _ => false,
        };
        if !same {
            return false;
        }
        at = map.end;
    }
    true
}

/// Sets the protection of a mapping that stayed.
fn protect(frozen: &mut Frozen, maps: &Maps, vma: &VmaImage) -> Result<(), TraceeError> {
    let inside = maps
        .0
        .iter()
        .filter(|map| map.start < vma.end && map.end > vma.start);
    if inside
        .clone()
        .all(|map| map.protection as u32 == vma.protection)
    {
        return Ok(());
    }
    let args = [
        vma.start,
        vma.end - vma.start,
        vma.protection.into(),
        0,
        0,
        0,
    ];
    frozen
        .call(0, ("mprotect", libc::SYS_mprotect), args)
        .map(drop)
}

/// Writes page content that came home.
///
/// # Errors
/// As [`super::GuestBuilder::write_pages`].
pub fn write_home_pages(
    frozen: &mut Frozen,
    image: &ProcessImage,
    runs: &[PageRun],
    bytes: &[u8],
) -> Result<(), RestoreError> {
    write_pages(image, frozen.pid(), runs, bytes)
}

/// Gives the deputy everything else of its process: layout, actions, timers, pending signals,
/// mask for new files, and each thread's state. Descriptors and working directory are the
/// caller's, who knows what changed. Afterwards [`Frozen::thaw`] lets the process run.
///
/// # Errors
/// `Incompatible` when the image has a thread that the deputy has not; [`RestoreError`].
pub fn rebuild_state(frozen: &mut Frozen, image: &ProcessImage) -> Result<(), RestoreError> {
    order_threads(frozen, image)?;
    let layout = image.layout.clone().unwrap_or_default();
    process::set_layout(frozen, &layout, None)?;
    process::set_actions(frozen, image)?;
    process::set_timers(frozen, image, true)?;
    process::set_habits(frozen, image)?;
    for (index, thread) in image.threads.iter().enumerate() {
        threads::set_state(frozen, index, thread)?;
    }
    process::queue_pending(frozen, image)
}

/// Ends the deputy's threads whose counterparts have ended away.
///
/// # Errors
/// [`TraceeError`].
pub fn end_missing_threads(frozen: &mut Frozen, image: &ProcessImage) -> Result<(), TraceeError> {
    let stub = frozen.stub()?;
    let lives = |tid: i32| image.threads.iter().any(|thread| thread.tid == tid);
    let (stay, gone) = std::mem::take(&mut frozen.threads)
        .into_iter()
        .partition(|t| lives(t.stopped.tid()));
    frozen.threads = stay;
    for thread in gone {
        let running = thread.stopped.start_call(&stub, libc::SYS_exit, [0; 6])?;
        let tid = running.tid();
        match running.wait(Instant::now() + CALL_DEADLINE) {
            Err(error) if error.is_death() => {}
            Err(error) => return Err(error),
            Ok(_) => {
                return Err(TraceeError::Unexpected {
                    tid,
                    what: "stop at its exit".into(),
                });
            }
        }
    }
    Ok(())
}

/// Brings the deputy's threads into the order of the image; both must be the same threads.
fn order_threads(frozen: &mut Frozen, image: &ProcessImage) -> Result<(), RestoreError> {
    let wanted: Vec<i32> = image.threads.iter().map(|thread| thread.tid).collect();
    let mut has: Vec<i32> = frozen
        .threads
        .iter()
        .map(|thread| thread.stopped.tid())
        .collect();
    let place = |tid: i32| wanted.iter().position(|other| *other == tid);
    frozen
        .threads
        .sort_by_key(|thread| place(thread.stopped.tid()));
    let mut sorted = wanted.clone();
    sorted.sort_unstable();
    has.sort_unstable();
    if has == sorted {
        return Ok(());
    }
    Err(RestoreError::Incompatible(format!(
        "threads {has:?} cannot become {sorted:?}"
    )))
}
