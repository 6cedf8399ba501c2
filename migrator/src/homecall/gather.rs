//! The guest's side of a home call: inputs from its memory, outputs into it.

use proto::v1::{Buffer, HomeCall, HomeReply, PointerIn};

use super::describe::{Length, Shape, describe};
use super::{CALL_BYTES_MAX, ELEMENTS_MAX, HomeCallError, Memory};

/// A home call ready to be sent, and where its outputs go.
#[derive(Clone, PartialEq, Debug)]
pub struct Gathered {
    /// The message.
    pub call: HomeCall,
    /// All inputs.
    pub payload: Vec<u8>,
    outputs: Vec<Output>,
}

/// The part of one output buffer that belongs at an address of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Output {
    buffer: usize,
    offset: u32,
    address: u64,
    length: u32,
}

const IOVEC_BYTES: u32 = 16;
const MSGHDR_BYTES: u32 = 56;

/// Collects what a call of `thread` needs at home.
///
/// # Errors
/// See [`HomeCallError`].
pub fn gather(
    thread: i32,
    number: u32,
    args: [u64; 6],
    memory: &dyn Memory,
) -> Result<Gathered, HomeCallError> {
    let shapes = describe(number, &args).ok_or(HomeCallError::NotDescribed)?;
    let mut gatherer = Gatherer {
        memory,
        args,
        buffers: Vec::new(),
        payload: Vec::new(),
        outputs: Vec::new(),
    };
    for (at, shape) in shapes {
        gatherer.argument(at, shape)?;
    }
    Ok(Gathered {
        call: HomeCall {
            thread,
            number,
            args: gatherer.args.to_vec(),
            buffers: gatherer.buffers,
        },
        payload: gatherer.payload,
        outputs: gatherer.outputs,
    })
}

impl Gathered {
    /// Puts a reply's outputs into the guest's memory.
    ///
    /// # Errors
    /// [`HomeCallError::Fault`] if the memory is not there; [`HomeCallError::Invalid`] if the
    /// reply does not belong to this call.
    pub fn scatter(
        &self,
        reply: &HomeReply,
        payload: &[u8],
        memory: &dyn Memory,
    ) -> Result<(), HomeCallError> {
        let mut rest = payload;
        let mut lengths = reply.lengths.iter();
        for (index, buffer) in self.call.buffers.iter().enumerate() {
            if !buffer.output {
                continue;
            }
            let Some(length) = lengths.next() else {
                return Ok(()); // a failed call has no outputs
            };
            let (bytes, after) = rest
                .split_at_checked(*length as usize)
                .ok_or(HomeCallError::Invalid)?;
            rest = after;
            for output in self.outputs.iter().filter(|output| output.buffer == index) {
                let bytes = bytes.get(output.offset as usize..).unwrap_or_default();
                let bytes = bytes.get(..output.length as usize).unwrap_or(bytes);
                memory.write(output.address, bytes)?;
            }
        }
        Ok(())
    }
}

struct Gatherer<'m> {
    memory: &'m dyn Memory,
    args: [u64; 6],
    buffers: Vec<Buffer>,
    payload: Vec<u8>,
    outputs: Vec<Output>,
}

/// Where the pointer to a buffer is kept.
#[derive(Clone, Copy)]
enum Holder {
    Argument(u8),
    Field { buffer: usize, offset: u32 },
}

/// Which way a buffer goes.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    In,
    Out { result_unit: u32 },
    Both,
}

impl Gatherer<'_> {
    fn arg(&self, at: u8) -> u64 {
        self.args.get(usize::from(at)).copied().unwrap_or(0)
    }

    fn set_arg(&mut self, at: u8, value: u64) {
        if let Some(arg) = self.args.get_mut(usize::from(at)) {
            *arg = value;
        }
    }

    fn argument(&mut self, at: u8, shape: Shape) -> Result<(), HomeCallError> {
        let address = self.arg(at);
        if address == 0 {
            return Ok(());
        }
        let holder = Holder::Argument(at);
        match shape {
            Shape::In(length) => self.plain(holder, address, length, Way::In),
            Shape::Out(length) => self.plain(holder, address, length, Way::Out { result_unit: 0 }),
            Shape::OutUpTo(length, result_unit) => {
                self.plain(holder, address, length, Way::Out { result_unit })
            }
            Shape::InOut(length) => self.plain(holder, address, length, Way::Both),
            Shape::VectorIn(count) => {
                self.vector(holder, address, self.arg(count), false)?;
                self.set_arg(count, 1);
                Ok(())
            }
            Shape::VectorOut(count) => {
                self.vector(holder, address, self.arg(count), true)?;
                self.set_arg(count, 1);
                Ok(())
            }
            Shape::MessageIn => self.message(holder, address, false),
            Shape::MessageOut => self.message(holder, address, true),
            Shape::Null => Err(HomeCallError::NotDescribed),
            Shape::Text => {
                let mut text = self.memory.read_string(address)?;
                text.push(0);
                let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
                self.buffer(holder, length, Way::In);
                self.payload.extend_from_slice(&text);
                Ok(())
            }
            Shape::NullMask => {
                self.set_arg(at, 0);
                match self.memory.read_u64(address)? {
                    0 => Ok(()),
                    _ => Err(HomeCallError::NotDescribed),
                }
            }
        }
    }

    fn plain(
        &mut self,
        holder: Holder,
        address: u64,
        length: Length,
        way: Way,
    ) -> Result<(), HomeCallError> {
        let length = self.length(length)?;
        let index = self.buffer(holder, length, way);
        if matches!(way, Way::In | Way::Both) {
            self.read_input(address, length)?;
        }
        if !matches!(way, Way::In) {
            self.outputs.push(Output {
                buffer: index,
                offset: 0,
                address,
                length,
            });
        }
        Ok(())
    }

    fn length(&mut self, length: Length) -> Result<u32, HomeCallError> {
        let bytes = match length {
            Length::Bytes(bytes) => u64::from(bytes),
            Length::Arg(at, unit) => self.arg(at).saturating_mul(u64::from(unit)),
            Length::ArgCut(at) => {
                let cut = self.arg(at).min(u64::from(CALL_BYTES_MAX));
                self.set_arg(at, cut);
                cut
            }
            Length::Behind(at) => match self.arg(at) {
                0 => 0,
                pointer => u64::from(self.memory.read_u32(pointer)?),
            },
            Length::FdSet => {
                let count = i32::try_from(self.arg(0) & 0xffff_ffff);
                let count = count.map_err(|_| HomeCallError::Invalid)?;
                u64::from(count.cast_unsigned()).div_ceil(64) * 8
            }
        };
        match u32::try_from(bytes) {
            Ok(bytes) if bytes <= CALL_BYTES_MAX => Ok(bytes),
            _ => Err(HomeCallError::NotDescribed),
        }
    }

    fn buffer(&mut self, holder: Holder, length: u32, way: Way) -> usize {
        let (argument, pointer_in) = match holder {
            Holder::Argument(at) => (u32::from(at), None),
            Holder::Field { buffer, offset } => {
                let buffer = u32::try_from(buffer).unwrap_or(u32::MAX);
                (0, Some(PointerIn { buffer, offset }))
            }
        };
        let result_unit = match way {
            Way::Out { result_unit } => result_unit,
            _ => 0,
        };
        self.buffers.push(Buffer {
            length,
            input: matches!(way, Way::In | Way::Both),
            output: !matches!(way, Way::In),
            argument,
            pointer_in,
            result_unit,
        });
        self.buffers.len() - 1
    }

    fn read_input(&mut self, address: u64, length: u32) -> Result<(), HomeCallError> {
        let start = self.payload.len();
        self.payload.resize(start + length as usize, 0);
        match self.payload.get_mut(start..) {
            Some(into) => self.memory.read(address, into),
            None => Ok(()),
        }
    }

    /// Sends an iovec array as one element: one copy at home is as good as many.
    fn vector(
        &mut self,
        holder: Holder,
        address: u64,
        count: u64,
        output: bool,
    ) -> Result<(), HomeCallError> {
        let (elements, cut) = self.elements(address, count)?;
        if cut && !output {
            return Err(HomeCallError::NotDescribed); // a blocking write is not short
        }
        let total: u32 = elements.iter().map(|element| element.1).sum();
        let header = self.buffer(holder, IOVEC_BYTES, Way::In);
        self.payload.extend_from_slice(&[0; 8]);
        self.payload
            .extend_from_slice(&u64::from(total).to_le_bytes());
        let place = Holder::Field {
            buffer: header,
            offset: 0,
        };
        if !output {
            self.buffer(place, total, Way::In);
            for (start, length) in elements {
                self.read_input(start, length)?;
            }
            return Ok(());
        }
        let data = self.buffer(place, total, Way::Out { result_unit: 1 });
        let mut offset = 0;
        for (address, length) in elements {
            self.outputs.push(Output {
                buffer: data,
                offset,
                address,
                length,
            });
            offset += length;
        }
        Ok(())
    }

    /// The elements of an iovec array, cut to the most one call moves, and whether they were.
    fn elements(&self, address: u64, count: u64) -> Result<(Vec<(u64, u32)>, bool), HomeCallError> {
        if count > ELEMENTS_MAX {
            return Err(HomeCallError::Invalid);
        }
        let (mut elements, mut cut) = (Vec::new(), false);
        let mut room = CALL_BYTES_MAX;
        for index in 0..count {
            let element = address.wrapping_add(index * u64::from(IOVEC_BYTES));
            let start = self.memory.read_u64(element)?;
            let length = self.memory.read_u64(element.wrapping_add(8))?;
            let whole = u32::try_from(length).unwrap_or(u32::MAX);
            let length = whole.min(room);
            cut |= length < whole;
            room -= length;
            if length > 0 {
                elements.push((start, length));
            }
        }
        Ok((elements, cut))
    }

    /// A msghdr without ancillary data; what has some goes home.
    fn message(&mut self, holder: Holder, address: u64, output: bool) -> Result<(), HomeCallError> {
        let mut header = [0; MSGHDR_BYTES as usize];
        self.memory.read(address, &mut header)?;
        let field = |at: usize| {
            let bytes = header
                .get(at..at + 8)
                .and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        let (name, name_bytes) = (field(0), field(8) & 0xffff_ffff);
        let (vector, count, control) = (field(16), field(24), field(32));
        if control != 0 && field(40) != 0 {
            return Err(HomeCallError::NotDescribed);
        }
        let mut sent = header;
        sent.iter_mut().take(8).for_each(|byte| *byte = 0);
        sent.iter_mut().skip(16).take(8).for_each(|byte| *byte = 0);
        sent.iter_mut().skip(24).take(8).for_each(|byte| *byte = 0);
        sent.iter_mut().skip(32).take(16).for_each(|byte| *byte = 0);
        if let Some(one) = sent.get_mut(24) {
            *one = 1;
        }
        let way = if output { Way::Both } else { Way::In };
        let index = self.buffer(holder, MSGHDR_BYTES, way);
        self.payload.extend_from_slice(&sent);
        if output {
            // msg_namelen, msg_controllen and msg_flags are what recvmsg(2) writes.
            for (offset, length) in [(8, 4), (40, 8), (48, 4)] {
                self.outputs.push(Output {
                    buffer: index,
                    offset,
                    address: address.wrapping_add(u64::from(offset)),
                    length,
                });
            }
        }
        if name != 0 {
            let length = u32::try_from(name_bytes).unwrap_or(u32::MAX);
            let place = Holder::Field {
                buffer: index,
                offset: 0,
            };
            self.plain(place, name, Length::Bytes(length), way)?;
        }
        let place = Holder::Field {
            buffer: index,
            offset: 16,
        };
        self.vector(place, vector, count, output)
    }
}
