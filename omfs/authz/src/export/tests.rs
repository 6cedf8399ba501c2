use proptest::prelude::*;

use super::*;

fn known(gid: u32, groups: &[u32]) -> User {
    User::Known {
        gid,
        groups: groups.to_vec(),
    }
}

fn ids(uid: u32, gid: u32, groups: &[u32]) -> Ids {
    Ids {
        uid,
        gid,
        groups: groups.to_vec(),
    }
}

fn rules(squash: Squash) -> Rules {
    Rules {
        squash,
        ..Rules::default()
    }
}

#[test]
fn groups_are_the_owners_word() {
    let ann = known(1000, &[1000, 24, 1500]);
    let system = Rules::default();
    let own = ids(1000, 1000, &[1000, 1500]);
    assert_eq!(system.ids_of_stranger(&ids(1000, 1000, &[]), &ann), own);
    assert_eq!(
        system.ids_of_stranger(&ids(1000, 42, &[]), &ann),
        own,
        "not shadow's"
    );
    let other = ids(1000, 1500, &[1000, 1500]);
    assert_eq!(
        system.ids_of_stranger(&ids(1000, 1500, &[]), &ann),
        other,
        "newgrp(1)"
    );
    assert_eq!(
        system.ids_of_stranger(&ids(1000, 24, &[]), &ann),
        ids(1000, NOBODY, &[1000, 1500])
    );
    let all = ids(1000, 24, &[1000, 24, 1500]);
    assert_eq!(
        rules(Squash::Root).ids_of_stranger(&ids(1000, 24, &[]), &ann),
        all
    );
}

#[test]
fn a_distributions_common_group_is_kept() {
    let ann = known(100, &[100, 42]);
    assert_eq!(
        Rules::default().ids_of_stranger(&ids(1000, 100, &[]), &ann),
        ids(1000, 100, &[100])
    );
    let roots = known(0, &[0]);
    assert_eq!(
        Rules::default().ids_of_stranger(&ids(1000, 0, &[]), &roots),
        ids(1000, NOBODY, &[])
    );
}

#[test]
fn an_unknown_user_has_his_own_group_unless_it_is_another_ones() {
    let unknown = |group_exists| User::Unknown { group_exists };
    let rules = Rules::default();
    assert_eq!(
        rules.ids_of_stranger(&ids(5000, 5000, &[]), &unknown(false)),
        ids(5000, 5000, &[])
    );
    assert_eq!(
        rules.ids_of_stranger(&ids(5000, 1500, &[]), &unknown(true)),
        ids(5000, NOBODY, &[])
    );
    assert_eq!(
        rules.ids_of_stranger(&ids(5000, 42, &[]), &unknown(false)),
        ids(5000, NOBODY, &[])
    );
}

#[test]
fn root_is_root_only_where_nothing_is_squashed() {
    let root = known(0, &[0]);
    for squash in [Squash::Root, Squash::System, Squash::All] {
        assert_eq!(
            rules(squash).ids_of_stranger(&ids(0, 0, &[]), &root),
            nobody()
        );
    }
    assert_eq!(
        rules(Squash::None).ids_of_stranger(&ids(0, 0, &[]), &root),
        ids(0, 0, &[])
    );
    assert_eq!(
        rules(Squash::All).ids_of_stranger(&ids(1000, 1000, &[]), &known(1000, &[])),
        nobody()
    );
    assert_eq!(
        rules(Squash::Root).ids_of_stranger(&ids(NOBODY, 42, &[]), &known(42, &[42])),
        nobody()
    );
}

#[test]
fn views_into_a_kernel_hold_no_user_data() {
    for kind in [
        "proc",
        "sysfs",
        "cgroup",
        "cgroup2",
        "devtmpfs",
        "devpts",
        "debugfs",
        "tracefs",
        "securityfs",
        "bpf",
        "pstore",
        "efivarfs",
        "mqueue",
        "configfs",
        "fusectl",
        "binfmt_misc",
        "nsfs",
        "selinuxfs",
        "smackfs",
        "resctrl",
        "rpc_pipefs",
        "autofs",
        "",
        "of-the-future",
    ] {
        assert!(!holds_user_data(kind, false), "{kind}");
    }
    for kind in ["tmpfs", "overlay", "nfs4", "fuse.sshfs", "fuse", "zfs"] {
        assert!(holds_user_data(kind, false), "{kind}");
    }
    assert!(holds_user_data("ext4", true) && holds_user_data("of-the-future", true));
}

fn entry(path: &str, nodes: Nodes, squash: Squash) -> Entry {
    Entry {
        path: components(path.as_bytes()).unwrap(),
        nodes,
        rules: rules(squash),
    }
}

fn some(nodes: &[&str]) -> Nodes {
    Nodes::Some(nodes.iter().map(ToString::to_string).collect())
}

fn access(table: &Table, path: &str, node: (u32, &str)) -> Access {
    let (id, name) = node;
    table.access(&components(path.as_bytes()).unwrap(), NodeRef { id, name })
}

const N2: (u32, &str) = (2, "n2");
const N3: (u32, &str) = (3, "n3");

#[test]
fn the_most_specific_path_decides() {
    let table = Table::new(vec![
        entry("/", Nodes::All, Squash::System),
        entry("/srv/team", some(&["n2"]), Squash::Root),
        entry("/srv/team", some(&["3"]), Squash::All),
        entry("/srv/secret", some(&[]), Squash::System),
        entry("/srv/secret/public", Nodes::All, Squash::All),
    ]);
    let exported = |squash| Access::Exported(rules(squash));
    assert_eq!(access(&table, "/srv", N2), exported(Squash::System));
    assert_eq!(access(&table, "/srv/team/x", N2), exported(Squash::Root));
    assert_eq!(access(&table, "/srv/team/x", N3), exported(Squash::All));
    assert_eq!(access(&table, "/srv/team/x", (4, "n4")), Access::Hidden);
    assert_eq!(access(&table, "/srv/teams", N2), exported(Squash::System));
    assert_eq!(access(&table, "/srv/secret", N2), Access::Passage);
    assert_eq!(access(&table, "/srv/secret/x", N2), Access::Hidden);
    assert_eq!(
        access(&table, "/srv/secret/public/x", N2),
        exported(Squash::All)
    );
    assert!(table.mentions(&components(b"/srv").unwrap()));
    assert!(!table.mentions(&components(b"/srv/team/x").unwrap()));
}

#[test]
fn what_is_not_exported_is_hidden_but_for_the_way() {
    let table = Table::new(vec![entry("/home/ann", some(&["n2"]), Squash::System)]);
    assert_eq!(access(&table, "/", N2), Access::Passage);
    assert_eq!(access(&table, "/home", N2), Access::Passage);
    assert_eq!(access(&table, "/etc", N2), Access::Hidden);
    assert_eq!(access(&table, "/", N3), Access::Hidden);
    assert_eq!(access(&Table::default(), "/", N2), Access::Hidden);
}

#[test]
fn paths_are_taken_apart() {
    assert_eq!(components(b"/"), Ok(vec![]));
    assert_eq!(
        components(b"//a/./b/"),
        Ok(vec![b"a".to_vec(), b"b".to_vec()])
    );
    for wrong in [&b"a"[..], b"", b"/a/../b"] {
        assert!(components(wrong).is_err(), "{wrong:?}");
    }
    assert!(components(&b"/a".repeat(DEPTH_MAX + 1)).is_err());
}

fn some_squash() -> impl Strategy<Value = Squash> {
    prop_oneof![
        Just(Squash::None),
        Just(Squash::Root),
        Just(Squash::System),
        Just(Squash::All)
    ]
}

fn some_user() -> impl Strategy<Value = User> {
    let group = 0u32..2000;
    let groups = proptest::collection::vec(group.clone(), 0..6);
    prop_oneof![
        (group, groups).prop_map(|(gid, groups)| User::Known { gid, groups }),
        any::<bool>().prop_map(|group_exists| User::Unknown { group_exists }),
    ]
}

fn some_path() -> impl Strategy<Value = Vec<Vec<u8>>> {
    proptest::collection::vec((b'a'..b'd').prop_map(|letter| vec![letter]), 0..4)
}

proptest! {
    /// Root and the system's ids are reached only where the rules say so.
    #[test]
    fn squashed_ids_are_never_used(
        uid in 0u32..2000, gid in 0u32..2000, user in some_user(), squash in some_squash(),
    ) {
        let granted = rules(squash).ids_of_stranger(&ids(uid, gid, &[]), &user);
        if squash != Squash::None {
            prop_assert!(granted.uid != 0 && granted.gid != 0 && !granted.groups.contains(&0));
        }
        if matches!(squash, Squash::System | Squash::All) {
            prop_assert!(granted.uid >= MIN_ID);
            let primary = match user {
                User::Known { gid, .. } => gid,
                User::Unknown { .. } => NOBODY,
            };
            let fits = |group: &u32| *group >= MIN_ID || *group == primary;
            prop_assert!(fits(&granted.gid) && granted.groups.iter().all(fits));
        }
    }

    /// No user gets a group that the owner does not give him.
    #[test]
    fn no_group_is_had_for_the_asking(
        uid in 1u32..2000, gid in 0u32..2000, gid_of in 0u32..2000,
        groups in proptest::collection::vec(0u32..2000, 0..6), squash in some_squash(),
    ) {
        prop_assume!(squash != Squash::None);
        let granted = rules(squash).ids_of_stranger(&ids(uid, gid, &[0, 42]), &known(gid_of, &groups));
        let given = |group: &u32| *group == NOBODY || *group == gid_of || groups.contains(group);
        prop_assert!(given(&granted.gid) && granted.groups.iter().all(given));
    }

    #[test]
    fn nothing_below_what_is_hidden_is_exported_by_an_entry_above(
        paths in proptest::collection::vec((some_path(), any::<bool>()), 0..6),
        at in some_path(),
    ) {
        let entries = paths.iter().map(|(path, for_all)| Entry {
            path: path.clone(),
            nodes: if *for_all { Nodes::All } else { some(&[]) },
            rules: Rules::default(),
        });
        let table = Table::new(entries.collect());
        let node = NodeRef { id: 2, name: "n2" };
        let longest = paths.iter().filter(|(path, _)| at.starts_with(path));
        let depth = longest.map(|(path, _)| path.len()).max();
        let wanted = depth.is_some_and(|depth| {
            paths.iter().any(|(path, for_all)| *for_all && path.len() == depth && at.starts_with(path))
        });
        let found = matches!(table.access(&at, node), Access::Exported(_));
        prop_assert_eq!(found, wanted);
    }

    #[test]
    fn every_exported_path_can_be_walked_to(
        paths in proptest::collection::vec((some_path(), any::<bool>()), 0..6),
        at in some_path(),
    ) {
        let entries = paths.iter().map(|(path, for_all)| Entry {
            path: path.clone(),
            nodes: if *for_all { Nodes::All } else { some(&[]) },
            rules: Rules::default(),
        });
        let table = Table::new(entries.collect());
        let node = NodeRef { id: 2, name: "n2" };
        let exported = matches!(table.access(&at, node), Access::Exported(_));
        for depth in 0..at.len() {
            let above = table.access(&at[..depth], node);
            prop_assert!(!exported || above != Access::Hidden);
        }
    }
}
