use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const FILE: u32 = 0o100_644;
const DIRECTORY: u32 = 0o040_755;

fn entry(handle: u64, ino: u64, mode: u32) -> WireEntry {
    WireEntry {
        node: handle,
        attr: Some(Attr {
            ino,
            dev: 1,
            mode,
            ..Attr::default()
        }),
        ..WireEntry::default()
    }
}

#[test]
fn a_directory_has_one_number_per_view_and_a_file_one_in_all() {
    let mut table = InodeTable::default();
    let mut id = |view, mode, ino| {
        let entry = entry(ino, ino, mode);
        table.remember(NodeId(1), 1, view, &entry).unwrap().0
    };
    assert_ne!(id(View::NAME, DIRECTORY, 5), id(View::HERE, DIRECTORY, 5));
    assert_eq!(id(View::NAME, FILE, 6), id(View::HERE, FILE, 6));
}

#[test]
fn after_a_reconnection_a_file_keeps_its_number_and_gets_its_new_handle() {
    let mut table = InodeTable::default();
    let remember = |table: &mut InodeTable, epoch, entry: &WireEntry| {
        table.remember(NodeId(2), epoch, View::NAME, entry).unwrap()
    };
    let (id, _) = remember(&mut table, 1, &entry(70, 5, FILE));
    let (again, displaced) = remember(&mut table, 2, &entry(30, 5, FILE));
    assert_eq!(again, id);
    assert_eq!(displaced.map(|old| (old.epoch, old.handle)), Some((1, 70)));
    let key = table.get(id).unwrap().key;
    assert_eq!((key.epoch, key.handle), (2, 30));
    assert_eq!(table.forget(id, 1), None);
    assert_eq!(
        table.forget(id, 1).map(|f| (f.handle, f.count)),
        Some((30, 1))
    );
    assert!(table.is_empty());
}

#[test]
fn an_inherited_file_is_kept_until_the_kernel_takes_back_more_than_ours() {
    let mut table = InodeTable::default();
    let (id, _) = table
        .remember(NodeId(2), 1, View::NAME, &entry(70, 5, FILE))
        .unwrap();
    let origin = Origin {
        path: Path::Name(1, b"x"[..].into()),
        caller: Arc::default(),
    };
    assert!(table.found_at(id, &origin));
    assert!(!table.found_at(id, &origin), "no news");
    let mut heir = InodeTable::default();
    table.all().for_each(|file| heir.inherit(&file));
    assert_eq!(heir.origin(id), Some(origin));
    let (again, displaced) = heir
        .remember(NodeId(2), 1, View::NAME, &entry(30, 5, FILE))
        .unwrap();
    assert_eq!((again, displaced.map(|old| old.count)), (id, Some(0)));
    assert_eq!(heir.forget(id, 1), None);
    assert!(heir.get(id).is_some());
    assert_eq!(heir.forget(id, 1).map(|told| told.handle), Some(30));
    assert!(heir.is_empty());
}

#[test]
fn a_file_is_bound_to_a_new_handle_only_if_it_is_the_same() {
    let mut table = InodeTable::default();
    let old = entry(70, 5, FILE);
    let (id, _) = table.remember(NodeId(2), 1, View::NAME, &old).unwrap();
    let told = table
        .rebind(id, (NodeId(2), 2), &entry(30, 5, FILE))
        .unwrap();
    assert_eq!(told.map(|old| (old.epoch, old.handle)), Some((1, 70)));
    assert_eq!(
        table.rebind(id, (NodeId(2), 2), &entry(30, 5, FILE)),
        Ok(None)
    );
    let other = table
        .rebind(id, (NodeId(2), 3), &entry(31, 6, FILE))
        .unwrap_err();
    assert_eq!((other.epoch, other.handle, other.count), (3, 31, 1));
    let told = table.forget(id, 1).unwrap();
    assert_eq!((told.handle, told.count), (30, 2));
}

#[test]
fn only_directories_are_told_again_and_their_count_is_kept() {
    let mut table = InodeTable::default();
    for (handle, name, mode) in [(1, b"d", DIRECTORY), (2, b"f", FILE)] {
        let entry = entry(handle, handle, mode);
        let (id, _) = table.remember(NodeId(2), 1, View::NAME, &entry).unwrap();
        let path = Path::Name(7, name[..].into());
        let caller = Arc::default();
        table.found_at(id, &Origin { path, caller });
    }
    assert_eq!(table.directory_again(7, b"f"), None);
    assert_eq!(table.directory_again(8, b"d"), None);
    let (id, attr) = table.directory_again(7, b"d").unwrap();
    assert!(is_directory(attr.mode));
    assert_eq!(table.forget(id, 1), None);
    assert_eq!(
        table.forget(id, 1).map(|told| (told.handle, told.count)),
        Some((1, 1))
    );
}

#[test]
fn the_same_directory_in_two_places_of_the_owner_has_two_numbers() {
    let mut table = InodeTable::default();
    let mut id = |handle| {
        let entry = entry(handle, 5, DIRECTORY);
        table.remember(NodeId(1), 1, View::NAME, &entry).unwrap()
    };
    let (first, _) = id(10);
    let (second, displaced) = id(11);
    assert_ne!(first, second);
    assert_eq!(displaced, None);
}

#[test]
fn another_file_with_a_reused_inode_number_gets_another_number() {
    let mut table = InodeTable::default();
    let mut old = entry(1, 5, FILE);
    old.attr.as_mut().unwrap().crtime = Some(proto::v1::Time { s: 1, ns: 0 });
    let mut new = entry(2, 5, FILE);
    new.attr.as_mut().unwrap().crtime = Some(proto::v1::Time { s: 2, ns: 0 });
    let (first, _) = table.remember(NodeId(1), 1, View::NAME, &old).unwrap();
    let (second, _) = table.remember(NodeId(1), 2, View::NAME, &new).unwrap();
    assert_ne!(first, second);
}

#[test]
fn any_number_of_removed_files_may_have_had_the_inode_number() {
    let mut table = InodeTable::default();
    let mut ids = std::collections::BTreeSet::new();
    for n in 1..=400_u32 {
        let mut file = entry(n.into(), 5, FILE);
        file.attr.as_mut().unwrap().crtime = Some(proto::v1::Time { s: n.into(), ns: 0 });
        let (id, _) = table.remember(NodeId(1), 1, View::NAME, &file).unwrap();
        assert!(ids.insert(id), "a number for each");
    }
    for id in ids {
        assert!(table.forget(id, 1).is_some());
    }
    assert!(table.is_empty() && table.by_file.is_empty());
}

#[test]
fn a_directory_is_found_by_its_newest_name_only() {
    let mut table = InodeTable::default();
    let at = |name: &[u8]| Origin {
        path: Path::Name(7, name.into()),
        caller: Arc::default(),
    };
    let mut ids = Vec::new();
    for handle in [1, 2] {
        let directory = entry(handle, handle, DIRECTORY);
        let (id, _) = table
            .remember(NodeId(2), 1, View::NAME, &directory)
            .unwrap();
        ids.push(id);
        table.found_at(id, &at(b"old"));
    }
    table.found_at(ids[0], &at(b"new"));
    assert_eq!(
        table.directory_again(7, b"new").map(|(id, _)| id),
        Some(ids[0])
    );
    assert_eq!(
        table.directory_again(7, b"old").map(|(id, _)| id),
        Some(ids[1])
    );
    for id in ids {
        table.forget(id, 2);
    }
    assert_eq!(table.directory_again(7, b"new"), None);
    assert!(table.by_name.is_empty());
}

#[test]
fn forgetting_what_was_never_known_is_harmless() {
    assert_eq!(InodeTable::default().forget(9, 3), None);
}

#[derive(Clone, Debug)]
enum Step {
    Look(u64),
    Forget(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..6u64).prop_map(Step::Look),
        (1..6u64, 1..4u64).prop_map(|(handle, count)| Step::Forget(handle, count)),
    ]
}

proptest! {
    /// The owner gave one count per look and must get back exactly as many, once the kernel
    /// has forgotten all.
    #[test]
    fn the_owner_gets_back_what_it_gave(steps in proptest::collection::vec(step(), 0..60)) {
        let mut table = InodeTable::default();
        let mut ids = BTreeMap::new();
        let mut kernel: BTreeMap<u64, u64> = BTreeMap::new();
        let mut owner: BTreeMap<u64, u64> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Look(handle) => {
                    let entry = entry(handle, handle, FILE);
                    let (id, old) =
                        table.remember(NodeId(1), 1, View::NAME, &entry).unwrap();
                    prop_assert_eq!(old, None);
                    ids.insert(handle, id);
                    *kernel.entry(handle).or_default() += 1;
                    *owner.entry(handle).or_default() += 1;
                }
                Step::Forget(handle, count) => {
                    let known = kernel.entry(handle).or_default();
                    let count = count.min(*known);
                    if count == 0 {
                        continue;
                    }
                    *known -= count;
                    let told = table.forget(ids[&handle], count);
                    prop_assert_eq!(told.is_some(), *known == 0);
                    if let Some(told) = told {
                        let given = owner.insert(handle, 0);
                        prop_assert_eq!(Some(told.count), given);
                        prop_assert_eq!(told.handle, handle);
                    }
                }
            }
        }
        prop_assert_eq!(table.len(), kernel.values().filter(|count| **count > 0).count());
    }
}
