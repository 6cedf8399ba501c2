//! Examples for the help and the manual pages: what a stranger types first.

use clap::Command;

/// Commands with their examples.
const EXAMPLES: &[(&str, &str)] = &[
    (
        "cluster init",
        "omfs cluster init lab     # makes the cluster `lab`; this machine is node 1",
    ),
    (
        "cluster token",
        "omfs cluster token                       # for one machine and an hour
omfs cluster token --uses 20 --valid 2d  # for twenty machines and two days
omfs cluster token --withdraw 5e0c4f21   # as `omfs cluster tokens` lists it",
    ),
    ("cluster tokens", "omfs cluster tokens      # which still work, and how long"),
    (
        "cluster join",
        "omfs cluster join n1 --token -                             # then paste the token, and Ctrl-D
ssh n1 omfs cluster token | omfs cluster join n1 --token -
omfs cluster join 192.0.2.1:7780 --token-file token --id 7   # to be /mfs/7",
    ),
    (
        "cluster remove",
        "omfs cluster remove n2      # stolen, broken, or to be installed anew",
    ),
    (
        "cluster",
        "omfs cluster init lab; omfs daemon      # on the first machine
omfs cluster token                      # there: prints what the next line needs
omfs cluster join n1 --token -          # on another machine",
    ),
    (
        "daemon",
        "omfs daemon                                   # until Ctrl-C
omfs --config /etc/omfs/other.toml daemon     # with other settings
OMFS_LOG=debug omfs daemon                    # says more",
    ),
    (
        "nodes",
        "omfs nodes
omfs nodes --json | jq -r '.[] | select(.state == \"dead\") | .name'",
    ),
    (
        "ps",
        "omfs ps                # what is away, may move, or is a guest here
omfs ps -a             # every process, and what keeps it from moving
omfs ps --json | jq '.[] | {pid, where, moves}'",
    ),
    ("top", "omfs top"),
    ("export list", "omfs export list --json | jq -r '.[].path'"),
    (
        "export add",
        "omfs export add /srv/team --nodes n2,n3 --ro    # only these, and only to read
omfs export add /home/admin --nodes=             # nobody sees it
omfs export add / --squash all                   # everybody is nobody, unless said otherwise below",
    ),
    ("export remove", "omfs export remove /srv/team"),
    ("export reset", "omfs export reset"),
    (
        "export",
        "omfs export list
omfs export add /srv/team --nodes n2,n3 --ro
omfs export remove /srv/team",
    ),
    (
        "migrate",
        "omfs migrate 4711 n2        # by name
omfs migrate 4711 2         # by id
omfs migrate 4711 home      # back
omfs unlock 4711            # and let the balancer decide again",
    ),
    ("lock", "omfs lock 4711      # it stays where it is now"),
    (
        "unlock",
        "omfs unlock 4711    # the balancer may move it again",
    ),
    (
        "bring",
        "omfs bring; omfs nolstay     # everything home, then as before",
    ),
    (
        "expel",
        "omfs expel                   # e.g. before this machine is shut down
omfs unblock                 # take guests again",
    ),
    ("block", "omfs block"),
    ("unblock", "omfs unblock"),
    ("stay", "omfs stay"),
    ("nostay", "omfs nostay"),
    ("lstay", "omfs lstay"),
    ("nolstay", "omfs nolstay"),
    ("quiet", "omfs quiet"),
    ("noquiet", "omfs noquiet"),
    ("status", "omfs status\nomfs status --json | jq .policy"),
    (
        "run",
        "omfs run gzip -9 big.tar           # goes where there is room
omfs run make -j12                 # and so do all its children
omfs run --on n2 ./simulation      # there, and nowhere else
omfs run --stay ./server           # moves only by `omfs migrate`",
    ),
    (
        "shell",
        "omfs shell                         # then: for f in *.tar; do gzip -9 $f & done
omfs shell -c 'make -j12'",
    ),
    ("check", "omfs check && omfs daemon"),
    (
        "mount-helper",
        "ln -s /usr/local/bin/omfs /sbin/mount.fuse.omfs     # once
mount -t fuse.omfs omfs /mfs",
    ),
    (
        "manpages",
        "omfs manpages /usr/local/share/man/man1 && man omfs-migrate",
    ),
];

/// What a command ends with.
fn statuses(path: &str) -> &'static str {
    match path {
        "run" | "shell" => {
            "Exit status: that of the program; 126 or 127 when it cannot be started, and before \
             that those in `omfs --help`."
        }
        "mount-helper" => "Exit status: 0 mounted, 1 wrong use, 32 failed, as mount(8) has it.",
        "migrate" | "bring" | "expel" => {
            "Exit status: 0 when they run at their new places; 75 when one cannot be moved now and \
             runs on where it was; 1, 2, 69, 77 as in `omfs --help`."
        }
        "check" => "Exit status: 0 when nothing is missing that omfs needs, else 1.",
        _ => "Exit status: 0 when it was done; 1, 2, 69, 77 as in `omfs --help`.",
    }
}

/// Adds them to the definition of the command line.
pub fn with_examples(mut omfs: Command) -> Command {
    for (path, examples) in EXAMPLES {
        omfs = match path.split_once(' ') {
            Some((outer, inner)) => omfs.mut_subcommand(outer, |command| {
                command.mut_subcommand(inner, |command| add(command, path, examples))
            }),
            None => omfs.mut_subcommand(path, |command| add(command, path, examples)),
        };
    }
    omfs
}

fn add(command: Command, path: &str, examples: &str) -> Command {
    let mut text = command
        .get_after_help()
        .map_or(String::new(), |after| format!("{after}\n\n"));
    text.push_str("Examples:\n");
    for line in examples.lines() {
        text.push_str("  ");
        text.push_str(line);
        text.push('\n');
    }
    text.push('\n');
    text.push_str(statuses(path));
    command.after_long_help(text)
}
