//! `gensis report`: what a run folder holds, as one self-contained page.

use std::path::{Path, PathBuf};

use anyhow::Result;
use evaluation::comparison;
use evaluation::table::{ResultRow, read_parquet};
use image::RgbImage;
use serde_json::Value;
use slide_io::{atomic_file, h5, jpeg, quality};

use super::figures;
use super::heatmap::{self, Drawn, reading};
use super::sources::UNTRAINED_NAME;
use super::tables;
use super::tile::TiledSlide;
use crate::report::{self, Chart, Comparison, Figure, Highlight, Report, Series, SlideRow, Thumbnail};
use crate::run_dir::{RunDir, STAGES, StageRecord, read_record};
use crate::train::METRICS;

/// Thumbnails shown, at most, and their longer side in px: a cohort of thousands must not make a page of gigabytes.
const THUMBNAILS: usize = 60;
const THUMBNAIL_SIDE: u32 = 512;

/// Writes `report.html` into the run folder and returns its path.
pub(super) fn write(root: &Path) -> Result<PathBuf> {
    let report = collect(root)?;
    let path = root.join("report.html");
    atomic_file::write(&path, report.to_html().as_bytes())?;
    eprintln!("report: {}", path.display());
    Ok(path)
}

fn collect(root: &Path) -> Result<Report> {
    let experiment = RunDir::experiment(root)?;
    let record = |stage| read_record(root, stage);
    let slides: Vec<TiledSlide> =
        record("tile").and_then(|record| serde_json::from_value(record.summary).ok()).unwrap_or_default();
    let results = tables::rows(root)?;
    let cohort: Vec<SlideRow> = match (slides.is_empty(), record("evaluate")) {
        (true, Some(evaluated)) => only_features(&evaluated),
        _ => slides.iter().map(slide_row).collect(),
    };
    let failures = STAGES.iter().filter_map(|stage| record(stage)).flat_map(|record| record.failures);
    let name = root.file_name().map_or("gensis".into(), |name| name.to_string_lossy().into_owned());
    let configuration = experiment.to_toml()?;
    let pretrained = record("pretrain");
    Ok(Report {
        title: name,
        subtitle: subtitle(&slides, cohort.len(), pretrained.as_ref().map(|record| &record.summary)),
        provenance: provenance(root, &experiment, record("embed").map(|record| record.summary)),
        summary: highlights(&results),
        thumbnails: thumbnails(root, &h5::job_folder(&experiment.grid), &slides, &experiment.grid),
        cohort,
        failures: failures
            .map(|failure| report::Failure { stage: failure.stage, item: failure.item, reason: failure.reason })
            .collect(),
        curves: training_curves(root),
        results,
        confusions: stored(&root.join("results/confusion.json")),
        ranking: stored(&root.join("results/curves.json")),
        comparisons: comparisons(&root.join("results/comparisons.parquet")),
        heatmaps: heatmaps(root),
        figures: figures::pictures(root)
            .into_iter()
            .map(|(title, caption, image)| Figure { title, caption, image })
            .collect(),
        configuration,
    })
}

/// What a JSON file of the run holds; nothing where it is missing.
fn stored<T: serde::de::DeserializeOwned>(path: &Path) -> Vec<T> {
    std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn comparisons(path: &Path) -> Vec<Comparison> {
    read_parquet(path).and_then(|frame| comparison::read(&frame)).unwrap_or_default()
}

/// Every heatmap in the folder, those drawn by hand too, by name.
fn heatmaps(root: &Path) -> Vec<Figure> {
    let picture = |drawn: Drawn| {
        let png = image::open(root.join(&drawn.picture)).ok()?.to_rgb8();
        let image = jpeg::encode(&shrunk(&png), 85, jpeg::ColorModel::YCbCr).ok()?;
        let label = if drawn.label.is_empty() { String::new() } else { format!("class {}, ", drawn.label) };
        let shown =
            if drawn.shown.is_empty() { String::new() } else { format!("attention of class {}; ", drawn.shown) };
        let Drawn { slide, encoder, head, predicted, probability, heads, scale, .. } = drawn;
        let scale = reading(scale);
        let caption =
            format!("{label}predicted {predicted} ({probability:.2}); {shown}{encoder}, {head}: {heads}; {scale}");
        Some(Figure { title: slide, caption, image })
    };
    heatmap::drawn(root).into_iter().filter_map(picture).collect()
}

fn subtitle(slides: &[TiledSlide], listed: usize, pretrained: Option<&Value>) -> String {
    let patches: usize = slides.iter().filter_map(|slide| slide.kept).sum();
    let count = |key: &str| pretrained.and_then(|summary| summary[key].as_u64());
    let drawn = count("per_epoch").filter(|&drawn| Some(drawn) < count("patches") && drawn > 0);
    let each = if drawn.is_some() { " an epoch" } else { "" };
    match (slides.len(), drawn.or(count("patches"))) {
        (0, Some(images)) => format!("An encoder learnt from {images} images{each} without their labels"),
        (0, None) if listed > 0 => format!("{listed} slides, of which features made elsewhere are known"),
        (0, None) => String::new(),
        (slides, Some(learnt)) => {
            format!("{slides} slides, {patches} patches; an encoder learnt from {learnt} of them{each} without labels")
        }
        (slides, None) => format!("{slides} slides, {patches} patches"),
    }
}

fn provenance(root: &Path, experiment: &crate::config::Experiment, embedded: Option<Value>) -> Vec<(String, String)> {
    let mut lines = vec![
        ("Version".to_owned(), format!("gensis {}", env!("CARGO_PKG_VERSION"))),
        ("Seed".to_owned(), experiment.seed.to_string()),
    ];
    for (name, hash) in embedded.iter().filter_map(|summary| summary["hashes"].as_object()).flatten() {
        if let Some(hash) = hash.as_str().filter(|_| name != UNTRAINED_NAME) {
            lines.push((format!("Weights of {name} (SHA-256)"), hash.to_owned()));
        }
    }
    if let Some(autoencoder) = read_record(root, "autoencoder") {
        lines.push(("Autoencoder".to_owned(), first_stage(&autoencoder)));
    }
    let log = std::fs::read_to_string(root.join("log.jsonl")).unwrap_or_default();
    let events: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let last = |event: &str| events.iter().rposition(|line| line["event"] == event);
    // Of the program that trained, where one did: another may have drawn a heatmap since, elsewhere.
    let before = &events[..last("pretrained").unwrap_or(events.len())];
    if let Some(started) = before.iter().rev().find(|line| line["event"] == "started") {
        let text = |key: &str| started[key].as_str().map_or_else(|| started[key].to_string(), str::to_owned);
        lines.push(("Started (UTC)".to_owned(), text("time")));
        lines.push(("Device".to_owned(), format!("{}, {} threads", text("device"), text("threads"))));
    }
    if let Some(line) = last("pretrained").map(|place| &events[place])
        && let (Some(seconds), Some(shown)) = (line["seconds"].as_f64(), line["patches_shown"].as_f64())
    {
        lines.push(("Pre-training".to_owned(), format!("{:.1} min, {:.1} patches/s", seconds / 60.0, shown / seconds)));
    }
    lines
}

/// What the first stage learnt from beside the pixels, or where it comes from: labels may have entered by that.
fn first_stage(StageRecord { header, summary, .. }: &StageRecord) -> String {
    let short = |hash: &Value| hash.as_str().map_or(String::new(), |hash| hash.chars().take(12).collect());
    let hash = short(&summary["perceptual"]["hash"]);
    match summary["perceptual"]["kind"].as_str().filter(|_| !hash.is_empty()) {
        _ if header["weights"].is_string() => format!("weights from elsewhere ({})", short(&header["weights"])),
        Some("encoder") => format!("trained here, with features of the pretrained encoder ({hash})"),
        Some("lpips") => format!("trained here, with LPIPS ({hash}), whose VGG16 learnt ImageNet's labels"),
        _ => "trained here, on pixels alone".to_owned(),
    }
}

/// What a reader looks for: the trained encoder's figures, means over folds and seeds as in the tables; of several heads the
/// customary one.
fn highlights(results: &[ResultRow]) -> Vec<Highlight> {
    let usual = ["20-NN", "abmil"].into_iter().find_map(|head| results.iter().find(|row| row.head == head));
    let Some(shown) = usual.or(results.first()) else { return vec![] };
    let by = format!("{} with {}", shown.encoder, shown.head);
    let names = [("accuracy", "Accuracy"), ("balanced_accuracy", "Balanced accuracy"), ("macro_auc", "Macro AUC")];
    let figure = |metric: &str, name: &str| {
        let of_metric = |row: &&ResultRow| {
            let same_data = row.task == shown.task && row.data == shown.data;
            same_data && row.metric == metric && row.encoder == shown.encoder && row.head == shown.head
        };
        let rows: Vec<&ResultRow> = results.iter().filter(of_metric).collect();
        let folds: Vec<&ResultRow> = rows.iter().copied().filter(|row| row.fold.is_some()).collect();
        let rows = if folds.is_empty() { rows } else { folds };
        let values: Vec<f64> = rows.iter().filter_map(|row| row.value).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let interval = match rows.as_slice() {
            [one] => match (one.low, one.high) {
                (Some(low), Some(high)) => {
                    format!("95 % interval {low:.3} to {high:.3}; {} test items, {by}", one.n)
                }
                _ => format!("{} test items, {by}", one.n),
            },
            several => format!("mean of {} folds and seeds, {}", several.len(), by),
        };
        mean.is_finite().then(|| Highlight { name: name.into(), value: format!("{mean:.3}"), interval })
    };
    names.into_iter().filter_map(|(metric, name)| figure(metric, name)).collect()
}

/// The slides of an evaluation of features made elsewhere.
fn only_features(evaluated: &StageRecord) -> Vec<SlideRow> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let folders = evaluated.header["foreign"].as_array().map_or(0, Vec::len);
    let row = |item: &Value| {
        let id = text(&item[0]);
        let reasons: Vec<&str> =
            evaluated.failures.iter().filter(|failure| failure.item == id).map(|failure| &failure.reason[..]).collect();
        // A slide that lacks the features of one encoder counts in the scores of the others.
        let scored = !text(&item[1]).is_empty() && reasons.len() < folders;
        let told = (!reasons.is_empty()).then(|| reasons.join("; "));
        let (problem, failure) = if scored { (told.unwrap_or_default(), None) } else { (String::new(), told) };
        SlideRow {
            id,
            label: text(&item[1]),
            split: text(&item[3]),
            only_features: true,
            problem,
            failure,
            ..SlideRow::default()
        }
    };
    let slides = evaluated.header["items"].as_array().filter(|_| evaluated.header["of"] == "slides");
    slides.into_iter().flatten().map(row).collect()
}

fn slide_row(slide: &TiledSlide) -> SlideRow {
    let dropped = quality::list(&slide.dropped());
    let slide = slide.clone();
    SlideRow {
        id: slide.id,
        label: slide.label.unwrap_or_default(),
        split: slide.split.unwrap_or_default(),
        format: slide.format,
        size: (slide.width > 0).then_some((slide.width.into(), slide.height.into())),
        mpp: slide.mpp,
        levels: (slide.levels > 0).then_some(slide.levels),
        only_features: false,
        tissue_share: slide.tissue_share,
        candidates: slide.candidates,
        kept: slide.kept,
        dropped,
        problem: slide.problem.unwrap_or_default(),
        failure: slide.failure,
    }
}

/// Pictures with the grid, spread evenly over the cohort.
fn thumbnails(root: &Path, job: &str, slides: &[TiledSlide], grid: &slide_io::GridSpec) -> Vec<Thumbnail> {
    let step = slides.len().div_ceil(THUMBNAILS).max(1);
    let picture = |slide: &TiledSlide| {
        let jpeg = smaller(&std::fs::read(root.join(job).join(format!("visualization/{}.jpg", slide.id))).ok()?)?;
        let caption = format!("{} patches of {} px at {}", slide.kept.unwrap_or(0), grid.size, grid.mpp);
        Some(Thumbnail { id: slide.id.clone(), label: slide.label.clone().unwrap_or_default(), caption, jpeg })
    };
    slides.iter().step_by(step).filter_map(picture).collect()
}

/// The picture at [`THUMBNAIL_SIDE`], or as it is where it is smaller; `None` where it is no picture.
fn smaller(jpeg: &[u8]) -> Option<Vec<u8>> {
    let picture = jpeg::decode(jpeg).ok()?;
    if picture.width().max(picture.height()) <= THUMBNAIL_SIDE {
        return Some(jpeg.to_owned());
    }
    jpeg::encode(&shrunk(&picture), 80, jpeg::ColorModel::YCbCr).ok()
}

/// A picture of at most [`THUMBNAIL_SIDE`].
fn shrunk(picture: &RgbImage) -> RgbImage {
    let scale = (f64::from(THUMBNAIL_SIDE) / f64::from(picture.width().max(picture.height()))).min(1.0);
    let side = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    image::imageops::thumbnail(picture, side(picture.width()), side(picture.height()))
}

/// The curves of every training in the folder.
fn training_curves(root: &Path) -> Vec<Chart> {
    let dino = [
        ("loss", "cross-entropy, nats", &[("loss", "loss"), ("disentanglement", "parts/1")][..]),
        ("teacher entropy", "nats", &[("entropy", "teacher_entropy")]),
        ("centre", "norm", &[("centre norm", "center_norm")]),
        ("held-out training patches", "k-NN accuracy", &[("20-NN", "knn")]),
        ("learning rate", "learning rate", &[("learning rate", "lr")]),
    ];
    let mut charts = curves("DINO", &root.join("pretrain").join(METRICS), &dino);
    let reconstruction = [
        ("reconstruction", "mean absolute difference", &[("L1", "rec")][..]),
        ("held-out patches", "PSNR, dB", &[("PSNR", "psnr")]),
    ];
    charts.extend(curves("Autoencoder", &root.join("autoencoder").join(METRICS), &reconstruction));
    let denoising = [
        ("loss", "mean squared error of the prediction", &[("loss", "loss")][..]),
        ("samples", "Fréchet distance", &[("samples to training images", "frechet_distance")]),
    ];
    charts.extend(curves("Diffusion", &root.join("diffusion").join(METRICS), &denoising));
    let mut variants: Vec<_> =
        root.join("gen_dino").read_dir().into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    // Trainings of other settings were set aside there.
    variants.retain(|folder| folder.extension().is_none());
    variants.sort();
    for folder in variants {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().replace('_', " ");
        charts.extend(curves(&format!("Gen-DINO, {name}"), &folder.join(METRICS), &dino[..2]));
    }
    charts
}

/// Title, vertical axis, and series as name and JSON path.
type Wanted<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

/// A chart for each of `wanted` that `metrics` has numbers for.
fn curves(stage: &str, metrics: &Path, wanted: &[Wanted]) -> Vec<Chart> {
    let text = std::fs::read_to_string(metrics).unwrap_or_default();
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let series = |&(name, key): &(&str, &str)| Series {
        name: name.into(),
        points: lines
            .iter()
            .filter_map(|line| Some((line["step"].as_f64()?, line.pointer(&format!("/{key}"))?.as_f64()?)))
            .collect(),
    };
    let chart = |(title, y, keys): &Wanted| Chart {
        title: format!("{stage}: {title}"),
        x_label: "step".into(),
        y_label: (*y).into(),
        series: keys.iter().map(series).filter(|series| !series.points.is_empty()).collect(),
        log_y: false,
    };
    wanted.iter().map(chart).filter(|chart| !chart.series.is_empty()).collect()
}
