//! An image as a file: `OMFSPRC` and a zero byte, version, length and CRC-32 (all little-endian,
//! 32 bits but the length with 64), then the protobuf encoding.

use prost::Message;

use super::{ImageError, ProcessImage, VERSION};

const MAGIC: [u8; 8] = *b"OMFSPRC\0";
const HEADER_BYTES: usize = 24;
/// Largest encoded image accepted; a process with 65,530 mappings needs about 8 MiB.
pub const IMAGE_BYTES_MAX: usize = 256 << 20;

/// The whole file.
#[must_use]
pub fn encode(image: &ProcessImage) -> Vec<u8> {
    with_header(&image.encode_to_vec())
}

/// A file with this content.
pub(crate) fn with_header(body: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(HEADER_BYTES + body.len());
    file.extend_from_slice(&MAGIC);
    file.extend_from_slice(&VERSION.to_le_bytes());
    file.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    file.extend_from_slice(&(body.len() as u64).to_le_bytes());
    file.extend_from_slice(body);
    file
}

/// The image in such a file.
///
/// # Errors
/// Damage, a newer version, inconsistent contents.
pub fn decode(file: &[u8]) -> Result<ProcessImage, ImageError> {
    let (header, body) = file
        .split_at_checked(HEADER_BYTES)
        .ok_or(ImageError::Damaged("too short"))?;
    let (magic, rest) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(ImageError::Damaged("wrong magic"));
    }
    let number = |at: usize| {
        let bytes = rest.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    };
    if number(0) > VERSION {
        return Err(ImageError::Version(number(0)));
    }
    let length = u64::from(number(8)) | (u64::from(number(12)) << 32);
    if length != body.len() as u64 || body.len() > IMAGE_BYTES_MAX {
        return Err(ImageError::Damaged("wrong length"));
    }
    if crc32fast::hash(body) != number(4) {
        return Err(ImageError::Damaged("wrong checksum"));
    }
    let image = ProcessImage::decode(body).map_err(|_| ImageError::Damaged("not protobuf"))?;
    super::validate(&image)?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{FileImage, FileKind, ThreadImage, VmaImage, VmaKind, registers};
    use crate::sys::regs::{CS_64_BIT, Regs};

    /// Must be read by every later version; written once, by version 1.
    const GOLDEN: &[u8] = include_bytes!("golden-v1.bin");

    fn small() -> ProcessImage {
        let regs = Regs {
            rip: 0x40_1000,
            rax: 7,
            cs: CS_64_BIT,
            ..Regs::default()
        };
        let thread = ThreadImage {
            tid: 4711,
            regs: registers::to_list(&regs),
            comm: b"gzip".to_vec(),
            ..ThreadImage::default()
        };
        let vma = VmaImage {
            start: 0x40_0000,
            end: 0x40_2000,
            protection: 5,
            kind: VmaKind::File.into(),
            path: b"/usr/bin/gzip".to_vec(),
            ..VmaImage::default()
        };
        let file = FileImage {
            number: 1,
            kind: FileKind::Pipe.into(),
            home: true,
            ..FileImage::default()
        };
        ProcessImage {
            version: 1,
            pid: 4711,
            threads: vec![thread],
            vmas: vec![vma],
            files: vec![file],
            cwd: b"/home/a".to_vec(),
            ..ProcessImage::default()
        }
    }

    #[test]
    fn the_golden_image_is_read_and_written_as_ever() {
        assert_eq!(decode(GOLDEN), Ok(small()));
        assert_eq!(encode(&small()), GOLDEN);
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        for at in 0..GOLDEN.len() {
            let mut damaged = GOLDEN.to_vec();
            if let Some(byte) = damaged.get_mut(at) {
                *byte ^= 0x10;
            }
            assert!(decode(&damaged).is_err(), "byte {at}");
            assert!(
                decode(GOLDEN.get(..at).unwrap_or_default()).is_err(),
                "cut at {at}"
            );
        }
    }

    #[test]
    fn nonsense_inside_is_refused() {
        let mut crossed = small();
        crossed.vmas.push(VmaImage {
            start: 0x40_1000,
            end: 0x40_3000,
            ..VmaImage::default()
        });
        assert!(decode(&encode(&crossed)).is_err());
        let headless = ProcessImage {
            threads: Vec::new(),
            ..small()
        };
        assert!(decode(&encode(&headless)).is_err());
        let newer = ProcessImage {
            version: 2,
            ..small()
        };
        assert_eq!(decode(&encode(&newer)), Err(ImageError::Version(2)));
    }
}
