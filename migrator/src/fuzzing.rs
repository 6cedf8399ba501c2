//! What the fuzzer (`fuzz/`) and the property tests call alike: takes any bytes, panics on a defect.

use crate::control::{Command, Event, JobState, read_line};
use crate::image::stored;
use crate::tracee::procfs::{Maps, Stat, Status};

/// Reads bytes as an image file, and as the content of one whose header is right.
///
/// # Panics
/// On a defect.
pub fn images(bytes: &[u8]) {
    for file in [bytes.to_vec(), stored::with_header(bytes)] {
        if let Ok(image) = stored::decode(&file) {
            assert_eq!(stored::decode(&stored::encode(&image)), Ok(image));
        }
    }
}

/// Reads bytes as what daemons, shims and supervisors tell each other, and as their state files.
///
/// # Panics
/// On a defect.
pub fn control(bytes: &[u8]) {
    let _ = read_line::<Command>(&mut &*bytes);
    let _ = read_line::<Event>(&mut &*bytes);
    if let Ok(state) = read_line::<JobState>(&mut &*bytes) {
        let mut line = serde_json::to_vec(&state).unwrap_or_default();
        line.push(b'\n');
        assert_eq!(
            read_line::<JobState>(&mut line.as_slice()).ok(),
            Some(state)
        );
    }
}

/// Reads bytes as files of procfs, in which programs choose their names.
///
/// # Panics
/// On a defect.
pub fn procfs(bytes: &[u8]) {
    let _ = Maps::parse(bytes);
    let _ = Stat::parse(bytes);
    let status = Status::parse(bytes);
    let _ = (
        status.text("Name"),
        status.numbers("Uid"),
        status.mask("SigBlk"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Must be read by every later version: a good place to start from.
    const GOLDEN: &[u8] = include_bytes!("image/golden-v1.bin");
    const HEADER_BYTES: usize = 24;

    proptest! {
        #[test]
        fn any_bytes(bytes: Vec<u8>) {
            images(&bytes);
            control(&bytes);
            procfs(&bytes);
        }

        #[test]
        fn images_with_changed_bytes(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut body = GOLDEN[HEADER_BYTES..].to_vec();
            for (at, byte) in changes {
                let at = at.index(body.len());
                body[at] = byte;
            }
            images(&body);
            images(&body[..cut.index(body.len() + 1)]);
        }

        #[test]
        fn lines_with_any_values(pid: i32, text: String, moves: u64, place in ".*") {
            let state = serde_json::json!({
                "pid": pid, "command": text, "where": place, "moves": moves, "note": text,
                "state": if pid % 2 == 0 { "running" } else { text.as_str() },
            });
            control(format!("{state}\n").as_bytes());
            let order = serde_json::json!({
                "cmd": "migrate", "node": text, "address": place, "token": text,
            });
            control(format!("{order}\n").as_bytes());
        }

        #[test]
        fn processes_of_any_name(name: Vec<u8>, rest in "[0-9 RSTZ.:a-f/()-]{0,60}") {
            let mut stat = b"12 (".to_vec();
            stat.extend_from_slice(&name);
            stat.extend_from_slice(b") ");
            stat.extend_from_slice(rest.as_bytes());
            procfs(&stat);
            let mut map = b"7f00-8f00 r-xp 00002000 fe:01 42 ".to_vec();
            map.extend_from_slice(&name);
            procfs(&map);
        }
    }
}
