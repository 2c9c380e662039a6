//! Linear probes and robustness benchmarks on image folders.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use evaluation::robustness::CORRUPTIONS;

use crate::folder::{assert_same, failures, results, table};
use crate::images::{draw, run};
use crate::program::gensis;

/// Settings of a run with everything on.
pub const ALL: [&str; 12] = [
    "--set",
    "evaluate.linear.enabled=true",
    "--set",
    "evaluate.linear.blocks=2",
    "--set",
    "evaluate.linear.epochs=3",
    "--set",
    "evaluate.linear.shots=[1, 2]",
    "--set",
    "evaluate.robustness.tissue=true",
    "--set",
    "evaluate.robustness.shifts=[\"stain\", \"jpeg\"]",
];

type Row = BTreeMap<String, String>;

fn rows(out: &Path, task: &str) -> Vec<Row> {
    table(&out.join("results/results.csv")).into_iter().filter(|row| row["task"] == task).collect()
}

fn value(row: &Row) -> f64 {
    row["value"].parse().unwrap()
}

#[test]
fn probes_and_shifts_give_rows_that_threads_do_not_change() {
    let folder = tempfile::tempdir().unwrap();
    let [images, out, again] = ["images", "run", "again"].map(|name| folder.path().join(name));
    draw(&images);
    run(&images, &out, &ALL).with_code(0);
    let linear = rows(&out, "linear");
    let heads = |encoder: &str| -> BTreeSet<&str> {
        linear.iter().filter(|row| row["encoder"] == encoder).map(|row| row["head"].as_str()).collect()
    };
    let names =
        ["logistic, 2 blocks", "sgd, 2 blocks, last epoch", "sgd, 2 blocks, best epoch on test", "1-shot, 2 blocks"];
    for encoder in ["dino", "random"] {
        assert_eq!(heads(encoder), names.into_iter().chain(["2-shot, 2 blocks"]).collect());
    }
    // The best epoch on the test images is no worse than the last there.
    let accuracy = |head: &str| {
        let found = |row: &&Row| row["encoder"] == "dino" && row["head"] == head && row["metric"] == "accuracy";
        linear.iter().filter(found).map(value).collect::<Vec<_>>()
    };
    assert!(accuracy("sgd, 2 blocks, best epoch on test")[0] >= accuracy("sgd, 2 blocks, last epoch")[0]);
    assert_eq!(accuracy("1-shot, 2 blocks").len(), 5, "a row per draw");
    let record = fs::read_to_string(out.join("results/linear.json")).unwrap();
    assert!(record.contains("candidates") && record.contains("best_epoch_on_test"));

    let shifted = rows(&out, "robustness");
    let of = |encoder: &str, metric: &str| -> BTreeMap<String, f64> {
        let found = |row: &&Row| row["encoder"] == encoder && row["metric"] == metric;
        shifted.iter().filter(found).map(|row| (row["head"].clone(), value(row))).collect()
    };
    for encoder in ["dino", "random"] {
        for metric in ["knn_accuracy", "linear_accuracy", "cosine"] {
            let curve = of(encoder, metric);
            for shift in ["stain", "jpeg"] {
                let points: Vec<f64> = (1..=5).map(|severity| curve[&format!("{shift}@{severity}")]).collect();
                let mean = points.iter().sum::<f64>() / 5.0;
                assert!((curve[&format!("{shift}@mean")] - mean).abs() < 1e-9, "{metric} {curve:?}");
                assert!(points.iter().all(|point| (-1.0..=1.0).contains(point)));
            }
            assert_eq!(curve.contains_key("clean@0"), metric != "cosine");
            assert_eq!(curve.len(), 13 + usize::from(metric != "cosine"));
        }
        assert!(of(encoder, "cosine")["jpeg@5"] < 1.0);
    }
    // A chart of each metric and shift, with a line for each encoder.
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    let charts =
        report.split("<section id=\"robustness\"").nth(1).and_then(|rest| rest.split("</section>").next()).unwrap();
    assert_eq!(charts.matches("<svg").count(), 3 * 2);
    assert!(["stain", "jpeg", "dino", "random"].iter().all(|name| charts.contains(name)));
    run(&images, &out, &ALL).with_code(0).saying(["evaluate: up to date"]);
    run(&images, &again, &[&ALL[..], &["--threads", "1"]].concat()).with_code(0);
    assert_same(&results(&again), &results(&out));
}

#[test]
fn what_cannot_be_probed_is_listed_and_the_rest_is_scored() {
    let folder = tempfile::tempdir().unwrap();
    let [images, out] = ["images", "run"].map(|name| folder.path().join(name));
    draw(&images);
    run(&images, &out, &[]).with_code(0);
    let stage = |task: &str, more: &[&str]| {
        let out = out.to_str().unwrap();
        gensis(["evaluate", task, "--out", out, "--update", "--set", "evaluate.linear.blocks=1"].iter().chain(more))
    };
    // Eight images of each class, of which one cannot be read any more.
    let settings = ["--set", "evaluate.linear.shots=[2, 9]", "--set", "evaluate.linear.epochs=2"];
    stage("linear", &settings).with_code(3).saying(["9-shot", "8 training images of 9"]);
    assert!(rows(&out, "linear").iter().any(|row| row["head"] == "2-shot" && row["encoder"] == "dino"));
    // The neighbours do not depend on these settings: their figures stay, and both lie in one table with what failed.
    let (knn, linear) = (rows(&out, "knn"), rows(&out, "linear"));
    assert!(!knn.is_empty());
    stage("knn", &settings).with_code(3);
    assert!(rows(&out, "knn") == knn && rows(&out, "linear") == linear);
    assert!(out.join("results/linear.json").exists());
    stage("knn", &settings).with_code(3).saying(["evaluate: up to date"]);
    // Everything is what the settings ask for; what was asked for by name stays beside it.
    gensis(["evaluate", "--out", out.to_str().unwrap()]).with_code(3);
    gensis(["evaluate", "linear", "--out", out.to_str().unwrap()]).with_code(3).saying(["evaluate: up to date"]);
    gensis(["evaluate", "fid", "--out", out.to_str().unwrap()]).with_error(["run `gensis autoencoder` first"]);
    assert!(rows(&out, "knn") == knn && rows(&out, "linear") == linear);
    // What fails with other settings costs its own figures of the old ones.
    stage("linear", &["--set", "evaluate.linear.blocks=3"]).with_error(["evaluate.linear.blocks is 3", "2 blocks"]);
    assert!(rows(&out, "knn") == knn && rows(&out, "linear").is_empty() && !out.join("results/linear.json").exists());
    stage("robustness", &[]).with_error(["evaluate.robustness.tissue=true"]);
    stage("linear", &["--set", "evaluate.linear.l2=[]"]).with_error(["[evaluate.linear]", "at least one penalty"]);
}

#[test]
fn random_crops_go_through_the_encoder_every_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let [images, out] = ["images", "run"].map(|name| folder.path().join(name));
    draw(&images);
    run(&images, &out, &[]).with_code(0);
    let probe = |augment: &str| {
        let augment = format!("evaluate.linear.augment={augment}");
        let line = ["evaluate", "linear", "--update", "--out", out.to_str().unwrap(), "--set", &augment];
        let more = ["evaluate.linear.epochs=2", "evaluate.linear.blocks=2", "evaluate.linear.probes=[\"sgd\"]"];
        gensis(line.into_iter().chain(more.iter().flat_map(|setting| ["--set", setting]))).with_code(0);
        fs::read_to_string(out.join("results/linear.json")).unwrap()
    };
    let (streamed, stored) = (probe("true"), probe("false"));
    assert!(streamed.contains("sgd, augmented, 2 blocks") && !stored.contains("augmented"));
    assert_ne!(streamed, stored);
    assert_eq!(probe("true"), streamed);
}

/// A folder of class folders with two images each.
fn set(root: &Path, classes: &[&str]) {
    for class in classes {
        let to = root.join(class);
        fs::create_dir_all(&to).unwrap();
        for name in ["a.png", "b.png"] {
            let shade = class.len() as u8 * 20;
            image::RgbImage::from_pixel(48, 40, image::Rgb([shade, 90, 200])).save(to.join(name)).unwrap();
        }
    }
}

#[test]
fn imagenet_sets_are_matched_by_class_and_bad_ones_listed() {
    let folder = tempfile::tempdir().unwrap();
    let [images, out, sets] = ["images", "run", "sets"].map(|name| folder.path().join(name));
    draw(&images);
    set(&sets.join("a"), &["stripes"]);
    set(&sets.join("sketch"), &["dots", "stripes", "unknown"]);
    set(&sets.join("v2"), &["0", "1"]);
    for severity in 1..=5 {
        set(&sets.join(format!("c/weather/fog/{severity}")), &["dots", "stripes"]);
    }
    let at = |name: &str| sets.join(name).display().to_string();
    let robustness = [
        format!("evaluate.robustness.imagenet_a={}", at("a")),
        format!("evaluate.robustness.imagenet_r={}", at("gone")),
        format!("evaluate.robustness.imagenet_sketch={}", at("sketch")),
        format!("evaluate.robustness.imagenet_v2=[\"{}\"]", at("v2")),
        format!("evaluate.robustness.imagenet_c={}", at("c")),
        "evaluate.linear.blocks=1".to_owned(),
        "evaluate.linear.l2=[0.1]".to_owned(),
        "evaluate.robustness.k=3".to_owned(),
    ];
    let settings: Vec<&str> = robustness.iter().flat_map(|setting| ["--set", setting.as_str()]).collect();
    run(&images, &out, &settings).with_code(3);
    let failed = failures(&out);
    for (item, reason) in [
        (at("gone"), "gone"),
        (at("sketch"), "1 of its classes (unknown"),
        (at("v2"), "the training images have 2"),
        (at("c"), "70 of 75 folders of ImageNet-C are missing"),
    ] {
        assert!(failed.iter().any(|(_, i, r)| *i == item && r.contains(reason)), "{item} {reason}: {failed:?}");
    }
    let rows = rows(&out, "robustness");
    let count = |data: &str, head: &str, metric: &str| -> Vec<String> {
        let found =
            |row: &&Row| [&row["data"], &row["head"], &row["metric"], &row["encoder"]] == [data, head, metric, "dino"];
        rows.iter().filter(found).map(|row| row["n"].clone()).collect()
    };
    for head in ["linear", "3-NN"] {
        assert_eq!(count("imagenet-a", head, "accuracy"), ["2"]);
        assert_eq!(count("images, classes of imagenet-a", head, "accuracy"), ["4"]);
        assert_eq!(count("imagenet-sketch", head, "accuracy"), ["4"]);
    }
    // Among one class alone every answer is right.
    let only = rows.iter().find(|row| row["data"] == "imagenet-a" && row["metric"] == "accuracy").unwrap();
    assert_eq!(value(only), 1.0);
    assert_eq!(count("imagenet-c", "fog@5", "linear_accuracy"), ["4"]);
    assert_eq!(count("imagenet-c", "fog@mean", "knn_accuracy"), ["4"]);
    assert!(rows.iter().all(|row| !row["metric"].ends_with("_mce") && !row["metric"].ends_with("_ce")));
}

/// An image of each of ImageNet's thousand classes, whose numbers are the ranks of their names, and shifted sets of some of them.
#[test]
fn a_thousand_classes_give_the_published_subsets_and_corruption_errors() {
    let folder = tempfile::tempdir().unwrap();
    let [images, out, sets] = ["images", "run", "sets"].map(|name| folder.path().join(name));
    let colour = |class: usize, by: usize| [class * 37, class * 101 + by, class * 173 + by].map(|value| value as u8);
    let draw = |root: &Path, class: usize, name: &str, by: usize| {
        fs::create_dir_all(root.join(name)).unwrap();
        image::RgbImage::from_pixel(32, 32, image::Rgb(colour(class, by))).save(root.join(name).join("a.png")).unwrap();
    };
    let wnid = |class: usize| format!("n{class:08}");
    // The first three are classes of ImageNet-A.
    let tested = [6, 11, 13, 7, 8, 500];
    (0..1000).for_each(|class| draw(&images.join("train"), class, &wnid(class), 0));
    tested.iter().for_each(|&class| draw(&images.join("test"), class, &wnid(class), 1));
    tested[..2].iter().for_each(|&class| draw(&sets.join("a"), class, &wnid(class), 9));
    tested.iter().for_each(|&class| draw(&sets.join("matched"), class, &class.to_string(), 9));
    for (corruption, _) in CORRUPTIONS {
        for severity in 1..=5 {
            let set = sets.join(format!("c/{corruption}/{severity}"));
            tested.iter().for_each(|&class| draw(&set, class, &wnid(class), 4 * severity));
        }
    }
    let at = |name: &str| sets.join(name).display().to_string();
    let settings = [
        format!("evaluate.robustness.imagenet_a={}", at("a")),
        format!("evaluate.robustness.imagenet_v2=[\"{}\"]", at("matched")),
        format!("evaluate.robustness.imagenet_c={}", at("c")),
        "evaluate.linear.blocks=1".to_owned(),
        "evaluate.linear.l2=[0.001]".to_owned(),
        "evaluate.robustness.k=1".to_owned(),
        "evaluate.knn.k=[1]".to_owned(),
        "pretrain.epochs=1".to_owned(),
        "pretrain.warmup_epochs=0".to_owned(),
        "pretrain.knn_every=0".to_owned(),
        "pretrain.batch=100".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting.as_str()]).collect();
    run(&images, &out, &settings).with_code(0);
    let rows = rows(&out, "robustness");
    let find = |data: &str, head: &str, metric: &str| {
        let wanted =
            |row: &&Row| [&row["data"], &row["head"], &row["metric"], &row["encoder"]] == [data, head, metric, "dino"];
        rows.iter().find(wanted).unwrap_or_else(|| panic!("no {metric} of {data}, {head}"))
    };
    for head in ["1-NN", "linear"] {
        let among = value(find("imagenet-a", head, "accuracy"));
        assert_eq!(&find("imagenet-a", head, "accuracy")["n"], "2");
        assert_eq!(&find("images, classes of imagenet-a", head, "accuracy")["n"], "3");
        assert!((0.0..=1.0).contains(&among));
        let (first, fifth) = (find("matched", head, "accuracy"), find("matched", head, "top5_accuracy"));
        assert_eq!((&first["n"][..], &fifth["n"][..]), ("6", "6"));
        assert!(value(fifth) >= value(first));
    }
    // Hendrycks and Dietterich: the errors of the five severities together over AlexNet's, and the mean of the fifteen.
    for classifier in ["knn", "linear"] {
        let mut errors = Vec::new();
        for (corruption, alexnet) in CORRUPTIONS {
            let accuracy = |severity| {
                value(find("imagenet-c", &format!("{corruption}@{severity}"), &format!("{classifier}_accuracy")))
            };
            let wrong: f64 = (1..=5).map(|severity| 1.0 - accuracy(severity)).sum();
            errors.push(wrong / (5.0 * alexnet));
            let error = find("imagenet-c", &format!("{corruption}@mean"), &format!("{classifier}_ce"));
            assert!((value(error) - errors.last().unwrap()).abs() < 1e-12, "{corruption}");
        }
        let mean = find("imagenet-c", "all@mean", &format!("{classifier}_mce"));
        assert!((value(mean) - errors.iter().sum::<f64>() / 15.0).abs() < 1e-12);
    }
    // Same pictures, but for a change of colour that grows.
    assert!(value(find("imagenet-c", "fog@1", "knn_accuracy")) >= value(find("imagenet-c", "fog@5", "knn_accuracy")));
}
