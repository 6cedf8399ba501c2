//! Which processor features a program may have come to rely on.
//!
//! A program asks CPUID once and then uses what it found (glibc's memcpy alone uses half a dozen
//! features), so the target must have everything the home has had. The list is the kernel's own
//! (/proc/cpuinfo), without what no program can see or use.

use std::collections::BTreeSet;
use std::io;

use super::CpuImage;
use crate::tracee::procfs;

/// Flags of /proc/cpuinfo that describe the kernel, the hypervisor, mitigations or what only an
/// operating system can use; a difference in them harms no program.
const KERNEL_ONLY: &[&str] = &[
    "acpi",
    "amd_dcm",
    "aperfmperf",
    "apic",
    "arat",
    "arch_capabilities",
    "arch_lbr",
    "arch_perfmon",
    "art",
    "bts",
    "cat_l2",
    "cat_l3",
    "cdp_l2",
    "cdp_l3",
    "constant_tsc",
    "cpuid",
    "cpuid_fault",
    "cqm",
    "cqm_llc",
    "cqm_mbm_local",
    "cqm_mbm_total",
    "cqm_occup_llc",
    "cr8_legacy",
    "dca",
    "dtes64",
    "dtherm",
    "ds_cpl",
    "dts",
    "epb",
    "ept",
    "ept_ad",
    "est",
    "extapic",
    "extd_apicid",
    "flexpriority",
    "flush_l1d",
    "hfi",
    "ht",
    "hwp",
    "hwp_act_window",
    "hwp_epp",
    "hwp_notify",
    "hwp_pkg_req",
    "hypervisor",
    "ibpb",
    "ibrs",
    "ibrs_enhanced",
    "ibs",
    "ibt",
    "ida",
    "intel_ppin",
    "intel_pt",
    "invpcid",
    "invpcid_single",
    "lbrv",
    "lm",
    "mba",
    "mca",
    "mce",
    "md_clear",
    "monitor",
    "msr",
    "mtrr",
    "nonstop_tsc",
    "nopl",
    "nx",
    "ospke",
    "osvw",
    "pae",
    "pat",
    "pbe",
    "pcid",
    "pconfig",
    "pdcm",
    "pdpe1gb",
    "pebs",
    "perfctr_core",
    "perfctr_llc",
    "perfctr_nb",
    "pge",
    "pku",
    "pln",
    "pse",
    "pse36",
    "pti",
    "pts",
    "rdt_a",
    "rep_good",
    "sdbg",
    "skinit",
    "smap",
    "smca",
    "smep",
    "smx",
    "ss",
    "ssbd",
    "stibp",
    "svm",
    "svm_lock",
    "split_lock_detect",
    "bus_lock_detect",
    "tce",
    "tm",
    "tm2",
    "tme",
    "topoext",
    "tpr_shadow",
    "tsc_adjust",
    "tsc_deadline_timer",
    "tsc_known_freq",
    "tsc_reliable",
    "tsc_scale",
    "user_shstk",
    "v_vmsave_vmload",
    "vgif",
    "vme",
    "vmmcall",
    "vmx",
    "vnmi",
    "vpid",
    "wdt",
    "x2apic",
    "xtopology",
    "xtpr",
];

/// This machine's processor.
///
/// # Errors
/// When /proc/cpuinfo cannot be read or has no flags.
pub fn here() -> io::Result<CpuImage> {
    let text = procfs::read_text("/proc/cpuinfo")?;
    let mut cpu = parse(&text).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "/proc/cpuinfo does not list flags",
        )
    })?;
    let (xcr0, xsave_bytes) = crate::sys::xsave::layout();
    cpu.xcr0 = xcr0;
    cpu.xsave_bytes = xsave_bytes;
    Ok(cpu)
}

fn parse(text: &str) -> Option<CpuImage> {
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        lines
            .find(|(name, _)| name.trim() == key)
            .map(|(_, value)| value.trim())
    };
    let flags = value("flags")?.split_whitespace();
    let usable: BTreeSet<&str> = flags.filter(|flag| !KERNEL_ONLY.contains(flag)).collect();
    Some(CpuImage {
        flags: usable.into_iter().map(str::to_owned).collect(),
        vendor: value("vendor_id").unwrap_or_default().to_owned(),
        ..CpuImage::default()
    })
}

/// What `target` lacks of `home`, for people; empty when a program can move.
#[must_use]
pub fn missing(home: &CpuImage, target: &CpuImage) -> Vec<String> {
    let has: BTreeSet<&str> = target.flags.iter().map(String::as_str).collect();
    let lacking = home
        .flags
        .iter()
        .filter(|flag| !has.contains(flag.as_str()));
    let mut all: Vec<String> = lacking.cloned().collect();
    if home.xcr0 & !target.xcr0 != 0 {
        all.push(format!("XSAVE components {:#x}", home.xcr0 & !target.xcr0));
    } else if home.xsave_bytes != target.xsave_bytes {
        all.push(format!(
            "XSAVE area of {} (it has {})",
            home.xsave_bytes, target.xsave_bytes
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lacking_feature_is_named_and_a_kernel_one_is_not() -> Result<(), &'static str> {
        let home =
            parse("processor : 0\nvendor_id\t: X\nflags\t\t: fpu avx avx2 smep\n").ok_or("home")?;
        let target = parse("flags : fpu avx\n").ok_or("target")?;
        assert_eq!(missing(&home, &target), ["avx2"]);
        assert!(missing(&target, &home).is_empty());
        assert_eq!(home.vendor, "X");
        Ok(())
    }

    #[test]
    fn this_machine_suits_itself() -> io::Result<()> {
        let here = here()?;
        assert!(here.flags.iter().any(|flag| flag == "sse2"));
        assert!(here.xcr0 & 3 == 3 && here.xsave_bytes >= 512, "{here:?}");
        assert!(missing(&here, &here).is_empty());
        Ok(())
    }
}
