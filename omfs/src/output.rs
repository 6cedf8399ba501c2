//! Writing for people and for programs; a reader that went away ends us quietly.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::error::{CommandError, CommandResult};

/// Writes text to standard output.
///
/// # Errors
/// Standard output's, except that a broken pipe ends the process with status 0: whoever read us
/// has seen enough.
pub fn print(text: &str) -> CommandResult {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(CommandError::failure(format_args!(
            "cannot write to standard output: {error}"
        ))),
    }
}

/// Writes one JSON document and a newline.
///
/// # Errors
/// See [`print`].
pub fn print_json(value: &impl Serialize) -> CommandResult {
    let mut text = serde_json::to_string_pretty(value).map_err(CommandError::failure)?;
    text.push('\n');
    print(&text)
}

/// Writes a line to standard error; if that is gone, nobody is to be told.
pub fn warn(message: impl fmt::Display) {
    let message = message.to_string();
    let lines: Vec<_> = message.split('\n').map(printable).collect();
    let _ = writeln!(io::stderr().lock(), "{}", lines.join("\n"));
}

/// Text that somebody else has chosen, such as the name of a process, as a terminal may see it on
/// one line: nothing in it moves the cursor, changes colours, or turns the direction of writing.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        match letter {
            '\n' | '\r' | '\t' => shown.extend(letter.escape_default()),
            letter if is_active(letter) && u32::from(letter) < 0x100 => {
                let _ = write!(shown, "\\x{:02x}", u32::from(letter));
            }
            letter if is_active(letter) => shown.extend(letter.escape_unicode()),
            letter => shown.push(letter),
        }
    }
    Cow::Owned(shown)
}

/// Control characters, those of Unicode's bidirectional algorithm, and its line ends.
fn is_active(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}'
            | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether somebody watches standard error, so that a progress bar makes sense.
pub fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// A plain table without frames, as `ps` and `df` draw them.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    // The preset pads every column by one space on both sides.
    let cut = |line: &String| line.strip_prefix(' ').unwrap_or(line).to_owned();
    lines.iter().map(cut).collect::<Vec<_>>().join("\n") + "\n"
}

/// Bytes as people write them.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" || value >= 100.0 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(300 << 20), "300 MiB");
        assert_eq!(bytes(5 << 40), "5.0 TiB");
    }

    #[test]
    fn what_others_named_does_nothing_to_a_terminal() {
        assert!(matches!(printable("größer 日本 a\\b"), Cow::Borrowed(_)));
        assert_eq!(
            printable("a\u{1b}[31m\n\u{7f}\u{9b}m"),
            "a\\x1b[31m\\n\\x7f\\x9bm"
        );
        assert_eq!(printable("\u{202e}gpj.exe"), "\\u{202e}gpj.exe");
        let rows = vec![vec!["1".into(), "a\n\u{1b}[2J".into()]];
        assert_eq!(
            table(&["PID", "COMMAND"], rows),
            "PID  COMMAND\n1    a\\n\\x1b[2J\n"
        );
    }

    #[test]
    fn tables_have_no_frame_and_no_blanks_at_the_end() {
        let rows = vec![vec!["1".into(), "sleep".into()]];
        assert_eq!(
            table(&["PID", "COMMAND"], rows),
            "PID  COMMAND\n1    sleep\n"
        );
    }
}
