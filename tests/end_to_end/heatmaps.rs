//! What slide-level heads attend to: which heads show a slide, and what is written of it.

use std::fs;
use std::path::Path;

use slide_io::h5;
use slide_io::regions::Regions;

use crate::cohort::{REFERENCE, SLIDES, id};
use crate::features::{FeatureCohort, SIDE, values};
use crate::folder::{files, table};
use crate::program::gensis;

fn picture(path: &Path) -> (u32, u32) {
    let image = image::open(path).unwrap();
    (image.width(), image.height())
}

#[test]
fn a_run_keeps_its_heads_and_draws_tested_slides() {
    let run = &REFERENCE.run;
    let heads: Vec<String> = files(&run.join("heads")).into_keys().collect();
    let of_fold = |fold| ["json", "safetensors"].map(|end| format!("dino/abmil_seed0_fold{fold}.{end}"));
    let of_random = |fold| format!("random/abmil_seed0_fold{fold}.json");
    let scored: Vec<String> = (0..3).flat_map(of_fold).chain(["evaluation".into(), "index.json".into()]).collect();
    let untrained = heads.iter().filter(|name| name.starts_with("random/"));
    assert!(untrained.clone().all(|name| (0..3).any(|fold| *name == of_random(fold))), "only what it says");
    assert_eq!(
        heads.iter().filter(|name| !name.starts_with("random/")).collect::<Vec<_>>(),
        scored.iter().collect::<Vec<_>>()
    );
    let drawn = files(&run.join("heatmap/dino/abmil"));
    assert_eq!(drawn.len(), 3 * SLIDES, "a picture, scores and outlines of each: {:?}", drawn.keys());
    let folds = table(&run.join("results/slide_scores.csv"));
    for number in 0..SLIDES {
        let slide = id(number);
        let file = |extension: &str| run.join(format!("heatmap/dino/abmil/{slide}.{extension}"));
        let row = folds.iter().find(|row| row["slide"] == slide).unwrap();
        let header = h5::read_header(&file("h5")).unwrap().unwrap();
        let heads = header["drawn"]["heads"].as_str().unwrap();
        assert_eq!(heads, format!("one head of fold {}, which has not seen the slide", row["fold"]));
        // The probabilities of the stored head are those that were tested.
        for (class, probability) in ["dots", "stripes"].iter().zip(header["probabilities"].as_array().unwrap()) {
            let tested: f64 = row[&format!("p_{class}")].parse().unwrap();
            assert!((tested - probability.as_f64().unwrap()).abs() < 1e-6, "{slide}: {tested} {probability}");
        }
        let scores = h5::read_attention(&file("h5")).unwrap();
        let features =
            h5::read_features(&run.join(format!("{}/features_dino/{slide}.h5", crate::cohort::JOB))).unwrap();
        assert_eq!(scores.coordinates.origins, features.coordinates.origins);
        assert!((scores.scores.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        let (width, height) = picture(&file("png"));
        assert!(width > height && height == 800, "{width} x {height}: the slide and a bar");
    }
}

#[test]
fn slides_on_request_and_outside_the_cohort() {
    let root = tempfile::tempdir().unwrap();
    let names: Vec<(String, u32)> = (0..12).map(|i| (format!("s{i:02}"), i % 2)).collect();
    let rows: String = names.iter().map(|(name, class)| format!("{name},{class}\n")).collect();
    let cohort = FeatureCohort::write(root.path(), &names, &format!("slide_id,label\n{rows}"));
    let run = root.path().join("run");
    let out = run.to_str().unwrap();
    gensis(["heatmap", out, "--slides", "s00"]).with_error(["is not a run folder"]);
    let heads = "evaluate.slide.aggregators=[\"mean\", \"abmil\", \"clam_mb\", \"dsmil\", \"transmil\"]";
    cohort.evaluate(&run, &["--set", "evaluate.slide.folds=3", "--set", heads]).with_code(0);

    // A slide is known by its own file too: the heads that learnt from it are not asked.
    let own = cohort.folder().join("s03.h5");
    let by_file =
        gensis(["heatmap", out, "--aggregator", "abmil", "--slides", own.to_str().unwrap()]).with_code(0).stdout;
    assert!(by_file.contains("which has not seen the slide") && !by_file.contains("none of their parts"), "{by_file}");

    let outside = root.path().join("elsewhere.h5");
    cohort.features("other", &values(99, 1));
    fs::rename(cohort.folder().join("other.h5"), &outside).unwrap();
    let outside = outside.to_str().unwrap();
    for (head, by_class) in [("abmil", false), ("clam_mb", true), ("dsmil", true), ("transmil", false)] {
        let line = ["heatmap", out, "--aggregator", head, "--slides", "s03", outside];
        let shown = gensis(line).with_code(0).stdout;
        assert!(shown.contains("which has not seen the slide"), "{shown}");
        assert!(shown.contains("mean of 3 heads of all folds; the slide is in none of their parts"), "{shown}");
        let scores = h5::read_attention(&run.join(format!("heatmap/uni/{head}/s03.h5"))).unwrap();
        assert_eq!(scores.by_class.is_some(), by_class, "{head}");
        assert!(run.join(format!("heatmap/uni/{head}/elsewhere.png")).exists());
    }
    // Another file of the same name would be taken for that slide, and drawn over it; another encoder's is no use.
    let namesake = root.path().join("s03.h5");
    fs::copy(outside, &namesake).unwrap();
    let of =
        |file: &std::path::Path| gensis(["heatmap", out, "--aggregator", "abmil", "--slides", file.to_str().unwrap()]);
    of(&namesake).with_error(["has the name of a slide of the evaluation", "s03"]);
    // The patches that tell the class have most of the attention.
    let scores = h5::read_attention(&run.join("heatmap/uni/abmil/elsewhere.h5")).unwrap().scores;
    let telling: f32 = scores.iter().step_by(3).sum();
    let share = scores.len().div_ceil(3) as f32 / scores.len() as f32;
    assert!(telling > 1.2 * share, "{telling} of the attention for {share} of the patches: {scores:?}");

    let line = ["heatmap", out, "--slides", "s03", "--aggregator", "clam_mb", "--class", "1", "--set"];
    gensis(line.into_iter().chain(["heatmap.geojson=regions"])).with_code(0);
    let regions = Regions::read(&run.join("heatmap/uni/clam_mb/s03_1.geojson")).unwrap();
    let area: f64 = regions.annotations.iter().map(|annotation| annotation.area()).sum();
    let patches = h5::read_attention(&run.join("heatmap/uni/clam_mb/s03_1.h5")).unwrap().scores.len();
    let high = area / (SIDE * SIDE) as f64;
    assert!(high >= 1.0 && high <= 0.1 * patches as f64 + 1.0, "{high} of {patches} patches");

    gensis(["heatmap", out, "--slides", "s03", "--aggregator", "abmil", "--class", "1"])
        .with_code(0)
        .saying(["abmil has one attention for all classes"]);

    let refused = |more: &[&str]| gensis(["heatmap", out, "--slides", "s03"].iter().chain(more));
    refused(&["--aggregator", "mean"]).with_error(["mean pools without attention"]);
    refused(&["--aggregator", "clam_sb"]).with_error(["clam_sb was not trained"]);
    refused(&["--aggregator", "resnet"]).with_error(["known are mean, max"]);
    refused(&["--encoder", "virchow"]).with_error(["virchow", "there are uni"]);
    refused(&["--class", "7"]).with_error(["--class 7", "0, 1"]);
    refused(&["--seed", "5"]).with_error(["--seed 5"]);
    gensis(["heatmap", out, "--slides", "nowhere"])
        .with_code(1)
        .saying(["no features of uni", "give the id of a slide"]);
    gensis(["heatmap", out, "--slides", "nowhere", "s03"]).with_code(3);

    // Another evaluation, and heads that do not belong to it.
    let head = run.join("heads/uni/abmil_seed0_fold0.safetensors");
    let other = run.join("heads/uni/abmil_seed0_fold1.safetensors");
    fs::copy(&other, &head).unwrap();
    gensis(["heatmap", out, "--slides", "s03"]).with_error(["is not the head that heads/index.json names"]);
    fs::write(&head, &fs::read(&other).unwrap()[..200]).unwrap();
    gensis(["heatmap", out, "--slides", "s03"]).with_error(["abmil_seed0_fold0.safetensors"]);
    cohort.evaluate(&run, &["--set", "evaluate.slide.keep_heads=false", "--update"]).with_code(0);
    gensis(["heatmap", out, "--slides", "s03"]).with_error(["holds no trained heads"]);
}

#[test]
fn a_slide_of_a_given_training_part_is_shown_with_a_warning() {
    let root = tempfile::tempdir().unwrap();
    let names: Vec<(String, u32)> = (0..10).map(|i| (format!("s{i}"), i % 2)).collect();
    let part = |i: usize| if i < 6 { "train" } else { "test" };
    let rows: String =
        names.iter().enumerate().map(|(i, (name, class))| format!("{name},{class},{}\n", part(i))).collect();
    let cohort = FeatureCohort::write(root.path(), &names, &format!("slide_id,label,split\n{rows}"));
    let run = root.path().join("run");
    let out = run.to_str().unwrap();
    cohort
        .evaluate(&run, &["--set", "evaluate.slide.seeds=[0, 1]", "--set", "evaluate.slide.validation=0.4"])
        .with_code(0);
    let shown = gensis(["heatmap", out, "--slides", "s0", "s9"]).with_code(0).stdout;
    assert!(shown.contains("mean of 2 heads that were trained or chosen on the slide: no evidence"), "{shown}");
    assert!(shown.contains("\"mean of 2 heads, which have not seen the slide (test part)\""), "{shown}");
    let one = gensis(["heatmap", out, "--slides", "s9", "--seed", "1"]).with_code(0).stdout;
    assert!(one.contains("one head, which has not seen"), "{one}");
}
