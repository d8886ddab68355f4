#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kvlab_core::fuzzing::costs(input));
