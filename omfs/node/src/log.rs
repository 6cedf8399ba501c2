//! Where messages of the daemon, of shims and of supervisors go: standard error.

use omfs_config::{Config, LogFilter};
use tracing_subscriber::EnvFilter;

/// Overrides `log.filter`.
const FILTER_VARIABLE: &str = "OMFS_LOG";

/// Begins to log as the environment or the configuration says.
pub fn start(config: &Config) {
    let wish = std::env::var(FILTER_VARIABLE).ok();
    let wish = wish
        .filter(|text| !text.is_empty())
        .map(LogFilter::try_from);
    let filter = match &wish {
        Some(Ok(filter)) => filter,
        _ => &config.log.filter,
    };
    // Both were tried when they were read.
    let filter = EnvFilter::try_new(filter.as_str()).unwrap_or_else(|_| EnvFilter::new("info"));
    // A second start in one process happens in tests only.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init();
    if let Some(Err(error)) = wish {
        tracing::warn!("{FILTER_VARIABLE}: {error}; the configuration's is used");
    }
}
