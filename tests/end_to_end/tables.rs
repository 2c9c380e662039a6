//! Tables over several runs.

use std::fs;
use std::path::Path;

use crate::cohort::REFERENCE;
use crate::folder::{files, table};
use crate::program::gensis;

#[test]
fn runs_of_other_seeds_become_one_row_and_other_settings_another() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    crate::folder::copy(&REFERENCE.run, Path::new(&at("a")));
    let out = at("b");
    REFERENCE.cohort.run(Path::new(&out), &["--set", "seed=1"]).with_code(0);
    let ended = gensis(["report", &at("a"), &out, "--out", &at("tables")]).with_code(0);
    let mut names: Vec<String> = files(Path::new(&at("tables"))).into_keys().collect();
    names.retain(|name| !name.starts_with('.'));
    let expected = ["comparisons", "figures", "results"].map(|name| [format!("{name}.csv"), format!("{name}.parquet")]);
    assert_eq!(
        names,
        [expected.concat(), ["json", "md", "tex"].map(|kind| format!("tables.{kind}")).to_vec()].concat()
    );
    let text = fs::read_to_string(root.path().join("tables/tables.md")).unwrap();
    assert_eq!(ended.stdout, text);
    assert!(text.contains("## Table 9: Slide-level classification") && text.contains("| DINO |"), "{text}");
    assert!(text.contains("Mean ± standard deviation over runs and seeds."), "{text}");
    assert!(!text.contains("**"), "one encoder has nobody to be better than:\n{text}");
    let tex = fs::read_to_string(root.path().join("tables/tables.tex")).unwrap();
    assert!(tex.contains("\\toprule") && tex.matches("\\begin{table}").count() == 2, "{tex}");

    let figures = table(&root.path().join("tables/figures.csv"));
    let accuracy = figures.iter().find(|row| row["metric"] == "accuracy").unwrap();
    assert_eq!((accuracy["over"].as_str(), accuracy["replicates"].as_str()), ("runs", "2"));
    // The mean over both runs of the means over their folds.
    let mean = |run: &str| {
        let rows = table(&root.path().join(run).join("results/results.csv"));
        let folds: Vec<f64> = rows
            .iter()
            .filter(|row| row["metric"] == "accuracy" && !row["fold"].is_empty())
            .map(|row| row["value"].parse().unwrap())
            .collect();
        folds.iter().sum::<f64>() / folds.len() as f64
    };
    let expected = (mean("a") + mean("b")) / 2.0;
    assert!((accuracy["mean"].parse::<f64>().unwrap() - expected).abs() < 1e-9, "{accuracy:?} {expected}");
    let rows = table(&root.path().join("tables/results.csv"));
    assert!(rows.iter().any(|row| row["run"] == at("a")) && rows.iter().any(|row| row["run"] == out));

    // Settings on which the figures depend keep runs apart.
    gensis(["evaluate", "--out", &out, "--set", "evaluate.slide.epochs=2", "--update"]).with_code(0);
    let apart = gensis(["report", &at("a"), &out, "--out", &at("apart")]).with_code(0).stdout;
    assert!(
        apart.contains("DINO (evaluate.slide.epochs=3)") && apart.contains("DINO (evaluate.slide.epochs=2)"),
        "{apart}"
    );
    gensis(["report", &at("a"), &at("none"), "--out", &at("rest")])
        .with_code(3)
        .saying(["none", "is not a run folder"]);
    gensis(["report", &at("none"), &out]).with_error(["--out"]);
    gensis(["report", &out, &out, "--out", &at("twice")]).with_error(["given twice"]);
    // Tables of the user, and of the run itself, are not written over; one's own are.
    fs::create_dir(at("thesis")).unwrap();
    fs::write(root.path().join("thesis/results.csv"), "precious").unwrap();
    for place in [at("thesis"), format!("{out}/results")] {
        gensis(["report", &out, "--out", &place]).with_error(["holds files that gensis did not write"]);
    }
    gensis(["report", &out, "--out", &at("tables")]).with_code(0);
}

#[test]
fn encoders_of_two_runs_are_compared_slide_by_slide() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let [a, b] = ["a", "b"].map(at);
    for run in [&a, &b] {
        crate::folder::copy(&REFERENCE.run, Path::new(run));
    }
    let change = |setting: &str| gensis(["evaluate", "--out", &b, "--set", setting, "--update"]);
    let report = |out: &str| gensis(["report", &a, &b, "--out", &at(out)]).with_code(0);
    let tests = |out: &str| table(&root.path().join(out).join("comparisons.csv"));
    report("same");
    assert_eq!(tests("same"), [], "one encoder, repeated");

    change("evaluate.slide.epochs=2").with_code(0);
    report("apart");
    let found = tests("apart");
    let names = ["dino (evaluate.slide.epochs=3)", "dino (evaluate.slide.epochs=2)"];
    let slides = table(&Path::new(&a).join("results/slide_scores.csv"));
    assert!(found.iter().any(|test| test["metric"] == "macro_auc"));
    for test in &found {
        let of = ["first_run", "second_run", "first", "second"].map(|column| &test[column][..]);
        assert_eq!(of, [&a, &b, names[0], names[1]]);
        assert_eq!(test["n"], slides.len().to_string());
        assert!(test["p"].is_empty() || test["p"].parse::<f64>().is_ok_and(|p| p > 0.0 && p <= 1.0), "{test:?}");
    }
    // A figure of a test is the one of the run.
    let accuracy = found.iter().find(|test| test["metric"] == "accuracy").unwrap();
    let right = slides.iter().filter(|slide| slide["label"] == slide["predicted"]).count() as f64;
    let stored: f64 = accuracy["value_first"].parse().unwrap();
    assert!((stored - right / slides.len() as f64).abs() < 1e-9, "{accuracy:?}");

    // Two folds of so few slides leave a part without one class.
    change("evaluate.slide.folds=2").with_code(3);
    report("folds").saying(["no paired tests between", "was tested in another fold"]);
    assert_eq!(tests("folds"), []);
}
