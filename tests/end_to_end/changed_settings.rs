//! Folders of other experiments, and going on in one with other settings.

use std::fs;
use std::path::PathBuf;

use crate::cohort::{Cohort, JOB, REFERENCE, SLIDES};
use crate::features::FeatureCohort;
use crate::folder::{Files, assert_same, below, failures, files, results, table};
use crate::program::{Stopped, gensis, kill_when};

/// A copy of the finished run.
fn finished() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    crate::folder::copy(&REFERENCE.run, &run);
    (folder, run)
}

#[test]
fn a_folder_of_another_experiment_is_refused_and_left_alone() {
    let (_folder, run) = finished();
    let before = files(&run);
    let other = ["--set", "seed=7", "--set", "pretrain.lr=1e-3"];
    REFERENCE.cohort.run(&run, &other).with_error([
        "belongs to another experiment",
        "seed: 0 -> 7",
        "pretrain.lr: 0.0005 -> 0.001",
        "--out",
        "--update",
    ]);
    assert_same(&files(&run), &before);
    let out = run.to_str().unwrap();
    gensis(["tile", "--out", out, "--set", "grid.size=64"]).with_error(["grid.size: 128 -> 64"]);
    assert_same(&files(&run), &before);
}

#[test]
fn a_folder_with_other_files_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("thesis")).unwrap();
    fs::write(folder.path().join("thesis/chapter.tex"), b"precious").unwrap();
    let before = files(folder.path());
    for more in [&[][..], &["--update"]] {
        REFERENCE.cohort.run(folder.path(), more).with_error(["files that gensis did not write", "--out"]);
        assert_same(&files(folder.path()), &before);
    }
    let file = folder.path().join("thesis/chapter.tex");
    REFERENCE.cohort.run(&file, &[]).with_error(["chapter.tex"]);
    assert_same(&files(folder.path()), &before);
}

#[test]
fn an_update_redoes_only_what_its_settings_touch() {
    let (_folder, run) = finished();
    let before = results(&run);
    let ended = REFERENCE.cohort.run(&run, &["--set", "evaluate.slide.epochs=5", "--update"]).with_code(0);
    let ended = ended.saying(["pretrain: up to date", "evaluate: dino, 3 folds"]);
    assert_eq!(ended.stderr.matches("(12 up to date)").count(), 2, "{}", ended.stderr);
    let after = results(&run);
    for untouched in ["20x_", "pretrain/", "thumbnails/", "cohort.csv", "stages/tile", "stages/embed"] {
        assert_same(&below(&after, untouched), &below(&before, untouched));
    }
    for touched in ["experiment.toml", "stages/evaluate.json", "results/slide_scores.csv"] {
        assert!(after[touched] != before[touched], "{touched} is the old one");
    }
    // And back again.
    REFERENCE.cohort.run(&run, &["--update"]).with_code(0);
    assert_same(&results(&run), &before);
}

/// Slides as other laboratories would show them, asked of the heads that are there.
#[test]
fn shifted_slides_come_beside_the_figures_of_the_slides() {
    let (_folder, run) = finished();
    let out = run.to_str().unwrap();
    let robustness = |more: &[&str]| gensis(["evaluate", "robustness", "--out", out].iter().chain(more));
    robustness(&[]).with_error(["evaluate.robustness.tissue=true"]);
    let before = results(&run);
    let settings = [
        "evaluate.robustness.tissue=true",
        "evaluate.robustness.shifts=[\"brightness\", \"jpeg\"]",
        "evaluate.robustness.slides=8",
        "evaluate.robustness.patches=6",
    ];
    let settings: Vec<&str> = settings.into_iter().flat_map(|setting| ["--set", setting]).chain(["--update"]).collect();
    robustness(&settings).with_code(0);
    let after = results(&run);
    for kept in ["heads/", "heatmap/", "results/slide_scores", "stages/evaluate/slide"] {
        assert_same(&below(&after, kept), &below(&before, kept));
    }
    let rows = table(&run.join("results/results.csv"));
    let slides = rows.iter().filter(|row| row["task"] == "slide").count();
    assert_eq!(slides, 4 * 9, "three folds and their pool stay");
    let of = |metric: &str| -> Vec<(String, f64)> {
        let found =
            |row: &&std::collections::BTreeMap<String, String>| row["task"] == "robustness" && row["metric"] == metric;
        rows.iter().filter(found).map(|row| (row["head"].clone(), row["value"].parse().unwrap())).collect()
    };
    let heads = |points: &[(String, f64)]| points.iter().map(|point| point.0.clone()).collect::<Vec<_>>();
    let (accuracy, cosine) = (of("abmil_accuracy"), of("cosine"));
    assert_eq!(accuracy[0].0, "clean@0");
    assert_eq!(heads(&accuracy[1..]), heads(&cosine));
    assert_eq!(accuracy.len(), 1 + 2 * 6 + 1);
    assert_eq!(heads(&of("abmil_macro_auc")), heads(&accuracy));
    let value = |points: &[(String, f64)], head: &str| points.iter().find(|point| point.0 == head).unwrap().1;
    for shift in ["brightness", "jpeg"] {
        let [least, most] = [1, 5].map(|severity| value(&cosine, &format!("{shift}@{severity}")));
        assert!(most < least && least < 1.0, "{shift}: {cosine:?}");
    }
    let n: Vec<&str> =
        rows.iter().filter(|row| row["metric"] == "abmil_accuracy").map(|row| row["n"].as_str()).collect();
    assert!(n.iter().all(|n| *n == "8"), "{n:?}");
    // Nothing is left for everything, which these settings are part of now.
    gensis(["evaluate", "--out", out]).with_code(0);
    assert_same(&below(&results(&run), "results/"), &below(&after, "results/"));
    // Without the heads there is nobody to ask.
    let forgotten = ["--set", "evaluate.slide.keep_heads=false", "--update"];
    robustness(&forgotten).with_error(["holds no trained heads"]);
    gensis(["evaluate", "--out", out]).with_code(3).saying(["holds no trained heads"]);
    // It is tried again.
    gensis(["evaluate", "--out", out]).with_code(3).saying(["holds no trained heads"]);
    assert!(table(&run.join("results/results.csv")).iter().any(|row| row["task"] == "slide"));
}

#[test]
fn the_untrained_network_can_be_scored_beside_the_trained_one() {
    let (_folder, run) = finished();
    let before = results(&run);
    let baseline = ["--set", r#"evaluate.slide.baselines=["random"]"#, "--update"];
    REFERENCE.cohort.run(&run, &baseline).with_code(0).saying(["pretrain: up to date", "evaluate: random, 3 folds"]);
    let features = |encoder: &str| {
        let path = run.join(format!("{JOB}/features_{encoder}/s00.h5"));
        slide_io::h5::read_features(&path).unwrap()
    };
    let (trained, untrained) = (features("dino"), features("random"));
    assert_eq!(trained.coordinates.origins, untrained.coordinates.origins);
    assert_eq!((trained.dim, &untrained.encoder[..]), (untrained.dim, "random"));
    assert!(trained.values != untrained.values);
    let rows = table(&run.join("results/results.csv"));
    let of = |encoder: &str| rows.iter().filter(|row| row["encoder"] == encoder).cloned().collect::<Vec<_>>();
    assert_eq!((of("dino").len(), of("random").len()), (rows.len() / 2, rows.len() / 2));
    // The trained encoder's own figures are not touched by what stands beside it.
    let scores = |files: &Files| String::from_utf8(files["results/slide_scores.csv"].clone()).unwrap();
    let (alone, beside) = (scores(&before), scores(&results(&run)));
    let random = beside.strip_prefix(&alone).expect("dino's rows, then those of the untrained network");
    assert!(random.lines().count() == SLIDES && random.lines().all(|line| line.starts_with("random,")), "{random}");
    let pixels = ["--set", r#"evaluate.slide.baselines=["pixels"]"#];
    REFERENCE.cohort.run(&run, &pixels).with_error(["evaluate.slide.baselines", "evaluate.knn"]);
}

/// Twelve slides of six patients, two encoders, seven heads.
#[test]
fn every_head_is_scored_and_patients_can_be_bags() {
    let (_folder, run) = finished();
    let all = r#"evaluate.slide.aggregators=["mean","max","abmil","clam_sb","clam_mb","dsmil","transmil"]"#;
    let more =
        [r#"evaluate.slide.baselines=["random"]"#, "evaluate.slide.by_patient=true", "evaluate.slide.balanced=true"];
    let settings: Vec<&str> = [all].into_iter().chain(more).flat_map(|setting| ["--set", setting]).collect();
    let ended = REFERENCE.cohort.run(&run, &[&settings[..], &["--update"]].concat()).with_code(0);
    ended.saying([
        "evaluate: dino, 3 folds x 1 seeds of mean, max",
        " slides/s (",
        "pretrain: up to date",
        "dsmil, transmil",
    ]);
    let column = |file: &str, name: &str| -> Vec<String> {
        let mut values: Vec<_> = table(&run.join(file)).into_iter().map(|row| row[name].clone()).collect();
        values.sort_unstable();
        values.dedup();
        values
    };
    let heads = ["abmil", "clam_mb", "clam_sb", "dsmil", "max", "mean", "transmil"];
    for file in ["results/results.csv", "results/slide_scores.csv", "results/comparisons.csv"] {
        assert_eq!(column(file, "head"), heads, "{file}");
    }
    assert_eq!(column("results/slide_scores.csv", "slide"), ["p0", "p1", "p2", "p3", "p4", "p5"]);
    assert_eq!(table(&run.join("results/slide_scores.csv")).len(), 2 * 7 * 6);
    let tests = table(&run.join("results/comparisons.csv"));
    // Nine metrics, and DeLong's test of both classes: every patient is one item.
    assert_eq!(tests.len(), 7 * (9 + 2));
    for test in &tests {
        assert_eq!((&test["first"][..], &test["second"][..], &test["n"][..]), ("dino", "random", "6"));
        let p: f64 = test["p"].parse().unwrap();
        assert!((0.0..=1.0).contains(&p), "{test:?}");
    }
    // One slide of a patient is labelled otherwise: no bag has two labels.
    let refused = REFERENCE.cohort.copy(&run.join("../relabelled"));
    let csv = fs::read_to_string(refused.labels()).unwrap();
    refused.write_labels(&csv.replace("s02,p0,dots", "s02,p0,stripes"));
    refused.run(&run.join("../other"), &settings).with_error(["evaluate.slide.by_patient", "patient p0", "s02"]);
    let narrow = ["--set", all, "--set", "evaluate.slide.hidden=12"];
    REFERENCE.cohort.run(&run, &narrow).with_error(["[evaluate.slide]", "hidden is a multiple of 8, not 12"]);
}

/// A stage by itself works on what the stages before it made with the same settings, or not at all.
#[test]
fn scores_of_another_encoder_or_of_other_embeddings_are_not_given() {
    let (_folder, run) = finished();
    let out = run.to_str().unwrap();
    let evaluate = |setting: &str| gensis(["evaluate", "--out", out, "--update", "--set", setting]);
    evaluate("model.depth=1").with_error(["no encoder trained with these settings", "gensis pretrain"]);
    let recorded = REFERENCE.cohort.experiment();
    let again = ["--out", out, "--update", "--config", recorded.to_str().unwrap()];
    gensis(["evaluate"].into_iter().chain(again).chain(["--set", "embed.resize=48"])).with_error(["gensis embed"]);
    gensis(["evaluate"].into_iter().chain(again)).with_code(0);
    assert_same(&results(&run), &results(&REFERENCE.run));
}

/// Features of another tool beside a csv: neither slides nor an encoder are needed.
#[test]
fn features_made_elsewhere_are_scored_as_our_own_are() {
    let folder = tempfile::tempdir().unwrap();
    let [features, out] = ["features_uni_v1", "scored"].map(|name| folder.path().join(name));
    crate::folder::copy(&REFERENCE.run.join(JOB).join("features_dino"), &features);
    let (config, slides) = (REFERENCE.cohort.experiment(), features.join("*.h5"));
    let setting = format!("evaluate.slide.features=[{features:?}]");
    let line = ["evaluate", "slide", "--config", config.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let more = ["--slides", slides.to_str().unwrap(), "--set", &setting];
    let evaluate = || gensis(line.into_iter().chain(more));
    evaluate().with_code(0).saying(["only features made elsewhere"]);
    let figures = |run: &std::path::Path| -> Vec<_> {
        let rows = table(&run.join("results/results.csv"));
        rows.into_iter()
            .map(|row| ["head", "metric", "fold", "seed", "value", "low", "high", "n"].map(|c| row[c].clone()))
            .collect()
    };
    assert_eq!(figures(&out), figures(&REFERENCE.run));
    let rows = table(&out.join("results/results.csv"));
    assert!(rows.iter().all(|row| row["encoder"] == "uni_v1"), "{:?}", rows[0]);
    // One that is damaged is left out and listed; a folder of nothing is an error.
    fs::write(features.join("s03.h5"), b"not HDF5").unwrap();
    evaluate().with_code(3);
    assert!(failures(&out).iter().any(|(stage, item, _)| stage == "evaluate" && item == "s03"));
    assert!(table(&out.join("results/results.csv")).iter().any(|row| row["n"] == "11"));
    gensis(["report", out.to_str().unwrap()]).with_code(0);
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(report.contains("12 slides</th><td>11 with features, 1 left out") && report.contains("s03.h5"), "{report}");
    let wrong = format!("evaluate.slide.features=[{:?}]", folder.path());
    gensis(line.into_iter().chain(["--slides", slides.to_str().unwrap(), "--update", "--set", &wrong]))
        .with_error(["evaluate.slide.features", "holds no <slide id>.h5"]);
}

#[test]
fn resuming_needs_something_to_resume() {
    let (folder, run) = finished();
    let config = REFERENCE.cohort.experiment();
    let pretrain = |out: &std::path::Path| {
        gensis(["pretrain", "--resume", "--config", config.to_str().unwrap(), "--out", out.to_str().unwrap()])
    };
    pretrain(&run).with_code(0).saying(["pretrain: up to date"]);
    fs::remove_file(run.join("stages/pretrain.json")).unwrap();
    fs::remove_file(run.join("pretrain/encoder.safetensors")).unwrap();
    pretrain(&run).with_code(0);
    assert_same(&results(&run), &results(&REFERENCE.run));
    let fresh = folder.path().join("fresh");
    let tile = ["tile", "--config", config.to_str().unwrap(), "--out", fresh.to_str().unwrap()];
    gensis(tile).with_code(0);
    pretrain(&fresh).with_error(["nothing to resume", "--resume"]);
}

#[test]
fn an_update_that_is_killed_does_not_continue_the_old_training() {
    let (folder, run) = finished();
    let other = ["--set", "pretrain.lr=1e-3", "--update"];
    let command = REFERENCE.cohort.command(&run, &other);
    let begun = kill_when(&command, |said| said.contains("pretrain:"));
    assert!(matches!(begun, Stopped::Killed));
    gensis(&command).with_code(0);
    let fresh = folder.path().join("fresh");
    REFERENCE.cohort.run(&fresh, &other[..2]).with_code(0);
    let (kept, found): (Files, Files) =
        results(&run).into_iter().partition(|(name, _)| name.starts_with("pretrain.old"));
    assert_same(&found, &results(&fresh));
    // Hours of training are not thrown away.
    let old = results(&REFERENCE.run).remove("pretrain/encoder.safetensors").unwrap();
    assert!(kept["pretrain.old-1/encoder.safetensors"] == old);
}

#[test]
fn a_slide_that_is_lost_takes_its_old_features_with_it() {
    let (folder, run) = finished();
    let cohort = REFERENCE.cohort.copy(&folder.path().join("cohort"));
    fs::write(cohort.slide("s05.tiff"), b"").unwrap();
    cohort.run(&run, &["--update"]).with_code(3);
    let failed = failures(&run);
    assert!(failed.iter().any(|(stage, item, _)| stage == "tile" && item == "s05"), "{failed:?}");
    assert!(failed.iter().any(|(stage, item, _)| stage == "evaluate" && item == "s05"), "{failed:?}");
    let scored = table(&run.join("results/slide_scores.csv"));
    assert_eq!(scored.len(), SLIDES - 1);
    assert!(scored.iter().all(|row| row["slide"] != "s05"));
    let left: Vec<_> = results(&run).into_keys().filter(|name| name.contains("s05") && name.ends_with(".h5")).collect();
    assert_eq!(left, Vec::<String>::new());
}

/// A disk that is not there for a while: what was made of its slides stays, is not used meanwhile, and is then right again.
#[test]
fn a_slide_that_is_away_keeps_what_was_made_of_it() {
    let (folder, run) = finished();
    let cohort = REFERENCE.cohort.copy(&folder.path().join("cohort"));
    let (slide, disk) = (cohort.slide("s05.tiff"), folder.path().join("disk.tiff"));
    fs::rename(&slide, &disk).unwrap();
    std::os::unix::fs::symlink(&disk, &slide).unwrap();
    let experiment = cohort.experiment();
    let stage = |stage: &str| {
        gensis([stage, "--config", experiment.to_str().unwrap(), "--out", run.to_str().unwrap(), "--update"])
    };
    let before = results(&run);
    fs::rename(&disk, folder.path().join("unplugged.tiff")).unwrap();
    stage("tile").with_code(3);
    assert!(failures(&run).iter().any(|(stage, item, _)| stage == "tile" && item == "s05"));
    let of_slide = |files: &Files| -> Files {
        let kept = |name: &&String| name.starts_with(JOB) && name.contains("s05");
        files.iter().filter(|(name, _)| kept(name)).map(|(name, bytes)| (name.clone(), bytes.clone())).collect()
    };
    assert!(of_slide(&before).len() >= 3);
    assert_same(&of_slide(&results(&run)), &of_slide(&before));
    fs::rename(folder.path().join("unplugged.tiff"), &disk).unwrap();
    stage("tile").with_code(0).saying(["(12 up to date)"]);
    stage("embed").with_code(0).saying(["(12 up to date)"]);

    // Away when nobody has said so: nothing goes on without it unasked. What other settings made of it does not stay.
    fs::rename(&disk, folder.path().join("unplugged.tiff")).unwrap();
    let exported = folder.path().join("exported");
    gensis(["export", "patches", run.to_str().unwrap(), "--out", exported.to_str().unwrap()])
        .with_error(["s05.tiff cannot be read", "gensis tile"]);
    let other = ["tile", "--config", experiment.to_str().unwrap(), "--out", run.to_str().unwrap(), "--update"];
    gensis(other.into_iter().chain(["--pack", "--set", "grid.min_tissue=0.6"])).with_code(3);
    assert!(!run.join(JOB).join("patches/s05_patches.h5").exists());
    assert_eq!(run.join(JOB).join("packed").read_dir().unwrap().count(), 2 * (SLIDES - 1));
}

/// A swap in the middle of a long file of a split changes the folds, and is seen.
#[test]
fn an_edited_file_of_a_split_is_seen_whatever_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<(String, u32)> = (0..16).map(|i| (format!("s{i:02}"), i % 2)).collect();
    let csv: String = names.iter().map(|(name, class)| format!("{name},{class}\n")).collect();
    let cohort = FeatureCohort::write(folder.path(), &names, &format!("slide_id,label\n{csv}"));
    let (run, split) = (folder.path().join("run"), folder.path().join("splits_0.csv"));
    let padding = "nobody,,\n".repeat(10_000);
    let write = |first: &str, second: &str| {
        let parts = format!("s00,s02,{first}\ns01,s03,{second}\ns06,,s08\ns07,,s09\n");
        // Spreadsheets begin with a byte order mark and separate by what they like.
        let text = format!("\u{feff}train,val,test\n{padding}{parts}{padding}").replace(',', ";");
        fs::write(&split, text).unwrap();
    };
    let setting = format!("evaluate.slide.splits=[{split:?}]");
    let evaluate = || cohort.evaluate(&run, &["--set", &setting, "--allow-missing"]).with_code(0);
    write("s04", "s05");
    evaluate();
    evaluate().saying(["evaluate: up to date"]);
    write("s10", "s05");
    evaluate();
    let tested: Vec<String> =
        table(&run.join("results/slide_scores.csv")).into_iter().map(|row| row["slide"].clone()).collect();
    assert_eq!(tested, ["s05", "s08", "s09", "s10"]);
}

#[test]
fn two_runs_in_one_folder_are_kept_apart() {
    let folder = tempfile::tempdir().unwrap();
    let cohort = Cohort::draw(&folder.path().join("cohort"));
    let run = folder.path().join("run");
    let stopped = kill_when(cohort.command(&run, &[]), |said| {
        let going = said.contains("pretrain:");
        if going {
            cohort.run(&run, &[]).with_error(["in use by another gensis process"]);
        }
        going
    });
    assert!(matches!(stopped, Stopped::Killed));
}
