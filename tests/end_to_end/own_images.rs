//! Benchmarks with images of their own: videos, retrieval and copy detection, with drawn data and damaged files.

use std::fs;
use std::path::Path;

use image::{GrayImage, Luma, Rgb, RgbImage};

use crate::folder::{failures, files, table};
use crate::images;
use crate::program::{Ended, gensis};

/// Two videos of six frames in DAVIS's layout, in each a bright square that moves over stripes.
fn draw_videos(root: &Path) {
    for (name, step) in [("slow", 2), ("fast", 6)] {
        let frames = root.join("JPEGImages/480p").join(name);
        let masks = root.join("Annotations/480p").join(name);
        fs::create_dir_all(&frames).unwrap();
        fs::create_dir_all(&masks).unwrap();
        for i in 0..6 {
            let inside = |x: u32, y: u32| (16 + step * i..56 + step * i).contains(&x) && (24..64).contains(&y);
            let colour = |x, y| if inside(x, y) { Rgb([250, 200, 40]) } else { Rgb([30, (x % 16 * 8) as u8, 90]) };
            RgbImage::from_fn(128, 96, colour).save(frames.join(format!("0000{i}.jpg"))).unwrap();
            let mask = GrayImage::from_fn(128, 96, |x, y| Luma([if inside(x, y) { 1 } else { 0 }]));
            mask.save(masks.join(format!("0000{i}.png"))).unwrap();
        }
    }
}

/// A run on drawn images.
fn trained(root: &Path) -> [std::path::PathBuf; 2] {
    let [images, out] = ["images", "run"].map(|name| root.join(name));
    images::draw(&images);
    images::run(&images, &out, &[]).with_code(0);
    [images, out]
}

fn evaluate(out: &Path, task: &str, settings: &[&str]) -> Ended {
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    gensis(["evaluate", task, "--update", "--out", out.to_str().unwrap()].into_iter().chain(settings))
}

#[test]
fn videos_are_scored_and_what_is_damaged_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let [_, out] = trained(folder.path());
    let videos = folder.path().join("davis");
    draw_videos(&videos);
    let place = format!("evaluate.video.folder={videos:?}");
    let settings = [&place[..], "evaluate.video.resize=96", r#"evaluate.video.baselines=["random"]"#];
    evaluate(&out, "video", &settings).with_code(0);
    let rows = table(&out.join("results/video.csv"));
    for encoder in ["dino", "random"] {
        let value = |metric: &str| -> f64 {
            let row = rows.iter().find(|row| row["encoder"] == encoder && row["metric"] == metric).unwrap();
            assert_eq!((&row["task"][..], &row["data"][..], &row["n"][..]), ("video", "davis", "2"));
            row["value"].parse().unwrap()
        };
        // A square of one colour on another ground is followed by any network.
        assert!(value("j_mean") > 0.6, "{encoder}: {}", value("j_mean"));
        assert!((value("j_and_f_mean") - (value("j_mean") + value("f_mean")) / 2.0).abs() < 1e-12);
    }
    let objects = table(&out.join("results/video_objects.csv"));
    assert_eq!(objects.len(), 2 * (2 + 2), "{objects:?}");
    evaluate(&out, "video", &settings).with_code(0).saying(["video: up to date"]);

    // The same masks, scored as those of another program.
    let (masks, scores) = (out.join("video/dino"), folder.path().join("scores"));
    let line =
        ["evaluate", "video", "--masks", masks.to_str().unwrap(), "--out", scores.to_str().unwrap(), "--set", &place];
    gensis(line).with_code(0);
    let again = table(&scores.join("results/video.csv"));
    let figure = |rows: &[std::collections::BTreeMap<String, String>]| {
        rows.iter().find(|row| row["encoder"] == "dino" && row["metric"] == "f_mean").unwrap()["value"].clone()
    };
    assert_eq!(figure(&again), figure(&rows));

    let line = ["evaluate", "video", "--masks", masks.to_str().unwrap(), "--out", out.to_str().unwrap(), "--update"];
    gensis(line.iter().chain(&["--set", &place])).with_error(["its own encoders' masks", "another --out"]);

    // A mask of another size, and a frame that is missing.
    let small = GrayImage::from_pixel(5, 5, Luma([1]));
    small.save(videos.join("Annotations/480p/fast/00002.png")).unwrap();
    evaluate(&out, "video", &settings).with_code(3).saying(["dino, fast"]);
    let failed = failures(&out);
    assert!(
        failed.iter().any(|(stage, item, reason)| stage == "video" && item == "dino, fast" && reason.contains("5 x 5"))
    );
    let rows = table(&out.join("results/video.csv"));
    assert!(rows.iter().all(|row| row["n"] == "1"), "{rows:?}");
    fs::remove_file(videos.join("JPEGImages/480p/slow/00003.jpg")).unwrap();
    evaluate(&out, "video", &settings).with_error(["nothing to score"]);
    gensis(["evaluate", "video", "--out", out.to_str().unwrap(), "--update", "--set", "evaluate.video.folder=''"])
        .with_error(["evaluate.video.folder"]);
}

#[test]
fn test_images_are_retrieved_by_class_and_their_copies_found() {
    let folder = tempfile::tempdir().unwrap();
    let [images, out] = trained(folder.path());
    fs::write(images.join("test/dots/broken.png"), b"not a picture").unwrap();
    evaluate(&out, "retrieval", &["evaluate.retrieval.image_size=32"]).with_code(3).saying(["broken.png"]);
    let rows = table(&out.join("results/retrieval.csv"));
    let metrics: Vec<&str> = rows.iter().map(|row| &row["metric"][..]).collect();
    assert_eq!(metrics, ["map_at_r", "r_precision", "precision_at_1"]);
    assert!(rows.iter().all(|row| (&row["head"][..], &row["n"][..], &row["data"][..]) == ("classes", "8", "images")));
    // Eight queries and what was found for each, for the report.
    let shown = image::open(out.join("results/retrieval_dino.png")).unwrap();
    assert_eq!((shown.width(), shown.height()), (4 + 7 * 100, 4 + 8 * 100));
    gensis(["report", out.to_str().unwrap()]).with_code(0);
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(
        ["Retrieval by dino", "Attention of dino"].iter().all(|title| report.contains(&format!("<h3>{title}</h3>")))
    );
    let settings = ["evaluate.copies.image_size=32", r#"evaluate.copies.baselines=["random"]"#];
    evaluate(&out, "copies", &settings).with_code(3);
    // They stand in the table of all; the neighbours of other test images do not.
    let tasks = |out: &Path| {
        let rows = table(&out.join("results/results.csv"));
        rows.iter().map(|row| row["task"].clone()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(tasks(&out), ["copy_detection", "retrieval"].map(String::from).into());
    let both = [settings[0], settings[1], "evaluate.retrieval.enabled=true", "evaluate.retrieval.image_size=32"];
    evaluate(&out, "all", &both).with_code(3);
    assert_eq!(tasks(&out), ["copy_detection", "knn", "retrieval"].map(String::from).into());
    let rows = table(&out.join("results/copies.csv"));
    assert_eq!(rows.len(), 2 * 6, "two encoders, six attacks");
    assert!(rows.iter().all(|row| row["task"] == "copy_detection" && row["head"] == "cls_gem"));
    assert!(rows.iter().any(|row| row["data"] == "images:jpeg"));
    let before = files(&out.join("results"));
    for stage in ["retrieval", "copies"] {
        fs::remove_file(out.join(format!("stages/{stage}.json"))).unwrap();
    }
    let line = ["evaluate", "copies", "--threads", "1", "--update", "--out", out.to_str().unwrap()];
    gensis(line.into_iter().chain(settings.iter().flat_map(|setting| ["--set", setting]))).with_code(3);
    assert_eq!(files(&out.join("results"))["copies.csv"], before["copies.csv"], "threads change nothing");
}

/// OSVOS's masks of bmx-trees with all objects as one, as DAVIS's own `metrics.py` scores them.
#[test]
fn real_masks_have_daviss_own_figures() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let [videos, masks] = ["davis", "davis17_palette_pred"].map(|name| data.join(name));
    if !videos.is_dir() || !masks.is_dir() {
        eprintln!("skipped: no davis and davis17_palette_pred beside the repository (shared/data)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("scores");
    let place = format!("evaluate.video.folder={videos:?}");
    let line =
        ["evaluate", "video", "--masks", masks.to_str().unwrap(), "--out", out.to_str().unwrap(), "--set", &place];
    // There are no masks of blackswan.
    gensis(line).with_code(3);
    let objects = table(&out.join("results/video_objects.csv"));
    let object = objects.iter().find(|row| row["object"] == "1").unwrap();
    let values: Vec<f64> = object.values().filter_map(|value| value.parse().ok()).collect();
    for expected in [0.638627, 0.824806, 0.8214, 0.2261] {
        assert!(values.iter().any(|value| (value - expected).abs() < 6e-5), "{expected}: {object:?}");
    }
}

/// Copydays' and the revisited data sets' layout; and a ground truth that is an attack.
#[test]
fn public_layouts_are_read_and_attacks_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let [images, out] = trained(folder.path());
    let source = |i: usize| images.join(format!("train/{}/{}.png", ["dots", "stripes"][i % 2], i / 2 * 2));
    let copydays = folder.path().join("copydays");
    for set in ["original", "strong"] {
        fs::create_dir_all(copydays.join(set)).unwrap();
    }
    for i in 0..4 {
        let image = image::open(source(i)).unwrap().into_rgb8();
        image.save(copydays.join(format!("original/200{i}00.jpg"))).unwrap();
        image::imageops::blur(&image, 0.5).save(copydays.join(format!("strong/200{i}01.jpg"))).unwrap();
    }
    let place = format!("evaluate.copies.folder={copydays:?}");
    evaluate(&out, "copies", &[&place, "evaluate.copies.image_size=32"]).with_code(0);
    let rows = table(&out.join("results/copies.csv"));
    assert_eq!((&rows[0]["data"][..], &rows[0]["n"][..], rows.len()), ("copydays/strong", "4", 1));
    assert!(rows[0]["value"].parse::<f64>().unwrap() > 0.5, "{rows:?}");

    // Among others, and whitened by others: too few of them are no ground for that.
    let others = folder.path().join("others");
    fs::create_dir(&others).unwrap();
    for i in 0..80u32 {
        let colour = |x: u32, y: u32| Rgb([(x * (i % 7 + 1)) as u8, (y * (i % 11 + 2) + i) as u8, (3 * i) as u8]);
        RgbImage::from_fn(32, 32, colour).save(others.join(format!("{i:02}.png"))).unwrap();
    }
    let few = format!("evaluate.copies.whitening={:?}", copydays.join("original"));
    let told = evaluate(&out, "copies", &[&place, "evaluate.copies.image_size=32", &few]).with_code(3).stderr;
    assert!(told.contains("whitening 64 numbers needs at least as many images, not 4"), "{told}");
    let heads: Vec<_> = table(&out.join("results/copies.csv")).iter().map(|row| row["head"].clone()).collect();
    assert_eq!(heads, ["cls_gem"], "without whitening it is scored all the same");
    let more = ["distractors", "whitening"].map(|key| format!("evaluate.copies.{key}={others:?}"));
    evaluate(&out, "copies", &[&place, "evaluate.copies.image_size=32", &more[0], &more[1]]).with_code(0);
    let rows = table(&out.join("results/copies.csv"));
    let found: Vec<_> = rows.iter().map(|row| (&row["data"][..], &row["head"][..])).collect();
    let [plain, among] = ["copydays/strong", "copydays/strong+others"];
    assert_eq!(
        found,
        [(plain, "cls_gem"), (plain, "cls_gem_whitened"), (among, "cls_gem"), (among, "cls_gem_whitened")]
    );
    let precision = |row: usize| rows[row]["value"].parse::<f64>().unwrap();
    assert!(precision(2) <= precision(0) && precision(2) > 0.1, "{rows:?}");

    let oxford = folder.path().join("oxford");
    fs::create_dir_all(oxford.join("jpg")).unwrap();
    for i in 0..4 {
        image::open(source(i)).unwrap().save(oxford.join(format!("jpg/view_{i}.jpg"))).unwrap();
    }
    let truth = r#"{"imlist": ["view_0", "view_1", "view_2", "view_3"], "qimlist": ["view_0"], "gnd": [
        {"easy": [0], "hard": [2], "junk": [1], "bbx": [0, 0, 40, 50]}]}"#;
    fs::write(oxford.join("gnd_own.json"), truth).unwrap();
    let place = format!("evaluate.retrieval.folder={oxford:?}");
    let settings = [&place[..], "evaluate.retrieval.image_size=32", "evaluate.retrieval.multiscale=true"];
    evaluate(&out, "retrieval", &settings).with_code(0);
    let rows = table(&out.join("results/retrieval.csv"));
    assert_eq!(rows.len(), 3 * 4);
    let easy = rows.iter().find(|row| row["head"] == "easy" && row["metric"] == "map").unwrap();
    assert_eq!(&easy["value"], "1.0", "an image is the nearest to itself");

    // Another data set, with its own settings, comes beside it.
    let paris = folder.path().join("paris");
    crate::folder::copy(&oxford, &paris);
    let theirs = [&format!("evaluate.retrieval.folder={paris:?}")[..], "evaluate.retrieval.image_size=48"];
    evaluate(&out, "retrieval", &theirs).with_code(0);
    let of = |name: &str| -> Vec<_> {
        table(&out.join("results/retrieval.csv")).into_iter().filter(|row| row["data"] == name).collect()
    };
    assert_eq!((of("oxford"), of("paris").len()), (rows, 12));
    evaluate(&out, "retrieval", &settings).with_code(0).saying(["retrieval: up to date"]);

    fs::remove_file(oxford.join("gnd_own.json")).unwrap();
    fs::write(oxford.join("gnd_own.pkl"), b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.").unwrap();
    evaluate(&out, "retrieval", &settings).with_error(["posix.system", "not read"]);
    assert_eq!((of("oxford").len(), of("paris").len()), (0, 12));
    // Beside the others it is a failure of its own.
    evaluate(&out, "all", &settings).with_code(3);
    assert!(failures(&out).iter().any(|(stage, _, reason)| stage == "retrieval" && reason.contains("posix.system")));
    let rows = table(&out.join("results/results.csv"));
    assert!(rows.iter().any(|row| row["task"] == "knn"));
    assert!(rows.iter().filter(|row| row["task"] == "retrieval").all(|row| row["data"] == "paris"));
}
