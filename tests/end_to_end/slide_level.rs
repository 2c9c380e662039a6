//! Bad input of the slide level: each a clear message, and the rest is scored.

use std::fs;

use crate::features::{DIM, FeatureCohort, values};
use crate::folder::{failures, table};
use crate::program::gensis;

fn names(count: u32) -> Vec<(String, u32)> {
    (0..count).map(|i| (format!("s{i:02}"), i % 2)).collect()
}

fn csv(names: &[(String, u32)]) -> String {
    let rows: String = names.iter().map(|(name, class)| format!("{name},{class}\n")).collect();
    format!("slide_id,label\n{rows}")
}

fn reasons(run: &std::path::Path) -> Vec<(String, String)> {
    failures(run).into_iter().map(|(_, item, reason)| (item, reason)).collect()
}

#[test]
fn bad_features_cost_one_slide_each() {
    let root = tempfile::tempdir().unwrap();
    let names = names(16);
    let cohort = FeatureCohort::write(root.path(), &names, &csv(&names));
    let mut bad = values(3, 1);
    bad[2 * DIM] = f32::NAN;
    cohort.features("s03", &bad);
    fs::write(cohort.folder().join("s04.h5"), b"no HDF5").unwrap();
    let run = root.path().join("run");
    cohort.evaluate(&run, &["--set", "evaluate.slide.folds=3"]).with_code(3);
    let found = reasons(&run);
    assert_eq!(found.len(), 2, "{found:?}");
    for (slide, text) in [("s03", "not finite, the first in patch 2"), ("s04", "s04.h5")] {
        assert!(found.iter().any(|(item, reason)| item == slide && reason.contains(text)), "{slide}: {found:?}");
    }
    let rows = table(&run.join("results/results.csv"));
    let pooled = rows.iter().find(|row| row["fold"].is_empty() && row["metric"] == "accuracy").unwrap();
    assert_eq!(pooled["n"], "14");
}

#[test]
fn features_of_two_encoders_in_a_folder_are_not_mixed() {
    let root = tempfile::tempdir().unwrap();
    let names = names(12);
    let cohort = FeatureCohort::write(root.path(), &names, &csv(&names));
    // Of the same width, but another encoder says it made them.
    let path = cohort.folder().join("s00.h5");
    let mut features = slide_io::h5::read_features(&path).unwrap();
    features.encoder = "phikon".into();
    slide_io::h5::write_features(&path, &features, &serde_json::Value::Null).unwrap();
    let run = root.path().join("run");
    cohort.evaluate(&run, &["--set", "evaluate.slide.folds=3"]).with_code(3);
    let found = reasons(&run);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].0 == "s00" && found[0].1.contains("phikon") && found[0].1.contains("uni"), "{found:?}");
    let rows = table(&run.join("results/results.csv"));
    assert!(rows.iter().all(|row| row["encoder"] == "uni"));
}

#[test]
fn what_is_missing_is_listed_unless_it_is_allowed() {
    let root = tempfile::tempdir().unwrap();
    let names = names(13);
    let labels = csv(&names[..12]) + "gone,1\n";
    let cohort = FeatureCohort::write(root.path(), &names, &labels);
    let run = root.path().join("run");
    cohort.evaluate(&run, &["--set", "evaluate.slide.folds=3"]).with_code(3);
    let found = reasons(&run);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|(item, reason)| item == "gone" && reason.contains("no such slide")), "{found:?}");
    assert!(found.iter().any(|(item, reason)| item == "s12" && reason.contains("without a label")), "{found:?}");
    let allowed = cohort.evaluate(&run, &["--set", "evaluate.slide.folds=3", "--allow-missing", "--update"]);
    allowed.with_code(0).saying(["gone", "(allowed)"]);
    assert_eq!(failures(&run), []);
}

#[test]
fn a_test_part_of_one_class_has_no_auc_and_says_so() {
    let root = tempfile::tempdir().unwrap();
    let names = names(14);
    let part = |i: usize, class: u32| if i >= 8 && class == 1 { "test" } else { "train" };
    let rows: String =
        names.iter().enumerate().map(|(i, (name, class))| format!("{name},{class},{}\n", part(i, *class))).collect();
    let cohort = FeatureCohort::write(root.path(), &names, &format!("slide_id,label,split\n{rows}"));
    let run = root.path().join("run");
    cohort.evaluate(&run, &[]).with_code(3);
    let found = reasons(&run);
    assert!(found.len() == 1 && found[0].1.contains("its test part has no slide of class 0"), "{found:?}");
    let rows = table(&run.join("results/results.csv"));
    let value = |metric: &str| rows.iter().find(|row| row["metric"] == metric).unwrap()["value"].clone();
    assert_eq!((value("macro_auc"), value("macro_auprc")), (String::new(), String::new()));
    assert!(value("accuracy").parse::<f64>().is_ok());
    let report = fs::read_to_string(run.join("results/results.md")).unwrap();
    assert!(report.contains("–"), "{report}");
}

#[test]
fn a_head_that_cannot_train_does_not_cost_the_others() {
    let root = tempfile::tempdir().unwrap();
    let names = names(12);
    let cohort = FeatureCohort::write(root.path(), &names, &csv(&names));
    let run = root.path().join("run");
    // A class with fewer slides than folds is refused before anything is trained.
    cohort.evaluate(&run, &["--set", "evaluate.slide.folds=7"]).with_error(["folds", "6 group(s)"]);
    let other = FeatureCohort::write(&root.path().join("few"), &names[..3], "");
    let features = format!("evaluate.slide.features=[{:?}, {:?}]", cohort.folder(), other.folder());
    let ended =
        cohort.evaluate(&run, &["--set", "evaluate.slide.folds=3", "--set", &features, "--update"]).with_code(3);
    assert!(ended.stdout.contains("uni"), "{}", ended.stdout);
    let found = reasons(&run);
    assert!(found.iter().any(|(_, reason)| reason.contains("could not be scored")), "{found:?}");
    gensis(["report", run.to_str().unwrap()]).with_code(0);
}
