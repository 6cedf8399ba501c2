//! What has been read ahead of one reader: pure, so that it can be tested without files.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Bytes of the first piece that is fetched by itself.
pub const PIECE_BYTES_MIN: u64 = 128 << 10;
/// Bytes of a piece at most: what an owner reads at once.
pub const PIECE_BYTES_MAX: u64 = 1 << 20;
/// How many pieces are kept ahead of the reader.
const PIECES_AHEAD: u64 = 4;
/// How many of them are under way at the same time.
const UNDER_WAY_MAX: usize = 2;

/// A piece to be fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// Tells it from all others of this window.
    pub serial: u64,
    /// Where it begins.
    pub at: u64,
    /// Its length in bytes; the file has as many there.
    pub length: u64,
}

/// What the window has for a reader.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Look {
    /// All of it; less than was asked for only at the end of the file.
    Ready(Bytes),
    /// It is on its way.
    Wait,
    /// Nothing.
    Miss,
}

#[derive(Debug)]
struct Piece {
    fetch: Fetch,
    data: Option<Bytes>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.fetch.at + self.fetch.length
    }
}

/// Consecutive pieces of a file whose size does not change.
#[derive(Debug)]
pub struct Window {
    size: u64,
    pieces: VecDeque<Piece>,
    /// Where the next piece begins.
    end: u64,
    next_bytes: u64,
    serial: u64,
}

impl Window {
    /// A window over a file of `size` bytes that begins with `data` at `at`.
    #[must_use]
    pub fn new(size: u64, at: u64, data: Bytes) -> Self {
        let length = (data.len() as u64).min(size.saturating_sub(at));
        let serial = 0;
        let fetch = Fetch { serial, at, length };
        let data = Some(data.slice(..usize::try_from(length).unwrap_or(0)));
        let mut pieces = VecDeque::new();
        if length > 0 {
            pieces.push_back(Piece { fetch, data });
        }
        Self {
            size,
            pieces,
            end: at + length,
            next_bytes: PIECE_BYTES_MIN,
            serial,
        }
    }

    /// Bytes that are kept or under way.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.fetch.length).sum()
    }

    /// Whether a reader at `offset` is at something kept, or right behind all of it.
    #[must_use]
    pub fn reaches(&self, offset: u64) -> bool {
        let begin = self.pieces.front().map_or(self.end, |piece| piece.fetch.at);
        (begin..=self.end).contains(&offset)
    }

    /// The next piece to be fetched for a reader of `length` bytes at `offset`, which counts as
    /// under way from now on; `None` when enough is.
    pub fn plan(&mut self, offset: u64, length: u64) -> Option<Fetch> {
        self.forget_before(offset);
        let piece_bytes = self.next_bytes.max(length.min(PIECE_BYTES_MAX));
        let under_way = self.pieces.iter().filter(|piece| piece.data.is_none());
        let ahead = self.end.saturating_sub(offset);
        let enough = ahead > (PIECES_AHEAD - 1) * piece_bytes;
        if self.end >= self.size || enough || under_way.count() >= UNDER_WAY_MAX {
            return None;
        }
        self.serial += 1;
        let fetch = Fetch {
            serial: self.serial,
            at: self.end,
            length: piece_bytes.min(self.size - self.end),
        };
        self.end += fetch.length;
        self.next_bytes = (2 * piece_bytes).min(PIECE_BYTES_MAX);
        self.pieces.push_back(Piece { fetch, data: None });
        Some(fetch)
    }

    /// A piece has come, or could not be had: then nothing behind it is kept either.
    pub fn arrived(&mut self, fetch: Fetch, data: Option<Bytes>) {
        let found = self.pieces.iter().position(|piece| piece.fetch == fetch);
        let Some(index) = found else {
            return;
        };
        match data.filter(|data| data.len() as u64 == fetch.length) {
            Some(data) => {
                if let Some(piece) = self.pieces.get_mut(index) {
                    piece.data = Some(data);
                }
            }
            None => {
                self.pieces.truncate(index);
                self.end = fetch.at;
                self.next_bytes = PIECE_BYTES_MIN;
            }
        }
    }

    /// What there is for a reader; it will not come back to what is before `offset`.
    pub fn look(&mut self, offset: u64, length: u64) -> Look {
        let end = offset.saturating_add(length).min(self.size);
        if end <= offset {
            return Look::Ready(Bytes::new());
        }
        self.forget_before(offset);
        let begin = self.pieces.front().map_or(self.end, |piece| piece.fetch.at);
        if offset < begin || end > self.end {
            return Look::Miss;
        }
        self.gather(offset, end).map_or(Look::Wait, Look::Ready)
    }

    /// `None` when a piece is still under way.
    fn gather(&self, offset: u64, end: u64) -> Option<Bytes> {
        let mut joined = BytesMut::new();
        for piece in &self.pieces {
            let from = offset.max(piece.fetch.at);
            let to = end.min(piece.end());
            if from >= to {
                continue;
            }
            let data = piece.data.as_ref()?;
            let start = usize::try_from(from - piece.fetch.at).ok()?;
            let stop = usize::try_from(to - piece.fetch.at).ok()?;
            if from == offset && to == end {
                return Some(data.slice(start..stop));
            }
            joined.extend_from_slice(data.get(start..stop)?);
        }
        Some(joined.freeze())
    }

    fn forget_before(&mut self, offset: u64) {
        while self
            .pieces
            .front()
            .is_some_and(|piece| piece.end() <= offset)
        {
            self.pieces.pop_front();
        }
        if self.pieces.is_empty() {
            // Whatever comes next begins where the reader is.
            self.end = self.end.max(offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(at: u64, length: u64) -> Bytes {
        (at..at + length).map(|at| (at % 251) as u8).collect()
    }

    fn start(size: u64, at: u64, length: u64) -> Window {
        Window::new(size, at, content(at, length.min(size - at)))
    }

    #[test]
    fn a_sequential_reader_finds_everything_there() {
        let size = 10 * PIECE_BYTES_MAX + 17;
        let mut window = start(size, 0, PIECE_BYTES_MIN);
        let mut offset = 0;
        while offset < size {
            while let Some(fetch) = window.plan(offset, 32 << 10) {
                window.arrived(fetch, Some(content(fetch.at, fetch.length)));
            }
            let Look::Ready(data) = window.look(offset, 32 << 10) else {
                panic!("at {offset}");
            };
            assert_eq!(data, content(offset, (32 << 10).min(size - offset)));
            offset += data.len() as u64;
            assert!(window.bytes() <= (PIECES_AHEAD + 1) * PIECE_BYTES_MAX);
        }
        assert_eq!(window.look(size, 1), Look::Ready(Bytes::new()));
        assert_eq!(window.plan(size, 1), None);
    }

    #[test]
    fn a_piece_that_is_under_way_is_waited_for_and_one_that_failed_is_not() {
        let mut window = start(1 << 20, 0, 4096);
        let fetch = window.plan(4096, 4096).unwrap();
        assert_eq!(window.look(4096, 4096), Look::Wait);
        window.arrived(fetch, None);
        assert_eq!(window.look(4096, 4096), Look::Miss);
    }

    #[test]
    fn a_short_piece_is_no_piece() {
        let mut window = start(1 << 20, 0, 4096);
        let fetch = window.plan(4096, 4096).unwrap();
        window.arrived(fetch, Some(content(fetch.at, fetch.length - 1)));
        assert_eq!(window.look(fetch.at, 1), Look::Miss);
    }

    proptest! {
        /// Whatever comes in whatever order: what is served is what the file has there.
        #[test]
        fn what_is_served_is_what_the_file_has(
            size in 1u64..4 << 20,
            steps in proptest::collection::vec((0u8..4, any::<u64>(), 1u64..300_000), 1..60),
        ) {
            let mut window = start(size, 0, 1000);
            let mut under_way = Vec::new();
            let mut offset = 0;
            for (step, number, length) in steps {
                match step {
                    0 => under_way.extend(window.plan(offset, length)),
                    1 if !under_way.is_empty() => {
                        let at = usize::try_from(number).unwrap_or(0) % under_way.len();
                        let fetch: Fetch = under_way.remove(at);
                        let data = (number % 5 > 0).then(|| content(fetch.at, fetch.length));
                        window.arrived(fetch, data);
                    }
                    2 => offset = number % (size + 10),
                    _ => {
                        if let Look::Ready(data) = window.look(offset, length) {
                            let expected = length.min(size.saturating_sub(offset));
                            prop_assert_eq!(&data, &content(offset, expected));
                            offset += expected;
                        }
                    }
                }
            }
        }
    }
}
