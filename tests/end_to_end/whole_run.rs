//! One experiment from slides to report.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use slide_io::{Slide, h5};

use crate::cohort::{JOB, REFERENCE, SLIDES, case, class, id};
use crate::folder::{assert_same, failures, files, left_over, results, table};

#[test]
fn a_run_leaves_what_the_next_program_needs() {
    let reference = &*REFERENCE;
    let (run, ended) = (&reference.run, &reference.ended);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("abmil") && ended.stdout.contains("accuracy"), "{}", ended.stdout);
    assert_eq!(failures(run), []);
    assert_eq!(left_over(run), Vec::<String>::new());

    let cohort: BTreeMap<String, _> =
        table(&run.join("cohort.csv")).into_iter().map(|row| (row["id"].clone(), row)).collect();
    assert_eq!(cohort.len(), SLIDES);
    let mut patches = 0;
    for number in 0..SLIDES {
        let slide = id(number);
        assert_eq!(cohort[&slide]["label"], class(number));
        let coordinates = h5::read_coordinates(&run.join(format!("{JOB}/patches/{slide}_patches.h5"))).unwrap();
        let geometry = coordinates.geometry.unwrap();
        let mpp = if number % 4 < 2 { 0.5 } else { 0.46 };
        assert_eq!(coordinates.name, slide);
        assert!((geometry.mpp.unwrap().0 - mpp).abs() < 1e-6, "{slide}: {geometry:?}");
        assert_eq!((geometry.size, geometry.stride), (128, 128));
        assert!((geometry.side_level0 - 128.0 * 0.5 / mpp).abs() < 1e-3, "{slide}: {geometry:?}");
        assert_eq!(geometry.slide, Some(Slide::open(reference.cohort.slide(&format!("{slide}.tiff"))).unwrap().size()));
        assert_eq!(cohort[&slide]["kept"], coordinates.origins.len().to_string());
        assert!((9..=25).contains(&coordinates.origins.len()), "{slide}: {} patches", coordinates.origins.len());
        patches += coordinates.origins.len();

        let features = h5::read_features(&run.join(format!("{JOB}/features_dino/{slide}.h5"))).unwrap();
        assert_eq!((features.dim, &features.encoder[..]), (32, "dino"));
        assert_eq!(features.coordinates.origins, coordinates.origins);
        assert!(features.values.iter().all(|value| value.is_finite()));
        for picture in [format!("thumbnails/{slide}.jpg"), format!("{JOB}/visualization/{slide}.jpg")] {
            let picture = slide_io::folder::read_image(&run.join(&picture)).unwrap();
            assert_eq!(picture.width(), picture.height());
        }
    }

    let sheet = slide_io::folder::read_image(&run.join("cohort_sheet/page_001.jpg")).unwrap();
    assert_eq!(sheet.dimensions(), (6 * 296 + 8, 2 * 328 + 8), "twelve slides in two rows");
    assert!(!run.join("cohort_sheet/page_002.jpg").exists());

    let metrics = fs::read_to_string(run.join("pretrain/metrics.jsonl")).unwrap();
    let metrics: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let losses: Vec<f64> = metrics.iter().filter_map(|line| line["loss"].as_f64()).collect();
    assert_eq!(losses.len(), patches / 8 * 2, "two epochs of {patches} patches in batches of 8");
    assert!(losses.iter().all(|loss| loss.is_finite() && *loss > 0.0), "{losses:?}");
    assert_eq!(metrics.iter().filter(|line| line["knn"].is_number()).count(), 2);
    let encoder = fs::read(run.join("pretrain/encoder.safetensors")).unwrap();
    let (tensors, metadata) = gensis::model::weights::parse_safetensors(&encoder).unwrap();
    assert_eq!(tensors["cls_token"].shape.iter().product::<usize>(), 32);
    assert_eq!(metadata.unwrap()["origin"]["method"], "dino");

    let scores = table(&run.join("results/results.csv"));
    let pooled: Vec<_> = scores.iter().filter(|row| row["fold"].is_empty()).collect();
    assert_eq!(scores.len(), 4 * pooled.len(), "three folds and their pool");
    for metric in ["accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "quadratic_kappa"] {
        let row =
            pooled.iter().find(|row| row["metric"] == metric).unwrap_or_else(|| panic!("no {metric}: {pooled:?}"));
        let value: f64 = row["value"].parse().unwrap();
        assert!((-1.0..=1.0).contains(&value) && row["n"] == SLIDES.to_string(), "{row:?}");
    }
    assert!(fs::read(run.join("results/results.parquet")).unwrap().starts_with(b"PAR1"));
    let markdown = fs::read_to_string(run.join("results/results.md")).unwrap();
    assert!(markdown.contains("| ") && ended.stdout.contains(markdown.trim_end()), "{markdown}");
}

#[test]
fn every_slide_is_tested_once_and_patients_stay_together() {
    let rows = table(&REFERENCE.run.join("results/slide_scores.csv"));
    assert_eq!(rows.len(), SLIDES);
    let mut folds: BTreeMap<String, String> = BTreeMap::new();
    for number in 0..SLIDES {
        let row = rows.iter().find(|row| row["slide"] == id(number)).unwrap();
        assert_eq!((&row["group"], &row["label"][..]), (&case(number), class(number)));
        let probabilities: f64 = ["p_dots", "p_stripes"].map(|name| row[name].parse::<f64>().unwrap()).iter().sum();
        assert!((probabilities - 1.0).abs() < 1e-5, "{row:?}");
        assert_eq!(folds.entry(case(number)).or_insert_with(|| row["fold"].clone()), &row["fold"], "{}", case(number));
    }
    let used: std::collections::BTreeSet<_> = folds.values().collect();
    assert_eq!(used.len(), 3);
}

#[test]
fn the_report_stands_alone_and_names_every_slide() {
    let report = fs::read_to_string(REFERENCE.run.join("report.html")).unwrap();
    for number in 0..SLIDES {
        assert!(report.contains(&id(number)), "{} is not in the report", id(number));
    }
    for word in ["DINO: loss", "abmil", "<svg", "src=\"data:image/jpeg;base64,", "128 px"] {
        assert!(report.contains(word), "{word} is not in the report");
    }
    for outside in ["src=\"http", "src=\"//", "href=\"http", "<link", "url(http", "@import", "src=\"thumbnails"] {
        assert!(!report.contains(outside), "the report needs {outside}");
    }
}

#[test]
fn the_same_command_again_does_nothing() {
    let reference = &*REFERENCE;
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    crate::folder::copy(&reference.run, &run);
    let again = reference.cohort.run(&run, &["--threads", "2"]).with_code(0);
    let again = again.saying(["(12 up to date)", "pretrain: up to date", "evaluate: up to date"]);
    let ready = again.stderr.matches("(12 up to date)").count();
    assert_eq!(ready, 2, "tile and embed have nothing to do:\n{}", again.stderr);
    assert_same(&results(&run), &results(&reference.run));
    // But for what somebody has removed.
    let heatmaps: Vec<String> = files(&run.join("heatmap")).into_keys().filter(|name| name.ends_with(".png")).collect();
    let heatmap = format!("heatmap/{}", heatmaps[0]);
    let lost =
        ["results/results.csv", "results/slide_scores.csv", "cohort_sheet/page_001.jpg", "figures/attention_dino.png"];
    for lost in lost.into_iter().chain([heatmap.as_str()]) {
        fs::remove_file(run.join(lost)).unwrap();
    }
    // Or drawn over by hand.
    let slide = Path::new(&heatmaps[1]).file_stem().unwrap().to_str().unwrap();
    let by_hand = ["heatmap", run.to_str().unwrap(), "--slides", slide, "--set", "heatmap.scale=weight"];
    crate::program::gensis(by_hand).with_code(0);
    reference.cohort.run(&run, &[]).with_code(0);
    assert_same(&results(&run), &results(&reference.run));
    let log = fs::read_to_string(run.join("log.jsonl")).unwrap();
    assert_eq!(log.lines().filter(|line| line.contains("\"event\":\"started\"")).count(), 3);
}

#[test]
fn one_thread_gives_the_bytes_of_two() {
    let reference = &*REFERENCE;
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("alone");
    reference.cohort.run(&run, &["--threads", "1"]).with_code(0);
    assert_same(&results(&run), &results(&reference.run));
}

#[test]
fn stages_one_by_one_give_the_bytes_of_the_whole_run() {
    let reference = &*REFERENCE;
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let out = run.to_str().unwrap();
    let experiment = reference.cohort.experiment();
    let gensis = |arguments: &[&str]| crate::program::gensis(arguments);
    gensis(&["embed", "--out", out, "--config", experiment.to_str().unwrap()])
        .with_error(["run `gensis pretrain` first"]);
    gensis(&["tile", "--out", out, "--config", experiment.to_str().unwrap()]).with_code(0);
    for stage in ["pretrain", "embed", "evaluate"] {
        gensis(&[stage, "--out", out]).with_code(0);
    }
    gensis(&["heatmap", out]).with_code(0);
    gensis(&["figures", "--out", out]).with_code(0);
    gensis(&["report", out]).with_code(0);
    assert_same(&results(&run), &results(&reference.run));
    assert!(files(&run).contains_key("report.html"));
}
