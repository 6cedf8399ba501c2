//! The programs that a lab runs: `lab` itself and `omfs`, from the same build.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The `lab` program: this one, or the one that was built with this test program.
///
/// # Errors
/// There is none.
pub fn lab() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    if this.file_name().is_some_and(|name| name == "lab") {
        return Ok(this);
    }
    let candidates = this.ancestors().skip(1).take(2).map(|dir| dir.join("lab"));
    let found = candidates.into_iter().find(|path| path.is_file());
    found.context("the program `lab` is not beside this one; cargo build --bin lab")
}

/// The `member` program beside `lab`.
///
/// # Errors
/// There is none.
pub fn member() -> Result<PathBuf> {
    let member = lab()?.with_file_name("member");
    ensure!(
        member.is_file(),
        "there is no {}; build it with `cargo build --bin member`",
        member.display()
    );
    Ok(member)
}

/// The `omfs` program beside `lab`; under cargo it is brought up to date first.
///
/// # Errors
/// It does not build, or there is none.
pub fn omfs() -> Result<PathBuf> {
    let lab = lab()?;
    let dir = lab.parent().context("the lab is nowhere")?;
    if let Some(cargo) = std::env::var_os("CARGO") {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut build = Command::new(cargo);
        build
            .args(["build", "--quiet", "--bin", "omfs"])
            .current_dir(workspace);
        // Some build scripts look at these, and what depends on them would be compiled anew.
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_this_program(name)) {
            build.env_remove(name);
        }
        if dir.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status().context("cargo")?;
        ensure!(status.success(), "omfs does not build");
    }
    let omfs = dir.join("omfs");
    ensure!(
        omfs.is_file(),
        "there is no {}; build it with `cargo build --bin omfs`",
        omfs.display()
    );
    Ok(omfs)
}

/// Whether cargo has set a variable to tell a program of a package about that package.
fn is_of_this_program(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let own = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CARGO_PRIMARY_",
        "CARGO_TARGET_TMPDIR",
        "OUT_DIR",
    ];
    own.iter().any(|start| name.starts_with(start))
}
