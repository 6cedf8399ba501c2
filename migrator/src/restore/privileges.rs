//! Credentials: taken on last, since everything before needs those of the builder.

use crate::image::{CredentialsImage, ProcessImage};
use crate::tracee::{Frozen, TraceeError};

use super::RestoreError;

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// No kernel has more capabilities than fit into a set.
const CAPABILITIES_MAX: u64 = 64;
/// Most groups the kernel takes (NGROUPS_MAX).
const GROUPS_MAX: usize = 65_536;

/// Takes every capability out of the bounding set of the leader, to be inherited by the threads it
/// makes: whatever a guest executes, it never has one at its host.
pub(super) fn empty_bounding_set(frozen: &mut Frozen) -> Result<(), RestoreError> {
    for capability in 0..CAPABILITIES_MAX {
        let args = [libc::PR_CAPBSET_DROP as u64, capability, 0, 0, 0, 0];
        match frozen.call(0, ("prctl(PR_CAPBSET_DROP)", libc::SYS_prctl), args) {
            // The first number that this kernel does not know.
            Err(TraceeError::Call { error, .. }) if error.raw_os_error() == Some(libc::EINVAL) => {
                break;
            }
            other => other?,
        };
    }
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as u64;
    let args = [libc::PR_CAP_AMBIENT as u64, clear, 0, 0, 0, 0];
    frozen.call(0, ("prctl(PR_CAP_AMBIENT)", libc::SYS_prctl), args)?;
    Ok(())
}

/// Gives every thread the groups and ids of the image and no capability.
pub(super) fn take_on(frozen: &mut Frozen, image: &ProcessImage) -> Result<(), RestoreError> {
    let credentials = image
        .credentials
        .as_ref()
        .ok_or_else(|| RestoreError::Incompatible("an image without credentials".into()))?;
    if credentials.groups.len() > GROUPS_MAX {
        return Err(RestoreError::Incompatible("too many groups".into()));
    }
    for index in 0..frozen.threads.len() {
        take_on_one(frozen, index, credentials)?;
    }
    Ok(())
}

fn take_on_one(
    frozen: &mut Frozen,
    index: usize,
    credentials: &CredentialsImage,
) -> Result<(), RestoreError> {
    set_groups(frozen, index, &credentials.groups)?;
    let ids = |list: &[u32]| -> [u64; 4] {
        let id = |at: usize| {
            list.get(at)
                .map_or(u64::from(u32::MAX), |id| u64::from(*id))
        };
        [id(0), id(1), id(2), id(3)]
    };
    let (gid, uid) = (ids(&credentials.gids), ids(&credentials.uids));
    let args = [gid[0], gid[1], gid[2], 0, 0, 0];
    frozen.call(index, ("setresgid", libc::SYS_setresgid), args)?;
    frozen.call(
        index,
        ("setfsgid", libc::SYS_setfsgid),
        [gid[3], 0, 0, 0, 0, 0],
    )?;
    let args = [uid[0], uid[1], uid[2], 0, 0, 0];
    frozen.call(index, ("setresuid", libc::SYS_setresuid), args)?;
    frozen.call(
        index,
        ("setfsuid", libc::SYS_setfsuid),
        [uid[3], 0, 0, 0, 0, 0],
    )?;
    drop_capabilities(frozen, index)
}

/// setgroups(2) with a list that may be larger than the scratch memory.
fn set_groups(frozen: &mut Frozen, index: usize, groups: &[u32]) -> Result<(), RestoreError> {
    let stub = frozen.stub()?;
    let bytes: Vec<u8> = groups
        .iter()
        .flat_map(|group| group.to_ne_bytes())
        .collect();
    if bytes.len() as u64 > stub.scratch_bytes {
        return Err(RestoreError::Incompatible(
            "more groups than can be passed".into(),
        ));
    }
    frozen
        .leader()?
        .stopped
        .memory()
        .write(stub.scratch, &bytes)?;
    let args = [groups.len() as u64, stub.scratch, 0, 0, 0, 0];
    frozen.call(index, ("setgroups", libc::SYS_setgroups), args)?;
    Ok(())
}

/// capset(2): header of version and thread (0: itself), and three empty sets of 64 bits.
fn drop_capabilities(frozen: &mut Frozen, index: usize) -> Result<(), RestoreError> {
    let mut bytes = CAPABILITY_VERSION.to_ne_bytes().to_vec();
    bytes.resize(8 + 24, 0);
    let scratch = frozen.stub()?.scratch;
    frozen.leader()?.stopped.memory().write(scratch, &bytes)?;
    let args = [scratch, scratch + 8, 0, 0, 0, 0];
    frozen.call(index, ("capset", libc::SYS_capset), args)?;
    Ok(())
}
