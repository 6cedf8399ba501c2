//! Every message that comes from another machine or another user.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proto::fuzzing::messages(bytes));
