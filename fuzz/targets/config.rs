#![no_main]

#[allow(dead_code, reason = "of the functions in there this fuzzer uses one")]
#[path = "../entries.rs"]
mod entries;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entries::config(bytes));
