//! The deputy's side of a home call: everything it points to is laid out in a scratch area of the
//! deputy thread.

use proto::v1::{HomeCall, HomeReply};

use super::{CALL_BYTES_MAX, HomeCallError, Memory};

/// Most buffers of one call: msghdr, name, iovec, data are four.
const BUFFERS_MAX: usize = 16;
const ALIGNMENT: usize = 16;
/// Scratch memory of a thread: the largest call, and room for its small structures.
pub const SCRATCH_BYTES: u64 = CALL_BYTES_MAX as u64 + (64 << 10);

/// A home call as it is made in the deputy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed {
    /// The call's number.
    pub number: u32,
    /// Its arguments, pointing into the scratch area.
    pub args: [u64; 6],
    /// The scratch area's content before the call, from its start.
    pub scratch: Vec<u8>,
    outputs: Vec<Output>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Output {
    offset: usize,
    length: usize,
    result_unit: usize,
}

/// Lays a call out in a scratch area that begins at `base`.
///
/// # Errors
/// [`HomeCallError::Invalid`] if the message contradicts itself or exceeds a limit.
pub fn place(call: &HomeCall, payload: &[u8], base: u64) -> Result<Placed, HomeCallError> {
    let mut placed = Placed {
        number: call.number,
        args: call
            .args
            .as_slice()
            .try_into()
            .map_err(|_| HomeCallError::Invalid)?,
        scratch: Vec::new(),
        outputs: Vec::new(),
    };
    if call.buffers.len() > BUFFERS_MAX {
        return Err(HomeCallError::Invalid);
    }
    let mut rest = payload;
    let mut starts: Vec<usize> = Vec::new();
    for buffer in &call.buffers {
        if buffer.length > CALL_BYTES_MAX {
            return Err(HomeCallError::Invalid);
        }
        let (start, length) = (placed.scratch.len(), buffer.length as usize);
        let end = (start + length).next_multiple_of(ALIGNMENT);
        if end as u64 > SCRATCH_BYTES {
            return Err(HomeCallError::Invalid);
        }
        if buffer.input {
            let (bytes, after) = rest
                .split_at_checked(length)
                .ok_or(HomeCallError::Invalid)?;
            rest = after;
            placed.scratch.extend_from_slice(bytes);
        }
        placed.scratch.resize(end, 0);
        if buffer.output {
            placed.outputs.push(Output {
                offset: start,
                length,
                result_unit: buffer.result_unit as usize,
            });
        }
        let pointer = base.wrapping_add(start as u64);
        match &buffer.pointer_in {
            None => *arg_mut(&mut placed.args, buffer.argument)? = pointer,
            Some(field) => {
                let holder = starts
                    .get(field.buffer as usize)
                    .ok_or(HomeCallError::Invalid)?;
                let at = holder.saturating_add(field.offset as usize);
                let bytes = placed
                    .scratch
                    .get_mut(at..at.saturating_add(8))
                    .ok_or(HomeCallError::Invalid)?;
                bytes.copy_from_slice(&pointer.to_le_bytes());
            }
        }
        starts.push(start);
    }
    if !rest.is_empty() {
        return Err(HomeCallError::Invalid);
    }
    Ok(placed)
}

fn arg_mut(args: &mut [u64; 6], at: u32) -> Result<&mut u64, HomeCallError> {
    args.get_mut(at as usize).ok_or(HomeCallError::Invalid)
}

impl Placed {
    /// Reads the outputs after the call returned `result` (-errno for errors).
    ///
    /// # Errors
    /// [`HomeCallError::Fault`] if the scratch area is gone.
    pub fn collect(
        &self,
        result: i64,
        base: u64,
        memory: &dyn Memory,
    ) -> Result<(HomeReply, Vec<u8>), HomeCallError> {
        let mut reply = HomeReply {
            result,
            ..HomeReply::default()
        };
        let mut payload = Vec::new();
        let Ok(count) = usize::try_from(result) else {
            return Ok((reply, payload));
        };
        for output in &self.outputs {
            let length = match output.result_unit {
                0 => output.length,
                unit => output.length.min(count.saturating_mul(unit)),
            };
            let start = payload.len();
            payload.resize(start + length, 0);
            if let Some(into) = payload.get_mut(start..) {
                memory.read(base.wrapping_add(output.offset as u64), into)?;
            }
            reply
                .lengths
                .push(u32::try_from(length).unwrap_or(u32::MAX));
        }
        Ok((reply, payload))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;
    use proto::v1::{Buffer, PointerIn};

    use super::super::gather::gather;
    use super::*;

    const BASE: u64 = 0x7000_0000;

    /// Memory from an address on.
    #[derive(Debug)]
    struct Flat(u64, RefCell<Vec<u8>>);

    impl Flat {
        fn range(
            &self,
            address: u64,
            length: usize,
        ) -> Result<std::ops::Range<usize>, HomeCallError> {
            let start = address.checked_sub(self.0).ok_or(HomeCallError::Fault)? as usize;
            let end = start + length;
            (end <= self.1.borrow().len())
                .then_some(start..end)
                .ok_or(HomeCallError::Fault)
        }
    }

    impl Memory for Flat {
        fn read(&self, address: u64, into: &mut [u8]) -> Result<(), HomeCallError> {
            let range = self.range(address, into.len())?;
            into.copy_from_slice(&self.1.borrow()[range]);
            Ok(())
        }
        fn write(&self, address: u64, bytes: &[u8]) -> Result<(), HomeCallError> {
            let range = self.range(address, bytes.len())?;
            self.1.borrow_mut()[range].copy_from_slice(bytes);
            Ok(())
        }
    }

    fn number(call: i64) -> u32 {
        u32::try_from(call).unwrap()
    }

    #[test]
    fn a_read_brings_only_what_was_read() {
        let guest = Flat(0x1000, RefCell::new(vec![0xee; 64]));
        let gathered = gather(9, 0, [5, 0x1010, 32, 0, 0, 0], &guest).unwrap();
        assert!(gathered.payload.is_empty());
        let placed = place(&gathered.call, &gathered.payload, BASE).unwrap();
        assert_eq!(placed.args[..3], [5, BASE, 32]);
        let deputy = Flat(BASE, RefCell::new(placed.scratch.clone()));
        deputy.write(BASE, b"hello").unwrap();
        let (reply, payload) = placed.collect(5, BASE, &deputy).unwrap();
        gathered.scatter(&reply, &payload, &guest).unwrap();
        assert_eq!(guest.1.borrow()[0x10..0x16], *b"hello\xee");
    }

    #[test]
    fn a_failed_call_leaves_the_guest_alone() {
        let guest = Flat(0x1000, RefCell::new(vec![0xee; 64]));
        let gathered = gather(9, 0, [5, 0x1010, 32, 0, 0, 0], &guest).unwrap();
        let placed = place(&gathered.call, &gathered.payload, BASE).unwrap();
        let deputy = Flat(BASE, RefCell::new(placed.scratch.clone()));
        let (reply, payload) = placed.collect(-11, BASE, &deputy).unwrap();
        gathered.scatter(&reply, &payload, &guest).unwrap();
        assert_eq!((reply.result, payload.len()), (-11, 0));
        assert!(guest.1.borrow().iter().all(|byte| *byte == 0xee));
    }

    #[test]
    fn a_message_with_ancillary_data_goes_home() {
        let guest = Flat(0x1000, RefCell::new(vec![1; 128]));
        let sent = gather(
            9,
            number(libc::SYS_sendmsg),
            [5, 0x1000, 0, 0, 0, 0],
            &guest,
        );
        assert_eq!(sent, Err(HomeCallError::NotDescribed));
    }

    #[test]
    fn pointers_outside_memory_are_faults() {
        let guest = Flat(0x1000, RefCell::new(vec![0; 16]));
        let write = gather(9, 1, [5, 0x1008, 9, 0, 0, 0], &guest);
        assert_eq!(write, Err(HomeCallError::Fault));
    }

    #[test]
    fn contradictory_messages_are_refused() {
        let call = |buffer: Buffer| HomeCall {
            args: vec![0; 6],
            buffers: vec![buffer],
            ..HomeCall::default()
        };
        let good = Buffer {
            length: 4,
            input: true,
            ..Buffer::default()
        };
        assert!(place(&call(good), b"abcd", BASE).is_ok());
        assert!(place(&call(good), b"abc", BASE).is_err());
        assert!(place(&call(good), b"abcde", BASE).is_err());
        let argument = Buffer {
            argument: 6,
            ..good
        };
        assert!(place(&call(argument), b"abcd", BASE).is_err());
        let pointer_in = Some(PointerIn {
            buffer: 0,
            offset: 0,
        });
        assert!(place(&call(Buffer { pointer_in, ..good }), b"abcd", BASE).is_err());
        let huge = Buffer {
            length: u32::MAX,
            ..Buffer::default()
        };
        assert!(place(&call(huge), b"", BASE).is_err());
    }

    #[test]
    fn all_buffers_together_fit_into_the_scratch_area() {
        let call = |lengths: &[u32]| HomeCall {
            args: vec![0; 6],
            buffers: lengths
                .iter()
                .map(|length| Buffer {
                    length: *length,
                    output: true,
                    ..Buffer::default()
                })
                .collect(),
            ..HomeCall::default()
        };
        let room = u32::try_from(SCRATCH_BYTES).unwrap() - CALL_BYTES_MAX;
        let placed = place(&call(&[CALL_BYTES_MAX, room]), b"", BASE).unwrap();
        assert_eq!(placed.scratch.len() as u64, SCRATCH_BYTES);
        for lengths in [
            &[CALL_BYTES_MAX, room + 1][..],
            &[CALL_BYTES_MAX, room, 1],
            &[CALL_BYTES_MAX; 2],
            &[CALL_BYTES_MAX; BUFFERS_MAX],
        ] {
            let refused = place(&call(lengths), b"", BASE);
            assert_eq!(refused, Err(HomeCallError::Invalid), "{lengths:?}");
        }
    }

    proptest! {
        /// writev and then readv of the same elements through both sides gives the same memory.
        #[test]
        fn vectors_arrive_as_they_were(lengths in prop::collection::vec(0u64..50, 1..9)) {
            let mut bytes: Vec<u8> = (0..=255).cycle().take(1024).collect();
            let mut at = 512;
            for (index, length) in lengths.iter().enumerate() {
                bytes[16 * index..16 * index + 8].copy_from_slice(&(0x1000u64 + at).to_le_bytes());
                bytes[16 * index + 8..16 * index + 16].copy_from_slice(&length.to_le_bytes());
                at += length + 3;
            }
            let guest = Flat(0x1000, RefCell::new(bytes.clone()));
            let args = [3, 0x1000, lengths.len() as u64, 0, 0, 0];
            let out = gather(1, number(libc::SYS_writev), args, &guest).unwrap();
            let placed = place(&out.call, &out.payload, BASE).unwrap();
            prop_assert_eq!(placed.args[2], 1);
            let total: u64 = lengths.iter().sum();
            let data = placed.scratch[16..16 + total as usize].to_vec();
            let back = gather(1, number(libc::SYS_readv), args, &guest).unwrap();
            let placed = place(&back.call, &back.payload, BASE).unwrap();
            let deputy = Flat(BASE, RefCell::new(placed.scratch.clone()));
            deputy.write(BASE + 16, &data).unwrap();
            guest.1.borrow_mut()[512..].fill(0);
            let (reply, payload) = placed.collect(total as i64, BASE, &deputy).unwrap();
            back.scatter(&reply, &payload, &guest).unwrap();
            let mut at = 512;
            for length in lengths {
                let range = at..at + length as usize;
                prop_assert_eq!(&guest.1.borrow()[range.clone()], &bytes[range]);
                at += length as usize + 3;
            }
        }

        #[test]
        fn any_arguments_of_any_call_are_gathered_or_refused(
            number in 0u32..480,
            args in prop::array::uniform6(prop_oneof![0u64..64, 0xfc0u64..0x1200, any::<u64>()]),
            content in any::<u8>(),
        ) {
            let guest = Flat(0x1000, RefCell::new(vec![content; 512]));
            if let Ok(gathered) = gather(1, number, args, &guest) {
                let placed = place(&gathered.call, &gathered.payload, BASE).unwrap();
                let deputy = Flat(BASE, RefCell::new(placed.scratch.clone()));
                let (reply, payload) = placed.collect(7, BASE, &deputy).unwrap();
                let _ = gathered.scatter(&reply, &payload, &guest);
            }
        }
    }
}
