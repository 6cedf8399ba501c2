//! `/mfs` by mount(8) and /etc/fstab, in a node that has it not mounted.

use anyhow::{Result, ensure};
use integration::lab::Lab;

use crate::harness::{Module, Need, until, user_sh};

const MOUNT: &[Need] = &[Need::Tool("mount")];

/// Adds the tests; the lab's nodes run omfs without mounts.
pub fn add(module: &mut Module) {
    module
        .test("fstab_mounts_and_mounts_again", MOUNT, fstab)
        .test("mounts_that_cannot_be_are_explained", MOUNT, refusals);
}

const FSTAB: &str = "omfs /mfs fuse.omfs defaults 0 0\n";
/// What must be true the moment mount(8) is back: no waiting here.
const ANSWERS: &str = "grep -q '^omfs /mfs fuse.omfs ' /proc/mounts && \
                       cat /mfs/here/etc/hostname /mfs/n1/etc/hostname";

fn fstab(lab: &Lab) -> Result<()> {
    lab.put("n3", "/etc/fstab", FSTAB.as_bytes())?;
    for mount in ["mount -a", "mount /mfs", "mount -t fuse.omfs omfs /mfs"] {
        let seen = lab.sh("n3", &format!("{mount} && {ANSWERS}"))?;
        ensure!(seen == "n3\nn1\n", "{mount}: {seen}");
        // What is mounted is left alone.
        lab.sh("n3", "mount -a; test $(grep -c ' /mfs ' /proc/mounts) = 1")?;
        let again = lab.run("n3", "mount -t fuse.omfs omfs /mfs")?;
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        ensure!(
            again.status.code() == Some(32) && said.contains("mounted on /mfs already"),
            "{:?} {said}",
            again.status
        );
        // Whoever just walks through it makes it busy for that moment.
        until(lab, "n3", "umount /mfs")?;
        let after = lab.sh("n3", "ls -A /mfs && cat /proc/mounts")?;
        ensure!(!after.contains("/mfs"), "after {mount}: {after}");
    }
    Ok(())
}

fn refusals(lab: &Lab) -> Result<()> {
    let cases = [
        ("-o frobnicate omfs /mfs", 1, "frobnicate"),
        ("omfs /no/such/dir", 32, "/no/such/dir"),
        ("-o socket=/run/no-daemon omfs /mfs", 32, "omfs daemon"),
    ];
    for (arguments, status, reason) in cases {
        let result = lab.run("n2", &format!("mount -t fuse.omfs {arguments}"))?;
        let said = String::from_utf8_lossy(&result.stderr);
        ensure!(
            result.status.code() == Some(status) && said.contains(reason),
            "{arguments}: {:?} {said}",
            result.status
        );
    }
    let helper = user_sh(lab, "nobody", "n2", "omfs mount-helper omfs /tmp")?;
    let said = String::from_utf8_lossy(&helper.stderr);
    ensure!(said.contains("only root may mount"), "{said}");
    lab.sh("n2", "! grep -q fuse.omfs /proc/mounts").map(drop)
}
