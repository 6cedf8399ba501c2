//! The `-o` options of `mount -t fuse.omfs`.

/// What a mount is to be like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::struct_excessive_bools)]
pub struct MountOptions {
    /// `ro`: nothing can be written.
    pub read_only: bool,
    /// `suid`: set-id programs work. Off unless asked for: their bits were set at other nodes.
    pub suid: bool,
    /// `dev`: device files work. Off unless asked for: their numbers mean other nodes' devices.
    pub dev: bool,
    /// `noexec`: programs cannot be started.
    pub no_exec: bool,
    /// `noatime`, `relatime` and the like concern only the owner, and are accepted.
    pub no_atime: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            suid: false,
            dev: false,
            no_exec: false,
            no_atime: true,
        }
    }
}

/// Why an option text was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown mount option {0:?}; `omfs mount-helper --help` lists them")]
pub struct UnknownOption(pub String);

/// Options of fstab(5), mount(8) and libfuse that mean nothing to omfs, or what it does anyway.
const IGNORED: [&str; 26] = [
    "rw",
    "nosuid",
    "nodev",
    "exec",
    "async",
    "sync",
    "dirsync",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "defaults",
    "allow_other",
    "atime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "lazytime",
];

/// Reads a comma-separated list of options.
///
/// # Errors
/// An option that is neither known nor one of those that every mount helper must let pass
/// (`x-…`, `X-…`, `comment=…`).
pub fn parse(text: &str) -> Result<MountOptions, UnknownOption> {
    let mut options = MountOptions::default();
    for option in text.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => options.read_only = true,
            "rw" => options.read_only = false,
            "suid" => options.suid = true,
            "nosuid" => options.suid = false,
            "dev" => options.dev = true,
            "nodev" => options.dev = false,
            "noexec" => options.no_exec = true,
            "exec" => options.no_exec = false,
            "noatime" => options.no_atime = true,
            _ if IGNORED.contains(&option) || is_comment(option) => {}
            _ => return Err(UnknownOption(option.to_owned())),
        }
    }
    Ok(options)
}

fn is_comment(option: &str) -> bool {
    ["x-", "X-", "comment=", "fsname=", "subtype="]
        .iter()
        .any(|prefix| option.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_fstab_and_libmount_add_is_let_pass() {
        let options = parse("rw,_netdev,nofail,x-systemd.automount,relatime,user").unwrap();
        assert_eq!(options, MountOptions::default());
        assert_eq!(parse("").unwrap(), MountOptions::default());
        assert_eq!(parse("defaults,,").unwrap(), MountOptions::default());
    }

    #[test]
    fn the_last_of_two_opposites_counts() {
        assert!(parse("rw,ro").unwrap().read_only);
        assert!(!parse("ro,rw").unwrap().read_only);
        assert!(parse("dev,suid").unwrap().suid);
        assert!(!parse("suid,nosuid").unwrap().suid);
    }

    #[test]
    fn an_unknown_option_is_refused_by_name() {
        let refused = parse("rw,colour=blue").unwrap_err();
        assert_eq!(refused, UnknownOption("colour=blue".into()));
    }

    proptest! {
        #[test]
        fn any_text_is_an_answer(text: String) {
            let _ = parse(&text);
        }
    }
}
