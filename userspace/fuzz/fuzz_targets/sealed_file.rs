#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| murmesh::fuzzing::sealed_file(input));
