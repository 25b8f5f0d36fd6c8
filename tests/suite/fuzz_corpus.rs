//! Replays the corpus of every fuzzer through the functions that are fuzzed (`fuzz/README.md`).

use std::path::Path;

#[path = "../../fuzz/entries.rs"]
mod entries;

fn corpus() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn names(dir: &Path) -> Vec<String> {
    let entries =
        std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn every_seed_passes_through_its_target() {
    for (target, function) in entries::TARGETS {
        let dir = corpus().join("corpus").join(target);
        let seeds = names(&dir);
        assert!(!seeds.is_empty(), "{target} has no seeds");
        for seed in seeds {
            let bytes = std::fs::read(dir.join(&seed)).unwrap();
            function(&bytes);
            // What a transfer does to it: cut off, and one bit flipped.
            for step in 0..64 {
                let at = bytes.len() * step / 64;
                function(&bytes[..at]);
                let mut damaged = bytes.clone();
                if let Some(byte) = damaged.get_mut(at) {
                    *byte ^= 1 << (step % 8);
                    function(&damaged);
                }
            }
        }
    }
}

#[test]
fn every_target_has_a_fuzzer() {
    let targets: Vec<String> = entries::TARGETS
        .iter()
        .map(|(target, _)| (*target).to_owned())
        .collect();
    let fuzzers: Vec<String> = names(&corpus().join("targets"))
        .into_iter()
        .filter_map(|name| name.strip_suffix(".rs").map(str::to_owned))
        .collect();
    assert_eq!(fuzzers, targets);
    assert_eq!(names(&corpus().join("corpus")), targets);
}
