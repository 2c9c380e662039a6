//! The page as a whole, on a report as rich as a real run's. To look at one:
//! `cargo test --release --lib -- report::tests::sample --ignored`, then open `target/sample_report.html`.

use super::*;
use image::{ImageFormat, Rgb, RgbImage, imageops};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const CLASSES: [&str; 3] = ["tumour", "stroma & fat", "normal <mucosa>"];
/// A name as hostile as a file system allows.
const HOSTILE: &str = r#"<script>alert("x")</script>&'slide'.svs"#;

fn encode(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

/// Real patches where the data folder is at hand, flat colours where it is not.
fn patches() -> Vec<RgbImage> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/patches_crc5/test");
    let mut files: Vec<PathBuf> = ["AC", "S", "H"]
        .iter()
        .filter_map(|class| std::fs::read_dir(folder.join(class)).ok())
        .flat_map(|entries| entries.flatten().map(|e| e.path()).take(12))
        .collect();
    files.sort();
    let real: Vec<RgbImage> = files.iter().filter_map(|f| Some(image::open(f).ok()?.to_rgb8())).collect();
    if real.is_empty() {
        eprintln!("no data folder: pictures are flat colours");
        return vec![RgbImage::from_pixel(64, 64, Rgb([190, 120, 170]))];
    }
    real
}

/// A slide-like picture: patches in an irregular shape on white, the grid around them.
fn slide(patches: &[RgbImage], width: u32, height: u32, rng: &mut impl Rng) -> Vec<u8> {
    const CELL: u32 = 24;
    let mut image = RgbImage::from_pixel(width, height, Rgb([244, 242, 245]));
    let (cx, cy) = (width as f64 * rng.random_range(0.4..0.6), height as f64 * rng.random_range(0.4..0.6));
    for y in 0..height / CELL {
        for x in 0..width / CELL {
            let (px, py) = (x * CELL, y * CELL);
            let (dx, dy) = ((px as f64 - cx) / width as f64, (py as f64 - cy) / height as f64);
            if dx * dx + dy * dy > rng.random_range(0.08..0.16) {
                continue;
            }
            let patch = &patches[rng.random_range(0..patches.len())];
            imageops::overlay(&mut image, &imageops::thumbnail(patch, CELL, CELL), px as i64, py as i64);
            for i in 0..CELL {
                image.put_pixel(px + i, py, Rgb([20, 110, 60]));
                image.put_pixel(px, py + i, Rgb([20, 110, 60]));
            }
        }
    }
    encode(&image, ImageFormat::Jpeg)
}

fn cohort(rng: &mut impl Rng) -> (Vec<SlideRow>, Vec<Failure>) {
    let reasons = [
        (3, "tile", "no tissue: 0 of 1 204 positions reach the minimum tissue share of 0.5"),
        (11, "open", "tile 118 of level 0 is truncated: 3 902 bytes, its header says 14 220"),
        (17, "open", "no µm/px in the file; give it with --mpp or a column of the labels csv"),
    ];
    let mut failures = Vec::new();
    let rows = (0..26)
        .map(|i| {
            let id = if i == 17 { HOSTILE.into() } else { format!("TCGA-CR-{}-01A-01-TS1", 7300 + 13 * i) };
            let failure = reasons.iter().find(|r| r.0 == i).map(|&(_, stage, reason)| {
                failures.push(Failure { stage: stage.into(), item: id.clone(), reason: reason.into() });
                reason.to_owned()
            });
            let opened = i != 11;
            let candidates = rng.random_range(900..5200);
            let share = rng.random_range(0.06..0.7);
            SlideRow {
                id,
                label: CLASSES[i % 3].into(),
                split: ["train", "train", "val", "test"][i % 4].into(),
                format: if i % 5 == 0 { "generic-tiff" } else { "aperio" }.into(),
                size: opened.then(|| (rng.random_range(9_000..90_000), rng.random_range(9_000..60_000))),
                mpp: (opened && i != 17).then_some(if i % 5 == 0 { 0.4862 } else { 0.2520 }),
                levels: opened.then_some(3 + i % 2),
                only_features: false,
                tissue_share: (opened && i != 17).then_some(if failure.is_some() { 0.0 } else { share }),
                candidates: failure.is_none().then_some(candidates),
                kept: failure.is_none().then_some((candidates as f64 * share) as usize),
                dropped: if failure.is_none() { "180 background, 30 pen".into() } else { String::new() },
                problem: String::new(),
                failure,
            }
        })
        .collect();
    (rows, failures)
}

fn curves(rng: &mut impl Rng) -> Vec<Chart> {
    let steps = 12_000;
    let mut line = |f: &dyn Fn(f64) -> f64, noise: f64| -> Vec<(f64, f64)> {
        let mut value = |i| f(i as f64 / steps as f64) + noise * (rng.random::<f64>() + rng.random::<f64>() - 1.0);
        (0..steps).map(|i| (i as f64, value(i))).collect()
    };
    let series = |name: &str, points| Series { name: name.into(), points };
    let chart = |title: &str, x: &str, y: &str, series, log_y| Chart {
        title: title.into(),
        x_label: x.into(),
        y_label: y.into(),
        series,
        log_y,
    };
    let mut gradient = line(&|t| 0.4 + 3.0 * (-6.0 * t).exp(), 0.3);
    gradient[5_000].1 = 38.0;
    vec![
        chart(
            "DINO loss",
            "step",
            "cross-entropy (nats)",
            vec![series("train", line(&|t| 5.2 + 5.8 * (-5.0 * t).exp() + 0.4 * (-40.0 * t).exp(), 0.5))],
            false,
        ),
        chart(
            "Collapse watch",
            "step",
            "entropy (nats)",
            vec![
                series("teacher entropy", line(&|t| 3.1 + 4.2 * (-3.0 * t).exp(), 0.15)),
                series("KL of student to teacher", line(&|t| 0.3 + 1.2 * (-9.0 * t).exp(), 0.1)),
                series("log of the number of prototypes", line(&|_| 8.3, 0.0)),
            ],
            false,
        ),
        chart(
            "Learning rate",
            "step",
            "learning rate",
            vec![series(
                "lr",
                line(
                    &|t| if t < 0.1 { 1.3e-4 * t * 10.0 } else { 1e-6 + 0.65e-4 * (1.0 + (3.49 * (t - 0.1)).cos()) },
                    0.0,
                ),
            )],
            true,
        ),
        chart("Gradient norm before clipping", "step", "norm", vec![series("median tensor", gradient)], true),
        chart(
            "k-NN of the teacher on labelled patches",
            "epoch",
            "top-1 accuracy",
            vec![
                series("k = 10", (0..=8).map(|e| (e as f64 * 5.0, 0.86 - 0.5 * (-0.4 * e as f64).exp())).collect()),
                series("k = 20", (0..=8).map(|e| (e as f64 * 5.0, 0.84 - 0.5 * (-0.35 * e as f64).exp())).collect()),
            ],
            false,
        ),
    ]
}

fn results(rng: &mut impl Rng) -> Vec<ResultRow> {
    let row = |task: &str, encoder: &str, head: &str, metric: &str, value: f64, half: f64, n| ResultRow {
        task: task.into(),
        data: "mosaic".into(),
        encoder: encoder.into(),
        head: head.into(),
        metric: metric.into(),
        fold: None,
        seed: None,
        value: Some(value),
        low: Some((value - half).max(0.0)),
        high: Some((value + half).min(1.0)),
        n,
    };
    const METRICS: [(&str, f64); 5] = [
        ("accuracy", 0.0),
        ("balanced_accuracy", -0.02),
        ("macro_f1", -0.03),
        ("macro_auc", 0.1),
        ("quadratic_kappa", -0.1),
    ];
    let mut rows = Vec::new();
    for (encoder, base) in [("dino vit_tiny (teacher)", 0.82), ("random weights", 0.55)] {
        for (metric, offset) in METRICS {
            for fold in 0..5 {
                let value = base + offset + rng.random_range(-0.08..0.08);
                let of_fold =
                    row("slide classification", encoder, "abmil", metric, value, 0.17, if fold < 3 { 5 } else { 4 });
                rows.push(ResultRow { fold: Some(fold), seed: Some(0), ..of_fold });
            }
            let pooled = row("slide classification", encoder, "abmil", metric, base + offset, 0.09, 23);
            rows.push(ResultRow { seed: Some(0), ..pooled });
        }
        for head in ["k=10", "k=20"] {
            rows.push(row("patch k-NN", encoder, head, "top_1", base + 0.03, 0.015, 2_250));
            rows.push(row("patch k-NN", encoder, head, "top_5", 0.99, 0.005, 2_250));
        }
    }
    rows
}

/// Made once for all tests.
fn sample() -> &'static Report {
    static SAMPLE: LazyLock<Report> = LazyLock::new(make_sample);
    &SAMPLE
}

fn make_sample() -> Report {
    let rng = &mut ChaCha8Rng::seed_from_u64(7);
    let patches = patches();
    let (cohort, failures) = cohort(rng);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let highlight = |name: &str, value: &str, interval: &str| Highlight {
        name: name.into(),
        value: value.into(),
        interval: interval.into(),
    };
    let thumbnails = cohort
        .iter()
        .filter(|row| row.failure.is_none())
        .take(11)
        .enumerate()
        .map(|(i, row)| Thumbnail {
            id: row.id.clone(),
            label: row.label.clone(),
            caption: format!("{} patches of 224 px at 0.5 µm/px", row.kept.unwrap()),
            jpeg: slide(&patches, 330 + 40 * (i as u32 % 3), 250 + 60 * (i as u32 % 4), rng),
        })
        .collect();
    let mut sheet = RgbImage::new(12 * 64, 3 * 64);
    for (i, patch) in patches.iter().cycle().take(36).enumerate() {
        let (x, y) = (i as i64 % 12 * 64, i as i64 / 12 * 64);
        imageops::overlay(&mut sheet, &imageops::thumbnail(patch, 64, 64), x, y);
    }
    Report {
        title: "mosaic: DINO on 26 slides".into(),
        subtitle: "Self-supervised ViT-Ti/16 trained on these slides alone; gated ABMIL on its features, five grouped folds.".into(),
        provenance: vec![
            pair("Version", "gensis 0.1.0 (3f2c91a)"),
            pair("Configuration", "sha256 9c41d0e77ab2"),
            pair("Seed", "7"),
            pair("Device", "cpu (flex), 2 threads"),
            pair("Weights", "sha256 51ce0f3b9d10"),
            pair("Started", "2026-03-14 09:26 UTC"),
            pair("Duration", "21 min 43 s"),
        ],
        summary: vec![
            highlight("Slides used", "23 of 26", "3 left out"),
            highlight("Patches", "31 480", "224 px at 0.5 µm/px"),
            highlight("Balanced accuracy", "0.803", "95 % interval 0.710 to 0.887"),
            highlight("Macro AUC", "0.921", "95 % interval 0.861 to 0.969"),
            highlight("k-NN top-1", "0.850", "2 250 patches, k = 20"),
            highlight("Training speed", "118 patches/s", "12 000 steps of 64"),
        ],
        cohort,
        failures,
        thumbnails,
        curves: curves(rng),
        results: results(rng),
        confusions: vec![
            Confusion {
                title: "Slides, ABMIL on dino vit_tiny, all folds".into(),
                classes: CLASSES.map(String::from).to_vec(),
                counts: vec![vec![7, 1, 0], vec![1, 6, 1], vec![0, 1, 6]],
            },
            Confusion {
                title: "Patches, k-NN (k = 20)".into(),
                classes: CLASSES.map(String::from).to_vec(),
                counts: vec![vec![671, 60, 19], vec![88, 605, 57], vec![12, 102, 636]],
            },
        ],
        ranking: vec![ranking("Slides, ABMIL on dino vit_tiny, all folds")],
        comparisons: vec![comparison("dino", "random", 0.003), comparison("dino", "uni", 0.41)],
        heatmaps: vec![Figure {
            title: "TCGA-CR-7300-01A-01-TS1".into(),
            caption: "class tumour, predicted tumour (0.81); dino, abmil: one head of fold 2, which has not seen the slide".into(),
            image: slide(&patches, 420, 330, rng),
        }],
        figures: vec![Figure {
            title: "Patches of every class".into(),
            caption: "Thirty-six patches drawn at random, 224 px at 0.5 µm/px each.".into(),
            image: encode(&sheet, ImageFormat::Png),
        }],
        configuration: "seed = 7\n\n[data]\nslides = \"cohort/*.svs\"   # <slides> & \"labels\"\nlabels = \"cohort/labels.csv\"\n\n[grid]\nmpp = 0.5\nsize = 224\n".into(),
    }
}

/// Curves of three classes, the last of which has no item.
fn ranking(title: &str) -> RankingCurves {
    let class = |name: &str, power: f64| ClassCurve {
        name: name.into(),
        positives: 8,
        items: 23,
        auc: Some(1.0 - 0.5 * power),
        average_precision: Some(0.7),
        roc: (0..=20).map(|i| (f64::from(i) / 20.0, (f64::from(i) / 20.0).powf(power))).collect(),
        precision_recall: (0..=20).map(|i| (f64::from(i) / 20.0, 1.0 - 0.5 * f64::from(i) / 20.0)).collect(),
    };
    let absent = ClassCurve { name: CLASSES[2].into(), items: 23, ..ClassCurve::default() };
    RankingCurves { title: title.into(), classes: vec![class(CLASSES[0], 0.2), class(CLASSES[1], 0.5), absent] }
}

fn comparison(first: &str, second: &str, p: f64) -> Comparison {
    Comparison {
        head: "abmil".into(),
        seed: 0,
        first: first.into(),
        second: second.into(),
        test: "permutation".into(),
        metric: "macro_auc".into(),
        class: None,
        values: [Some(0.921), Some(0.8)],
        p: Some(p),
        n: 23,
    }
}

#[test]
#[ignore = "writes target/sample_report.html, to be looked at"]
fn sample_to_look_at() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sample_report.html");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, sample().to_html()).unwrap();
    println!("{}", path.display());
}

#[test]
fn nothing_points_outside_the_file() {
    let html = sample().to_html();
    for outside in ["http:", "https:", "url(", "@import", "src=\"/", "href=\"/", "<link", "<iframe"] {
        assert!(!html.contains(outside), "the report refers to something outside: {outside}");
    }
    for (attribute, allowed) in [("src=\"", "data:image/"), ("href=\"", "#")] {
        for target in html.split(attribute).skip(1) {
            assert!(target.starts_with(allowed), "{}", &target[..40]);
        }
    }
    assert!(html.contains("default-src 'none'"), "the browser is told to refuse as well");
}

#[test]
fn every_text_is_escaped() {
    let hostile = || HOSTILE.to_owned();
    let line = Series { name: hostile(), points: vec![(0.0, 1.0), (1.0, 2.0)] };
    let png = encode(&RgbImage::new(2, 2), ImageFormat::Png);
    let report = Report {
        title: hostile(),
        subtitle: hostile(),
        provenance: vec![(hostile(), hostile())],
        summary: vec![Highlight { name: hostile(), value: hostile(), interval: hostile() }],
        cohort: vec![SlideRow {
            id: hostile(),
            label: hostile(),
            split: hostile(),
            format: hostile(),
            dropped: hostile(),
            problem: hostile(),
            failure: Some(hostile()),
            ..SlideRow::default()
        }],
        failures: vec![Failure { stage: hostile(), item: hostile(), reason: hostile() }],
        thumbnails: vec![Thumbnail { id: hostile(), label: hostile(), caption: hostile(), jpeg: png.clone() }],
        curves: vec![Chart {
            title: hostile(),
            x_label: hostile(),
            y_label: hostile(),
            series: vec![line],
            log_y: false,
        }],
        results: vec![ResultRow {
            task: hostile(),
            data: hostile(),
            encoder: hostile(),
            head: hostile(),
            metric: hostile(),
            ..ResultRow::default()
        }],
        confusions: vec![Confusion { title: hostile(), classes: vec![hostile()], counts: vec![vec![1]] }],
        ranking: vec![RankingCurves { title: hostile(), ..ranking("") }],
        comparisons: vec![Comparison { head: hostile(), class: Some(hostile()), ..comparison(HOSTILE, HOSTILE, 0.5) }],
        heatmaps: vec![Figure { title: hostile(), caption: hostile(), image: png.clone() }],
        figures: vec![Figure { title: hostile(), caption: hostile(), image: png }],
        configuration: hostile(),
    };
    let html = report.to_html();
    assert!(!html.contains("<script>alert") && !html.contains("\"x\"") && !html.contains("&'slide'"));
    let escaped = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#39;slide&#39;.svs";
    // Every text of the report above at least once; some twice (caption and alternative text, pivot and long form).
    assert!(html.matches(escaped).count() >= 33, "{}", html.matches(escaped).count());
    assert_eq!(html.matches("<script>").count(), 1);
}

#[test]
fn every_row_is_there() {
    let report = sample();
    let html = report.to_html();
    let rows = |after: &str| {
        let part = html.split_once(after).unwrap().1;
        let body = part.split_once("<tbody>").unwrap().1.split_once("</tbody>").unwrap().0;
        body.matches("<tr").count()
    };
    assert_eq!(rows("id=\"failures\""), report.failures.len());
    assert_eq!(rows("id=\"cohort\""), report.cohort.len());
    assert_eq!(rows("<details>"), report.results.len());
    assert_eq!(html.matches("class=\"pivot\"").count(), 2);
    assert_eq!(html.matches("class=\"confusion\"").count(), 2);
    assert_eq!(html.matches("<figure class=\"chart\">").count(), report.curves.len() + report.ranking.len());
    assert_eq!(html.matches("data:image/jpeg;base64,").count(), report.thumbnails.len() + report.heatmaps.len());
    assert_eq!(html.matches("data:image/png;base64,").count(), report.figures.len());
    assert!(html.contains("Left out") && html.contains("3 items were left out"));
    let jpegs = report.thumbnails.iter().map(|t| t.jpeg.len());
    let figures = report.figures.iter().chain(&report.heatmaps).map(|f| f.image.len());
    let pictures: usize = jpegs.chain(figures).map(|n| n.div_ceil(3) * 4).sum();
    let text = html.len() - pictures;
    assert!(text < 300_000, "{text} bytes of text");
}

#[test]
fn tags_are_balanced() {
    let html = sample().to_html();
    for tag in [
        "section",
        "table",
        "thead",
        "tbody",
        "tr",
        "td",
        "th",
        "div",
        "figure",
        "figcaption",
        "svg",
        "details",
        "ul",
        "li",
        "dl",
        "button",
        "span",
        "p",
    ] {
        let opened = html.matches(&format!("<{tag} ")).count() + html.matches(&format!("<{tag}>")).count();
        assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "<{tag}>");
    }
}

#[test]
fn empty_sections_vanish() {
    let html = Report { title: "empty".into(), ..Report::default() }.to_html();
    assert!(!html.contains("<section") && !html.contains("<table") && html.contains("<h1>empty</h1>"));
    let one = Report { configuration: "seed = 1".into(), ..Report::default() }.to_html();
    assert_eq!(one.matches("<section").count(), 1);
    assert!(one.contains("<a href=\"#configuration\">"));
}
