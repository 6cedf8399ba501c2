//! Shared writable mappings of another node's file are refused as soon as two could disagree.

use anyhow::{Context, Result, ensure};
use integration::lab::{Lab, wait};
use libtest_mimic::Trial;

use crate::harness::{Module, Need, SOON, with_omfs};
use crate::mfs::Dialogue;

const PYTHON: &[Need] = &[Need::Tool("python3")];

pub fn tests() -> Vec<Trial> {
    let mut module = Module::new("shared_mappings", &[], || with_omfs(3));
    module
        .test("a_file_that_others_write_is_not_mapped", PYTHON, refused)
        .test(
            "a_file_that_is_written_natively_is_not_mapped",
            PYTHON,
            refused_natively,
        )
        .test(
            "one_node_alone_maps_a_file_in_many_processes",
            PYTHON,
            alone,
        )
        .test("readers_map_what_others_write", PYTHON, readers)
        .test("sqlite_wal_of_two_nodes_loses_no_commit", PYTHON, wal)
        .test(
            "sqlite_wal_of_a_node_and_its_owner_loses_no_commit",
            PYTHON,
            wal_natively,
        );
    module.finish()
}

/// Opens, maps, stores, closes; answers `ok` or the number of the error.
const MAPPER: &str = "import mmap,os,sys
fd=m=None
print('ready',flush=True)
for line in sys.stdin:
    what,path=line.split()
    try:
        if what=='open': fd=os.open(path,os.O_RDWR)
        if what=='read': fd=os.open(path,os.O_RDONLY)
        if what=='map': m=mmap.mmap(fd,4096)
        if what=='look': m=mmap.mmap(fd,4096,mmap.MAP_SHARED,mmap.PROT_READ); m[0]
        if what=='store': m[0:1]=b'x'; m.flush()
        if what=='close': m=m and m.close(); os.close(fd)
        print('ok',flush=True)
    except OSError as e: print(e.errno,flush=True)
";
const ENODEV: &str = "19";

fn make(lab: &Lab, name: &str) -> Result<String> {
    lab.sh(
        "n1",
        &format!("umask 0; head -c 8192 /dev/zero >/tmp/{name}"),
    )?;
    Ok(format!("/mfs/n1/tmp/{name}"))
}

fn does(mapper: &mut Dialogue, what: &str, path: &str, answer: &str) -> Result<()> {
    let got = mapper.ask(&format!("{what} {path}"))?;
    ensure!(got == answer, "{what}: {got} instead of {answer}");
    Ok(())
}

/// What others have closed may be told to the owner a moment later.
fn maps(mapper: &mut Dialogue, path: &str) -> Result<()> {
    let mapped = || {
        does(mapper, "open", path, "ok").ok()?;
        let is_mapped = does(mapper, "map", path, "ok");
        if is_mapped.is_err() {
            does(mapper, "close", path, "ok").ok()?;
        }
        is_mapped.ok()
    };
    wait::until(SOON, mapped).context("it is not mapped when nobody else has it open")
}

fn refused(lab: &Lab) -> Result<()> {
    let path = &make(lab, "refused")?;
    let mut first = Dialogue::start(lab, "n2", MAPPER)?;
    let mut second = Dialogue::start(lab, "n3", MAPPER)?;
    does(&mut first, "open", path, "ok")?;
    does(&mut second, "open", path, "ok")?;
    does(&mut first, "map", path, "ok")?;
    does(&mut first, "store", path, "ok")?;
    does(&mut second, "map", path, ENODEV)?;
    does(&mut second, "look", path, ENODEV)?;
    does(&mut first, "close", path, "ok")?;
    does(&mut second, "close", path, "ok")?;
    maps(&mut second, path)?;
    does(&mut second, "store", path, "ok")
}

fn refused_natively(lab: &Lab) -> Result<()> {
    let path = &make(lab, "natively")?;
    let mut owner = Dialogue::start(lab, "n1", MAPPER)?;
    let mut other = Dialogue::start(lab, "n2", MAPPER)?;
    for own_path in ["/tmp/natively", "/mfs/here/tmp/natively"] {
        does(&mut owner, "open", own_path, "ok")?;
        does(&mut owner, "map", own_path, "ok")?;
        does(&mut other, "open", path, "ok")?;
        does(&mut other, "map", path, ENODEV)?;
        does(&mut other, "close", path, "ok")?;
        does(&mut owner, "close", own_path, "ok")?;
    }
    maps(&mut other, path)
}

fn alone(lab: &Lab) -> Result<()> {
    let path = &make(lab, "alone")?;
    let mut mappers = Vec::new();
    for _ in 0..3 {
        mappers.push(Dialogue::start(lab, "n2", MAPPER)?);
    }
    for mapper in &mut mappers {
        does(mapper, "open", path, "ok")?;
        does(mapper, "map", path, "ok")?;
        does(mapper, "store", path, "ok")?;
    }
    ensure!(lab.sh("n1", "head -c 1 /tmp/alone")? == "x");
    Ok(())
}

fn readers(lab: &Lab) -> Result<()> {
    let path = &make(lab, "readers")?;
    let mut writer = Dialogue::start(lab, "n2", MAPPER)?;
    let mut reader = Dialogue::start(lab, "n3", MAPPER)?;
    does(&mut writer, "open", path, "ok")?;
    does(&mut reader, "read", path, "ok")?;
    does(&mut reader, "look", path, "ok")
}

/// Commits rows in WAL mode, beginning when told to; answers how many were acknowledged.
const COMMITTER: &str = "import os,sqlite3,sys,time
def database():
    db=sqlite3.connect(path,timeout=1,isolation_level=None)
    return db,db.execute('pragma journal_mode=wal').fetchone()[0]
db=path=None
print('ready',flush=True)
for line in sys.stdin:
    name,path,rows=line.split(); done=refused=0; mode='none'
    for i in range(int(rows)):
        try:
            if db is None: db,mode=database()
            db.execute('create table if not exists t(who,i)')
            db.execute('insert into t values(?,?)',(name,i)); done+=1
        except sqlite3.Error:
            refused+=1
            try: db and db.close()
            except sqlite3.Error: pass
            db=None; time.sleep(.01)
    print(done,refused,flush=True)
";

fn acknowledged(answer: &str) -> Result<u32> {
    Ok(answer.split(' ').next().unwrap_or_default().parse()?)
}

/// Rows of a name, and whether the database is whole, as the owner sees it.
fn there(lab: &Lab, path: &str, name: &str) -> Result<String> {
    let program = format!(
        "import sqlite3\ndb=sqlite3.connect('{path}')\n\
         print(db.execute('select count(*) from t where who=?',('{name}',)).fetchone()[0],\
         db.execute('pragma integrity_check').fetchone()[0])"
    );
    let output = lab.sh("n1", &format!("python3 -c \"{program}\""))?;
    Ok(output.trim().to_owned())
}

/// `paths`: the database as the two nodes call it.
fn commit_from(lab: &Lab, nodes: [&str; 2], paths: [&str; 2], own_path: &str) -> Result<()> {
    let mut first = Dialogue::start(lab, nodes[0], COMMITTER)?;
    let mut second = Dialogue::start(lab, nodes[1], COMMITTER)?;
    // The first one has the file mapped before the second one comes.
    let mut firsts = acknowledged(&first.ask(&format!("first {} 20", paths[0]))?)?;
    ensure!(firsts == 20, "alone it commits: {firsts}");
    let mut seconds = 0;
    // A refused row costs SQLite up to 10 s.
    for _ in 0..3 {
        first.send(&format!("first {} 3", paths[0]))?;
        seconds += acknowledged(&second.ask(&format!("second {} 3", paths[1]))?)?;
        firsts += acknowledged(&first.line()?)?;
    }
    drop((first, second));
    for (name, count) in [("first", firsts), ("second", seconds)] {
        let found = there(lab, own_path, name)?;
        ensure!(
            found == format!("{count} ok"),
            "{name}: {count} acknowledged, there: {found}"
        );
    }
    Ok(())
}

fn wal(lab: &Lab) -> Result<()> {
    lab.sh("n1", "mkdir -m 777 /tmp/wal")?;
    let path = "/mfs/n1/tmp/wal/db";
    commit_from(lab, ["n2", "n3"], [path, path], "/tmp/wal/db")
}

fn wal_natively(lab: &Lab) -> Result<()> {
    lab.sh(
        "n1",
        "mkdir -m 777 /tmp/wal-first /tmp/wal-second /tmp/wal-here",
    )?;
    for (dir, own) in [("wal-first", "/tmp"), ("wal-here", "/mfs/here/tmp")] {
        let paths = [
            &*format!("/mfs/n1/tmp/{dir}/db"),
            &*format!("{own}/{dir}/db"),
        ];
        commit_from(lab, ["n2", "n1"], paths, &format!("/tmp/{dir}/db"))?;
    }
    let paths = ["/tmp/wal-second/db", "/mfs/n1/tmp/wal-second/db"];
    commit_from(lab, ["n1", "n2"], paths, paths[0])
}
