//! Any sequence of what two clients and a native program can do to a file.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// So many pieces one after the other, by one of the clients.
    Read {
        client: usize,
        at: u64,
        pieces: u8,
    },
    /// A native writer comes, writes and goes.
    Native {
        at: u64,
        length: usize,
    },
    /// A client opens, writes so many pieces and closes; or keeps the file open.
    Write {
        client: usize,
        at: u64,
        pieces: u8,
        keep: bool,
    },
    Truncate {
        size: u64,
    },
}

const FILE_BYTES: u64 = 600_000;

fn step() -> impl Strategy<Value = Step> {
    let at = 0..FILE_BYTES;
    prop_oneof![
        4 => (0..2usize, at.clone(), 1..12u8)
            .prop_map(|(client, at, pieces)| Step::Read { client, at, pieces }),
        1 => (at.clone(), 1..200_000usize).prop_map(|(at, length)| Step::Native { at, length }),
        2 => (0..2usize, at.clone(), 1..12u8, any::<bool>())
            .prop_map(|(client, at, pieces, keep)| Step::Write { client, at, pieces, keep }),
        1 => at.prop_map(|size| Step::Truncate { size }),
    ]
}

struct Model {
    owner: Owner,
    clients: [Core; 2],
    readers: [Option<u64>; 2],
    writers: [Option<u64>; 2],
    bytes: Vec<u8>,
    seed: u8,
}

impl Model {
    fn new() -> Self {
        let owner = Owner::new();
        let bytes = content(3, FILE_BYTES as usize);
        fs::write(owner.path("f"), &bytes).unwrap();
        let clients = [owner.client(2), owner.client(3)];
        Self {
            owner,
            clients,
            readers: [None; 2],
            writers: [None; 2],
            bytes,
            seed: 0,
        }
    }

    fn put(&mut self, at: u64, length: usize) -> Vec<u8> {
        self.seed = self.seed.wrapping_add(1);
        let data = vec![self.seed; length];
        let end = at as usize + length;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[at as usize..end].copy_from_slice(&data);
        data
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Read { client, at, pieces } => self.read(client, at, pieces),
            Step::Native { at, length } => {
                let data = self.put(at, length);
                let path = self.owner.path("f");
                let file = OpenOptions::new().write(true).open(path).unwrap();
                file.write_all_at(&data, at).unwrap();
            }
            Step::Write {
                client,
                at,
                pieces,
                keep,
            } => self.write(client, at, pieces, keep),
            Step::Truncate { size } => {
                self.bytes.resize(size as usize, 0);
                let path = self.owner.path("f");
                let file = OpenOptions::new().write(true).open(path).unwrap();
                file.set_len(size).unwrap();
            }
        }
    }

    fn write(&mut self, client: usize, at: u64, pieces: u8, keep: bool) {
        // A file that is open for reading, too, is not written behind.
        if let Some(reader) = self.readers[client].take().filter(|_| keep) {
            self.clients[client].release(WHO, reader, None).unwrap();
        }
        let core = &self.clients[client];
        let fh = self.writers[client].unwrap_or_else(|| open(core, "f", libc::O_WRONLY));
        for piece in 0..u64::from(pieces) {
            let at = at + 20_000 * piece;
            let data = self.put(at, 20_000);
            let core = &self.clients[client];
            assert_eq!(core.write(WHO, fh, at, &data, false), Ok(20_000));
        }
        self.writers[client] = Some(fh).filter(|_| keep);
        if !keep {
            self.clients[client].release(WHO, fh, None).unwrap();
        }
    }

    fn read(&mut self, client: usize, at: u64, pieces: u8) {
        let core = &self.clients[client];
        let fh = *self.readers[client].get_or_insert_with(|| open(core, "f", libc::O_RDONLY));
        let mut at = at;
        for _ in 0..pieces {
            let data: Bytes = core.read(WHO, fh, at, 20_000).unwrap();
            let start = self.bytes.len().min(at as usize);
            let end = self.bytes.len().min(at as usize + 20_000);
            assert!(data == self.bytes[start..end], "client {client} at {at}");
            at += data.len() as u64;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn no_client_ever_reads_old_bytes(steps in proptest::collection::vec(step(), 1..40)) {
        let mut model = Model::new();
        for step in steps {
            model.take(step);
        }
    }
}
