//! Homes whose trees are not what a host expects.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use migrator::control::Event;

use super::lab::{Job, Lab};

/// A job, and a host that takes a directory for home's tree.
fn job() -> (Job, Lab) {
    let job = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lab = Lab::new(job.id());
    let job = Job(job);
    job.until_asleep();
    lab.root = lab.path("root");
    std::fs::create_dir(&lab.root).unwrap();
    (job, lab)
}

/// The root of the guest, as this process sees it: supervisor, first process, guest.
fn root_of_guest(lab: &mut Lab) -> PathBuf {
    let mut pid = lab.last_host().id().to_string();
    for _ in 0..2 {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        pid = children
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned();
    }
    PathBuf::from(format!("/proc/{pid}/root"))
}

#[test]
fn nothing_is_mounted_on_homes_links() {
    for link in ["dev", "proc"] {
        let (job, mut lab) = job();
        let elsewhere = lab.path("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        for name in ["dev", "proc"] {
            let place = lab.root.join(name);
            if name == link {
                symlink(&elsewhere, place).unwrap();
            } else {
                std::fs::create_dir(place).unwrap();
            }
        }
        let Event::Failed { error, .. } = lab.try_migrate("") else {
            panic!("{link}");
        };
        assert!(error.contains(&format!("home's /{link}")), "{error}");
        drop(job);
    }
}

#[test]
fn links_of_home_lead_to_home() {
    let (_job, mut lab) = job();
    for name in ["dev", "proc", "shared", "shared/of-home"] {
        std::fs::create_dir(lab.root.join(name)).unwrap();
    }
    symlink("/shared", lab.root.join("dev/shm")).unwrap();
    lab.migrate();
    let root = root_of_guest(&mut lab);
    assert!(root.join("dev/shm/of-home").exists());
    assert!(root.join("dev/null").exists());
    assert!(root.join("proc/self").is_symlink());
}

#[test]
fn what_leads_out_of_homes_tree_ends_there() {
    let (_job, mut lab) = job();
    for name in ["dev", "proc", "of-home"] {
        std::fs::create_dir(lab.root.join(name)).unwrap();
    }
    symlink("../../../../../..", lab.root.join("dev/shm")).unwrap();
    lab.migrate();
    let shared = root_of_guest(&mut lab).join("dev/shm");
    assert!(shared.join("of-home").exists());
    assert!(!shared.join("usr").exists());
}
