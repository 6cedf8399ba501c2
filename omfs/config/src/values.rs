//! Values that know what they may be, so that a wrong one is refused at its own line.

use std::fmt;
use std::ops::{Deref, RangeInclusive};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A node's name: one path component below `/mfs` that cannot be mistaken for a node id.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct NodeName(pub String);

impl TryFrom<String> for NodeName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match omfs_pki::name::check_node_name(&text) {
            Ok(()) => Ok(Self(text)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A path from the root.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct AbsolutePath(PathBuf);

impl AbsolutePath {
    pub(super) fn constant(path: &'static str) -> Self {
        Self(PathBuf::from(path))
    }
}

impl TryFrom<PathBuf> for AbsolutePath {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        if path.is_absolute() {
            Ok(Self(path))
        } else {
            Err(format!("{path:?} must be an absolute path"))
        }
    }
}

impl Deref for AbsolutePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

/// A TCP port; 0 lets the kernel choose, which only tests want.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "i64")]
pub struct Port(pub u16);

impl TryFrom<i64> for Port {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        u16::try_from(number)
            .map(Self)
            .map_err(|_| format!("{number} is no port: 1 to 65535, or 0 for any free one"))
    }
}

/// A range of TCP ports, written `"first-last"`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct PortRange(pub RangeInclusive<u16>);

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts = text.split_once('-');
        let ports = parts.and_then(|(first, last)| {
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        });
        match ports {
            Some((first, last)) if 0 < first && first <= last => Ok(Self(first..=last)),
            _ => Err(format!(
                "{text:?} is no range of ports: write \"7800-7999\""
            )),
        }
    }
}

/// A duration in milliseconds: 10 ms to 1 hour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "i64")]
pub struct Millis(pub u32);

impl Millis {
    /// The same as a standard duration.
    #[must_use]
    pub fn duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(u64::from(self.0))
    }
}

impl TryFrom<i64> for Millis {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        match u32::try_from(number) {
            Ok(number) if (10..=3_600_000).contains(&number) => Ok(Self(number)),
            _ => Err(format!("{number} is not within 10 to 3600000 milliseconds")),
        }
    }
}

/// A share of CPU time beside that of others, in percent of theirs: 1 to 100.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "i64")]
pub struct WeightPercent(pub u32);

impl TryFrom<i64> for WeightPercent {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        match u32::try_from(number) {
            Ok(number) if (1..=100).contains(&number) => Ok(Self(number)),
            _ => Err(format!("{number} is not within 1 to 100 percent")),
        }
    }
}

/// What is logged, as `tracing_subscriber::EnvFilter` reads it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl TryFrom<String> for LogFilter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // A lone word is a target to the library, so a misspelt level would be taken.
        let mut lone = text.split(',').map(str::trim);
        let wrong = lone.find(|part| !part.contains(['=', '[']) && !is_level(part));
        match tracing_subscriber::EnvFilter::try_new(&text) {
            Ok(_) if wrong.is_some() => Err(format!(
                "{text:?} is no log filter: {:?} is no level (error, warn, info, debug, trace, off)",
                wrong.unwrap_or_default()
            )),
            Ok(_) => Ok(Self(text)),
            Err(error) => Err(format!("{text:?} is no log filter: {error}")),
        }
    }
}

fn is_level(text: &str) -> bool {
    text.parse::<tracing_subscriber::filter::LevelFilter>()
        .is_ok()
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
