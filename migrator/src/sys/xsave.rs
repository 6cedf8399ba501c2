//! The layout of this processor's XSAVE area, by CPUID and XGETBV.

use std::arch::x86_64::{__cpuid, __cpuid_count};

/// CPUID leaf 1, ECX: the operating system has enabled XSAVE.
const OSXSAVE: u32 = 1 << 27;
/// Size of the area without XSAVE (FXSAVE).
const LEGACY_BYTES: u32 = 512;

/// Enabled state components (XCR0) and the area's size in the standard format, in bytes, as
/// ptrace's NT_X86_XSTATE has it.
#[must_use]
pub fn layout() -> (u64, u32) {
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return (3, LEGACY_BYTES);
    }
    let (low, high): (u32, u32);
    // SAFETY: XGETBV of register 0 only reads, and exists since OSXSAVE is set. The compiler's
    // intrinsic would need the whole function compiled for processors with XSAVE.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags));
    }
    (
        (u64::from(high) << 32) | u64::from(low),
        __cpuid_count(0xd, 0).ebx,
    )
}
