//! A member node that asks what it likes: speaks the data plane with the certificate of the node it
//! runs on, in whatever name it is told to. For tests of what the owner of the files believes.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, Subcommand};
use omfs_cluster::directory::Directory;
use omfs_dataplane::{FsSession, Remotes};
use omfs_pki::Store;
use omfs_service::peers::{Liveness, Peer};
use omfs_service::{Errno, FileService, FsAnswer};
use proto::ids::NodeId;
use proto::v1::fs_reply::Result as Reply;
use proto::v1::fs_request::Op;
use proto::v1::{
    Caller, Create, FsRequest, Link, Lookup, MkDir, NameArg, NodeArg, Open, Read, ReadDir, Rename,
    SetAttr, Write,
};

/// The handle of an export's root (fs.proto).
const ROOT: u64 = 1;
const DATA_PORT: u16 = 7781;
/// How long an owner that does not answer is asked again.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Arguments {
    /// The state directory of this node
    #[arg(long, default_value = "/var/lib/omfs")]
    state: PathBuf,
    /// The owner's address
    #[arg(long, default_value = "10.77.0.1")]
    to: IpAddr,
    /// The owner's id
    #[arg(long, default_value_t = 1)]
    owner: u32,
    /// The ids that are claimed: user, group, and further groups
    #[arg(long, default_value = "0:0")]
    ids: String,
    /// Claims to be this guest of the owner
    #[arg(long)]
    guest: Option<i32>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints the beginning of a file
    Read { path: String },
    /// Writes standard input over the beginning of a file
    Write { path: String },
    /// Makes a file with a mode
    Create { path: String, mode: String },
    /// Makes a directory
    Mkdir { path: String },
    /// Lists a directory
    List { path: String },
    /// Prints type and permissions
    Stat { path: String },
    /// Removes a file, as often as told
    Unlink {
        path: String,
        #[arg(default_value_t = 1)]
        times: u32,
    },
    /// Renames
    Rename { path: String, to: String },
    /// Makes a hard link
    Link { path: String, to: String },
    /// Changes the group
    Chgrp { path: String, gid: u32 },
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("refused: {error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<Result<(), Errno>> {
    let identity = Store::new(&arguments.state).load()?;
    let address = SocketAddr::new(arguments.to, DATA_PORT);
    let myself = Directory::peer(identity.node(), "myself", address, address);
    let owner = NodeId(arguments.owner);
    let peer = Peer {
        liveness: Liveness::Suspect,
        ..Directory::peer(owner, "owner", address, address)
    };
    let directory = Arc::new(Directory::new(myself, [peer]));
    let remotes = Remotes::new(identity, directory, 1);
    let caller = caller(arguments)?;
    let until = Instant::now() + PATIENCE;
    loop {
        let down = Errno(libc::EHOSTDOWN);
        let outcome = remotes.session(owner).and_then(|session| {
            let caller = caller.clone();
            Member { session, caller }.carry_out(&arguments.command)
        });
        // The machine may be so busy that a connection is taken for dead.
        if outcome != Err(down) || Instant::now() > until {
            return Ok(outcome);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn caller(arguments: &Arguments) -> Result<Caller> {
    let ids: Result<Vec<u32>, _> = arguments.ids.split(':').map(str::parse).collect();
    let ids = ids?;
    let [uid, gid, groups @ ..] = ids.as_slice() else {
        anyhow::bail!("a user and a group");
    };
    Ok(Caller {
        uid: *uid,
        gid: *gid,
        groups: groups.to_vec(),
        from_home_guest: arguments.guest.is_some(),
        guest_pid: arguments.guest.unwrap_or(0),
        ..Caller::default()
    })
}

struct Member {
    session: Arc<FsSession>,
    caller: Caller,
}

impl Member {
    fn carry_out(&self, command: &Command) -> Result<(), Errno> {
        match command {
            Command::Read { path } => {
                let fh = self.open(path, libc::O_RDONLY)?;
                let (size, offset) = (4096, 0);
                let read = Read {
                    fh,
                    offset,
                    size,
                    ..Read::default()
                };
                let answer = self.ask(Op::Read(read), &[])?;
                Ok(std::io::stdout().write_all(&answer.payload)?)
            }
            Command::Write { path } => {
                let fh = self.open(path, libc::O_WRONLY)?;
                self.write(fh)
            }
            Command::Create { path, mode } => {
                let (parent, name) = self.place(path)?;
                let create = Create {
                    parent,
                    name,
                    mode: u32::from_str_radix(mode, 8).map_err(|_| Errno(libc::EINVAL))?,
                    flags: libc::O_WRONLY,
                };
                let answer = self.ask(Op::Create(create), &[])?;
                self.write(entry(&answer)?.fh)
            }
            Command::Mkdir { path } => {
                let (parent, name) = self.place(path)?;
                let mode = 0o755;
                let op = Op::MkDir(MkDir { parent, name, mode });
                self.ask(op, &[]).map(drop)
            }
            Command::List { path } => self.list(path),
            Command::Stat { path } => {
                let (parent, name) = self.place(path)?;
                let answer = self.ask(Op::Lookup(Lookup { parent, name }), &[])?;
                let attr = entry(&answer)?.attr.unwrap_or_default();
                println!("{:o} {} {}", attr.mode, attr.uid, attr.gid);
                Ok(())
            }
            Command::Unlink { path, times } => {
                let (node, name) = self.place(path)?;
                let mut last = Ok(());
                for _ in 0..*times {
                    let name = name.clone();
                    last = self.ask(Op::Unlink(NameArg { node, name }), &[]).map(drop);
                }
                last
            }
            Command::Rename { path, to } => {
                let (parent, name) = self.place(path)?;
                let (new_parent, new_name) = self.place(to)?;
                let rename = Rename {
                    parent,
                    name,
                    new_parent,
                    new_name,
                    flags: 0,
                };
                self.ask(Op::Rename(rename), &[]).map(drop)
            }
            Command::Link { path, to } => {
                let node = self.walk(path)?;
                let (new_parent, new_name) = self.place(to)?;
                let link = Link {
                    node,
                    new_parent,
                    new_name,
                };
                self.ask(Op::Link(link), &[]).map(drop)
            }
            Command::Chgrp { path, gid } => {
                let set = SetAttr {
                    node: self.walk(path)?,
                    gid: Some(*gid),
                    ..SetAttr::default()
                };
                self.ask(Op::SetAttr(set), &[]).map(drop)
            }
        }
    }

    fn ask(&self, op: Op, payload: &[u8]) -> Result<FsAnswer, Errno> {
        let request = FsRequest {
            caller: Some(self.caller.clone()),
            op: Some(op),
        };
        self.session
            .call(&request, payload, &AtomicBool::new(false))
    }

    fn walk(&self, path: &str) -> Result<u64, Errno> {
        let mut node = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let name = name.into();
            let answer = self.ask(Op::Lookup(Lookup { parent: node, name }), &[])?;
            node = entry(&answer)?.node;
        }
        Ok(node)
    }

    /// The directory of a path, and the name in it.
    fn place(&self, path: &str) -> Result<(u64, Vec<u8>), Errno> {
        let (parent, name) = path.rsplit_once('/').ok_or(Errno(libc::EINVAL))?;
        Ok((self.walk(parent)?, name.into()))
    }

    fn open(&self, path: &str, flags: i32) -> Result<u64, Errno> {
        let node = self.walk(path)?;
        opened(&self.ask(Op::Open(Open { node, flags }), &[])?)
    }

    fn write(&self, fh: u64) -> Result<(), Errno> {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes)?;
        let write = Write {
            fh,
            ..Write::default()
        };
        self.ask(Op::Write(write), &bytes).map(drop)
    }

    fn list(&self, path: &str) -> Result<(), Errno> {
        let node = self.walk(path)?;
        let fh = opened(&self.ask(Op::OpenDir(NodeArg { node }), &[])?)?;
        let mut offset = 0;
        loop {
            let read = ReadDir {
                fh,
                offset,
                max_bytes: 32 << 10,
                plus: false,
            };
            let answer = self.ask(Op::ReadDir(read), &[])?;
            let Some(Reply::DirEntries(list)) = answer.reply.result else {
                return Err(Errno(libc::EPROTO));
            };
            let Some(last) = list.entries.last() else {
                return Ok(());
            };
            offset = last.next_offset;
            for entry in &list.entries {
                println!("{}", String::from_utf8_lossy(&entry.name));
            }
        }
    }
}

fn entry(answer: &FsAnswer) -> Result<proto::v1::Entry, Errno> {
    match &answer.reply.result {
        Some(Reply::Entry(entry)) => Ok(*entry),
        _ => Err(Errno(libc::EPROTO)),
    }
}

fn opened(answer: &FsAnswer) -> Result<u64, Errno> {
    match &answer.reply.result {
        Some(Reply::Opened(opened)) => Ok(opened.fh),
        _ => Err(Errno(libc::EPROTO)),
    }
}
