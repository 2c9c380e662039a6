//! The shipped configurations for PANDA and BRIGHT on small cohorts in these data sets' own formats.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::features::FeatureCohort;
use crate::folder::{failures, table};
use crate::program::{Ended, gensis};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name)
}

/// 72 biopsies with PANDA's columns: six grades, two hospitals (Radboud has more of the high ones), copies in pairs.
fn panda(root: &Path) -> (FeatureCohort, Vec<BTreeMap<String, String>>) {
    let name = |i: u32| format!("{i:032x}");
    let gleason = ["0+0", "3+3", "3+4", "4+3", "4+4", "4+5"];
    let mut csv = String::from("image_id,duplicate_group,isup_grade,data_provider,gleason_score\n");
    let mut slides = Vec::new();
    for i in 0..72u32 {
        let grade = i % 6;
        let provider = if i / 12 % 3 < 1 + grade / 3 { "radboud" } else { "karolinska" };
        // Slides 0 and 6, 12 and 18, ... show the same tissue.
        let group = name(if i % 12 >= 6 { i - 6 } else { i });
        let score = if grade == 0 && provider == "radboud" { "negative" } else { gleason[grade as usize] };
        csv += &format!("{},{group},{grade},{provider},{score}\n", name(i));
        slides.push((name(i), grade));
    }
    // The known bad ones, as they stand in the real csv.
    for (bad, grade) in [("3790f55cad63053e956fb73027179707", 0), ("b0a92a74cb53899311acc30b7405e101", 2)] {
        csv += &format!("{bad},{bad},{grade},karolinska,4+3\n");
        slides.push((bad.to_owned(), grade));
    }
    let cohort = FeatureCohort::write(root, &slides, &csv);
    let rows = table(&cohort.labels());
    (cohort, rows)
}

/// Whoever runs a configuration of Gen-SIS gets Gen-SIS.
#[test]
fn configurations_of_gen_sis_train_gen_dino() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let names: Vec<String> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let chains: Vec<&String> = names.iter().filter(|name| name.contains("gensis")).collect();
    assert!(chains.len() >= 8, "{names:?}");
    for name in chains {
        let said = gensis(["config", "show", shipped(name).to_str().unwrap()]).with_code(0).stdout;
        let section = said.split("[gen_dino]").nth(1).unwrap();
        assert!(section.split("\n[").next().unwrap().contains("enabled = true"), "{name}");
    }
}

fn evaluate(cohort: &FeatureCohort, config: &str, out: &Path, more: &[&str]) -> Ended {
    let config = shipped(config);
    let line: Vec<&str> = ["--config", config.to_str().unwrap()].into_iter().chain(more.iter().copied()).collect();
    cohort.evaluate(out, &line)
}

#[test]
fn panda_is_stratified_by_grade_and_hospital_and_copies_stay_together() {
    let root = tempfile::tempdir().unwrap();
    let (cohort, labels) = panda(root.path());
    let run = root.path().join("run");
    evaluate(&cohort, "panda.toml", &run, &[]).with_code(0);
    assert_eq!(failures(&run), []);
    let index: serde_json::Value = serde_json::from_slice(&fs::read(run.join("heads/index.json")).unwrap()).unwrap();
    let encoder = &index["encoders"][0];
    let ids: Vec<&str> = encoder["subjects"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 72, "the two known bad slides are left out");
    let row = |id: &str| labels.iter().find(|row| row["image_id"] == id).unwrap();
    let folds = encoder["folds"].as_array().unwrap();
    assert_eq!(folds.len(), 5);
    let mut fold_of_group: BTreeMap<&str, usize> = BTreeMap::new();
    let mut strata: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    for (number, fold) in folds.iter().enumerate() {
        for place in fold["test"].as_array().unwrap() {
            let row = row(ids[place.as_u64().unwrap() as usize]);
            let of_group = *fold_of_group.entry(&row["duplicate_group"]).or_insert(number);
            assert_eq!(of_group, number, "copies in two folds");
            let counts = strata.entry((&row["isup_grade"], &row["data_provider"])).or_insert(vec![0; 5]);
            counts[number] += 1;
        }
    }
    assert_eq!(strata.len(), 12);
    // Groups of two are the grain: no fold has more than one group more of a stratum than another.
    for (stratum, counts) in &strata {
        let (low, high) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(high - low <= 2, "{stratum:?}: {counts:?}");
    }
    let rows = table(&run.join("results/results.csv"));
    let metrics: BTreeSet<&str> = rows.iter().map(|row| row["metric"].as_str()).collect();
    assert!(["accuracy", "macro_f1", "macro_auc", "quadratic_kappa"].iter().all(|metric| metrics.contains(metric)));
}

#[test]
fn panda_takes_a_cleaned_list() {
    let root = tempfile::tempdir().unwrap();
    let (cohort, labels) = panda(root.path());
    let list = root.path().join("cleaned.csv");
    let kept: Vec<&str> = labels[..60].iter().map(|row| row["image_id"].as_str()).collect();
    fs::write(
        &list,
        format!("index,image_id\n{}", kept.iter().zip(0..).map(|(id, i)| format!("{i},{id}\n")).collect::<String>()),
    )
    .unwrap();
    let run = root.path().join("run");
    let include = format!("data.include={list:?}");
    evaluate(&cohort, "panda.toml", &run, &["--set", &include]).with_code(0);
    let pooled = |run: &Path| {
        let rows = table(&run.join("results/results.csv"));
        rows.into_iter().find(|row| row["fold"].is_empty() && row["metric"] == "accuracy").unwrap()["n"].clone()
    };
    assert_eq!(pooled(&run), "60");
    // A plain list, and a name that is not there.
    let plain = root.path().join("cleaned.txt");
    fs::write(&plain, kept.join("\n") + ".tiff\nfeed\n").unwrap();
    let run = root.path().join("plain");
    let include = format!("data.include={plain:?}");
    evaluate(&cohort, "panda.toml", &run, &["--set", &include]).with_code(3);
    assert_eq!(pooled(&run), "60");
    let found = failures(&run);
    assert!(found.len() == 1 && found[0].1 == "feed" && found[0].2.contains("data.include names it"), "{found:?}");
}

/// 40 slides with three classes and six, 12 of them tested, and two of a hidden test part.
fn bright(root: &Path) -> FeatureCohort {
    let subtypes = ["PB", "UDH", "FEA", "ADH", "DCIS", "IC"];
    let mut csv = String::from("slide_id,case_id,label,subtype,split\n");
    let mut slides = Vec::new();
    for i in 0..42u32 {
        let name = format!("BRACS_{}", 700 + i);
        let subtype = i % 6;
        let split = if i % 42 >= 28 { "test" } else { "train" };
        let (label, of) =
            if i >= 40 { (String::new(), "") } else { ((subtype / 2).to_string(), subtypes[subtype as usize]) };
        csv += &format!("{name},case{i},{label},{of},{split}\n");
        slides.push((name, subtype / 2));
    }
    FeatureCohort::write(root, &slides, &csv)
}

#[test]
fn bright_has_a_fixed_test_set_three_seeds_and_a_submission() {
    let root = tempfile::tempdir().unwrap();
    let cohort = bright(root.path());
    let run = root.path().join("run");
    // The slides without a label are told, and allowed here.
    evaluate(&cohort, "bright.toml", &run, &["--allow-missing"]).with_code(0);
    let rows = table(&run.join("results/results.csv"));
    let f1: Vec<_> = rows.iter().filter(|row| row["metric"] == "macro_f1").collect();
    assert_eq!(f1.iter().map(|row| row["seed"].as_str()).collect::<Vec<_>>(), ["0", "1", "2"]);
    assert!(f1.iter().all(|row| row["n"] == "12" && row["fold"].is_empty()), "{f1:?}");
    let text = fs::read_to_string(run.join("results/submission_uni_abmil.csv")).unwrap();
    let header = "image_name,predicted_label,Noncancerous-score,Precancerous-score,Cancerous-score";
    assert_eq!(text.lines().next(), Some(header));
    let submitted = table(&run.join("results/submission_uni_abmil.csv"));
    assert_eq!(submitted.len(), 14, "12 tested ones and the two without a label");
    assert_eq!(
        submitted.iter().filter(|row| ["BRACS_740", "BRACS_741"].contains(&row["image_name"].as_str())).count(),
        2
    );
    for row in &submitted {
        let scores: Vec<f64> = ["Noncancerous", "Precancerous", "Cancerous"]
            .iter()
            .map(|class| row[&format!("{class}-score")].parse().unwrap())
            .collect();
        assert!((scores.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{row:?}");
        let predicted: usize = row["predicted_label"].parse().unwrap();
        assert!(scores.iter().all(|score| *score <= scores[predicted]), "{row:?}");
    }
    // Six classes by another column.
    let six = root.path().join("six");
    let order = r#"data.classes=["PB","UDH","FEA","ADH","DCIS","IC"]"#;
    let classes = ["--set", "data.columns.label=subtype", "--set", order];
    let without_scores = ["--set", "evaluate.slide.submission.scores=[]"];
    evaluate(&cohort, "bright.toml", &six, &[&["--allow-missing"], &classes[..], &without_scores[..]].concat())
        .with_code(0);
    let confusions: serde_json::Value =
        serde_json::from_slice(&std::fs::read(six.join("results/confusion.json")).unwrap()).unwrap();
    assert_eq!(confusions[0]["classes"], serde_json::json!(["PB", "UDH", "FEA", "ADH", "DCIS", "IC"]), "for the kappa");
    let submitted = table(&six.join("results/submission_uni_abmil.csv"));
    let known = ["PB", "UDH", "FEA", "ADH", "DCIS", "IC"];
    assert!(
        submitted.len() == 14
            && submitted.iter().all(|row| row.len() == 2 && known.contains(&row["predicted_label"].as_str()))
    );
    // Columns for three classes do not fit six.
    let wrong = root.path().join("wrong");
    evaluate(&cohort, "bright.toml", &wrong, &[&["--allow-missing"], &classes[..]].concat())
        .with_error(["submission.scores names 3 columns", "6 classes"]);
}
