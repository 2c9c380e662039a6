//! What is written of one slide: the picture, the scores, the outlines.

use std::path::Path;

use anyhow::{Context, Result};
use evaluation::heatmap::{Levels, Overlay, Scale, above, percentiles, with_legend};
use serde_json::json;
use slide_io::h5::{self, AttentionScores, ClassScores, Coordinates};
use slide_io::regions::{Detection, Polygon, Regions, write_detections};
use slide_io::{Point, Rgb, RgbImage, Size, folder};

use super::Drawn;
use super::atlas::{Atlas, SlideMap};
use crate::config::{Heatmap, Outlines};
use crate::sample::sheet::write_png;

/// Longer side of the picture of a slide without a thumbnail, px.
const BLANK_SIDE: f64 = 1024.0;
/// Class of the patches above the threshold, in QuPath.
const CLASS: &str = "High attention";

/// Where and how the maps of one head are written.
pub(super) struct Canvas<'a> {
    pub root: &'a Path,
    pub settings: &'a Heatmap,
}

impl Canvas<'_> {
    /// Writes the picture, and `.h5` and `.geojson` beside it.
    pub fn write(&self, map: &SlideMap, atlas: &Atlas, drawn: &Drawn) -> Result<()> {
        let file = |extension: &str| self.root.join(&drawn.picture).with_extension(extension);
        let side = side(&map.coordinates)?;
        let weights = &map.weights[map.shown];
        self.scores(map, atlas, drawn, &file("h5"))?;
        self.outlines(&map.coordinates.origins, side, weights, &file("geojson"))?;
        let slide = size(&map.coordinates, side);
        let thumbnail = self.root.join("thumbnails").join(format!("{}.jpg", map.slide));
        let mut picture = match thumbnail.exists() {
            true => folder::read_image(&thumbnail)?,
            false => blank(slide),
        };
        let levels = self.settings.scale.levels(weights);
        let overlay = Overlay { colormap: self.settings.colormap, alpha: self.settings.alpha };
        overlay.draw(&mut picture, &Levels { slide, origins: &map.coordinates.origins, side, levels: &levels });
        let ticks = self.settings.scale.ticks(weights);
        write_png(&file("png"), &with_legend(&picture, &overlay, &ticks))
    }

    /// The weights under CLAM's names, with those of every class where the head tells classes apart.
    fn scores(&self, map: &SlideMap, atlas: &Atlas, drawn: &Drawn, path: &Path) -> Result<()> {
        let patches = map.coordinates.origins.len();
        let by_class = (map.weights.len() > 1).then(|| ClassScores {
            classes: atlas.classes().to_vec(),
            values: (0..patches).flat_map(|patch| map.weights.iter().map(move |row| row[patch])).collect(),
        });
        let header = json!({
            "stage": "heatmap",
            "drawn": drawn,
            "evaluation": atlas.evaluation(),
            "settings": self.settings,
            "version": env!("CARGO_PKG_VERSION"),
            "encoder": atlas.encoder.hash,
            "classes": atlas.classes(),
            "probabilities": map.probabilities,
        });
        let scores = map.weights[map.shown].clone();
        // Label shares belong to the coordinates file.
        let coordinates = Coordinates { labels: None, ..map.coordinates.clone() };
        Ok(h5::write_attention(path, &AttentionScores { coordinates, scores, by_class }, &header)?)
    }

    fn outlines(&self, origins: &[Point], side: f64, weights: &[f32], path: &Path) -> Result<()> {
        let ranks = percentiles(weights);
        let threshold = self.settings.threshold as f32;
        let Rgb(color) = self.settings.colormap.colour(1.0);
        if self.settings.geojson == Outlines::Regions {
            let high: Vec<Point> = above(&ranks, threshold).into_iter().map(|patch| origins[patch]).collect();
            return Ok(Regions::of_squares(&high, side, CLASS, color).write(path)?);
        }
        let detection = |((origin, &weight), &rank): ((&Point, &f32), &f32)| {
            let high = rank >= threshold;
            Detection {
                polygon: square(*origin, side),
                class: high.then(|| CLASS.to_owned()),
                color: high.then_some(color),
                measurements: vec![
                    ("Attention".into(), f64::from(weight)),
                    ("Attention percentile".into(), 100.0 * f64::from(rank)),
                ],
            }
        };
        let detections: Vec<Detection> = origins.iter().zip(weights).zip(&ranks).map(detection).collect();
        Ok(write_detections(path, &detections)?)
    }
}

fn square(Point { x, y }: Point, side: f64) -> Polygon {
    let (x, y) = (x as f64, y as f64);
    Polygon { exterior: vec![[x, y], [x + side, y], [x + side, y + side], [x, y + side]], holes: vec![] }
}

/// Side of a patch in level-0 px. Features files of CLAM do not say it: there it is the least distance between neighbours in a
/// row, since CLAM cuts patches without overlap.
fn side(coordinates: &Coordinates) -> Result<f64> {
    if let Some(geometry) = &coordinates.geometry {
        return Ok(geometry.side_level0);
    }
    let mut origins = coordinates.origins.clone();
    origins.sort_unstable_by_key(|origin| (origin.y, origin.x));
    let steps = origins.windows(2).filter(|pair| pair[0].y == pair[1].y).map(|pair| pair[1].x - pair[0].x);
    let step = steps.filter(|&step| step > 0).min();
    step.map(|step| step as f64).context("its features file does not say how large a patch is")
}

/// Size of the slide, or of what its patches cover where the file does not say it.
fn size(coordinates: &Coordinates, side: f64) -> Size {
    let extent = |axis: fn(&Point) -> i64| {
        let most = coordinates.origins.iter().map(axis).max().unwrap_or(0);
        (most as f64 + side).ceil().max(1.0) as u32
    };
    let stated = coordinates.geometry.as_ref().and_then(|geometry| geometry.slide);
    stated.unwrap_or_else(|| Size::new(extent(|p| p.x), extent(|p| p.y)))
}

/// Glass in the shape of the slide.
fn blank(slide: Size) -> RgbImage {
    let scale = (BLANK_SIDE / f64::from(slide.width.max(slide.height))).min(1.0);
    let side = |pixels: u32| (f64::from(pixels) * scale).round().max(1.0) as u32;
    RgbImage::from_pixel(side(slide.width), side(slide.height), Rgb([245; 3]))
}

/// How the colours of a picture are to be read.
pub(in crate::commands) fn reading(scale: Scale) -> &'static str {
    match scale {
        Scale::Percentile => "colour: rank of a patch among those of its slide, %",
        Scale::Weight => "colour: attention, from the slide's least to its most (1x: as if all patches were alike)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_clam_give_their_patches_size_by_their_distance() {
        let origins = [(0, 0), (512, 0), (2048, 0), (100, 700)].map(|(x, y)| Point::new(x, y)).to_vec();
        let coordinates = Coordinates { name: "s".into(), origins, geometry: None, labels: None };
        assert_eq!(side(&coordinates).unwrap(), 512.0);
        assert_eq!(size(&coordinates, 512.0), Size::new(2560, 1212));
        let one = Coordinates { origins: vec![Point::new(5, 5)], ..coordinates };
        assert!(side(&one).is_err());
        assert_eq!(blank(Size::new(20_000, 10_000)).dimensions(), (1024, 512));
    }
}
