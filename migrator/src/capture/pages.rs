//! Which pages have content of their own, and a streaming reader for them.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use crate::image::{PAGE_BYTES, VmaImage, VmaKind};
use crate::sys::pagemap_scan::{self, PageRegion, Query, category};
use crate::sys::process_vm;
use crate::tracee::{Memory, TraceeError, procfs};

/// Most page content in one batch.
pub const BATCH_BYTES: usize = 1 << 20;
/// Most runs in one batch: what one process_vm_readv takes (IOV_MAX).
const BATCH_RUNS: usize = 1024;

/// Consecutive pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Address of the first.
    pub start: u64,
    /// How many.
    pub count: u32,
}

impl PageRun {
    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.count) * PAGE_BYTES
    }
}

/// Page content as it is sent: the runs in order, their bytes one after the other.
#[derive(Debug)]
pub struct PageBatch<'a> {
    /// Where the bytes belong.
    pub runs: &'a [PageRun],
    /// At most [`BATCH_BYTES`].
    pub bytes: &'a [u8],
}

/// All pages of these mappings that differ from what a fresh mapping would show: present or
/// swapped private pages; neither pages of files nor the page of zeroes.
///
/// # Errors
/// [`TraceeError::Died`]; `Request` with ENOTTY on kernels before 6.7.
pub fn private_pages(pid: i32, vmas: &[VmaImage]) -> Result<Vec<PageRun>, TraceeError> {
    let pagemap =
        File::open(format!("/proc/{pid}/pagemap")).map_err(|error| procfs::failed(pid, error))?;
    let mut runs = Vec::new();
    for vma in vmas.iter().filter(|vma| has_pages(vma)) {
        scan(&pagemap, vma.start, vma.end, &mut runs)
            .map_err(|error| TraceeError::request("PAGEMAP_SCAN", pid, error))?;
    }
    Ok(runs)
}

fn has_pages(vma: &VmaImage) -> bool {
    let own_kinds = [VmaKind::Anon, VmaKind::Heap, VmaKind::Stack, VmaKind::File];
    own_kinds.contains(&vma.kind()) && !vma.shared
}

fn scan(pagemap: &File, start: u64, end: u64, runs: &mut Vec<PageRun>) -> io::Result<()> {
    let mut regions = vec![PageRegion::default(); 512];
    let mut unwanted = category::FILE | category::PFNZERO | category::GUARD;
    let mut at = start;
    while at < end {
        let query = Query {
            inverted: unwanted,
            all: unwanted,
            any: category::PRESENT | category::SWAPPED,
            ..Query::default()
        };
        let found = pagemap_scan::scan(pagemap.as_fd(), at, end, query, &mut regions);
        let (count, next) = match found {
            // Kernels before 6.15 have no guard pages and do not know the word.
            Err(error) if is_invalid(&error) && unwanted & category::GUARD != 0 => {
                unwanted &= !category::GUARD;
                continue;
            }
            other => other?,
        };
        runs.extend(regions.iter().take(count).map(|region| PageRun {
            start: region.start,
            count: u32::try_from((region.end - region.start) / PAGE_BYTES).unwrap_or(u32::MAX),
        }));
        if next <= at {
            break;
        }
        at = next;
    }
    Ok(())
}

fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

/// Reads runs of pages in batches, through one reused buffer.
#[derive(Debug)]
pub struct PageStream {
    memory: Memory,
    pid: i32,
    waiting: VecDeque<PageRun>,
    buffer: Vec<u8>,
    batch: Vec<PageRun>,
}

impl PageStream {
    /// A stream of these runs of a process' memory.
    #[must_use]
    pub fn new(pid: i32, runs: Vec<PageRun>) -> Self {
        Self {
            memory: Memory::of(pid),
            pid,
            waiting: runs.into(),
            buffer: Vec::new(),
            batch: Vec::new(),
        }
    }

    /// Bytes not read yet.
    #[must_use]
    pub fn remaining_bytes(&self) -> u64 {
        self.waiting.iter().map(PageRun::bytes).sum()
    }

    /// The next batch, or `None` at the end.
    ///
    /// # Errors
    /// [`TraceeError::Died`]; `Request` when a page cannot be read.
    pub fn next_batch(&mut self) -> Result<Option<PageBatch<'_>>, TraceeError> {
        let mut bytes = 0;
        self.batch.clear();
        while bytes < BATCH_BYTES && self.batch.len() < BATCH_RUNS {
            let Some(mut run) = self.waiting.pop_front() else {
                break;
            };
            let room = ((BATCH_BYTES - bytes) as u64 / PAGE_BYTES) as u32;
            if run.count > room {
                let rest = PageRun {
                    start: run.start + u64::from(room) * PAGE_BYTES,
                    count: run.count - room,
                };
                self.waiting.push_front(rest);
                run.count = room;
            }
            bytes += run.bytes() as usize;
            self.batch.push(run);
        }
        if self.batch.is_empty() {
            return Ok(None);
        }
        self.buffer.resize(bytes, 0);
        self.fill()?;
        Ok(Some(PageBatch {
            runs: &self.batch,
            bytes: &self.buffer,
        }))
    }

    /// One vectored read; page by page through /proc/PID/mem if some page is not readable so.
    fn fill(&mut self) -> Result<(), TraceeError> {
        let ranges: Vec<(u64, usize)> = self
            .batch
            .iter()
            .map(|run| (run.start, run.bytes() as usize))
            .collect();
        match process_vm::read_ranges(self.pid, &ranges, &mut self.buffer) {
            Ok(count) if count == self.buffer.len() => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                return Err(TraceeError::Died { tid: self.pid });
            }
            _ => {}
        }
        let mut rest = self.buffer.as_mut_slice();
        for (start, bytes) in ranges {
            let Some((piece, tail)) = rest.split_at_mut_checked(bytes) else {
                break;
            };
            self.memory.read(start, piece)?;
            rest = tail;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracee::procfs::Maps;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    fn vma_of(address: u64) -> io::Result<VmaImage> {
        let maps = Maps::read(std::process::id() as i32)?;
        let map = maps.at(address).ok_or(io::ErrorKind::NotFound)?;
        Ok(VmaImage {
            start: map.start,
            end: map.end,
            ..VmaImage::default()
        })
    }

    #[test]
    fn touched_pages_are_found_and_read_and_others_are_not() -> TestResult {
        let me = std::process::id() as i32;
        // Large enough to get a mapping of its own, untouched.
        let mut block = Vec::<u8>::with_capacity(64 << 20);
        let base = (block.as_ptr() as u64).next_multiple_of(PAGE_BYTES);
        let skip = (base - block.as_ptr() as u64) as usize + 40 * PAGE_BYTES as usize;
        Memory::of(me).write(base + 40 * PAGE_BYTES, &[7; 3 * PAGE_BYTES as usize])?;
        let mut vma = vma_of(base)?;
        (vma.start, vma.end) = (base + PAGE_BYTES, base + 1000 * PAGE_BYTES);
        let runs = private_pages(me, &[vma])?;
        assert_eq!(
            runs,
            [PageRun {
                start: base + 40 * PAGE_BYTES,
                count: 3
            }]
        );
        let mut stream = PageStream::new(me, runs);
        assert_eq!(stream.remaining_bytes(), 3 * PAGE_BYTES);
        let batch = stream.next_batch()?.ok_or("no batch")?;
        assert!(batch.bytes.len() == 3 * 4096 && batch.bytes.iter().all(|byte| *byte == 7));
        assert!(stream.next_batch()?.is_none());
        block.resize(skip, 0);
        Ok(())
    }

    #[test]
    fn large_runs_are_cut_into_batches() -> TestResult {
        let me = std::process::id() as i32;
        let block: Vec<u8> = (0..5 << 20).map(|index| (index / 4096) as u8).collect();
        let base = (block.as_ptr() as u64).next_multiple_of(PAGE_BYTES);
        let offset = (base - block.as_ptr() as u64) as usize;
        let runs = vec![
            PageRun {
                start: base,
                count: 700,
            },
            PageRun {
                start: base + 710 * PAGE_BYTES,
                count: 1,
            },
            PageRun {
                start: base + 720 * PAGE_BYTES,
                count: 300,
            },
        ];
        let mut stream = PageStream::new(me, runs);
        let mut seen = 0;
        while let Some(batch) = stream.next_batch()? {
            assert!(batch.bytes.len() <= BATCH_BYTES);
            let mut rest = batch.bytes;
            for run in batch.runs {
                let (piece, tail) = rest.split_at(run.bytes() as usize);
                let at = (run.start - base) as usize + offset;
                assert_eq!(Some(piece), block.get(at..at + piece.len()));
                seen += run.count;
                rest = tail;
            }
            assert!(rest.is_empty());
        }
        assert_eq!(seen, 1001);
        Ok(())
    }
}
