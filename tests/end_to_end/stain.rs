//! Stain normalisation through the whole program.

use std::fs;
use std::path::Path;

use evaluation::embeddings::EmbeddingTable;
use slide_io::{Rgb, RgbImage, h5};

use crate::cohort::{JOB, REFERENCE, SLIDES, write_slide};
use crate::folder::{below, copy, failures, results};
use crate::images;

const REINHARD: [&str; 2] = ["--set", r#"stain.normalize="reinhard""#];

#[test]
fn another_stain_redoes_what_is_made_of_patches_and_lists_slides_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    copy(&REFERENCE.run, &run);
    let cohort = REFERENCE.cohort.copy(&folder.path().join("cohort"));
    write_slide(&cohort.slide("flat.tiff"), &RgbImage::from_pixel(600, 600, Rgb([190, 90, 160])), Some(0.5));
    cohort.label_too("flat,q-flat,dots\n");
    let before = results(&run);

    let ended = cohort.run(&run, &[&REINHARD[..], &["--update"]].concat()).with_code(3);
    let ended = ended.saying(["(12 up to date)", "stain: 13 slides, 1 failure(s)", "the earlier training is kept"]);
    assert!(!ended.stderr.contains("pretrain: up to date"), "{}", ended.stderr);
    let after = results(&run);
    // Coordinates are positions and know no stain.
    let coordinates = below(&before, &format!("{JOB}/patches/"));
    assert_eq!(coordinates.len(), SLIDES);
    for (name, bytes) in coordinates {
        assert!(after[&name] == bytes, "{name}");
    }
    for slide in ["s00", "s07"] {
        let values =
            |run: &Path| h5::read_features(&run.join(format!("{JOB}/features_dino/{slide}.h5"))).unwrap().values;
        assert!(values(&run) != values(&REFERENCE.run), "{slide} has the old features");
    }
    let failed = failures(&run);
    for (stage, why) in [("pretrain", "has one colour"), ("embed", "has one colour"), ("evaluate", "in no score")] {
        let of_stage: Vec<_> = failed.iter().filter(|(of, ..)| of == stage).collect();
        assert_eq!(of_stage.len(), 1, "{failed:?}");
        assert!(of_stage[0].1 == "flat" && of_stage[0].2.contains(why), "{failed:?}");
    }
    cohort.run(&run, &REINHARD).with_code(3).saying(["pretrain: up to date", "evaluate: up to date"]);
}

#[test]
fn a_reference_that_cannot_be_read_is_told_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let reference = ["--set", "stain.reference=nowhere.png"];
    let ended = REFERENCE.cohort.run(&run, &[REINHARD, reference].concat());
    assert!(!ended.with_error(["nowhere.png"]).stderr.contains("tile:"));
}

#[test]
fn images_are_normalised_by_themselves_by_their_folder_and_to_a_reference() {
    let folder = tempfile::tempdir().unwrap();
    let [pictures, out] = ["images", "run"].map(|name| folder.path().join(name));
    images::draw(&pictures);
    images::run(&pictures, &out, &[]).with_code(0);
    let plain = results(&out);
    let table = "features/pixels-test.parquet";
    // The pixels themselves, as the encoder sees them.
    let values = || EmbeddingTable::load(&out.join(table)).unwrap().values;
    let reference = folder.path().join("reference.png");
    fs::copy(pictures.join("train/stripes/0.png"), &reference).unwrap();
    let to_reference = format!("stain.reference={:?}", reference);
    let mut seen = vec![values()];
    for more in [&["stain.images=each"][..], &["stain.images=folder"], &["stain.images=folder", &to_reference]] {
        let settings = more.iter().flat_map(|setting| ["--set", setting]);
        let settings: Vec<&str> = REINHARD.into_iter().chain(settings).chain(["--update"]).collect();
        images::run(&pictures, &out, &settings).with_code(0);
        assert!(!seen.contains(&values()), "{more:?} changes nothing");
        seen.push(values());
    }
    // Another reference of the same name is another reference.
    fs::copy(pictures.join("train/dots/0.png"), &reference).unwrap();
    let line = [REINHARD, ["--set", "stain.images=folder"], ["--set", &to_reference]].concat();
    let ended = images::run(&pictures, &out, &[&line[..], &["--update"]].concat()).with_code(0);
    assert!(!ended.stderr.contains("up to date"), "{}", ended.stderr);
    // And without normalisation everything is as it was.
    images::run(&pictures, &out, &["--update"]).with_code(0);
    assert!(results(&out)[table] == plain[table]);
}
