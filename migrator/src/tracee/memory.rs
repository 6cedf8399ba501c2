//! Memory of another process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::sys::process_vm;

use super::TraceeError;

/// Most that one request to the kernel carries.
const CHUNK_BYTES: usize = 1 << 20;

/// A process' memory, read and written from outside.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pid: i32,
}

impl Memory {
    /// The memory of the process that thread `pid` belongs to.
    #[must_use]
    pub fn of(pid: i32) -> Self {
        Self { pid }
    }

    /// Fills `buffer` from `address`, also from pages that the process itself cannot read.
    ///
    /// # Errors
    /// [`TraceeError::Died`]; `Request` with EFAULT/EIO when a page is not mapped.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), TraceeError> {
        let mut done = 0;
        while done < buffer.len() {
            let end = buffer.len().min(done + CHUNK_BYTES);
            let Some(piece) = buffer.get_mut(done..end) else {
                break;
            };
            let count = self.read_some(address.wrapping_add(done as u64), piece)?;
            if count == 0 {
                return Err(self.failed("read memory", io::ErrorKind::UnexpectedEof.into()));
            }
            done += count;
        }
        Ok(())
    }

    /// Writes `bytes` at `address`, also to pages that the process itself cannot write.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), TraceeError> {
        let mut done = 0_usize;
        for piece in bytes.chunks(CHUNK_BYTES) {
            let mut rest = piece;
            while !rest.is_empty() {
                let count = self.write_some(address.wrapping_add(done as u64), rest)?;
                if count == 0 {
                    return Err(self.failed("write memory", io::ErrorKind::WriteZero.into()));
                }
                done += count;
                rest = rest.get(count..).unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Reads `count` native 64-bit numbers.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_words(&self, address: u64, count: usize) -> Result<Vec<u64>, TraceeError> {
        let mut bytes = vec![0; count * size_of::<u64>()];
        self.read(address, &mut bytes)?;
        let (words, _) = bytes.as_chunks();
        Ok(words.iter().copied().map(u64::from_ne_bytes).collect())
    }

    /// Reads one native 64-bit number.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_u64(&self, address: u64) -> Result<u64, TraceeError> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn read_some(&self, address: u64, buffer: &mut [u8]) -> Result<usize, TraceeError> {
        match process_vm::read(self.pid, address, buffer) {
            Ok(count) if count > 0 => Ok(count),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                Err(TraceeError::Died { tid: self.pid })
            }
            // /proc/PID/mem ignores page protections, which process_vm_readv respects.
            _ => self
                .open()?
                .read_at(buffer, address)
                .map_err(|e| self.failed("read memory", e)),
        }
    }

    fn write_some(&self, address: u64, bytes: &[u8]) -> Result<usize, TraceeError> {
        match process_vm::write(self.pid, address, bytes) {
            Ok(count) if count > 0 => Ok(count),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                Err(TraceeError::Died { tid: self.pid })
            }
            _ => self
                .open()?
                .write_at(bytes, address)
                .map_err(|e| self.failed("write memory", e)),
        }
    }

    fn open(&self) -> Result<File, TraceeError> {
        let path = format!("/proc/{}/mem", self.pid);
        File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => TraceeError::Died { tid: self.pid },
                _ => self.failed("open memory", error),
            })
    }

    fn failed(&self, request: &'static str, error: io::Error) -> TraceeError {
        TraceeError::request(request, self.pid, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_read_and_written_whole() -> Result<(), TraceeError> {
        let me = Memory::of(std::process::id() as i32);
        let source: Vec<u8> = (0..3 << 20)
            .map(|number: u32| (number % 251) as u8)
            .collect();
        let mut copy = vec![0; source.len()];
        me.read(source.as_ptr() as u64, &mut copy)?;
        assert_eq!(copy, source);
        let mut target = vec![0_u8; source.len()];
        me.write(target.as_mut_ptr() as u64, &source)?;
        assert_eq!(std::hint::black_box(target), source);
        Ok(())
    }

    #[test]
    fn an_unmapped_address_is_an_error() {
        let me = Memory::of(std::process::id() as i32);
        assert!(matches!(me.read_u64(16), Err(TraceeError::Request { .. })));
        assert!(matches!(
            me.write(16, &[1]),
            Err(TraceeError::Request { .. })
        ));
    }

    #[test]
    fn a_missing_process_is_dead() {
        assert!(
            Memory::of(i32::MAX)
                .read_u64(4096)
                .is_err_and(|error| error.is_death())
        );
    }
}
