//! Mappings and the layout the kernel keeps of an address space.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::image::{FileIdImage, LayoutImage, USER_END, VmaImage, VmaKind};
use crate::tracee::procfs::{Mapping, Maps, Stat};
use crate::tracee::{Frozen, TraceeError, procfs};

use super::{CantMove, CantMoveCode, CaptureError, file_id};

/// One mapping and the kernel's flags of it (VmFlags in /proc/PID/smaps, two letters each).
pub(super) struct Detailed {
    pub mapping: Mapping,
    pub flags: Vec<String>,
}

impl Detailed {
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|other| other == flag)
    }
}

/// Reads /proc/PID/smaps: the memory map with its flags.
pub(super) fn detailed(pid: i32) -> Result<Vec<Detailed>, TraceeError> {
    let text =
        procfs::read(format!("/proc/{pid}/smaps")).map_err(|error| procfs::failed(pid, error))?;
    let mut all = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            let words = String::from_utf8_lossy(flags);
            if let Some(last) = all.last_mut() {
                let last: &mut Detailed = last;
                last.flags = words.split_whitespace().map(str::to_owned).collect();
            }
        } else if line.first().is_some_and(|byte| !byte.is_ascii_uppercase()) {
            let maps = Maps::parse(line).map_err(|error| procfs::failed(pid, error))?;
            let new = maps.0.into_iter().map(|mapping| Detailed {
                mapping,
                flags: Vec::new(),
            });
            all.extend(new);
        }
    }
    Ok(all)
}

/// All mappings of a frozen process but our own stub.
pub(super) fn mappings(frozen: &Frozen) -> Result<Vec<VmaImage>, CaptureError> {
    let pid = frozen.pid();
    let all = detailed(pid)?;
    let ours = |vma: &Detailed| frozen.owns(vma.mapping.start);
    // The vsyscall page is not in the user's half and the same everywhere.
    let wanted = all
        .iter()
        .filter(|vma| vma.mapping.end <= USER_END && !ours(vma));
    wanted.map(|vma| capture_mapping(pid, vma)).collect()
}

fn capture_mapping(pid: i32, vma: &Detailed) -> Result<VmaImage, CaptureError> {
    let map = &vma.mapping;
    if vma.has("sl") {
        let reason = "sealed memory";
        return Err(CaptureError::CantMove(CantMove::new(
            CantMoveCode::SealedMemory,
            reason,
        )));
    }
    let kind = kind_of(map);
    let (path, file) = if kind == VmaKind::File {
        (
            map.name.as_os_str().as_bytes().to_vec(),
            Some(mapped_file(pid, map)?),
        )
    } else {
        (Vec::new(), None)
    };
    Ok(VmaImage {
        start: map.start,
        end: map.end,
        protection: map.protection as u32,
        kind: kind.into(),
        shared: map.shared,
        grows_down: vma.has("gd"),
        offset: map.offset,
        path,
        file,
        advice: advice(vma),
        no_reserve: vma.has("nr"),
    })
}

fn kind_of(map: &Mapping) -> VmaKind {
    match map.name.to_str() {
        _ if map.is_file() => VmaKind::File,
        Some("[heap]") => VmaKind::Heap,
        Some("[stack]") => VmaKind::Stack,
        Some("[vdso]") => VmaKind::Vdso,
        Some("[vvar]") => VmaKind::Vvar,
        Some("[vvar_vclock]") => VmaKind::VvarClock,
        _ => VmaKind::Anon,
    }
}

fn mapped_file(pid: i32, map: &Mapping) -> Result<FileIdImage, CaptureError> {
    let path = format!("/proc/{pid}/map_files/{:x}-{:x}", map.start, map.end);
    let mut id = file_id(Path::new(&path)).map_err(CaptureError::kernel("a mapped file"))?;
    id.unlinked |= map.deleted;
    Ok(id)
}

fn advice(vma: &Detailed) -> Vec<i32> {
    let known = [
        ("dc", libc::MADV_DONTFORK),
        ("dd", libc::MADV_DONTDUMP),
        ("wf", libc::MADV_WIPEONFORK),
        ("hg", libc::MADV_HUGEPAGE),
        ("nh", libc::MADV_NOHUGEPAGE),
    ];
    known
        .iter()
        .filter(|(flag, _)| vma.has(flag))
        .map(|(_, advice)| *advice)
        .collect()
}

/// What PR_SET_MM_MAP sets again.
pub(super) fn layout(frozen: &mut Frozen) -> Result<LayoutImage, CaptureError> {
    let pid = frozen.pid();
    let stat = Stat::read(pid).map_err(|error| procfs::failed(pid, error))?;
    let auxv =
        procfs::read(format!("/proc/{pid}/auxv")).map_err(|error| procfs::failed(pid, error))?;
    Ok(LayoutImage {
        start_code: stat.number(26),
        end_code: stat.number(27),
        start_stack: stat.number(28),
        start_data: stat.number(45),
        end_data: stat.number(46),
        start_brk: stat.number(47),
        brk: frozen.call(0, ("brk", libc::SYS_brk), [0; 6])?,
        arg_start: stat.number(48),
        arg_end: stat.number(49),
        env_start: stat.number(50),
        env_end: stat.number(51),
        auxv,
    })
}

/// CRC-32 of the process' vdso.
pub(crate) fn vdso_crc32(frozen: &Frozen) -> Result<u32, TraceeError> {
    let pid = frozen.pid();
    let maps = Maps::read(pid).map_err(|error| procfs::failed(pid, error))?;
    let Some(vdso) = maps.named("[vdso]") else {
        return Ok(0);
    };
    let mut code = vec![0; vdso.bytes().min(1 << 20) as usize];
    crate::tracee::Memory::of(pid).read(vdso.start, &mut code)?;
    Ok(crc32fast::hash(&code))
}
