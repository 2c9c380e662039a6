//! `gensis demo` as a newcomer runs it, on fewer slides and with fewer steps.

use std::fs;

use crate::folder::{left_over, table};
use crate::program::{Stopped, gensis, kill_when};

/// Everything of the demo, as little of it as there can be.
const SMALL: [&str; 10] = [
    "model.depth=1",
    "pretrain.epochs=1",
    "pretrain.warmup_epochs=0",
    "crops.local_count=1",
    "evaluate.slide.folds=2",
    "evaluate.slide.validation=0",
    "autoencoder.epochs=1",
    "diffusion.epochs=1",
    "sample.steps=2",
    "evaluate.slide.epochs=2",
];

#[test]
fn killed_while_it_draws_the_demo_ends_with_results_and_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let mut line = vec!["demo", "--slides", "9", "--out", out.to_str().unwrap()];
    line.extend(SMALL.iter().flat_map(|setting| ["--set", setting]));
    let slides = || fs::read_dir(out.join("cohort/slides")).into_iter().flatten().count();
    assert!(matches!(kill_when(&line, |_| slides() > 0), Stopped::Killed));
    let ended = gensis(&line).with_code(0);
    assert!(ended.stdout.contains("Report: ") && out.join("report.html").exists(), "{}", ended.stdout);
    assert_eq!((slides(), left_over(&out)), (9, vec![]));
    let rows = table(&out.join("results/results.csv"));
    for encoder in ["dino", "gen_dino", "random"] {
        let right = |row: &&std::collections::BTreeMap<String, String>| {
            row["encoder"] == encoder
                && row["head"] == "abmil"
                && row["metric"] == "accuracy"
                && !row["fold"].is_empty()
        };
        assert_eq!(rows.iter().filter(right).count(), 2, "a figure of each fold: {rows:?}");
    }
    assert!(out.join("figures/synthetic.png").exists(), "real beside generated and interpolated patches");
    gensis(&line).with_code(0).saying(["paint: up to date", "evaluate: up to date"]);
}
