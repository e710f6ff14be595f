#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dormouse_fuzz::route_file(data));
