//! Attention over a slide as a picture: weights to levels from 0 to 1, levels to colours, colours over a picture of the slide.
//!
//! A head's weights say which patches its decision rests on, not where the tumour is; and they are relative: a slide without
//! anything to see has patches of rank 1 as well. CLAM's heatmaps rank them ([`Scale::Percentile`]), which shows the order
//! and hides the size; [`Scale::Weight`] shows the size.

mod colormap;
mod legend;

use crate::paired::midranks;
use serde::{Deserialize, Serialize};
use slide_io::{Point, Rgb, RgbImage, Size};

pub use colormap::Colormap;
pub use legend::with_legend;

/// How weights become levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// The share of the slide's patches with no more attention; ties share the mean of their ranks.
    Percentile,
    /// The weight itself, from the slide's least to its most.
    Weight,
}

impl Scale {
    /// The level of every weight, 0 to 1.
    pub fn levels(self, weights: &[f32]) -> Vec<f32> {
        match self {
            Self::Percentile => percentiles(weights),
            Self::Weight => {
                let (low, high) = range(weights);
                weights.iter().map(|weight| (weight - low) / (high - low).max(f32::MIN_POSITIVE)).collect()
            }
        }
    }

    /// What stands at the lower end, in the middle and at the upper end of the legend: percent, or multiples of the weight that
    /// every patch would have if all were alike.
    pub fn ticks(self, weights: &[f32]) -> [String; 3] {
        match self {
            Self::Percentile => ["0".into(), "50".into(), "100".into()],
            Self::Weight => {
                // 1x: what every patch would have if all had the same.
                let (low, high) = range(weights);
                let times = |weight: f32| {
                    let times = weight * weights.len() as f32;
                    if times < 10.0 { format!("{times:.2}x") } else { format!("{times:.0}x") }
                };
                [low, (low + high) / 2.0, high].map(times)
            }
        }
    }
}

fn range(weights: &[f32]) -> (f32, f32) {
    weights.iter().fold((f32::MAX, f32::MIN), |(low, high), &weight| (low.min(weight), high.max(weight)))
}

/// The rank of every value among all of them over their number, above 0 and up to 1; equal values share the mean of their
/// ranks (`scipy.stats.rankdata(values) / n`, as CLAM ranks).
pub fn percentiles(values: &[f32]) -> Vec<f32> {
    midranks(values).into_iter().map(|rank| (rank / values.len() as f64) as f32).collect()
}

/// How levels are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlay {
    /// Colours from level 0 to level 1.
    pub colormap: Colormap,
    /// Share of the colour in what is shown, 0 to 1; the rest is the slide.
    pub alpha: f64,
}

/// Patches of one size with a level each.
#[derive(Clone, Copy, Debug)]
pub struct Levels<'a> {
    /// Size of the slide's level 0.
    pub slide: Size,
    /// Upper left corners of the patches, level-0 px.
    pub origins: &'a [Point],
    /// Side of a patch, level-0 px.
    pub side: f64,
    /// One level per patch, 0 to 1.
    pub levels: &'a [f32],
}

impl Overlay {
    /// The colour of a level over a pixel.
    fn over(&self, pixel: Rgb<u8>, level: f32) -> Rgb<u8> {
        let colour = self.colormap.colour(level);
        let mix = |channel: usize| {
            let (below, above) = (f64::from(pixel.0[channel]), f64::from(colour.0[channel]));
            (below * (1.0 - self.alpha) + above * self.alpha).round() as u8
        };
        Rgb([0, 1, 2].map(mix))
    }

    /// Colours the patches on `picture`, which shows the whole slide. Where patches overlap, a pixel has the mean of
    /// their levels. Every patch has at least one pixel.
    pub fn draw(&self, picture: &mut RgbImage, patches: &Levels) {
        let (width, height) = picture.dimensions();
        if width == 0 || height == 0 || patches.slide.width == 0 || patches.slide.height == 0 {
            return;
        }
        let mut sums = vec![(0.0f32, 0u32); width as usize * height as usize];
        let scale =
            [f64::from(patches.slide.width) / f64::from(width), f64::from(patches.slide.height) / f64::from(height)];
        let span = |start: i64, scale: f64, limit: u32| {
            let pixel = |level0: f64| (level0 / scale).round().clamp(0.0, f64::from(limit)) as u32;
            let first = pixel(start as f64).min(limit - 1);
            first..pixel(start as f64 + patches.side).max(first + 1)
        };
        for (origin, &level) in patches.origins.iter().zip(patches.levels) {
            for y in span(origin.y, scale[1], height) {
                for x in span(origin.x, scale[0], width) {
                    let (sum, count) = &mut sums[(y * width + x) as usize];
                    (*sum, *count) = (*sum + level, *count + 1);
                }
            }
        }
        for (pixel, (sum, count)) in picture.pixels_mut().zip(sums) {
            if count > 0 {
                *pixel = self.over(*pixel, sum / count as f32);
            }
        }
    }
}

/// The patches of level `least` and above: their places in the list.
pub fn above(levels: &[f32], least: f32) -> Vec<usize> {
    (0..levels.len()).filter(|&patch| levels[patch] >= least).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_as_scipy() {
        // scipy.stats.rankdata([0.2, 0.1, 0.2, 0.5]) / 4
        assert_eq!(percentiles(&[0.2, 0.1, 0.2, 0.5]), [0.625, 0.25, 0.625, 1.0]);
        assert!(percentiles(&[]).is_empty());
        assert_eq!(percentiles(&[0.3; 4]), [0.625; 4]);
    }

    #[test]
    fn weights_go_from_the_least_to_the_most() {
        let weights = [0.1, 0.4, 0.25, 0.25];
        assert_eq!(
            Scale::Weight.levels(&weights).iter().map(|l| (l * 100.0).round()).collect::<Vec<_>>(),
            [0.0, 100.0, 50.0, 50.0]
        );
        assert_eq!(Scale::Weight.ticks(&weights), ["0.40x", "1.00x", "1.60x"]);
        assert_eq!(Scale::Weight.levels(&[0.25; 4]), [0.0; 4]);
        assert_eq!(above(&Scale::Percentile.levels(&weights), 0.9), [1]);
    }

    #[test]
    fn patches_are_coloured_where_they_are_and_overlaps_averaged() {
        let overlay = Overlay { colormap: Colormap::Viridis, alpha: 1.0 };
        let mut picture = RgbImage::from_pixel(10, 10, Rgb([255; 3]));
        let origins = [Point::new(0, 0), Point::new(10, 0), Point::new(90, 90)];
        let patches = Levels { slide: Size::square(100), origins: &origins, side: 20.0, levels: &[0.0, 1.0, 0.5] };
        overlay.draw(&mut picture, &patches);
        let at = |x, y| *picture.get_pixel(x, y);
        assert_eq!(at(0, 0), Colormap::Viridis.colour(0.0));
        assert_eq!(at(1, 1), Colormap::Viridis.colour(0.5));
        assert_eq!(at(2, 0), Colormap::Viridis.colour(1.0));
        assert_eq!(at(9, 9), Colormap::Viridis.colour(0.5), "what hangs over the edge is cut off");
        assert_eq!(picture.pixels().filter(|pixel| pixel.0 != [255; 3]).count(), 7);
        let mut faint = RgbImage::from_pixel(10, 10, Rgb([255; 3]));
        Overlay { alpha: 0.0, ..overlay }.draw(&mut faint, &patches);
        assert!(faint.pixels().all(|pixel| pixel.0 == [255; 3]));
        let mut tiny = RgbImage::from_pixel(2, 2, Rgb([255; 3]));
        overlay.draw(&mut tiny, &Levels { side: 1.0, ..patches });
        assert_ne!(tiny.get_pixel(1, 1).0, [255; 3], "a patch smaller than a pixel is still seen");
    }
}
