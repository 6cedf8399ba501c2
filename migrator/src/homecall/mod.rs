//! System calls forwarded to the deputy.
//!
//! The supervisor [`gather`]s a trapped call's inputs from the guest's memory into one message; the
//! shim [`place`]s them into the deputy thread's scratch area, has the thread make the call there,
//! and sends the outputs back; the supervisor scatters them into the guest. What memory a call
//! reads and writes is written down once, in [`describe`].

pub mod describe;
pub mod gather;
mod ioctl;
pub mod place;
mod shape;

/// Most bytes one home call moves in each direction. Reads and writes are cut to it, as the manual
/// allows; other calls that need more go home.
pub const CALL_BYTES_MAX: u32 = 1 << 20;

/// Most elements of an array argument (poll, iovec, epoll).
pub const ELEMENTS_MAX: u64 = 4096;

/// Longest path, as everywhere in Linux.
pub const PATH_BYTES_MAX: usize = 4096;

/// Why a call cannot be made as a home call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HomeCallError {
    /// Its arguments are not known here: the process has to go home for it.
    #[error("this call has to be made at home")]
    NotDescribed,
    /// An argument points to memory that is not there: EFAULT, as at home.
    #[error("bad address")]
    Fault,
    /// A length makes no sense: EINVAL, as at home.
    #[error("invalid argument")]
    Invalid,
}

/// The memory of a guest's or deputy's process.
pub trait Memory {
    /// Reads exactly `into.len()` bytes.
    ///
    /// # Errors
    /// [`HomeCallError::Fault`].
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), HomeCallError>;

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// [`HomeCallError::Fault`].
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), HomeCallError>;

    /// Reads a string without its final zero byte; at most [`PATH_BYTES_MAX`] bytes of it.
    ///
    /// # Errors
    /// [`HomeCallError::Fault`].
    fn read_string(&self, address: u64) -> Result<Vec<u8>, HomeCallError> {
        let mut string = Vec::new();
        while string.len() < PATH_BYTES_MAX {
            // Up to the end of the page: what follows may not be mapped.
            let at = address.wrapping_add(string.len() as u64);
            let room = usize::try_from(4096 - at % 4096).unwrap_or(4096).min(256);
            let mut piece = vec![0; room];
            self.read(at, &mut piece)?;
            match piece.iter().position(|byte| *byte == 0) {
                Some(end) => {
                    string.extend(piece.into_iter().take(end));
                    return Ok(string);
                }
                None => string.extend(piece),
            }
        }
        Ok(string) // ENAMETOOLONG is the kernel's to say
    }

    /// Reads a little-endian number of 8 bytes.
    ///
    /// # Errors
    /// [`HomeCallError::Fault`].
    fn read_u64(&self, address: u64) -> Result<u64, HomeCallError> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads a little-endian number of 4 bytes.
    ///
    /// # Errors
    /// [`HomeCallError::Fault`].
    fn read_u32(&self, address: u64) -> Result<u32, HomeCallError> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

impl Memory for crate::tracee::Memory {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), HomeCallError> {
        Self::read(self, address, into).map_err(|_| HomeCallError::Fault)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), HomeCallError> {
        Self::write(self, address, bytes).map_err(|_| HomeCallError::Fault)
    }
}
