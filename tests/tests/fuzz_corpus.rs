//! Every parser against the committed corpora: what fuzzing found interesting, or once found wrong.

use std::collections::BTreeSet;
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

use peregrine_tests::fuzz::TARGETS;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

#[test]
fn every_file_of_every_corpus_is_withstood() {
    for (name, target) in TARGETS {
        let mut files = 0;
        for file in fs::read_dir(corpora().join(name)).unwrap() {
            let file = file.unwrap().path();
            let data = fs::read(&file).unwrap();
            assert!(
                panic::catch_unwind(|| target(&data)).is_ok(),
                "{}",
                file.display()
            );
            files += 1;
        }
        assert!(files > 0, "the corpus {name} is empty");
    }
}

#[test]
fn every_target_has_its_corpus_and_its_program() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let names = |folder: PathBuf| -> BTreeSet<String> {
        let files = fs::read_dir(folder).unwrap();
        files
            .map(|file| {
                file.unwrap()
                    .path()
                    .file_stem()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    };
    assert_eq!(names(corpora()), targets);
    assert_eq!(names(corpora().join("../fuzz_targets")), targets);
}
