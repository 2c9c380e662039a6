//! Patches packed for training.

use std::fs;

use slide_io::Slide;

use crate::cohort::{JOB, REFERENCE, SLIDES};
use crate::folder::{assert_same, below, failures, left_over, results, table};
use crate::program::{Stopped, gensis, holds_file, kill_when};

const PACKED: [&str; 2] = ["--set", "pack.enabled=true"];

#[test]
fn training_reads_packed_patches_and_embedding_the_slides() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let out = run.to_str().unwrap();
    let experiment = REFERENCE.cohort.experiment();
    // By itself, with the flag; killed on the way, which must leave no trace.
    let tile = ["tile", "--pack", "--config", experiment.to_str().unwrap(), "--out", out];
    let packed = run.join(JOB).join("packed");
    assert!(matches!(kill_when(tile, |_| holds_file(&packed, ".json")), Stopped::Killed));
    let said = gensis(tile).with_code(0).stderr;
    assert_eq!(left_over(&run), Vec::<String>::new());
    assert_eq!(packed.read_dir().unwrap().count(), 2 * SLIDES);
    // Half of the slides have the grid's scale and tiles of a patch's size.
    let line = said.lines().find(|line| line.contains("stored tiles of their slides")).unwrap();
    let count = |word: usize| line.split_whitespace().nth(word).unwrap().parse::<usize>().unwrap();
    let kept: usize = table(&run.join("cohort.csv")).iter().map(|row| row["kept"].parse::<usize>().unwrap()).sum();
    assert_eq!(count(1), kept, "{line}");
    assert!((kept / 3..kept).contains(&count(3)), "{line}");

    let command = REFERENCE.cohort.command(&run, &PACKED);
    gensis(&command).with_code(0).saying(["(12 up to date)", "pretrain:"]);
    gensis(&command).with_code(0).saying(["pretrain: up to date", "evaluate: up to date"]);
    // The same as in one go, whatever the threads.
    let whole = folder.path().join("whole");
    REFERENCE.cohort.run(&whole, &[&PACKED[..], &["--threads", "1"]].concat()).with_code(0);
    assert_same(&results(&whole), &results(&run));
    // The grid is that of the unpacked run; the encoder is not, for it saw patches compressed once more.
    let (ours, theirs) = (results(&run), results(&REFERENCE.run));
    let patches = format!("{JOB}/patches");
    assert_same(&below(&ours, &patches), &below(&theirs, &patches));
    assert!(ours["pretrain/encoder.safetensors"] != theirs["pretrain/encoder.safetensors"]);
}

#[test]
fn a_pack_that_is_cut_short_is_named_and_packed_anew() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let (out, experiment) = (run.to_str().unwrap(), REFERENCE.cohort.experiment());
    let line = |stage: &'static str| {
        [stage, "--config", experiment.to_str().unwrap(), "--out", out, "--set", "pack.enabled=true"]
    };
    gensis(line("tile")).with_code(0);
    let before = results(&run);
    let tar = run.join(JOB).join("packed/s03.tar");
    let bytes = fs::read(&tar).unwrap();
    fs::write(&tar, &bytes[..bytes.len() / 2]).unwrap();
    gensis(line("pretrain")).with_error(["s03.tar", "cut short", "gensis tile --pack"]);
    gensis(line("tile")).with_code(0);
    assert_same(&results(&run), &before);
    // Without the setting the folder is another experiment's.
    let unpacked = ["tile", "--config", experiment.to_str().unwrap(), "--out", out];
    gensis(unpacked).with_error(["pack.enabled: true -> false"]);
}

#[test]
fn a_patch_that_cannot_be_packed_is_listed_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let cohort = REFERENCE.cohort.copy(&folder.path().join("cohort"));
    let run = folder.path().join("run");
    let path = cohort.slide("s00.tiff");
    // A tile in the middle of the section loses the end of its data.
    let mut bytes = fs::read(&path).unwrap();
    let scans: Vec<usize> = (0..bytes.len() - 1).filter(|&i| bytes[i..i + 2] == [0xff, 0xda]).collect();
    bytes[scans[24] + 20..scans[24] + 22].copy_from_slice(&[0xff, 0xd9]);
    fs::write(&path, bytes).unwrap();
    assert!(Slide::open(&path).is_ok());
    let experiment = cohort.experiment();
    let tile = ["tile", "--pack", "--config", experiment.to_str().unwrap(), "--out", run.to_str().unwrap()];
    for _ in 0..2 {
        gensis(tile).with_code(3);
        let failed = failures(&run);
        assert!(failed.iter().any(|(stage, item, _)| stage == "tile" && item.starts_with("s00 (x ")), "{failed:?}");
        let reason = &failed[0].2;
        assert!(failed.len() == 1 && reason.contains("patch at (384, 384)"), "{failed:?}");
    }
}
