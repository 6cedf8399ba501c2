//! The links of procfs that mean whoever reads them.

use omfs_sys::procfs::Status;

/// What `/proc/self` or `/proc/thread-self` is to the thread `caller_pid` of this node, given what
/// the link is to this very thread. `None` for all other links, and for callers from elsewhere.
pub(super) fn own_link(target: &[u8], caller_pid: i32) -> Option<String> {
    let own = std::process::id().to_string();
    let rest = std::str::from_utf8(target).ok()?.strip_prefix(&own)?;
    if caller_pid <= 0 || !(rest.is_empty() || rest.starts_with("/task/")) {
        return None;
    }
    let status = Status::read(caller_pid).ok()?;
    let process = Some(status.text("Tgid")).filter(|pid| !pid.is_empty())?;
    Some(if rest.is_empty() {
        process.to_owned()
    } else {
        format!("{process}/task/{caller_pid}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_to_oneself_are_replaced() {
        let own = std::process::id();
        let init = |target: &str| own_link(target.as_bytes(), 1);
        assert_eq!(init(&own.to_string()), Some("1".into()));
        assert_eq!(init(&format!("{own}/task/{own}")), Some("1/task/1".into()));
        assert_eq!(init(&format!("{own}/mounts")), None);
        assert_eq!(init(&format!("{own}0")), None);
        assert_eq!(init("self/mounts"), None);
        assert_eq!(own_link(own.to_string().as_bytes(), 0), None);
    }
}
