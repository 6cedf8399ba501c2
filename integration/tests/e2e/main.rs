//! End-to-end tests: every one runs the real `omfs` in emulated nodes.
//!
//! A test that cannot run on this machine is shown as ignored, with the reason.

mod abuse;
mod balancing;
mod cli;
mod commands;
mod exports;
mod faults;
mod harness;
mod hostile;
mod lab;
mod leases;
mod members;
mod mfs;
mod migration;
mod mounting;
mod odd_names;
mod operations;
mod posix;
mod processes;
mod restart;
mod sandbox;
mod security;
mod shared_mappings;
mod silence;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    trials.extend(lab::tests());
    trials.extend(cli::tests());
    trials.extend(members::tests());
    trials.extend(mfs::tests());
    trials.extend(leases::tests());
    trials.extend(shared_mappings::tests());
    trials.extend(posix::tests());
    trials.extend(migration::tests());
    trials.extend(balancing::tests());
    trials.extend(operations::tests());
    trials.extend(odd_names::tests());
    trials.extend(processes::tests());
    trials.extend(security::tests());
    trials.extend(exports::tests());
    trials.extend(sandbox::tests());
    trials.extend(faults::tests());
    trials.extend(abuse::tests());
    libtest_mimic::run(&arguments, trials).exit_code()
}
