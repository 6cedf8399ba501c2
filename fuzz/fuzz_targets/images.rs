//! Images of processes, what keepers of jobs tell each other, and the kernel's files about processes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    migrator::fuzzing::images(bytes);
    migrator::fuzzing::control(bytes);
    migrator::fuzzing::procfs(bytes);
});
