//! The numbers (FUSE node ids, shown as `st_ino`) of everything under `/mfs`, as pure functions.
//!
//! Synthetic directories and files have fixed numbers computed from what they are, so that they
//! need no table. Real files have numbers with [`FILE_BIT`] set, hashed from owner, device and
//! inode, so that they are the same after a restart; [`super::inodes`] resolves collisions.

use proto::ids::{NodeId, Pid};
use proto::v1::deputy_file::What;

/// The number of `/mfs` itself (FUSE demands 1).
pub const ROOT: u64 = 1;
/// Set in the number of every real file, in no other.
pub const FILE_BIT: u64 = 1 << 62;
/// Set in the numbers of places where other nodes have their `/mfs`, and not `FILE_BIT`.
const MOUNT_POINT_BIT: u64 = 1 << 61;
const MOUNT_POINT_HASH: u64 = MOUNT_POINT_BIT - 1;

const OMFS: u64 = 2;
const DEPUTY: u64 = 3;
const STATUS_BASE: u64 = 0x100;
const STATUS_MAX: u64 = 0xff;
const DEPUTY_NODE_BASE: u64 = 0x8_0000;
const DEPUTY_PID: u64 = 1 << 50;
const DEPUTY_FDS: u64 = 2 << 50;
const DEPUTY_MAPS: u64 = 3 << 50;
const DEPUTY_MASK: u64 = 3 << 50;
const PID_BITS: u32 = 24;

/// Through which path a directory is seen. A directory must not have two places in one mount,
/// so each view of a node's tree has directory numbers of its own; files have one number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct View(pub u64);

impl View {
    /// `/mfs/<name>`, and everything that is not a directory.
    pub const NAME: Self = Self(0);
    /// `/mfs/here`.
    pub const HERE: Self = Self(1);
    /// `/mfs/home`.
    pub const HOME: Self = Self(2);
    /// `/mfs/<id>`.
    pub const ID: Self = Self(3);

    /// A directory that a deputy has open: a view of its own per deputy and path.
    #[must_use]
    pub fn deputy(node: NodeId, pid: Pid, what: &[u8]) -> Self {
        let mut hash = mix(u64::from(node.0) << 32 | u64::from(pid.0.cast_unsigned()));
        for byte in what {
            hash = mix(hash ^ u64::from(*byte));
        }
        Self(hash | 1 << 63)
    }
}

/// What a number without [`FILE_BIT`] stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Synthetic {
    /// `/mfs`.
    Root,
    /// `/mfs/.omfs`.
    Omfs,
    /// `/mfs/.omfs/<the nth status file>`.
    Status(usize),
    /// `/mfs/.omfs/deputy`.
    Deputies,
    /// `/mfs/.omfs/deputy/<node>`.
    DeputyNode(NodeId),
    /// `/mfs/.omfs/deputy/<node>/<pid>`.
    Deputy(NodeId, Pid),
    /// `…/<pid>/fd`.
    DeputyFds(NodeId, Pid),
    /// `…/<pid>/map_files`.
    DeputyMaps(NodeId, Pid),
    /// The root of a node's tree in one of the first four views.
    NodeRoot(View, NodeId),
    /// Where `/mfs` is mounted inside a node's tree: an empty directory, for guests to have their
    /// host's `/mfs` mounted on. A hash of its place.
    MountPoint(u64),
}

impl Synthetic {
    /// Its number.
    #[must_use]
    pub fn id(self) -> u64 {
        let deputy = |kind: u64, node: NodeId, pid: Pid| {
            kind | u64::from(node.0) << PID_BITS | u64::from(pid.0.cast_unsigned())
        };
        match self {
            Self::Root => ROOT,
            Self::Omfs => OMFS,
            Self::Deputies => DEPUTY,
            Self::Status(index) => STATUS_BASE + index as u64,
            Self::NodeRoot(view, node) => (view.0 + 1) << 16 | u64::from(node.0),
            Self::DeputyNode(node) => DEPUTY_NODE_BASE + u64::from(node.0),
            Self::Deputy(node, pid) => deputy(DEPUTY_PID, node, pid),
            Self::DeputyFds(node, pid) => deputy(DEPUTY_FDS, node, pid),
            Self::DeputyMaps(node, pid) => deputy(DEPUTY_MAPS, node, pid),
            Self::MountPoint(place) => MOUNT_POINT_BIT | place,
        }
    }

    /// What a number stands for; `None` for real files and for numbers never given out.
    #[must_use]
    pub fn of(id: u64) -> Option<Self> {
        if id & !MOUNT_POINT_HASH == MOUNT_POINT_BIT {
            return Some(Self::MountPoint(id & MOUNT_POINT_HASH));
        }
        let low = u32::try_from(id & 0xffff).ok().map(NodeId)?;
        match id {
            ROOT => Some(Self::Root),
            OMFS => Some(Self::Omfs),
            DEPUTY => Some(Self::Deputies),
            STATUS_BASE..=0x1ff => usize::try_from(id - STATUS_BASE).ok().map(Self::Status),
            0x1_0000..0x5_0000 => Some(Self::NodeRoot(View((id >> 16) - 1), low)),
            DEPUTY_NODE_BASE..0x9_0000 => Some(Self::DeputyNode(low)),
            _ => Self::deputy_of(id),
        }
    }

    fn deputy_of(id: u64) -> Option<Self> {
        let node = NodeId(u32::try_from((id & !DEPUTY_MASK) >> PID_BITS).ok()?);
        let pid = Pid(i32::try_from(id & ((1 << PID_BITS) - 1)).ok()?);
        match id & DEPUTY_MASK {
            _ if node.0 > NodeId::MAX => None,
            DEPUTY_PID => Some(Self::Deputy(node, pid)),
            DEPUTY_FDS => Some(Self::DeputyFds(node, pid)),
            DEPUTY_MAPS => Some(Self::DeputyMaps(node, pid)),
            _ => None,
        }
    }

    /// The node that has to be asked about it, or about what is in it.
    #[must_use]
    pub fn owner(self) -> Option<NodeId> {
        match self {
            Self::NodeRoot(_, node)
            | Self::Deputy(node, _)
            | Self::DeputyFds(node, _)
            | Self::DeputyMaps(node, _) => Some(node),
            _ => None,
        }
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(self) -> bool {
        !matches!(self, Self::Status(_))
    }

    /// Whether only root may look into it.
    #[must_use]
    pub fn is_root_only(self) -> bool {
        matches!(
            self,
            Self::Deputies
                | Self::DeputyNode(_)
                | Self::Deputy(..)
                | Self::DeputyFds(..)
                | Self::DeputyMaps(..)
        )
    }
}

/// The place of a name in a directory where an omfs mount is.
#[must_use]
pub fn mount_point(parent: u64, name: &[u8]) -> Synthetic {
    let hash = |hash, byte: &u8| mix(hash ^ u64::from(*byte));
    Synthetic::MountPoint(name.iter().fold(mix(parent), hash) & MOUNT_POINT_HASH)
}

/// The number of the `index`th status file, when there is room for it.
#[must_use]
pub fn status(index: usize) -> Option<Synthetic> {
    (index as u64 <= STATUS_MAX).then_some(Synthetic::Status(index))
}

/// A process id as a path component names it: decimal without sign or leading zero.
#[must_use]
pub fn parse_pid(name: &[u8]) -> Option<Pid> {
    let pid = parse_decimal(name)?;
    let limit = 1 << PID_BITS;
    (pid > 0 && pid < limit).then(|| i32::try_from(pid).ok().map(Pid))?
}

/// What a path below a deputy's directory means; `None` for what there is not.
#[must_use]
pub fn deputy_what(path: &[u8]) -> Option<What> {
    match path {
        b"cwd" => return Some(What::Cwd(true)),
        b"root" => return Some(What::Root(true)),
        b"exe" => return Some(What::Exe(true)),
        _ => {}
    }
    if let Some(number) = path.strip_prefix(b"fd/") {
        return parse_decimal(number).map(What::Fd);
    }
    let range = path.strip_prefix(b"map_files/")?;
    Some(What::MapRange(std::str::from_utf8(range).ok()?.to_owned()))
}

/// A canonical decimal number.
#[must_use]
pub fn parse_decimal(name: &[u8]) -> Option<u32> {
    let canonical = matches!(name, [b'0'] | [b'1'..=b'9', ..]);
    if !canonical || !name.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// The preferred number of a real file.
#[must_use]
pub fn file_id(view: View, node: NodeId, dev: u64, ino: u64) -> u64 {
    let hash = mix(mix(mix(view.0 ^ u64::from(node.0).rotate_left(32)) ^ dev) ^ ino);
    (hash >> 2) | FILE_BIT
}

/// Another number for a file whose preferred number stands for something else; `handle` is the owner's.
#[must_use]
pub fn other_file_id(taken: u64, handle: u64) -> u64 {
    (mix(taken ^ mix(handle)) >> 2) | FILE_BIT
}

/// The finalizer of splitmix64 (public domain, Vigna): a bijection with good avalanche.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn synthetic() -> impl Strategy<Value = Synthetic> {
        let node = (1..=NodeId::MAX).prop_map(NodeId);
        let pid = (1..1 << 22).prop_map(Pid);
        prop_oneof![
            Just(Synthetic::Root),
            Just(Synthetic::Omfs),
            Just(Synthetic::Deputies),
            (ROOT.., "[a-z]{1,8}").prop_map(|(p, name)| mount_point(p, name.as_bytes())),
            (0..=255usize).prop_map(Synthetic::Status),
            node.clone().prop_map(Synthetic::DeputyNode),
            (0..4u64, node.clone()).prop_map(|(v, n)| Synthetic::NodeRoot(View(v), n)),
            (node.clone(), pid.clone()).prop_map(|(n, p)| Synthetic::Deputy(n, p)),
            (node.clone(), pid.clone()).prop_map(|(n, p)| Synthetic::DeputyFds(n, p)),
            (node, pid).prop_map(|(n, p)| Synthetic::DeputyMaps(n, p)),
        ]
    }

    proptest! {
        #[test]
        fn every_synthetic_number_stands_for_one_thing(what in synthetic()) {
            prop_assert_eq!(what.id() & FILE_BIT, 0);
            prop_assert_eq!(Synthetic::of(what.id()), Some(what));
        }

        #[test]
        fn file_numbers_are_never_synthetic(view: u64, node in 1..=NodeId::MAX, dev: u64, ino: u64) {
            let id = file_id(View(view), NodeId(node), dev, ino);
            prop_assert_eq!(id & FILE_BIT, FILE_BIT);
            prop_assert_eq!(id >> 63, 0);
            prop_assert_eq!(Synthetic::of(id), None);
        }

        #[test]
        fn any_number_is_classified_without_a_panic(id: u64) {
            if let Some(what) = Synthetic::of(id) {
                prop_assert_eq!(what.id(), id);
            }
        }
    }

    #[test]
    fn the_same_file_has_the_same_number_in_every_release() {
        let id = file_id(View::NAME, NodeId(7), 0x801, 1234);
        assert_eq!(id, file_id(View::NAME, NodeId(7), 0x801, 1234));
        assert_ne!(id, file_id(View::HERE, NodeId(7), 0x801, 1234));
        assert_ne!(id, file_id(View::NAME, NodeId(8), 0x801, 1234));
        assert_ne!(id, file_id(View::NAME, NodeId(7), 0x802, 1234));
    }

    #[test]
    fn only_canonical_numbers_name_processes() {
        assert_eq!(parse_pid(b"4711"), Some(Pid(4711)));
        for bad in [
            &b""[..],
            b"0",
            b"+1",
            b"-1",
            b"01",
            b"1 ",
            b"99999999999",
            b"x",
        ] {
            assert_eq!(parse_pid(bad), None, "{bad:?}");
        }
    }
}
