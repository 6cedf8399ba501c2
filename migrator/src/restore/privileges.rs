//! Credentials: taken on last, since everything before needs those of the builder; but files are
//! opened with the ids of the process from the first on.

use crate::image::{CredentialsImage, ProcessImage};
use crate::tracee::{Call, Frozen, TraceeError};

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

/// Has the leader use files as the process does (setfsuid(2)); all else it still does as its builder.
pub(super) fn open_as_process(
    frozen: &mut Frozen,
    image: &ProcessImage,
) -> Result<(), RestoreError> {
    let credentials = credentials(image)?;
    set_groups(frozen, 0, &credentials.groups)?;
    let [uid, gid] = [&credentials.uids, &credentials.gids].map(|ids| file_id(ids));
    set_file_id(frozen, ("setfsgid", libc::SYS_setfsgid), gid)?;
    use_files_as(frozen, uid)
}

/// setfsuid(2) in the leader.
pub(super) fn use_files_as(frozen: &mut Frozen, uid: u64) -> Result<(), RestoreError> {
    set_file_id(frozen, ("setfsuid", libc::SYS_setfsuid), uid)
}

/// These calls answer the id before, and no error: an id that nobody has changes nothing.
fn set_file_id(
    frozen: &mut Frozen,
    call: (&'static str, i64),
    id: u64,
) -> Result<(), RestoreError> {
    let ids = [id, u64::from(u32::MAX)];
    let calls = ids.map(|id| Call::new(call, [id, 0, 0, 0, 0, 0]));
    if frozen.calls_checked(0, &calls)?.last() == Some(&id) {
        return Ok(());
    }
    Err(RestoreError::Incompatible(format!("{} {id}", call.0)))
}

/// The uid that a process uses files with.
pub(super) fn file_uid(image: &ProcessImage) -> u64 {
    let credentials = image.credentials.as_ref();
    credentials.map_or(u64::from(u32::MAX), |ids| file_id(&ids.uids))
}

/// The one of four ids that counts for files.
fn file_id(ids: &[u32]) -> u64 {
    u64::from(ids.get(3).copied().unwrap_or(u32::MAX))
}

fn credentials(image: &ProcessImage) -> Result<&CredentialsImage, RestoreError> {
    let credentials = image
        .credentials
        .as_ref()
        .ok_or_else(|| RestoreError::Incompatible("an image without credentials".into()))?;
    if credentials.groups.len() > GROUPS_MAX {
        return Err(RestoreError::Incompatible("too many groups".into()));
    }
    Ok(credentials)
}

/// Gives every thread the groups and ids of the image and no capability.
pub(super) fn take_on(frozen: &mut Frozen, image: &ProcessImage) -> Result<(), RestoreError> {
    let credentials = credentials(image)?;
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
