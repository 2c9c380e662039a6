//! `gensis figures`: pictures of what the models of a run do. Attention of the encoders, and real beside generated and
//! interpolated images.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use burn::tensor::{Device, Tensor, TensorData};
use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use slide_io::PatchSource;

use super::augment::{self, models};
use super::encoders::require_encoders;
use super::evaluate::examples;
use super::sources::{self, Input};
use super::{Run, latents, training};
use crate::config::{Embed, Interpolation};
use crate::data::loader::read;
use crate::data::normalize::Normalize;
use crate::data::{Squares, crop};
use crate::device;
use crate::model::Encoder;
use crate::run_dir::{StageRecord, read_record, remove};
use crate::sample::bank::Kind;
use crate::sample::interpolate::mix_pixels;
use crate::sample::painter::Wish;
use crate::sample::sheet::{sheet, write_png};

/// Patches shown.
const SHOWN: usize = 8;
/// Smallest side of a picture in a sheet, px.
const SIDE: u32 = 96;

/// Pairs of patches that images are drawn between, and the weights of the first.
const PAIRS: usize = 2;
const ALPHAS: [f64; 4] = [0.2, 0.4, 0.6, 0.8];
/// Their picture.
const STRIPS: &str = "between.png";

/// The folder of the pictures.
pub(super) const FOLDER: &str = "figures";

/// Draws what the run has: attention always, synthetic images where there is a bank.
pub(super) fn figures(run: &Run) -> Result<()> {
    let input = Input::open(&run.experiment.data)?;
    let device = device::open(run.device)?;
    let encoders = require_encoders(run, &input)?;
    // One of models that the experiment no longer asks for is not shown.
    let there = |_: &StageRecord| augment::shown_bank(run).is_some() && models(run, &input).is_ok();
    let bank = run.dir.record("bank").filter(there).map(|record| record.header);
    let hashes: Vec<_> = encoders.iter().map(|trained| json!([trained.name, trained.hash])).collect();
    let mut header = json!({ "stage": FOLDER, "encoders": hashes, "bank": bank, "embed": sources::embed_header(&run.experiment.embed) });
    // Pictures between two patches are left out until the latents are there again.
    if bank.is_some() && !latents::exist(run) {
        header["without"] = json!(STRIPS);
    }
    let of_encoders = encoders.iter().map(|trained| format!("attention_{}.png", trained.name));
    let mut pictures = of_encoders.chain(bank.is_some().then(|| "synthetic.png".to_owned()));
    let there = pictures.all(|name| run.dir.root().join(FOLDER).join(name).exists());
    if there && run.dir.current(FOLDER, &header).is_some() {
        eprintln!("figures: up to date");
        return Ok(());
    }
    run.dir.forget(FOLDER)?;
    let (source, _) = training::patches(run, FOLDER, Input::open(&run.experiment.data)?)?;
    let shown = shown(&*source);
    for trained in &encoders {
        let encoder = trained.load(&device)?;
        let (mut rows, mut failed) = (vec![], None);
        for (index, image) in &shown {
            match attention(&encoder, image, &run.experiment.embed, &device) {
                Ok(row) => rows.push(row),
                Err(error) => {
                    eprintln!("figures: {} is left out of {}'s: {error:#}", source.key(*index).item, trained.name);
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed.filter(|_| rows.is_empty()) {
            return Err(error);
        }
        write(run, &format!("attention_{}.png", trained.name), &rows)?;
    }
    for stale in ["synthetic.png", STRIPS] {
        remove(&run.dir.file(&format!("{FOLDER}/{stale}"))?)?;
    }
    if bank.is_some() {
        let rows = synthetic(run, &input, source, &shown)?;
        write(run, "synthetic.png", &rows)?;
        match strips(run, &input, &shown) {
            Ok(rows) => write(run, STRIPS, &rows)?,
            // As on a machine that was given the bank alone.
            Err(error) => eprintln!("figures: images between two patches are left out: {error:#}"),
        }
    }
    eprintln!("figures: {}", run.dir.root().join(FOLDER).display());
    run.dir.finish(FOLDER, &StageRecord { header, failures: vec![], summary: Value::Null })
}

fn write(run: &Run, name: &str, rows: &[Vec<RgbImage>]) -> Result<()> {
    write_png(&run.dir.file(&format!("{FOLDER}/{name}"))?, &sheet(rows, SIDE))
}

/// Some patches, evenly over the source, but those that cannot be read.
fn shown(source: &dyn PatchSource) -> Vec<(usize, RgbImage)> {
    let count = SHOWN.min(source.len());
    let patch = |i: usize| {
        let index = i * source.len() / count;
        match read(source, index) {
            Ok(image) => Some((index, image)),
            Err(failure) => {
                eprintln!("figures: {} is left out: {}", failure.key.item, failure.reason);
                None
            }
        }
    };
    (0..count).filter_map(patch).collect()
}

/// A patch, the mean over the heads of what [CLS] attends to in the last block, and each head's (Caron et al. 2021,
/// figure 3). Every map goes from black at its least to white at its most.
fn attention(encoder: &Encoder, image: &RgbImage, embed: &Embed, device: &Device) -> Result<Vec<RgbImage>> {
    let (resize, side) = encoder.view.map_or((embed.resize, embed.crop), |view| (view.resize, view.crop));
    let view = crop::evaluation_view(image.clone(), resize, side)?;
    let (width, height) = view.dimensions();
    let pixels = Normalize::new(encoder.config.mean, encoder.config.std).images(&[&view]);
    let batch = Tensor::from_data(TensorData::new(pixels, [1, 3, height as usize, width as usize]), device);
    let maps = encoder.vit.last_attention(batch);
    let [_, heads, tokens, _] = maps.dims();
    let from_cls = maps.narrow(2, 0, 1).narrow(3, 1, tokens - 1);
    let values = from_cls.try_into_vec_as::<f32>().map_err(|e| anyhow!("the attention could not be read: {e:?}"))?;
    let patch = encoder.config.model.patch as u32;
    let by_head: Vec<&[f32]> = values.chunks_exact(tokens - 1).collect();
    let mean: Vec<f32> =
        (0..tokens - 1).map(|token| by_head.iter().map(|head| head[token]).sum::<f32>() / heads as f32).collect();
    let map = |values: &[f32]| heat(values, width / patch, patch, (width, height));
    let mut row = vec![view.clone(), map(&mean)];
    row.extend(by_head.into_iter().map(map));
    Ok(row)
}

/// A map of `columns` tokens a row as a picture, every token `patch` px; what is beyond the last token stays black.
fn heat(values: &[f32], columns: u32, patch: u32, (width, height): (u32, u32)) -> RgbImage {
    let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(low, high), &v| (low.min(v), high.max(v)));
    let share = |value: f32| (value - low) / (high - low).max(f32::MIN_POSITIVE);
    RgbImage::from_fn(width, height, |x, y| {
        let (column, row) = (x / patch, y / patch);
        let value = (column < columns).then(|| values.get((row * columns + column) as usize)).flatten();
        // Black, red, yellow, white.
        let level = value.map_or(0.0, |&value| 3.0 * share(value));
        Rgb([0.0, 1.0, 2.0].map(|start| ((level - start).clamp(0.0, 1.0) * 255.0) as u8))
    })
}

/// A patch, synthetic images of it, the patch between it and another, and that other.
fn synthetic(
    run: &Run,
    input: &Input,
    source: Arc<dyn PatchSource>,
    shown: &[(usize, RgbImage)],
) -> Result<Vec<Vec<RgbImage>>> {
    let models = models(run, input)?;
    let kind = augment::shown_bank(run).context("no bank is needed")?;
    let bank = augment::open(run, input, &models, kind, source.clone())?;
    let squares = Squares::new(models.size[0], [0.0; 2]);
    let mut rows = Vec::new();
    for (index, image) in shown {
        let mut row = vec![squares.of(image.clone())?];
        let generative = (0..bank.header().generative).map_while(|k| bank.get(*index, Kind::Generative, k).ok());
        row.extend(generative.map(|made| made.image));
        if let Ok(made) = bank.get(*index, Kind::Interpolated, 0)
            && let Some(other) = made.secondary.and_then(|other| source.read(other).ok())
        {
            row.extend([made.image, squares.of(other.image)?]);
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Between two pairs of patches, the second on the left and the first on the right: on the great circle and on the line of their
/// embeddings, all from one noise, and in the pixels (figures 4 and 5 of the paper).
fn strips(run: &Run, input: &Input, shown: &[(usize, RgbImage)]) -> Result<Vec<Vec<RgbImage>>> {
    let (painter, latents) = augment::painter(run, input)?;
    let squares = Squares::new(painter.image_side() as u32, [0.0; 2]);
    let records: BTreeMap<usize, usize> =
        (0..latents.len()).map(|record| Ok((latents.source(record)?, record))).collect::<Result<_>>()?;
    let mut rows = Vec::new();
    // Patches that lie far apart: of different classes, where a source has its classes one after another.
    for (first, second) in shown.iter().zip(&shown[shown.len() / 2..]).take(PAIRS) {
        let [one, two] = [first, second].map(|(index, _)| records.get(index).map(|&record| latents.read(record, 0)));
        let (Some(one), Some(two)) = (one.transpose()?, two.transpose()?) else { continue };
        let [right, left] = [squares.of(first.1.clone())?, squares.of(second.1.clone())?];
        let strip = |between: Vec<RgbImage>| -> Vec<RgbImage> {
            std::iter::once(left.clone()).chain(between).chain([right.clone()]).collect()
        };
        for kind in [Interpolation::Slerp, Interpolation::Lerp] {
            let wish = |&alpha: &f64| Wish {
                condition: painter.between(kind, &one.embedding, &two.embedding, alpha),
                seed: run.experiment.seed,
            };
            rows.push(strip(painter.images(&ALPHAS.iter().map(wish).collect::<Vec<_>>())?));
        }
        let mixed = ALPHAS.iter().map(|&alpha| mix_pixels(&right, &left, alpha)).collect::<Result<Vec<_>>>()?;
        rows.push(strip(mixed));
    }
    Ok(rows)
}

/// Titles and captions of the pictures in a run folder that are there, for the report.
pub(super) fn pictures(root: &Path) -> Vec<(String, String, Vec<u8>)> {
    let mut pictures = Vec::new();
    let mut add = |path: &Path, title: String, caption: &str| {
        if let Ok(bytes) = std::fs::read(path) {
            pictures.push((title, caption.to_owned(), bytes));
        }
    };
    let named = |folder: &str, start: &str| {
        let entries = root.join(folder).read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
        let starts =
            |path: &std::path::PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start));
        let mut paths: Vec<_> = entries.filter(starts).collect();
        paths.sort();
        paths
    };
    add(
        &root.join(FOLDER).join("synthetic.png"),
        "Real, generated and interpolated patches".into(),
        &format!(
            "Each row: a patch, images generated from its embedding, an image between it and another patch{}, and that other patch",
            alphas(root)
        ),
    );
    add(
        &root.join(FOLDER).join(STRIPS),
        "Between two patches".into(),
        "Each three rows: from the second patch to the first, which weighs 0.2, 0.4, 0.6 and 0.8; on the great circle of their \
         embeddings, on their line, and in the pixels",
    );
    if let Some(last) = named("diffusion/samples", "step-").last() {
        let caption = "First row: patches as the autoencoder has them; below, images drawn from their embeddings";
        add(last, "Samples of the diffusion model".into(), caption);
    }
    let caption = "Held-out patches over what the autoencoder makes of them";
    add(&root.join("autoencoder/reconstructions.png"), "Reconstructions".into(), caption);
    // Pictures of encoders that are no longer the run's may lie there too.
    let header = read_record(root, FOLDER).map(|record| record.header).unwrap_or_default();
    let encoders: Vec<&str> =
        header["encoders"].as_array().into_iter().flatten().filter_map(|pair| pair[0].as_str()).collect();
    for path in named(FOLDER, "attention_") {
        let encoder = path.file_stem().unwrap_or_default().to_string_lossy().replace("attention_", "");
        if !encoders.contains(&&*encoder) {
            continue;
        }
        let caption = "Each row: a patch, what [CLS] attends to in the last block (mean over heads), and each head";
        add(&path, format!("Attention of {encoder}"), caption);
    }
    for path in named("samples", "sample-") {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        add(&path, format!("Drawn by `gensis sample`: {name}"), "What the command printed says what is where");
    }
    for path in examples::pictures(root) {
        let caption = "Each row: a query and what is nearest to it, the right ones framed in green";
        add(&path, format!("Retrieval by {}", examples::encoder(&path)), caption);
    }
    pictures
}

/// The weights of the first patch in the bank that is shown.
fn alphas(root: &Path) -> String {
    let bank = read_record(root, "bank").map(|record| record.header["banks"][0]["alpha"].clone()).unwrap_or_default();
    match (bank[0].as_f64(), bank[1].as_f64()) {
        (Some(low), Some(high)) if low == high => format!(", of which it weighs {low}"),
        (Some(low), Some(high)) => format!(", of which it weighs {low} to {high}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_goes_from_black_to_white_token_by_token() {
        let map = heat(&[0.1, 0.2, 0.3, 0.4], 2, 3, (7, 6));
        assert_eq!(map.get_pixel(0, 0).0, [0, 0, 0]);
        assert_eq!(map.get_pixel(5, 5).0, [255, 255, 255]);
        assert!(map.get_pixel(5, 0).0[0] > 250 && map.get_pixel(5, 0).0[1] < 5);
        assert_eq!(map.get_pixel(6, 0).0, [0, 0, 0], "beyond the last token");
    }
}
