//! A process on the wire: its image in parts, then its pages, in either direction.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use bytes::Bytes;
use prost::Message;
use proto::frame::Frame;
use proto::v1::job_message::What;
use proto::v1::{ImagePart, Pages, PagesDone, ProcessImage, Refused};

pub use super::error::MoveError;
use super::peer::{CHUNK_BYTES, message};
use super::{Inbox, Input, Peer};
use crate::capture::{PageRun, PageStream};
use crate::image::{PAGE_BYTES, validate};

/// Largest encoded image that is taken.
const IMAGE_BYTES_MAX: usize = 256 << 20;

/// Sends an image.
///
/// # Errors
/// The link is broken.
pub fn send_image(peer: &Peer, image: &ProcessImage) -> io::Result<()> {
    let encoded = image.encode_to_vec();
    let count = encoded.len().div_ceil(CHUNK_BYTES).max(1);
    for (index, piece) in encoded.chunks(CHUNK_BYTES).enumerate() {
        let last = index + 1 == count;
        peer.tell(What::ImagePart(ImagePart { last }), piece)?;
    }
    Ok(())
}

/// Sends pages until the stream ends; answers how many bytes. `progress` hears the bytes sent.
///
/// # Errors
/// The link is broken or the process died.
pub fn send_pages(
    peer: &Peer,
    pages: &mut PageStream,
    mut progress: impl FnMut(u64),
) -> Result<u64, MoveError> {
    let mut bytes = 0;
    while let Some(batch) = pages
        .next_batch()
        .map_err(|error| MoveError::process(&error))?
    {
        peer.tell(What::Pages(to_message(batch.runs)), batch.bytes)?;
        bytes += batch.bytes.len() as u64;
        progress(bytes);
    }
    peer.tell(What::PagesDone(PagesDone { bytes }), &[])?;
    Ok(bytes)
}

fn to_message(runs: &[PageRun]) -> Pages {
    Pages {
        start: runs.iter().map(|run| run.start).collect(),
        count: runs.iter().map(|run| run.count).collect(),
    }
}

/// The runs of a message, checked against its payload.
///
/// # Errors
/// `InvalidData`.
pub fn runs_of(pages: &Pages, payload: &[u8]) -> io::Result<Vec<PageRun>> {
    let runs: Vec<PageRun> = pages
        .start
        .iter()
        .zip(&pages.count)
        .map(|(start, count)| PageRun {
            start: *start,
            count: *count,
        })
        .collect();
    let bytes: u64 = runs.iter().map(PageRun::bytes).sum();
    let aligned = runs.iter().all(|run| run.start % PAGE_BYTES == 0);
    if pages.start.len() != pages.count.len() || bytes != payload.len() as u64 || !aligned {
        return Err(invalid("pages that do not fit their payload"));
    }
    Ok(runs)
}

/// Puts an image together from its parts.
#[derive(Debug, Default)]
pub struct ImageReceiver(Vec<u8>);

impl ImageReceiver {
    /// Takes one part; answers the image after the last.
    ///
    /// # Errors
    /// `InvalidData` if it is too large, damaged or inconsistent.
    pub fn take(&mut self, part: &ImagePart, payload: &[u8]) -> io::Result<Option<ProcessImage>> {
        if self.0.len() + payload.len() > IMAGE_BYTES_MAX {
            return Err(invalid("the process image is too large"));
        }
        self.0.extend_from_slice(payload);
        if !part.last {
            return Ok(None);
        }
        let image = ProcessImage::decode(&self.0[..]).map_err(io::Error::other)?;
        validate(&image).map_err(io::Error::other)?;
        Ok(Some(image))
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Waits for messages of one peer during a move; everything else is kept for later.
#[derive(Debug)]
pub struct Ear<'i> {
    inbox: &'i Inbox,
    later: &'i mut VecDeque<Input>,
}

impl<'i> Ear<'i> {
    /// Listens to `inbox`; what others send goes to `later`.
    #[must_use]
    pub fn new(inbox: &'i Inbox, later: &'i mut VecDeque<Input>) -> Self {
        Self { inbox, later }
    }

    /// The peer's next frame and the message in it.
    ///
    /// # Errors
    /// [`MoveError::Link`], [`MoveError::Timeout`], [`MoveError::Refused`].
    pub fn next(
        &mut self,
        peer: &Peer,
        what: &'static str,
        deadline: Instant,
    ) -> Result<(What, Frame), MoveError> {
        loop {
            match self.inbox.next(deadline)? {
                Some(Input::Frame(id, frame)) if id == peer.id() => {
                    return match message(&frame)? {
                        What::Refused(Refused { error, cantmove }) => {
                            Err(MoveError::Refused { error, cantmove })
                        }
                        what => Ok((what, frame)),
                    };
                }
                Some(Input::Lost(id, why)) if id == peer.id() => {
                    let error = io::Error::new(io::ErrorKind::ConnectionAborted, why.clone());
                    self.later.push_back(Input::Lost(id, why));
                    return Err(error.into());
                }
                Some(other) => self.later.push_back(other),
                None => return Err(MoveError::Timeout(what)),
            }
        }
    }

    /// Waits for one particular message.
    ///
    /// # Errors
    /// As [`Self::next`], and [`MoveError::Unexpected`] for another one.
    pub fn expect<T>(
        &mut self,
        peer: &Peer,
        what: &'static str,
        deadline: Instant,
        pick: impl Fn(What) -> Option<T>,
    ) -> Result<(T, Bytes), MoveError> {
        let (found, frame) = self.next(peer, what, deadline)?;
        let picked = pick(found).ok_or(MoveError::Unexpected(what))?;
        Ok((picked, frame.payload))
    }

    /// Receives a whole image.
    ///
    /// # Errors
    /// As [`Self::expect`].
    pub fn image(&mut self, peer: &Peer, deadline: Instant) -> Result<ProcessImage, MoveError> {
        let mut receiver = ImageReceiver::default();
        loop {
            let pick = |what| match what {
                What::ImagePart(part) => Some(part),
                _ => None,
            };
            let (part, payload) = self.expect(peer, "the process image", deadline, pick)?;
            if let Some(image) = receiver.take(&part, &payload)? {
                return Ok(image);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_must_fit_their_payload() {
        let pages = |start: u64, count| Pages {
            start: vec![start],
            count: vec![count],
        };
        let page = vec![0; 4096];
        assert_eq!(runs_of(&pages(0x1000, 1), &page).unwrap().len(), 1);
        assert!(runs_of(&pages(0x1000, 2), &page).is_err());
        assert!(runs_of(&pages(0x1001, 1), &page).is_err());
        let mut odd = pages(0x1000, 1);
        odd.count.clear();
        assert!(runs_of(&odd, &[]).is_err());
    }

    #[test]
    fn a_damaged_image_is_refused() {
        let mut receiver = ImageReceiver::default();
        let part = |last| ImagePart { last };
        assert!(receiver.take(&part(false), b"\xff\xff").unwrap().is_none());
        assert!(receiver.take(&part(true), b"\xff").is_err());
    }
}
