//! General purpose registers in an image.

use crate::sys::regs::{CS_64_BIT, Regs};

use super::{ImageError, ThreadImage};

/// Registers as the image's list, in the order of `struct user_regs_struct`.
#[must_use]
pub fn to_list(regs: &Regs) -> Vec<u64> {
    vec![
        regs.r15,
        regs.r14,
        regs.r13,
        regs.r12,
        regs.rbp,
        regs.rbx,
        regs.r11,
        regs.r10,
        regs.r9,
        regs.r8,
        regs.rax,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.orig_rax,
        regs.rip,
        regs.cs,
        regs.eflags,
        regs.rsp,
        regs.ss,
        regs.fs_base,
        regs.gs_base,
        regs.ds,
        regs.es,
        regs.fs,
        regs.gs,
    ]
}

/// The registers of a thread.
///
/// # Errors
/// When there are not 27, or they are not those of a 64-bit thread.
pub fn from_image(thread: &ThreadImage) -> Result<Regs, ImageError> {
    let list: [u64; 27] = thread.regs.as_slice().try_into().map_err(|_| {
        ImageError::Inconsistent(format!(
            "{} registers of thread {}",
            thread.regs.len(),
            thread.tid
        ))
    })?;
    let [
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        orig_rax,
        rip,
        cs,
        eflags,
        rsp,
        ss,
        fs_base,
        gs_base,
        ds,
        es,
        fs,
        gs,
    ] = list;
    if cs != CS_64_BIT {
        return Err(ImageError::Inconsistent(format!(
            "thread {} is not 64-bit",
            thread.tid
        )));
    }
    Ok(Regs {
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        orig_rax,
        rip,
        cs,
        eflags,
        rsp,
        ss,
        fs_base,
        gs_base,
        ds,
        es,
        fs,
        gs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_survive_the_image() {
        let regs = Regs {
            r15: 1,
            rax: 2,
            rip: 3,
            cs: CS_64_BIT,
            gs: 4,
            ..Regs::default()
        };
        let thread = ThreadImage {
            regs: to_list(&regs),
            ..ThreadImage::default()
        };
        assert_eq!(from_image(&thread), Ok(regs));
    }

    #[test]
    fn foreign_registers_are_refused() {
        let short = ThreadImage {
            regs: vec![0; 26],
            ..ThreadImage::default()
        };
        assert!(from_image(&short).is_err());
        let compat = Regs {
            cs: 0x23,
            ..Regs::default()
        };
        let compat = ThreadImage {
            regs: to_list(&compat),
            ..ThreadImage::default()
        };
        assert!(from_image(&compat).is_err());
    }
}
