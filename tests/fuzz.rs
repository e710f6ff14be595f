//! The fuzzer's corpora, and what it once found, as plain tests: see `scripts/fuzz`.

#[expect(unreachable_pub, reason = "it is a crate of its own, too")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::{fs, path::Path};

#[test]
fn every_file_of_the_corpora_holds_what_its_target_says() {
    for (name, target) in targets::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let files: Vec<_> = fs::read_dir(&folder).expect("a corpus").collect();
        assert!(!files.is_empty(), "{name} has no corpus");
        for file in files {
            target(&fs::read(file.expect("an entry").path()).expect("a file"));
        }
    }
}
