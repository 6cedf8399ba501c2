//! What a frozen process consists of, as protobuf (`proto/omfs/v1/image.proto`).
//!
//! * [`registers`] — between the kernel's structure and the image's list of numbers.
//! * [`cpu`] — which processor features a program may have come to rely on.
//! * [`places`] — paths that depend on the node.
//! * [`stored`] — an image as a file: magic, version, checksum.

pub mod cpu;
pub mod places;
pub mod registers;
pub mod stored;

pub use proto::v1::{
    AltStackImage, ClockImage, CpuImage, CredentialsImage, FileIdImage, FileImage, FileKind,
    IntervalTimerImage, LayoutImage, LimitImage, ProcessImage, RseqImage, SignalActionImage,
    ThreadImage, VmaImage, VmaKind,
};

/// Version of the image written by this program.
pub const VERSION: u32 = 1;

/// A page, the unit of everything about memory (x86-64).
pub const PAGE_BYTES: u64 = 4096;

/// Devices that are the same everywhere: a guest has those of its host.
pub const LOCAL_DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImageError {
    /// No image, or damaged.
    #[error("this is no process image: {0}")]
    Damaged(&'static str),
    /// Written by a newer program.
    #[error("image version {0} is newer than this program")]
    Version(u32),
    /// Contents that make no sense.
    #[error("the image is inconsistent: {0}")]
    Inconsistent(String),
}

/// Most mappings, threads and descriptors an image may list; the kernel's own default limits are
/// 65,530 mappings and 2^20 descriptors.
const LIST_MAX: usize = 1 << 20;

/// Checks what the restoring side relies on. An image comes over a connection.
///
/// # Errors
/// What is wrong.
pub fn validate(image: &ProcessImage) -> Result<(), ImageError> {
    if image.version == 0 || image.version > VERSION {
        return Err(ImageError::Version(image.version));
    }
    let lists = [image.threads.len(), image.vmas.len(), image.files.len()];
    if lists.iter().any(|length| *length > LIST_MAX) {
        return Err(inconsistent("too long a list"));
    }
    let Some(leader) = image.threads.first() else {
        return Err(inconsistent("no thread"));
    };
    if leader.tid != image.pid || image.pid <= 0 {
        return Err(inconsistent("the first thread does not lead the process"));
    }
    for thread in &image.threads {
        registers::from_image(thread)?;
    }
    validate_vmas(&image.vmas)?;
    let all = image
        .threads
        .iter()
        .flat_map(|thread| &thread.pending_signals);
    if all
        .chain(&image.pending_signals)
        .any(|info| info.len() != 128)
    {
        return Err(inconsistent("a pending signal of a wrong size"));
    }
    Ok(())
}

fn validate_vmas(vmas: &[VmaImage]) -> Result<(), ImageError> {
    let mut last = PAGE_BYTES;
    for vma in vmas {
        let aligned = vma.start.is_multiple_of(PAGE_BYTES) && vma.end.is_multiple_of(PAGE_BYTES);
        if !aligned || vma.start < last || vma.end <= vma.start || vma.end > USER_END {
            return Err(inconsistent(&format!(
                "mapping {:#x}-{:#x}",
                vma.start, vma.end
            )));
        }
        last = vma.end;
    }
    Ok(())
}

/// End of the address space of a 64-bit process (five-level page tables are opt-in).
pub const USER_END: u64 = 0x7fff_ffff_f000;

fn inconsistent(what: &str) -> ImageError {
    ImageError::Inconsistent(what.to_owned())
}
