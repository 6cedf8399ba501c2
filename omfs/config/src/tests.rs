use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("omfs.toml"), text).map_err(|error| error.to_string())
}

const DOCUMENTED: &str = include_str!("../../../docs/omfs.toml");

#[test]
fn the_documented_file_is_the_default() {
    assert_eq!(parse(DOCUMENTED), Ok(Config::default()));
    assert_eq!(parse(""), Ok(Config::default()));
}

#[test]
fn the_documented_optional_keys_exist() {
    let mut text = String::new();
    for line in DOCUMENTED.lines() {
        let bare = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
        text.push_str(bare.unwrap_or(line));
        text.push('\n');
    }
    let config = parse(&text).unwrap();
    assert_eq!(config.node.name, Some(NodeName("n1".into())));
    assert_eq!(config.network.advertise, Some("192.0.2.1".parse().unwrap()));
    assert_eq!(config.network.guest_ports, Some(PortRange(7800..=7999)));
}

/// A key that the code knows and the documentation does not fails here: serde lists the known
/// keys when it meets a wrong one.
#[test]
fn every_key_is_documented() {
    for table in [
        "node", "network", "export", "mount", "log", "balance", "policy",
    ] {
        let error = parse(&format!("[{table}]\nnonsense = 1\n")).unwrap_err();
        let known: Vec<_> = error.split('`').skip(3).step_by(2).collect();
        assert!(!known.is_empty(), "{error}");
        let start = DOCUMENTED.find(&format!("[{table}]")).unwrap();
        let section = DOCUMENTED[start + 1..].split("\n[").next().unwrap();
        for key in known {
            let documented = section.lines().any(|line| {
                line.trim_start_matches('#')
                    .split_once(" = ")
                    .is_some_and(|pair| pair.0 == key)
            });
            assert!(documented, "[{table}] {key}");
        }
    }
}

/// Every key, with its table, its value in the documentation, and its line there.
fn documented_keys() -> Vec<(String, String, String)> {
    let mut table = String::new();
    let mut keys = Vec::new();
    for line in DOCUMENTED.lines() {
        if let Some(name) = line.strip_prefix('[') {
            table = name.trim_end_matches(']').to_owned();
        }
        let line = line.strip_prefix('#').unwrap_or(line);
        let Some((key, value)) = line.split_once(" = ") else {
            continue;
        };
        if key.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
            keys.push((table.clone(), key.to_owned(), value.to_owned()));
        }
    }
    keys
}

#[test]
fn every_key_is_refused_by_name_when_it_is_misspelt_or_its_value_is_impossible() {
    let keys = documented_keys();
    assert!(keys.len() >= 20, "{keys:?}");
    for (table, key, value) in keys {
        assert!(parse(&format!("[{table}]\n{key} = {value}\n")).is_ok());
        let misspelt = parse(&format!("[{table}]\n\n{key}z = {value}\n")).unwrap_err();
        let expected = format!("omfs.toml:3: {table}.{key}z: unknown field `{key}z`");
        assert!(misspelt.starts_with(&expected), "{misspelt}");
        for wrong in ["{ a = 1 }", "-1", "1979-05-27", "[[]]", "\"\\u0000\""] {
            let refused = parse(&format!("[{table}]\n{key} = {wrong}\n"));

            match refused {
                Err(error) => assert!(
                    error.starts_with(&format!("omfs.toml:2: {table}.{key}: ")),
                    "{key} = {wrong}: {error}"
                ),
                Ok(_) => panic!("{table}.{key} = {wrong} was accepted"),
            }
        }
    }
}

#[test]
fn wrong_keys_and_values_are_refused_by_name_and_line() {
    let cases = [
        ("[nod]\n", "omfs.toml:1: nod: unknown field `nod`"),
        (
            "[log]\nfilter = \"omfs=debug,loud\"\n",
            "omfs.toml:2: log.filter: \"omfs=debug,loud\" is no log filter: \"loud\" is no level",
        ),
        (
            "[network]\nguest_ports = \"7781-7790\"\n",
            "omfs.toml:2: network.guest_ports: port 7781 in it is the daemon's own",
        ),
        (
            "[balance]\nguests_weight_percent = 0\n",
            "omfs.toml:2: balance.guests_weight_percent: 0 is not within 1 to 100 percent",
        ),
        (
            "\n[node]\nnam = \"x\"\n",
            "omfs.toml:3: node.nam: unknown field `nam`",
        ),
        ("[node]\nname = \"12\"\n", "omfs.toml:2: node.name: \"12\""),
        (
            "[node]\nname = \"a/b\"\n",
            "omfs.toml:2: node.name: \"a/b\"",
        ),
        (
            "[node]\nstate_dir = \"lib\"\n",
            "omfs.toml:2: node.state_dir: \"lib\" must be an absolute",
        ),
        (
            "[network]\ncontrol_port = 70000\n",
            "omfs.toml:2: network.control_port: 70000 is no port",
        ),
        (
            "[network]\ncontrol_port = \"x\"\n",
            "omfs.toml:2: network.control_port: invalid type",
        ),
        (
            "[network]\n\ndata_port = 7780\n",
            "omfs.toml:3: network.data_port: 7780 is the control_port",
        ),
        (
            "[network]\nguest_ports = \"9-3\"\n",
            "omfs.toml:2: network.guest_ports: \"9-3\" is no range",
        ),
        (
            "[network]\nadvertise = \"0.0.0.0\"\n",
            "omfs.toml:2: network.advertise: 0.0.0.0 is no address",
        ),
        (
            "[network]\nlisten = \"here\"\n",
            "omfs.toml:2: network.listen: ",
        ),
        (
            "[log]\nfilter = \"omfs=loud\"\n",
            "omfs.toml:2: log.filter: \"omfs=loud\" is no log filter",
        ),
        (
            "[balance]\ninterval_ms = 1\n",
            "omfs.toml:2: balance.interval_ms: 1 is not within",
        ),
        (
            "[balance]\nsensor = \"moon\"\n",
            "omfs.toml:2: balance.sensor: unknown variant `moon`",
        ),
        (
            "[policy]\nblock = 1\n",
            "omfs.toml:2: policy.block: invalid type",
        ),
        ("[node\n", "omfs.toml:1: "),
    ];
    for (text, expected) in cases {
        let error = parse(text).unwrap_err();
        assert!(
            error.starts_with(expected),
            "{text:?}\n  gave {error}\n  not  {expected}"
        );
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/omfs.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("/nonexistent/omfs.toml: No such file"),
        "{error}"
    );
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_its_line_is_named(text: String, value in "[ -~]{0,20}", at in 0usize..64) {
        let keys = documented_keys();
        let (table, key, _) = &keys[at % keys.len()];
        for text in [text, format!("[{table}]\n{key} = {value}\n")] {
            if let Err(error) = parse(&text) {
                proptest::prop_assert!(error.starts_with("omfs.toml:"), "{error}");
            }
        }
    }
}
