//! What is wrong with a configuration file, and in which line.

use std::path::{Path, PathBuf};

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("{path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}:{line}: {key}: {reason}")]
    Value {
        path: PathBuf,
        line: usize,
        key: String,
        reason: String,
    },
    #[error("{path}:{line}: {reason}")]
    Syntax {
        path: PathBuf,
        line: usize,
        reason: String,
    },
    #[error("the host name cannot be the node's name: {0}; set node.name in omfs.toml")]
    HostName(String),
}

impl ConfigError {
    /// Finds line and key of what the TOML reader refused.
    pub(super) fn from_toml(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let at = error.span().map_or(0, |span| span.start);
        let line = line_of_offset(text, at);
        let reason = error.message().replace('\n', ", ");
        match key_of_line(text, line) {
            Some(key) => Self::Value {
                path: path.to_owned(),
                line,
                key,
                reason,
            },
            None => Self::Syntax {
                path: path.to_owned(),
                line,
                reason,
            },
        }
    }
}

/// Counts from 1, as editors do.
fn line_of_offset(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// The full name of the key that a line sets, with its table; `None` for other lines.
fn key_of_line(text: &str, line: usize) -> Option<String> {
    let mut table = String::new();
    for (index, content) in text.lines().enumerate() {
        let content = content.trim();
        if let Some(name) = content.strip_prefix('[') {
            table = name.split(']').next().unwrap_or_default().trim().to_owned();
        }
        if index + 1 != line {
            continue;
        }
        if content.starts_with('[') {
            return Some(table);
        }
        let key = content.split_once('=')?.0.trim();
        return Some(match table.as_str() {
            "" => key.to_owned(),
            table => format!("{table}.{key}"),
        });
    }
    None
}

/// Where a key is set; the first line if it is nowhere, since then a default is at fault.
pub(super) fn line_of_key(text: &str, key: &str) -> usize {
    (1..=text.lines().count())
        .find(|line| key_of_line(text, *line).as_deref() == Some(key))
        .unwrap_or(1)
}
