//! `gensis evaluate retrieval`: the images of a query's place (revisited Oxford and Paris) or class, by the encoder's [CLS].

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use evaluation::bootstrap::Interval;
use evaluation::embeddings::l2_normalise;
use evaluation::retrieval::precision::AT;
use evaluation::retrieval::ranking::Rows;
use evaluation::retrieval::{ClassPrecision, Difficulty, GroundTruth, Precision, class_precision, precision, rank};
use evaluation::table::ResultRow;
use image::RgbImage;
use image::imageops;
use slide_io::PatchSource;
use slide_io::folder::read_image;

use super::examples::{self, Example};
use super::own_images::{Found, Judged, Place, row};
use super::{bootstrap, features};
use crate::commands::Run;
use crate::config::Retrieval;
use crate::data::normalize::Normalize;
use crate::data::thumbnail::thumbnail;
use crate::device;
use crate::model::Encoder;

/// The scales of a multiscale feature.
const SCALES: [f64; 3] = [1.0, std::f64::consts::FRAC_1_SQRT_2, 0.5];

/// Scores an encoder on the images of a place.
pub(super) fn retrieval(run: &Run, judged: &Judged, place: &Place, found: &mut Found) -> Result<()> {
    let truth = if place.own.is_some() { None } else { GroundTruth::file_in(&place.folder)? };
    let rows = match truth {
        Some(file) => places(run, judged, place, &GroundTruth::load(&file)?, found)?,
        None => classes(run, judged, place, found)?,
    };
    found.rows.extend(rows);
    Ok(())
}

/// The revisited protocol: easy, medium and hard, with junk.
fn places(run: &Run, judged: &Judged, place: &Place, truth: &GroundTruth, found: &mut Found) -> Result<Vec<ResultRow>> {
    let Judged { name, encoder } = judged;
    let settings = &run.experiment.evaluate.retrieval;
    let file = |image: &String| place.folder.join("jpg").join(format!("{image}.jpg"));
    let images: Vec<PathBuf> = truth.images.iter().map(file).collect();
    let queries: Vec<PathBuf> = truth.queries.iter().map(file).collect();
    let database = embedded(run, judged, &images, |index| Ok(read_image(&images[index])?), found)?;
    let query = |index: usize| {
        let image = read_image(&queries[index])?;
        match truth.truth[index].bounds.filter(|_| settings.crop_queries) {
            Some(bounds) => cut(&image, bounds).context("the box of the query lies outside its image"),
            None => Ok(image),
        }
    };
    let queried = embedded(run, judged, &queries, query, found)?;
    // An image that cannot be read is nowhere in the ranking: junk that it was is not missed, and being right it is never found.
    let (kept, dim) = (&database.kept, encoder.dim());
    let (queries, database) = (Rows { values: &queried.values, dim }, Rows { values: &database.values, dim });
    let ranked = rank(queries, database, &device::open(run.device)?, |query, order| {
        let truth = &truth.truth[queried.kept[query]];
        let order: Vec<usize> = order.iter().map(|place| kept[*place]).collect();
        let scores = Difficulty::ALL.map(|difficulty| {
            let (right, junk) = truth.right_and_junk(difficulty);
            precision(&order, &right, &junk)
        });
        let (right, junk) = truth.right_and_junk(Difficulty::Medium);
        let found = order.iter().filter(|image| !junk.contains(image)).map(|image| (*image, right.contains(image)));
        (scores, Example::of(query, queried.kept.len(), found))
    })?;
    let (scores, examples): (Vec<_>, Vec<_>) = ranked.into_iter().unzip();
    let examples: Vec<Example> = examples.into_iter().flatten().collect();
    examples::draw(run, name, &examples, |at| query(queried.kept[at]), |image| Ok(read_image(&images[image])?))?;
    let mut rows = Vec::new();
    for (at, difficulty) in Difficulty::ALL.into_iter().enumerate() {
        let scores: Vec<Precision> = scores.iter().filter_map(|query| query[at]).collect();
        let base = row("retrieval", place.name.clone(), name, difficulty.name(), scores.len());
        rows.extend(figure(run, &base, "map", scores.iter().map(|s| s.average).collect())?);
        for (k, among) in AT.into_iter().enumerate() {
            rows.extend(figure(run, &base, &format!("mp_at_{among}"), scores.iter().map(|s| s.at[k]).collect())?);
        }
    }
    Ok(rows)
}

/// Every image asks for the others of its class.
fn classes(run: &Run, judged: &Judged, place: &Place, found: &mut Found) -> Result<Vec<ResultRow>> {
    let Judged { name, encoder } = judged;
    let (images, source) = place.images(run)?;
    ensure!(
        !images.classes().is_empty(),
        "{} has neither a gnd_*.pkl or .json nor class folders: what is right for a query is not known",
        place.folder.display()
    );
    let paths: Vec<PathBuf> = (0..images.len()).map(|index| place.folder.join(images.key(index).item)).collect();
    let embedded = embedded(run, judged, &paths, |index| Ok(source.read(index)?.image), found)?;
    let labels: Vec<Option<u32>> = embedded.kept.iter().map(|&index| images.label(index)).collect();
    let mut sizes = vec![0; images.classes().len()];
    labels.iter().flatten().for_each(|&label| sizes[label as usize] += 1);
    let rows = Rows { values: &embedded.values, dim: encoder.dim() };
    let ranked = rank(rows, rows, &device::open(run.device)?, |query, order| {
        let label = labels[query]?;
        let r = sizes[label as usize] - 1;
        let others = || order.iter().filter(|place| **place != query);
        let right = |place: &usize| labels[*place] == Some(label);
        let score = class_precision(&others().take(r.max(1)).map(right).collect::<Vec<bool>>(), r);
        Some((score, Example::of(query, labels.len(), others().map(|place| (*place, right(place))))))
    })?;
    let (scores, examples): (Vec<_>, Vec<_>) = ranked.into_iter().flatten().unzip();
    let scores: Vec<ClassPrecision> = scores.into_iter().flatten().collect();
    let examples: Vec<Example> = examples.into_iter().flatten().collect();
    let image = |place: usize| Ok(source.read(embedded.kept[place])?.image);
    examples::draw(run, name, &examples, image, image)?;
    let base = row("retrieval", place.name.clone(), name, "classes", scores.len());
    let mut figures = figure(run, &base, "map_at_r", scores.iter().map(|s| s.map_at_r).collect())?;
    figures.extend(figure(run, &base, "r_precision", scores.iter().map(|s| s.r_precision).collect())?);
    figures.extend(figure(run, &base, "precision_at_1", scores.iter().map(|s| s.first).collect())?);
    Ok(figures)
}

/// The mean over queries with its interval; nothing where no query counts.
pub(super) fn figure(run: &Run, base: &ResultRow, metric: &str, values: Vec<f64>) -> Result<Vec<ResultRow>> {
    if values.is_empty() {
        return Ok(vec![]);
    }
    let Interval { value, low, high, .. } = bootstrap(run).mean(&values, None)?;
    Ok(vec![ResultRow { metric: metric.into(), value, low, high, ..base.clone() }])
}

/// Features of the images that could be read, scaled to length 1.
fn embedded(
    run: &Run,
    Judged { name, encoder }: &Judged,
    paths: &[PathBuf],
    image: impl Fn(usize) -> Result<RgbImage> + Sync,
    found: &mut Found,
) -> Result<features::Features> {
    let settings = &run.experiment.evaluate.retrieval;
    let mut features = features::of(run, "retrieval", paths.len(), |index| feature(encoder, image(index)?, settings))?;
    let item = |index: usize| Some(format!("{name}, {}", paths[index].display()));
    found.failures.extend(features.failures("retrieval", item));
    ensure!(!features.values.is_empty(), "none of the {} images can be read: {}", paths.len(), features.first_reason());
    l2_normalise(&mut features.values, encoder.dim());
    Ok(features)
}

/// [CLS] of an image, or its mean over the scales.
fn feature(encoder: &Encoder, image: RgbImage, settings: &Retrieval) -> Result<Vec<f32>> {
    let seen = thumbnail(image, settings.image_size)?;
    let (width, height) = (seen.width() as usize, seen.height() as usize);
    let pixels = Normalize::new(encoder.config.mean, encoder.config.std).images(&[&seen]);
    if !settings.multiscale {
        return encoder.embed(pixels, 1, height, width);
    }
    let mut sum = vec![0.0; encoder.dim()];
    for scale in SCALES {
        let (scaled, height, width) = scaled(&pixels, height, width, scale);
        let feature = encoder.embed(scaled, 1, height, width)?;
        sum.iter_mut().zip(feature).for_each(|(sum, value)| *sum += value / SCALES.len() as f32);
    }
    Ok(sum)
}

/// Part of an image within left, top, right and bottom, to whole pixels; `None` where there is nothing of it.
fn cut(image: &RgbImage, [left, top, right, bottom]: [f64; 4]) -> Option<RgbImage> {
    let within = |value: f64, side: u32| value.round_ties_even().clamp(0.0, f64::from(side)) as u32;
    let (x, y) = (within(left, image.width()), within(top, image.height()));
    let (right, bottom) = (within(right, image.width()), within(bottom, image.height()));
    (right > x && bottom > y).then(|| imageops::crop_imm(image, x, y, right - x, bottom - y).to_image())
}

/// Normalised pixels `[3, height, width]` at another scale, sides rounded down: bilinear with corners not aligned, and with
/// the given scale, as PyTorch's `interpolate(scale_factor=...)`.
fn scaled(pixels: &[f32], height: usize, width: usize, scale: f64) -> (Vec<f32>, usize, usize) {
    if scale == 1.0 {
        return (pixels.to_vec(), height, width);
    }
    let taps = |from: usize| -> Vec<(usize, usize, f32)> {
        let to = ((from as f64 * scale).floor() as usize).max(1);
        let tap = |i: usize| {
            let place = ((i as f64 + 0.5) / scale - 0.5).max(0.0);
            let first = (place as usize).min(from - 1);
            (first, (first + 1).min(from - 1), (place - first as f64) as f32)
        };
        (0..to).map(tap).collect()
    };
    let (rows, columns) = (taps(height), taps(width));
    let mut out = Vec::with_capacity(3 * rows.len() * columns.len());
    for channel in pixels.chunks_exact(height * width) {
        for &(above, below, down) in &rows {
            let (above, below) = (&channel[above * width..][..width], &channel[below * width..][..width]);
            let mix = |line: &[f32], &(left, right, along): &(usize, usize, f32)| {
                line[left] * (1.0 - along) + line[right] * along
            };
            out.extend(columns.iter().map(|tap| mix(above, tap) * (1.0 - down) + mix(below, tap) * down));
        }
    }
    (out, rows.len(), columns.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_cut_within_the_image() {
        let image = RgbImage::from_fn(10, 8, |x, y| image::Rgb([x as u8, y as u8, 0]));
        let part = cut(&image, [2.4, 1.0, 6.0, 20.0]).unwrap();
        assert_eq!((part.dimensions(), part.get_pixel(0, 0).0), ((4, 7), [2, 1, 0]));
        assert!(cut(&image, [20.0, 0.0, 30.0, 5.0]).is_none());
        assert!(cut(&image, [f64::NAN, 0.0, 0.0, 5.0]).is_none());
    }

    /// torch.nn.functional.interpolate of a row 0, 1, ..., 7 with scale_factor 1/√2 and 1/2, mode bilinear.
    #[test]
    fn scales_are_pytorchs() {
        let row: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let pixels: Vec<f32> = [&row[..], &row, &row].concat();
        let (half, height, width) = scaled(&pixels, 1, 8, 0.5);
        assert_eq!((height, width, &half[..4]), (1, 4, &[0.5, 2.5, 4.5, 6.5][..]));
        let (less, _, width) = scaled(&pixels, 1, 8, SCALES[1]);
        assert_eq!(width, 5);
        let expected = [0.207_106_8, 1.621_320_3, 3.035_534, 4.449_747_6, 5.863_961];
        less.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} {b}"));
    }
}
