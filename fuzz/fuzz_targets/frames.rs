//! The frame decoder and the messages inside frames.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proto::fuzzing::frames(bytes));
