//! What can be wrong with a csv of labels, and what it decides.

use std::collections::BTreeSet;

use crate::cohort::{REFERENCE, SLIDES, class, id};
use crate::folder::{failures, table};
use crate::program::gensis;

/// A copy of the cohort with another csv, and `gensis tile` on it.
fn tile(csv: &str) -> (tempfile::TempDir, crate::program::Ended) {
    let folder = tempfile::tempdir().unwrap();
    let cohort = REFERENCE.cohort.copy(&folder.path().join("cohort"));
    cohort.write_labels(csv);
    let (run, experiment) = (folder.path().join("run"), cohort.experiment());
    let ended = gensis(["tile", "--out", run.to_str().unwrap(), "--config", experiment.to_str().unwrap()]);
    (folder, ended)
}

#[test]
fn rows_without_slides_and_slides_without_rows_are_listed() {
    let mut csv = String::from("slide_id,label\nmissing-1,dots\nmissing-2.svs,stripes\n");
    (0..SLIDES - 1).for_each(|number| csv += &format!("{}.tiff,{}\n", id(number), class(number)));
    let (folder, ended) = tile(&csv);
    ended.with_code(3);
    let failed = failures(&folder.path().join("run"));
    assert_eq!(failed.len(), 3, "{failed:?}");
    for (item, reason) in [("missing-1", "line 2 of"), ("missing-2.svs", "no such slide"), ("s11", "without a label")] {
        assert!(failed.iter().any(|(_, of, why)| of == item && why.contains(reason)), "{item}: {failed:?}");
    }
}

#[test]
fn csvs_that_would_make_results_wrong_are_errors() {
    let twice = "slide_id,label\ns00,dots\ns01,stripes\ns00.tiff,stripes\n";
    let (folder, ended) = tile(twice);
    ended.with_error(["labels.csv", "lines 2 and 4", "\"s00.tiff\"", "different labels"]);
    assert!(!folder.path().join("run").exists(), "a folder was made for a run without labels");
    tile("slide,grade,center\ns00,dots,a\n").1.with_error([
        "labels.csv",
        "no column \"slide_id\"",
        "\"slide\", \"grade\", \"center\"",
        "data.columns.slide",
    ]);
    tile("slide_id,grade\ns00,dots\n").1.with_error([
        "no column \"label\"",
        "\"slide_id\", \"grade\"",
        "data.columns.label",
    ]);
    tile("slide_id,label\nx,dots\n").1.with_error(["none of its 1 rows names a slide"]);
    tile("slide_id,label,split\ns00,dots,holdout\n").1.with_error(["line 2", "holdout", "train, val nor test"]);
    tile("slide_id,label,mpp\ns00,dots,twenty\n").1.with_error(["line 2", "twenty", "µm/px"]);
    tile("").1.with_error(["labels.csv"]);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let slides = REFERENCE.cohort.slides();
    let line = ["tile", "--slides", slides.to_str().unwrap(), "--labels", "no.csv", "--out", out.to_str().unwrap()];
    gensis(line).with_error(["no.csv", "No such file"]);
}

#[test]
fn a_given_split_is_used_and_test_slides_are_not_learnt_from() {
    let folder = tempfile::tempdir().unwrap();
    let cohort = REFERENCE.cohort.copy(&folder.path().join("cohort"));
    let part = |number: usize| match number {
        0..6 => "train",
        6..8 => "val",
        _ => "test",
    };
    let mut csv = String::from("slide_id,label,split\n");
    (0..SLIDES).for_each(|number| csv += &format!("{},{},{}\n", id(number), class(number), part(number)));
    cohort.write_labels(&csv);
    let run = folder.path().join("run");
    cohort.run(&run, &["--set", "evaluate.slide.seeds=[0, 1]"]).with_code(0);
    let tested: BTreeSet<String> = (8..SLIDES).map(id).collect();
    let scored = table(&run.join("results/slide_scores.csv"));
    assert_eq!(scored.len(), 2 * tested.len(), "two seeds");
    assert_eq!(scored.iter().map(|row| row["slide"].clone()).collect::<BTreeSet<_>>(), tested);
    let results = table(&run.join("results/results.csv"));
    assert!(results.iter().all(|row| row["fold"].is_empty() && row["n"] == "4"), "{results:?}");
    let rows = table(&run.join("cohort.csv"));
    let learnt: usize =
        rows.iter().filter(|row| row["split"] != "test").map(|row| row["kept"].parse::<usize>().unwrap()).sum();
    let record = std::fs::read_to_string(run.join("stages/pretrain.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["summary"]["patches"], learnt);
}

#[test]
fn a_patient_in_two_parts_of_a_given_split_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    crate::folder::copy(&REFERENCE.run, &run);
    let mut csv = String::from("slide_id,case_id,label,split\n");
    for number in 0..SLIDES {
        let part = if number < 8 { "train" } else { "test" };
        csv += &format!("{},shared-{},{},{part}\n", id(number), number % 4, class(number));
    }
    let labels = folder.path().join("leaky.csv");
    std::fs::write(&labels, csv).unwrap();
    let line = ["evaluate", "--out", run.to_str().unwrap(), "--labels", labels.to_str().unwrap(), "--update"];
    gensis(line).with_error(["shared-"]);
}

#[test]
fn more_folds_than_patients_are_refused_and_classes_of_few_patients_listed() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    crate::folder::copy(&REFERENCE.run, &run);
    let out = run.to_str().unwrap();
    let evaluate = |folds: &str| gensis(["evaluate", "--out", out, "--set", folds, "--update"]);
    evaluate("evaluate.slide.folds=7").with_error(["only 6 group(s)", "at most 6 folds"]);
    evaluate("evaluate.slide.folds=4").with_code(3).saying(["its test part has no slide of class"]);
    assert!(!table(&run.join("results/results.csv")).is_empty());
}

#[test]
fn labels_that_are_all_alike_are_refused_before_anything_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let cohort = REFERENCE.cohort.copy(&folder.path().join("cohort"));
    let rows: String = (0..SLIDES).map(|n| format!("{},dots\n", id(n))).collect();
    cohort.write_labels(&format!("slide_id,label\n{rows}"));
    let run = folder.path().join("run");
    cohort.run(&run, &[]).with_error(["12 labelled slides are of class dots", "data.labels"]);
    assert!(!run.join("pretrain").exists());
}

#[test]
fn the_csv_may_give_the_scale() {
    let folder = tempfile::tempdir().unwrap();
    let cohort = REFERENCE.cohort.copy(&folder.path().join("cohort"));
    crate::cohort::write_slide(&cohort.slide("s00.tiff"), &crate::cohort::section(0, false), None);
    let mut csv = String::from("slide_id,label,mpp\n");
    (0..SLIDES).for_each(|n| csv += &format!("{},{},{}\n", id(n), class(n), if n == 0 { "0.25" } else { "" }));
    cohort.write_labels(&csv);
    let (run, experiment) = (folder.path().join("run"), cohort.experiment());
    gensis(["tile", "--out", run.to_str().unwrap(), "--config", experiment.to_str().unwrap()]).with_code(0);
    let rows = table(&run.join("cohort.csv"));
    assert_eq!((&rows[0]["id"][..], &rows[0]["mpp"][..]), ("s00", "0.25"));
    assert_eq!(rows[1]["mpp"].parse::<f64>().unwrap(), 0.5);
}
