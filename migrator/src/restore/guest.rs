//! A blank child becomes the process.
//!
//! [`GuestBuilder::begin`] → pages as they come ([`GuestBuilder::write_pages`]) →
//! [`GuestBuilder::finish`] → [`GuestBuilder::run`]. Dropping the builder before `run` leaves a
//! stopped tracee that never executed an instruction of the program; kill it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::capture::PageRun;
use crate::capture::memory::vdso_crc32;
use crate::image::{self, PAGE_BYTES, ProcessImage, VmaKind, cpu};
use crate::numbers::HomeNumbers;
use crate::tracee::{Frozen, Memory, Running, Stopped, Stub, TraceeError, options, procfs};

use super::files::{self, Finder};
use super::mapped::MappedFiles;
use super::{RestoreError, mapped, maps_of, privileges, process, space, threads};

/// Scratch memory of a guest's stub; a page of it takes paths.
const SCRATCH_BYTES: u64 = 32 * 1024;
/// What a guest is traced with while it is built.
pub const OPTIONS: u32 = options::TRACESYSGOOD | options::TRACECLONE | options::EXITKILL;

/// A guest being built.
#[derive(Debug)]
pub struct GuestBuilder {
    frozen: Frozen,
    image: ProcessImage,
    stub: Stub,
}

impl GuestBuilder {
    /// Takes over a blank child: one thread, seized with [`OPTIONS`], stopped, privileged, with
    /// home's tree as its root, and one descriptor, number 0, of the directory of the deputy's files.
    /// It gets the image's descriptors, working directory and mappings (still empty).
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn begin(
        blank: Stopped,
        image: ProcessImage,
        numbers: &Arc<HomeNumbers>,
    ) -> Result<Self, RestoreError> {
        image::validate(&image)?;
        check_processor(&image)?;
        let (frozen, stub) = enter(blank, &image)?;
        let mut builder = Self {
            frozen,
            image,
            stub,
        };
        builder.clear()?;
        let deputy = builder.set_deputy_aside()?;
        privileges::open_as_process(&mut builder.frozen, &builder.image)?;
        let numbers = Arc::clone(numbers);
        let finder = Finder::away(&builder.frozen, &builder.image, deputy, numbers);
        let finder = finder.map_err(|error| procfs::failed(builder.host_pid(), error))?;
        builder.map(&finder)?;
        builder.open_files(&finder)?;
        files::close(&mut builder.frozen, deputy)?;
        builder.limit_files()?;
        Ok(builder)
    }

    /// Gives the directory of the deputy's files a number that no file of the image has, and makes
    /// room for all of them.
    fn set_deputy_aside(&mut self) -> Result<i32, RestoreError> {
        let numbers: BTreeSet<i32> = self.image.files.iter().map(|file| file.number).collect();
        let free = (1..).find(|number| !numbers.contains(number));
        let free = free.unwrap_or(i32::MAX);
        let highest = numbers.last().copied().unwrap_or(0).max(free);
        let room = u64::try_from(highest).unwrap_or(0) + 1 + mapped::OPEN_MAX as u64;
        process::make_room(&mut self.frozen, room)?;
        files::duplicate(&mut self.frozen, 0, free, true)?;
        files::close(&mut self.frozen, 0)?;
        Ok(free)
    }

    /// The guest's id as this node sees it.
    #[must_use]
    pub fn host_pid(&self) -> i32 {
        self.frozen.pid()
    }

    /// The image it is built from.
    #[must_use]
    pub fn image(&self) -> &ProcessImage {
        &self.image
    }

    /// The stub, which stays in the guest.
    #[must_use]
    pub fn stub(&self) -> Stub {
        self.stub
    }

    /// Empties the address space.
    fn clear(&mut self) -> Result<(), RestoreError> {
        if vdso_crc32(&self.frozen)? != self.image.vdso_crc32 {
            return Err(RestoreError::Incompatible(
                "its kernel's vdso differs".into(),
            ));
        }
        threads::detach_from_memory(&mut self.frozen, 0)?;
        space::unmap_all_but(&mut self.frozen, &[])?;
        space::move_kernel_mappings(&mut self.frozen, &self.image)
    }

    fn map(&mut self, finder: &Finder) -> Result<(), RestoreError> {
        let mut mapped = MappedFiles::default();
        for vma in &self.image.vmas {
            space::map_vma(&mut self.frozen, vma, finder, &mut mapped)?;
        }
        let exe = (&self.image.exe[..], self.image.exe_id.as_ref());
        let exe = mapped.open_program(&mut self.frozen, exe, finder)?;
        let layout = self.image.layout.clone().unwrap_or_default();
        process::set_layout(&mut self.frozen, &layout, Some(exe))?;
        Ok(mapped.close(&mut self.frozen)?)
    }

    fn open_files(&mut self, finder: &Finder) -> Result<(), RestoreError> {
        process::set_directory(&mut self.frozen, &self.image, finder)?;
        for file in &self.image.files {
            files::place_file(&mut self.frozen, file, finder)?;
        }
        Ok(())
    }

    fn limit_files(&mut self) -> Result<(), RestoreError> {
        let number = libc::RLIMIT_NOFILE as i32;
        let limits = self.image.limits.iter();
        let limits = limits.filter(|limit| limit.resource == number);
        process::set_limits(&mut self.frozen, limits)
    }

    /// Writes page content. Pages may come several times; the last one counts.
    ///
    /// # Errors
    /// `Incompatible` for pages outside the image's mappings, [`RestoreError::Tracee`].
    pub fn write_pages(&mut self, runs: &[PageRun], bytes: &[u8]) -> Result<(), RestoreError> {
        write_pages(&self.image, self.frozen.pid(), runs, bytes)
    }

    /// Makes the threads and sets all state. `hook` runs in the leader when everything of the
    /// process but threads and credentials is in place; what it installs there (a filter) is
    /// inherited by the threads. From then on the tracee's filters are suspended.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn finish(
        &mut self,
        hook: impl FnOnce(&mut Frozen) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let (frozen, image) = (&mut self.frozen, &self.image);
        process::set_actions(frozen, image)?;
        process::set_timers(frozen, image, false)?;
        let number = libc::RLIMIT_NOFILE as i32;
        process::set_limits(
            frozen,
            image.limits.iter().filter(|limit| limit.resource != number),
        )?;
        process::set_habits(frozen, image)?;
        privileges::empty_bounding_set(frozen)?;
        frozen
            .leader()?
            .stopped
            .set_options(OPTIONS | options::SUSPEND_SECCOMP)?;
        hook(frozen)?;
        for thread in image.threads.iter().skip(1) {
            threads::create(frozen, thread.tid)?;
        }
        for (index, thread) in image.threads.iter().enumerate() {
            threads::set_state(frozen, index, thread)?;
        }
        process::queue_pending(frozen, image)?;
        privileges::take_on(frozen, image)
    }

    /// Lets the guest run; answers its threads, the leader first, traced with `options`.
    ///
    /// # Errors
    /// [`TraceeError`].
    pub fn run(self, options: u32) -> Result<Vec<Running>, TraceeError> {
        self.frozen.run(options)
    }
}

/// Puts the stub where neither the blank child nor the image has anything.
fn enter(blank: Stopped, image: &ProcessImage) -> Result<(Frozen, Stub), RestoreError> {
    let pid = blank.tid();
    let mut frozen = Frozen::adopt(pid, vec![blank], None)?;
    let maps = maps_of(&frozen)?;
    let mut taken = space::taken_ranges(&maps, image);
    let address = space::free_range(&mut taken, PAGE_BYTES + SCRATCH_BYTES)
        .ok_or_else(|| RestoreError::Incompatible("no free address space".into()))?;
    let stub = frozen.stub_at(address, SCRATCH_BYTES)?;
    Ok((frozen, stub))
}

fn check_processor(image: &ProcessImage) -> Result<(), RestoreError> {
    let here = cpu::here().map_err(|error| RestoreError::Incompatible(error.to_string()))?;
    let wanted = image.cpu.clone().unwrap_or_default();
    let missing = cpu::missing(&wanted, &here);
    if missing.is_empty() {
        return Ok(());
    }
    Err(RestoreError::Incompatible(format!(
        "the processor lacks {}",
        missing.join(", ")
    )))
}

/// Writes page content into mappings of an image.
pub(super) fn write_pages(
    image: &ProcessImage,
    pid: i32,
    runs: &[PageRun],
    bytes: &[u8],
) -> Result<(), RestoreError> {
    let memory = Memory::of(pid);
    let mut rest = bytes;
    for run in runs {
        let Some((piece, tail)) = rest.split_at_checked(run.bytes() as usize) else {
            return Err(RestoreError::Incompatible("pages without content".into()));
        };
        if !is_private(image, run) {
            let what = format!("pages at {:#x} outside the process", run.start);
            return Err(RestoreError::Incompatible(what));
        }
        memory.write(run.start, piece)?;
        rest = tail;
    }
    Ok(())
}

/// Do these pages lie in private mappings of the process? A run may cross from one to the next.
fn is_private(image: &ProcessImage, run: &PageRun) -> bool {
    let end = run.start.saturating_add(run.bytes());
    let kernels = [VmaKind::Vvar, VmaKind::VvarClock, VmaKind::Vdso];
    let mut at = run.start;
    while at < end {
        let index = image.vmas.partition_point(|vma| vma.end <= at);
        match image.vmas.get(index) {
            Some(vma) if vma.start <= at && !vma.shared && !kernels.contains(&vma.kind()) => {
                at = vma.end;
            }
            _ => return false,
        }
    }
    true
}
