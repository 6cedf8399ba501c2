//! Random operations on an export and, by `std::fs`, on a second directory: results, errors and
//! the trees must be the same.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proto::v1::fs_request::Op as Request;
use proto::v1::{Entry, Link, NodeArg, SetAttr, Symlink};

use super::client::{Client, ROOT};
use crate::Errno;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const SLOTS: usize = 3;

/// A name in the root or in a directory below it; the directory may be missing, or no directory.
#[derive(Clone, Copy, Debug)]
struct Place {
    parent: Option<usize>,
    name: usize,
}

#[derive(Clone, Debug)]
enum Action {
    Open {
        place: Place,
        slot: usize,
        create: bool,
        exclusive: bool,
        truncate: bool,
        write: bool,
    },
    Write {
        slot: usize,
        offset: u16,
        length: u16,
        fill: u8,
    },
    Append {
        slot: usize,
        length: u16,
        fill: u8,
    },
    Read {
        slot: usize,
        offset: u16,
        length: u16,
    },
    SetSize {
        slot: usize,
        size: u16,
    },
    Close {
        slot: usize,
    },
    Mkdir(Place),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place),
    Link(Place, Place),
    Symlink(Place),
    ReadLink(Place),
    Chmod(Place, u32),
    Stat(Place),
    List(Place),
}

fn place() -> impl Strategy<Value = Place> {
    (prop::option::of(0..NAMES.len()), 0..NAMES.len())
        .prop_map(|(parent, name)| Place { parent, name })
}

fn open() -> impl Strategy<Value = Action> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (place(), 0..SLOTS, flags).prop_map(|(place, slot, (create, exclusive, truncate, write))| {
        // std refuses to truncate or create what it may not write.
        let exclusive = create && exclusive && write;
        Action::Open {
            place,
            slot,
            create: create && write,
            exclusive,
            truncate: truncate && write && !exclusive,
            write,
        }
    })
}

fn action() -> impl Strategy<Value = Action> {
    let slot = 0..SLOTS;
    prop_oneof![
        4 => open(),
        2 => (slot.clone(), any::<u16>(), 0..5000_u16, any::<u8>()).prop_map(
            |(slot, offset, length, fill)| Action::Write { slot, offset, length, fill }
        ),
        1 => (slot.clone(), 0..5000_u16, any::<u8>())
            .prop_map(|(slot, length, fill)| Action::Append { slot, length, fill }),
        2 => (slot.clone(), any::<u16>(), any::<u16>())
            .prop_map(|(slot, offset, length)| Action::Read { slot, offset, length }),
        1 => (slot.clone(), any::<u16>()).prop_map(|(slot, size)| Action::SetSize { slot, size }),
        1 => slot.prop_map(|slot| Action::Close { slot }),
        3 => place().prop_map(Action::Mkdir),
        2 => place().prop_map(Action::Unlink),
        1 => place().prop_map(Action::Rmdir),
        3 => (place(), place()).prop_map(|(from, to)| Action::Rename(from, to)),
        2 => (place(), place()).prop_map(|(from, to)| Action::Link(from, to)),
        1 => place().prop_map(Action::Symlink),
        1 => place().prop_map(Action::ReadLink),
        1 => (place(), 0..0o1000_u32).prop_map(|(place, mode)| Action::Chmod(place, mode)),
        1 => place().prop_map(Action::Stat),
        1 => place().prop_map(Action::List),
    ]
}

/// What both sides must agree on.
type Outcome = Result<String, i32>;

/// The export, used as a client's kernel uses it.
struct Exported {
    client: Client,
    slots: [Option<(u64, u64)>; SLOTS],
}

impl Exported {
    fn parent(&self, place: Place) -> Result<u64, Errno> {
        let Some(parent) = place.parent else {
            return Ok(ROOT);
        };
        let entry = self.client.lookup(ROOT, NAMES[parent])?;
        match entry.attr.expect("attributes").mode & libc::S_IFMT {
            libc::S_IFDIR => Ok(entry.node),
            // The kernel follows it, to nowhere.
            libc::S_IFLNK => Err(Errno(libc::ENOENT)),
            _ => Err(Errno(libc::ENOTDIR)),
        }
    }

    fn find(&self, place: Place) -> Result<Entry, Errno> {
        self.client.lookup(self.parent(place)?, NAMES[place.name])
    }

    fn slot(&self, slot: usize) -> Result<(u64, u64), Errno> {
        self.slots[slot].ok_or(Errno(libc::EBADF))
    }

    fn open(&mut self, action: &Action) -> Result<String, Errno> {
        let Action::Open {
            place,
            slot,
            create,
            exclusive,
            truncate,
            write,
        } = *action
        else {
            unreachable!("called for opens")
        };
        let mut flags = if write { libc::O_RDWR } else { libc::O_RDONLY };
        flags |= if truncate { libc::O_TRUNC } else { 0 };
        let parent = self.parent(place)?;
        let opened = match self.client.lookup(parent, NAMES[place.name]) {
            Ok(_) if exclusive => return Err(Errno(libc::EEXIST)),
            Ok(entry) => (entry.node, self.client.open(entry.node, flags)?),
            Err(Errno(libc::ENOENT)) if create => {
                flags |= if exclusive { libc::O_EXCL } else { 0 };
                let entry = self
                    .client
                    .create(parent, NAMES[place.name], 0o666, flags)?;
                (entry.node, entry.fh)
            }
            Err(error) => return Err(error),
        };
        if let Some((_, fh)) = self.slots[slot].replace(opened) {
            self.client.release(fh)?;
        }
        Ok(String::new())
    }

    fn run(&mut self, action: &Action) -> Result<String, Errno> {
        let client = &self.client;
        let name = |place: Place| NAMES[place.name];
        match *action {
            Action::Open { .. } => return self.open(action),
            Action::Write {
                slot,
                offset,
                length,
                fill,
            } => {
                let bytes = vec![fill; length.into()];
                return Ok(client
                    .write(self.slot(slot)?.1, offset.into(), &bytes)?
                    .to_string());
            }
            Action::Append { slot, length, fill } => {
                let bytes = vec![fill; length.into()];
                return Ok(client.append(self.slot(slot)?.1, &bytes)?.to_string());
            }
            Action::Read {
                slot,
                offset,
                length,
            } => {
                let bytes = client.read(self.slot(slot)?.1, offset.into(), length.into())?;
                return Ok(digest(&bytes));
            }
            Action::SetSize { slot, size } => {
                let (node, fh) = self.slot(slot)?;
                let set = SetAttr {
                    node,
                    fh: Some(fh),
                    size: Some(size.into()),
                    ..SetAttr::default()
                };
                client.set_attr(set)?;
            }
            Action::Close { slot } => {
                self.slots[slot]
                    .take()
                    .map_or(Ok(()), |(_, fh)| self.client.release(fh))?;
            }
            Action::Mkdir(place) => drop(client.mkdir(self.parent(place)?, name(place), 0o777)?),
            Action::Unlink(place) => client.unlink(self.parent(place)?, name(place))?,
            Action::Rmdir(place) => client.rmdir(self.parent(place)?, name(place))?,
            Action::Rename(from, to) => {
                let from = (self.parent(from)?, name(from));
                client.rename(from, (self.parent(to)?, name(to)), 0)?;
            }
            Action::Link(from, to) => {
                let node = self.find(from)?.node;
                let (new_parent, new_name) = (self.parent(to)?, name(to).into());
                client.call(Request::Link(Link {
                    node,
                    new_parent,
                    new_name,
                }))?;
            }
            Action::Symlink(place) => {
                let (parent, name) = (self.parent(place)?, name(place).into());
                let target = b"nowhere".to_vec();
                client.call(Request::Symlink(Symlink {
                    parent,
                    name,
                    target,
                }))?;
            }
            Action::ReadLink(place) => {
                let node = self.find(place)?.node;
                let target = client.call(Request::ReadLink(NodeArg { node }))?.payload;
                return Ok(String::from_utf8_lossy(&target).into_owned());
            }
            Action::Chmod(place, mode) => {
                let entry = self.find(place)?;
                if entry.attr.expect("attributes").mode & libc::S_IFMT == libc::S_IFLNK {
                    return Err(Errno(libc::ENOENT));
                }
                let node = entry.node;
                client.set_attr(SetAttr {
                    node,
                    mode: Some(mode),
                    ..SetAttr::default()
                })?;
            }
            Action::Stat(place) => {
                let attr = self.find(place)?.attr.expect("attributes");
                return Ok(describe(attr.mode, attr.nlink.into(), attr.size));
            }
            Action::List(place) => {
                let mut names: Vec<_> = client
                    .list(self.find(place)?.node, 4096, true)?
                    .into_iter()
                    .map(|item| String::from_utf8_lossy(&item.name).into_owned())
                    .filter(|name| name != "." && name != "..")
                    .collect();
                names.sort();
                return Ok(names.join(" "));
            }
        }
        Ok(String::new())
    }
}

/// The model.
struct Native {
    root: PathBuf,
    slots: [Option<(File, PathBuf)>; SLOTS],
}

impl Native {
    fn path(&self, place: Place) -> PathBuf {
        let parent = place
            .parent
            .map_or(self.root.clone(), |name| self.root.join(NAMES[name]));
        parent.join(NAMES[place.name])
    }

    fn slot(&self, slot: usize) -> io::Result<&File> {
        let open = self.slots[slot].as_ref().map(|(file, _)| file);
        open.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn open(&mut self, action: &Action) -> io::Result<String> {
        let Action::Open {
            place,
            slot,
            create,
            exclusive,
            truncate,
            write,
        } = *action
        else {
            unreachable!("called for opens")
        };
        let path = self.path(place);
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            .create(create)
            .create_new(exclusive)
            .truncate(truncate)
            .custom_flags(libc::O_NOFOLLOW)
            .mode(0o666)
            .open(&path)?;
        self.slots[slot] = Some((file, path));
        Ok(String::new())
    }

    fn run(&mut self, action: &Action) -> io::Result<String> {
        match *action {
            Action::Open { .. } => return self.open(action),
            Action::Write {
                slot,
                offset,
                length,
                fill,
            } => {
                let bytes = vec![fill; length.into()];
                return Ok(self
                    .slot(slot)?
                    .write_at(&bytes, offset.into())?
                    .to_string());
            }
            Action::Append { slot, length, fill } => {
                let end = self.slot(slot)?.metadata()?.len();
                let bytes = vec![fill; length.into()];
                return Ok(self.slot(slot)?.write_at(&bytes, end)?.to_string());
            }
            Action::Read {
                slot,
                offset,
                length,
            } => {
                let mut bytes = vec![0; length.into()];
                let count = self.slot(slot)?.read_at(&mut bytes, offset.into())?;
                return Ok(digest(&bytes[..count]));
            }
            Action::SetSize { slot, size } => self.set_size(slot, size.into())?,
            Action::Close { slot } => drop(self.slots[slot].take()),
            Action::Mkdir(place) => fs::create_dir(self.path(place))?,
            Action::Unlink(place) => nix::unistd::unlink(&self.path(place))?,
            Action::Rmdir(place) => fs::remove_dir(self.path(place))?,
            Action::Rename(from, to) => fs::rename(self.path(from), self.path(to))?,
            Action::Link(from, to) => fs::hard_link(self.path(from), self.path(to))?,
            Action::Symlink(place) => symlink("nowhere", self.path(place))?,
            Action::ReadLink(place) => {
                return Ok(fs::read_link(self.path(place))?
                    .to_string_lossy()
                    .into_owned());
            }
            Action::Chmod(place, mode) => {
                fs::set_permissions(self.path(place), fs::Permissions::from_mode(mode))?;
            }
            Action::Stat(place) => {
                let stat = fs::symlink_metadata(self.path(place))?;
                return Ok(describe(stat.mode(), stat.nlink(), stat.size()));
            }
            Action::List(place) => {
                // As a kernel that was asked not to follow symlinks.
                if fs::symlink_metadata(self.path(place))?.is_symlink() {
                    return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
                }
                return Ok(names_in(&self.path(place))?.join(" "));
            }
        }
        Ok(String::new())
    }

    /// Only a size can be set through a file open for reading at the export (see `set_size` there):
    /// a kernel asks for that when it truncates while opening.
    fn set_size(&self, slot: usize, size: u64) -> io::Result<()> {
        let file = self.slot(slot)?;
        match file.set_len(size) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
                nix::unistd::truncate(path.as_str(), size as i64)?;
                Ok(())
            }
            result => result,
        }
    }
}

fn describe(mode: u32, nlink: u64, size: u64) -> String {
    let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
    // Directory sizes depend on their history.
    format!("{mode:o} {nlink} {}", if is_dir { 0 } else { size })
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_string()
}

fn names_in(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = fs::read_dir(dir)?
        .map(|item| Ok(item?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Every path with type, mode, links, content.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for name in names_in(&dir).expect("readable by root or owner") {
            let path = dir.join(name);
            let stat = fs::symlink_metadata(&path).expect("stat");
            let mut text = describe(stat.mode(), stat.nlink(), stat.size());
            if stat.is_file() {
                text += &digest(&fs::read(&path).expect("read"));
            } else if stat.is_dir() {
                todo.push(path.clone());
            }
            found.insert(path.strip_prefix(root).expect("below").to_path_buf(), text);
        }
    }
    found
}

fn outcome<E>(result: Result<String, E>, errno: impl Fn(E) -> i32) -> Outcome {
    result.map_err(errno)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn the_export_does_what_the_kernel_does(actions in prop::collection::vec(action(), 1..80)) {
        // Modes that shut out the owner too would stop the comparison, not the test.
        super::client::need_root();
        let native = tempfile::tempdir().expect("temporary directory");
        let client = Client::new();
        let exported_root = client.dir.path().to_path_buf();
        let mut exported = Exported { client, slots: [None; SLOTS] };
        let mut model = Native { root: native.path().to_path_buf(), slots: [None, None, None] };
        for (step, action) in actions.iter().enumerate() {
            let expected =
                outcome(model.run(action), |error| error.raw_os_error().expect("an errno"));
            let found = outcome(exported.run(action), |Errno(errno)| errno);
            prop_assert_eq!(expected, found, "step {}: {:?}", step, action);
        }
        prop_assert_eq!(tree(native.path()), tree(&exported_root));
    }
}
