//! Bad input of the slide level: each a clear message, and the rest is scored.

use std::fs;

use crate::features::{DIM, FeatureCohort, values};
use crate::folder::{assert_same, failures, files, results, table};
use crate::program::{Stopped, gensis, holds_file, kill_when};

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
fn a_folder_without_features_costs_itself_alone() {
    let root = tempfile::tempdir().unwrap();
    let names = names(16);
    let cohort = FeatureCohort::write(root.path(), &names, &csv(&names));
    let run = root.path().join("run");
    let both = format!("evaluate.slide.features=[{:?}, {:?}]", cohort.folder(), root.path().join("features_typo"));
    cohort.evaluate(&run, &["--set", "evaluate.slide.folds=3", "--set", &both]).with_code(3);
    let found = reasons(&run);
    let why = "holds no <slide id>.h5 of this cohort";
    assert!(found.len() == 1 && found[0].0.ends_with("features_typo") && found[0].1.contains(why), "{found:?}");
    let rows = table(&run.join("results/results.csv"));
    assert!(rows.iter().any(|row| row["encoder"] == "uni" && row["n"] == "16" && row["fold"].is_empty()), "{rows:?}");
}

#[test]
fn a_fold_whose_test_slides_cannot_be_used_costs_itself_alone() {
    let root = tempfile::tempdir().unwrap();
    let names = names(16);
    let cohort = FeatureCohort::write(root.path(), &names, &csv(&names));
    for slide in ["s00", "s01"] {
        fs::write(cohort.folder().join(format!("{slide}.h5")), b"no HDF5").unwrap();
    }
    let split = |number: usize, test: [&str; 2]| {
        let train: Vec<&str> = names.iter().map(|(name, _)| &name[..]).filter(|name| !test.contains(name)).collect();
        let line = |row: usize| format!("{row},{},,{}\n", train[row], test.get(row).unwrap_or(&""));
        let path = root.path().join(format!("splits_{number}.csv"));
        fs::write(&path, ",train,val,test\n".to_owned() + &(0..train.len()).map(line).collect::<String>()).unwrap();
        path
    };
    let splits = [split(0, ["s00", "s01"]), split(1, ["s04", "s05"]), split(2, ["s06", "s07"])];
    let (run, splits) = (root.path().join("run"), format!("evaluate.slide.splits={splits:?}"));
    cohort.evaluate(&run, &["--set", &splits]).with_code(3);
    let found = reasons(&run);
    let lost = |item: &str| found.iter().any(|(of, why)| of == item && why.contains("fold 0's test part"));
    assert!(lost("features_uni, fold 0") || lost("uni, fold 0"), "{found:?}");
    let rows = table(&run.join("results/results.csv"));
    let mut folds: Vec<&str> = rows.iter().map(|row| row["fold"].as_str()).collect();
    folds.sort_unstable();
    folds.dedup();
    assert_eq!(folds, ["1", "2"], "nothing is pooled over folds of which one is missing");
    // The heads that there are can be asked.
    let shown = gensis(["heatmap", run.to_str().unwrap(), "--slides", "s05"]).with_code(0).stdout;
    assert!(shown.contains("which has not seen the slide"), "{shown}");
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

/// Three patches of each slide a step in training, all of them when a slide is scored; threads change nothing.
#[test]
fn bags_are_subsampled_in_training_alone() {
    let root = tempfile::tempdir().unwrap();
    let names = names(16);
    let cohort = FeatureCohort::write(root.path(), &names, &csv(&names));
    let scores = |name: &str, more: &[&str]| {
        let run = root.path().join(name);
        cohort.evaluate(&run, &[&["--set", "evaluate.slide.folds=3"], more].concat()).with_code(0);
        fs::read(run.join("results/slide_scores.csv")).unwrap()
    };
    let few = ["--set", "evaluate.slide.max_patches=3"];
    let all = scores("all", &[]);
    assert!(scores("few", &few) != all);
    assert!(scores("few", &few) == scores("few_again", &[&few[..], &["--threads", "1"]].concat()));
    // No slide has so many.
    assert!(scores("many", &["--set", "evaluate.slide.max_patches=100"]) == all);
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
    // Fewer slides than folds are refused before anything is trained.
    cohort.evaluate(&run, &["--set", "evaluate.slide.folds=13"]).with_error(["folds", "12 group(s)"]);
    let other = FeatureCohort::write(&root.path().join("few"), &names[..3], "");
    let features = format!("evaluate.slide.features=[{:?}, {:?}]", cohort.folder(), other.folder());
    let ended =
        cohort.evaluate(&run, &["--set", "evaluate.slide.folds=3", "--set", &features, "--update"]).with_code(3);
    assert!(ended.stdout.contains("uni"), "{}", ended.stdout);
    let found = reasons(&run);
    assert!(found.iter().any(|(_, reason)| reason.contains("could not be scored")), "{found:?}");
    gensis(["report", run.to_str().unwrap()]).with_code(0);
}

/// Folders of which nothing can be read cost themselves, and so does a file its slide: the others stay in their folds.
#[test]
fn an_encoder_without_readable_features_leaves_the_others_their_rows() {
    let root = tempfile::tempdir().unwrap();
    let names = names(16);
    let cohort = FeatureCohort::write(root.path(), &names, &csv(&names));
    let [junk, fewer] = ["features_junk", "features_fewer"].map(|name| root.path().join(name));
    crate::folder::copy(&cohort.folder(), &fewer);
    fs::write(fewer.join("s04.h5"), b"no HDF5").unwrap();
    fs::create_dir(&junk).unwrap();
    fs::write(junk.join("s00.h5"), b"no HDF5").unwrap();
    let run = root.path().join("run");
    let folders = format!(
        "evaluate.slide.features=['{}', '{}', '{}']",
        cohort.folder().display(),
        junk.display(),
        fewer.display()
    );
    cohort.evaluate(&run, &["--set", &folders, "--set", "evaluate.slide.folds=3"]).with_code(3);
    assert!(
        reasons(&run).iter().any(|(item, reason)| item.ends_with("features_junk") && reason.contains("can be read"))
    );
    let scores = table(&run.join("results/slide_scores.csv"));
    let encoders: std::collections::BTreeSet<&str> = scores.iter().map(|row| &row["encoder"][..]).collect();
    assert_eq!(encoders.len(), 2, "{encoders:?}");
    let fold = |encoder: &str, slide: &str| {
        let row = scores.iter().find(|row| row["encoder"] == encoder && row["slide"] == slide);
        row.map(|row| row["fold"].clone())
    };
    let [whole, less] = [encoders.iter().min_by_key(|name| name.len()), encoders.iter().max_by_key(|name| name.len())];
    for (slide, _) in &names {
        let less = fold(less.unwrap(), slide);
        assert!(less.is_none() || less == fold(whole.unwrap(), slide), "{slide}");
        assert_eq!(less.is_none(), slide == "s04");
    }
}

/// CLAM's random splits: a slide may be tested in several, and in none.
#[test]
fn clams_splits_are_taken_as_they_are() {
    let root = tempfile::tempdir().unwrap();
    let names = names(12);
    let cohort = FeatureCohort::write(root.path(), &names, &csv(&names));
    let [one, two, three] = ["splits_0.csv", "splits_1.csv", "splits_2.csv"].map(|name| root.path().join(name));
    fs::write(&one, ",train,val,test\n0,s00,s06,s08\n1,s01,s07,s09\n2,s02,,\n3,s03,,\n4,elsewhere,,\n").unwrap();
    fs::write(&two, ",train,val,test\n0,s04.svs,s06,s08\n1,s05,s07,s11\n2,s02,,\n3,s03,,\n").unwrap();
    let splits = |files: &[&std::path::Path]| {
        let files: Vec<String> = files.iter().map(|file| format!("'{}'", file.display())).collect();
        format!("evaluate.slide.splits=[{}]", files.join(","))
    };
    let run = root.path().join("run");
    // A split of a larger cohort, or a name that is misspelt: only whoever made it knows.
    let ended = cohort.evaluate(&root.path().join("told"), &["--set", &splits(&[&one, &two])]).with_code(3);
    assert!(
        ended.stderr.matches("it is no labelled slide of the cohort").count() == 1
            && ended.stderr.contains("elsewhere")
    );
    cohort.evaluate(&run, &["--set", &splits(&[&one, &two]), "--allow-missing"]).with_code(0);
    let tested: Vec<(String, String)> = table(&run.join("results/slide_scores.csv"))
        .into_iter()
        .map(|row| (row["fold"].clone(), row["slide"].clone()))
        .collect();
    let expected = [("0", "s08"), ("0", "s09"), ("1", "s08"), ("1", "s11")];
    assert_eq!(tested, expected.map(|(fold, slide)| (fold.to_owned(), slide.to_owned())));
    let rows = table(&run.join("results/results.csv"));
    assert!(rows.iter().all(|row| !row["fold"].is_empty() && row["n"] == "2"), "nothing is pooled: {rows:?}");

    // A slide that is tested in two folds is submitted with the mean of both.
    let (asked, both) = (root.path().join("submission"), splits(&[&one, &two]));
    let names = ["evaluate.slide.submission.slide=image", "evaluate.slide.submission.scores=['first', 'second']"];
    let line = ["--allow-missing", "--set", &both, "--set", names[0], "--set", names[1]];
    cohort.evaluate(&asked, &line).with_code(0);
    let submitted = table(&asked.join("results/submission_uni_abmil.csv"));
    assert_eq!(submitted.iter().map(|row| &row["image"][..]).collect::<Vec<_>>(), ["s08", "s09", "s11"]);
    for row in submitted {
        let sum: f64 = ["first", "second"].iter().map(|class| row[*class].parse::<f64>().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{row:?}");
    }

    fs::write(&three, "train,val,test\ns00,s01,s02\ns03,,s00\n").unwrap();
    cohort
        .evaluate(&root.path().join("b"), &["--set", &splits(&[&one, &three])])
        .with_error(["splits_2.csv", "s00 is in two"]);
    cohort
        .evaluate(&root.path().join("d"), &["--set", "evaluate.slide.seeds=[0, 1, 0]"])
        .with_error(["something twice"]);
    fs::write(&three, "slide_id,label\ns00,1\n").unwrap();
    cohort.evaluate(&root.path().join("c"), &["--set", &splits(&[&three])]).with_error(["no columns train and test"]);
}

/// A submission's columns, and the distances that quadratic kappa weighs, follow the order that is given.
#[test]
fn classes_may_have_an_order() {
    let root = tempfile::tempdir().unwrap();
    let names = names(12);
    let rows: String =
        names.iter().map(|(name, class)| format!("{name},{}\n", ["low", "high"][*class as usize])).collect();
    let cohort = FeatureCohort::write(root.path(), &names, &format!("slide_id,label\n{rows}"));
    let run = |out: &str, more: &[&str]| {
        let out = root.path().join(out);
        let submission = [
            "--set",
            "evaluate.slide.submission.slide=image",
            "--set",
            "evaluate.slide.submission.scores=['first', 'second']",
        ];
        let folds = ["--set", "evaluate.slide.folds=3"];
        cohort.evaluate(&out, &[&submission[..], &folds, more].concat()).with_code(0);
        let file = out
            .join("results")
            .read_dir()
            .unwrap()
            .flatten()
            .find(|e| e.file_name().to_string_lossy().starts_with("submission"));
        (table(&file.unwrap().path()), fs::read_to_string(out.join("results/slide_scores.csv")).unwrap())
    };
    let (_, sorted) = run("sorted", &[]);
    let (table, ordered) = run("ordered", &["--set", "data.classes=['low', 'high']"]);
    assert!(
        sorted.lines().next().unwrap().ends_with("p_high,p_low")
            && ordered.lines().next().unwrap().ends_with("p_low,p_high")
    );
    for row in table {
        let likelier =
            if row["first"].parse::<f64>().unwrap() > row["second"].parse().unwrap() { "low" } else { "high" };
        assert_eq!(row["predicted_label"], likelier, "{row:?}");
    }
}

#[test]
fn an_evaluation_that_was_killed_goes_on_with_the_heads_it_has() {
    let root = tempfile::tempdir().unwrap();
    let names = names(24);
    let cohort = FeatureCohort::write(root.path(), &names, &csv(&names));
    let [whole, run] = ["whole", "run"].map(|name| root.path().join(name));
    let heads = r#"evaluate.slide.aggregators=["mean","abmil","transmil"]"#;
    let more = ["--set", heads, "--set", "evaluate.slide.folds=4", "--set", "evaluate.slide.patience=0"];
    cohort.evaluate(&whole, &more).with_code(0);
    let folder = run.join("heads/uni");
    let begun = |_: &str| holds_file(&folder, "abmil_seed0_fold0.json");
    assert!(
        matches!(kill_when(cohort.command(&run, &more), begun), Stopped::Killed),
        "it ended before it could be killed"
    );
    let trained: Vec<_> = files(&folder).into_keys().filter(|name| name.ends_with(".json")).collect();
    assert!(trained.len() >= 5 && trained.len() < 12 && !run.join("heads/index.json").exists(), "{trained:?}");
    let made = |name: &String| fs::metadata(folder.join(name)).unwrap().modified().unwrap();
    let before: Vec<_> = trained.iter().map(made).collect();
    cohort.evaluate(&run, &more).with_code(0);
    assert_eq!(trained.iter().map(made).collect::<Vec<_>>(), before, "no head is trained twice");
    assert_same(&results(&run), &results(&whole));
    // With other settings none of them is taken.
    cohort.evaluate(&run, &[&more[..], &["--set", "evaluate.slide.lr=0.01", "--update"]].concat()).with_code(0);
    assert!(trained.iter().map(made).zip(before).all(|(now, then)| now > then));
}

#[test]
fn patients_that_are_not_known_and_heads_that_hardly_learn_are_told() {
    let root = tempfile::tempdir().unwrap();
    let names = names(12);
    let without = |csv: String| csv.replace("case_id", "patient_id");
    let cohort = FeatureCohort::write(root.path(), &names, &without(csv(&names)));
    let more = ["--set", "evaluate.slide.folds=3", "--set", "evaluate.slide.lr=1e-6"];
    let ended = cohort.evaluate(&root.path().join("run"), &more).with_code(0);
    ended.saying(["no slide has a patient or site in the column \"case_id\"", "uni, abmil: after ", "hardly learnt"]);
    let none = [&more[..], &["--set", "data.columns.group=''"]].concat();
    let ended = cohort.evaluate(&root.path().join("none"), &none).with_code(0);
    assert!(!ended.stderr.contains("patient"), "{}", ended.stderr);
    let unlabelled = ["--set", "data.allow_missing=true", "--set", "data.columns.label=''"];
    for _ in 0..2 {
        let ended = cohort.evaluate(&root.path().join("unlabelled"), &unlabelled);
        ended.with_error(["no test item has a label"]);
    }
}
