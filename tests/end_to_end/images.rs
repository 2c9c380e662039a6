//! Image folders instead of slides.

use std::fs;
use std::path::Path;

use crate::cohort::{EXPERIMENT, section};
use crate::folder::{assert_same, failures, results, table};
use crate::program::{Ended, Stopped, gensis, holds_file, kill_when};

/// Eight training and four test images of each of two classes, PNG and JPEG, 64 px.
pub fn draw(root: &Path) {
    for (class, stripes) in [("dots", false), ("stripes", true)] {
        for (part, count) in [("train", 8), ("test", 4)] {
            let folder = root.join(part).join(class);
            fs::create_dir_all(&folder).unwrap();
            let whole = section(7 + u64::from(part == "test"), stripes);
            for number in 0..count {
                let image = image::imageops::crop_imm(&whole, 200 + 64 * (number % 4), 200 + 64 * (number / 4), 64, 64);
                let extension = if number % 2 == 0 { "png" } else { "jpg" };
                image.to_image().save(folder.join(format!("{number}.{extension}"))).unwrap();
            }
        }
    }
}

/// `gensis run` of an experiment on them.
pub fn run(images: &Path, out: &Path, more: &[&str]) -> Ended {
    gensis(command(images, out).iter().map(String::as_str).chain(more.iter().copied()))
}

/// The arguments of [`run`].
fn command(images: &Path, out: &Path) -> Vec<String> {
    let file = images.with_extension("toml");
    fs::write(&file, format!("[data]\nimages = {images:?}\n{EXPERIMENT}")).unwrap();
    let baselines = r#"evaluate.knn.baselines=["random", "pixels"]"#;
    ["run", file.to_str().unwrap(), "--out", out.to_str().unwrap(), "--set", baselines].map(str::to_owned).into()
}

#[test]
fn image_folders_are_scored_by_k_nn_beside_the_baselines() {
    let folder = tempfile::tempdir().unwrap();
    let [images, out, again] = ["images", "run", "again"].map(|name| folder.path().join(name));
    draw(&images);
    run(&images, &out, &[]).with_code(0);
    assert_eq!(failures(&out), []);
    let rows = table(&out.join("results/results.csv"));
    for encoder in ["dino", "random", "pixels"] {
        let row = rows.iter().find(|row| row["encoder"] == encoder && row["metric"] == "accuracy").unwrap();
        let accuracy: f64 = row["value"].parse().unwrap();
        assert!((0.0..=1.0).contains(&accuracy), "{row:?}");
        assert_eq!((&row["task"][..], &row["head"][..], &row["n"][..]), ("knn", "3-NN", "8"));
    }
    assert!(rows.iter().all(|row| ["dino", "random", "pixels"].contains(&&row["encoder"][..])));
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(report.contains("pixels") && report.contains("3-NN"));
    let ended = run(&images, &out, &[]).with_code(0).saying([
        "pretrain: up to date",
        "evaluate: up to date",
        "figures: up to date",
    ]);
    assert_eq!(
        ended.stderr.matches("embed: ").count(),
        ended.stderr.matches(": up to date").count() - 3,
        "{}",
        ended.stderr
    );
    run(&images, &again, &["--threads", "1"]).with_code(0);
    assert_same(&results(&again), &results(&out));
}

#[test]
fn a_damaged_table_costs_the_rows_of_its_encoder_alone() {
    let folder = tempfile::tempdir().unwrap();
    let [images, out] = ["images", "run"].map(|name| folder.path().join(name));
    draw(&images);
    run(&images, &out, &[]).with_code(0);
    let whole = table(&out.join("results/results.csv"));
    fs::write(out.join("features/dino-test.parquet"), b"not a table").unwrap();
    let out_text = out.to_str().unwrap();
    gensis(["evaluate", "knn", "--update", "--set", "evaluate.knn.k=[2]", "--out", out_text]).with_code(3);
    let found = failures(&out);
    let [(stage, item, reason)] = &found[..] else { panic!("{found:?}") };
    assert_eq!((&stage[..], &item[..]), ("evaluate", "dino, k-NN"));
    assert!(reason.contains("dino-test.parquet") && reason.contains("run `gensis embed`"), "{reason}");
    let rows = table(&out.join("results/results.csv"));
    for (encoder, scored) in [("dino", false), ("random", true), ("pixels", true)] {
        assert_eq!(rows.iter().any(|row| row["encoder"] == encoder && row["head"] == "2-NN"), scored, "{encoder}");
    }
    // The whole run makes the table again.
    run(&images, &out, &["--update"]).with_code(0);
    assert_eq!(table(&out.join("results/results.csv")), whole);
}

#[test]
fn a_run_on_images_killed_in_training_and_in_embedding_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let [images, out, whole] = ["images", "run", "whole"].map(|name| folder.path().join(name));
    draw(&images);
    run(&images, &whole, &[]).with_code(0);
    let command = command(&images, &out);
    let steps = || fs::read_to_string(out.join("pretrain/metrics.jsonl")).map_or(0, |text| text.lines().count());
    let moments: [&dyn Fn(&str) -> bool; 2] = [&|_| steps() > 0, &|_| holds_file(&out.join("features"), ".parquet")];
    for moment in moments {
        assert!(matches!(kill_when(&command, moment), Stopped::Killed), "it ended before it could be killed");
        assert!(!out.join("report.html").exists());
    }
    gensis(&command).with_code(0);
    assert_same(&results(&out), &results(&whole));
}

#[test]
fn an_image_that_cannot_be_read_is_listed_and_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let [images, out] = ["images", "run"].map(|name| folder.path().join(name));
    draw(&images);
    let bad = ["dots/broken.png", "dots/gone.png"];
    fs::write(images.join("train").join(bad[0]), b"not a picture").unwrap();
    std::os::unix::fs::symlink("/nowhere", images.join("train").join(bad[1])).unwrap();
    run(&images, &out, &[]).with_code(3).saying(["failures.csv"]);
    let failed = failures(&out);
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    for name in bad {
        assert!(failed.iter().any(|(stage, item, _)| stage == "embed" && item == name), "{failed:?}");
        assert!(report.contains(name));
    }
    assert!(failed.iter().all(|(_, item, reason)| bad.contains(&&item[..]) && !reason.is_empty()), "{failed:?}");
    let rows = table(&out.join("results/results.csv"));
    assert!(rows.iter().all(|row| row["n"] == "8"), "{rows:?}");
}

#[test]
fn slide_level_scores_of_images_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [images, out] = ["images", "run"].map(|name| folder.path().join(name));
    draw(&images);
    let line = ["tile", "--images", images.to_str().unwrap(), "--out", out.to_str().unwrap()];
    gensis(line).with_code(0).saying(["need no tiling"]);
    fs::write(images.join("train/loose.png"), b"").unwrap();
    gensis(["pretrain", "--out", out.to_str().unwrap()]).with_error(["loose.png", "beside class folders"]);
}
