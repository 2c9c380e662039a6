//! Stain normalisation: the colours of one slide are mapped to those of a reference, so that laboratories and scanners
//! differ less in what comes after.
//!
//! Two methods. [`Macenko`](macenko) finds the colours of haematoxylin and eosin themselves and exchanges them, and the
//! amounts of them; [`Reinhard`](reinhard) maps mean and deviation of the colours as a whole, and asks for no particular
//! stain. Both are estimated from tissue alone, so the share of glass in a slide does not matter, and both leave glass as
//! it is.
//!
//! In the flow it sits between a patch's pixels and everything that looks at them: [`Normalized`] is a
//! [`PatchSource`](crate::PatchSource) around another. Statistics are those of a whole slide, estimated once from a
//! sample of its patches: a patch of fat or of nothing but nuclei has colours that say little about the stain, and
//! normalising it by itself would give it the average composition of the reference. The sample has the patches' own
//! scale, since in a low-resolution copy (8 µm/px) a nucleus and what surrounds it are one pixel, and the pure colour of
//! haematoxylin is nowhere left.

mod exponential;
pub mod macenko;
mod normalized;
pub mod reinhard;

use std::fmt;
use std::path::PathBuf;

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::folder::read_image;
use macenko::Stains;
pub use normalized::Normalized;
use reinhard::Colours;

/// Fewest pixels of tissue that statistics are estimated from: ten lie beyond the first percentile.
pub const MIN_TISSUE: usize = 1000;

/// How stain is normalised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StainParams {
    /// The method, or none.
    pub normalize: Method,
    /// A JPEG or PNG image whose stain the others take; empty for the method's own reference.
    pub reference: PathBuf,
    /// What the statistics of images in folders are those of. Patches of a slide always have those of their slide.
    pub images: ImageStatistics,
    /// Brightness of glass, 1 to 255: optical densities are relative to it.
    pub light: u8,
    /// Optical density (natural logarithm) below which a pixel is glass and counts in no statistics.
    pub min_density: f64,
    /// Macenko: the stains lie at this percentile of the tissue's angles, and at 100 minus it.
    pub percentile: f64,
}

/// A method of stain normalisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Patches stay as they are.
    #[default]
    None,
    /// Colours and amounts of haematoxylin and eosin.
    Macenko,
    /// Mean and deviation of the colours.
    Reinhard,
}

/// What the statistics of images in folders are those of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageStatistics {
    /// Each image by itself, since a folder mixes slides; the folder's where an image has too little tissue, or tissue of
    /// one colour. What an image's mean colour says about its class is lost with its stain.
    #[default]
    Each,
    /// The whole folder: right where it holds one slide, or slides of one laboratory.
    Folder,
}

impl Default for StainParams {
    fn default() -> Self {
        Self {
            normalize: Method::None,
            reference: PathBuf::new(),
            images: ImageStatistics::Each,
            // Macenko's implementation by Veta and all that follow it: glass at 240, 0.15, 1.
            light: 240,
            min_density: 0.15,
            percentile: 1.0,
        }
    }
}

impl StainParams {
    /// Checks the values on their own.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the value that makes no sense.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::Usage(what));
        if self.light == 0 {
            return wrong("stain.light is 0: it is the brightness of glass, 1 to 255".into());
        }
        let darkest = f64::from(self.light).ln();
        if !(self.min_density > 0.0 && self.min_density < darkest) {
            return wrong(format!(
                "stain.min_density is {}: with stain.light {} it lies between 0 and {darkest:.2}",
                self.min_density, self.light
            ));
        }
        if !(0.0..50.0).contains(&self.percentile) {
            return wrong(format!("stain.percentile is {}: it is 0 or more, and below 50", self.percentile));
        }
        Ok(())
    }

    /// The optical density of every byte, `-ln(byte / light)`: 0 for what is brighter than glass, and 0 counts as 1,
    /// since nothing is perfectly black.
    fn densities(&self) -> [f64; 256] {
        std::array::from_fn(|byte| (f64::from(self.light) / byte.max(1) as f64).ln().max(0.0))
    }
}

/// Why pixels have no stain statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoStatistics {
    /// Fewer than [`MIN_TISSUE`] pixels are tissue.
    LittleTissue {
        /// Those that are.
        tissue: usize,
        /// All that were looked at.
        pixels: usize,
    },
    /// The tissue has one colour.
    OneColour,
}

impl fmt::Display for NoStatistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LittleTissue { tissue, pixels } => write!(
                f,
                "{tissue} of {pixels} pixels looked at are dense enough for stained tissue (stain.min_density), and \
                 {MIN_TISSUE} are needed"
            ),
            Self::OneColour => {
                f.write_str("its tissue has one colour, so there is nothing to tell two stains apart by")
            }
        }
    }
}

/// The stain that patches are given.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    params: StainParams,
    statistics: Statistics,
}

/// Statistics of some tissue.
#[derive(Clone, Debug, PartialEq)]
pub enum Statistics {
    /// Of Macenko's method.
    Macenko(Stains),
    /// Of Reinhard's method.
    Reinhard(Colours),
}

impl Target {
    /// The target that `params` names, or `None` where nothing is to be normalised. Reads the reference image.
    ///
    /// # Errors
    /// Values that make no sense, and a reference image that cannot be read or has no stain statistics.
    pub fn new(params: &StainParams) -> Result<Option<Self>> {
        params.check()?;
        let statistics = match params.normalize {
            Method::None => return Ok(None),
            Method::Macenko => Statistics::Macenko(Stains::REFERENCE),
            Method::Reinhard => Statistics::Reinhard(Colours::REFERENCE),
        };
        let standard = Self { params: params.clone(), statistics };
        if params.reference.as_os_str().is_empty() {
            return Ok(Some(standard));
        }
        let image = read_image(&params.reference)?;
        let statistics = standard.estimate(image.as_raw().as_chunks().0).map_err(|why| {
            Error::unsupported(&params.reference, format!("it cannot be the reference of the stain: {why}"))
        })?;
        Ok(Some(Self { statistics, ..standard }))
    }

    /// The target's own statistics.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Statistics of `pixels` (RGB) by the target's method.
    ///
    /// # Errors
    /// Why there are none.
    pub fn estimate(&self, pixels: &[[u8; 3]]) -> Result<Statistics, NoStatistics> {
        match self.statistics {
            Statistics::Macenko(_) => Stains::estimate(pixels, &self.params).map(Statistics::Macenko),
            Statistics::Reinhard(_) => Colours::estimate(pixels, &self.params).map(Statistics::Reinhard),
        }
    }

    /// The map from the stain of `pixels` (RGB) to this one.
    ///
    /// # Errors
    /// Why `pixels` have no statistics.
    pub fn normalizer(&self, pixels: &[[u8; 3]]) -> Result<Normalizer, NoStatistics> {
        Ok(match &self.statistics {
            Statistics::Macenko(target) => {
                Normalizer::Macenko(Stains::estimate(pixels, &self.params)?.map_to(target, &self.params))
            }
            Statistics::Reinhard(target) => {
                Normalizer::Reinhard(Colours::estimate(pixels, &self.params)?.map_to(target, &self.params))
            }
        })
    }
}

/// The map from one stain to another.
#[derive(Clone, Debug, PartialEq)]
pub enum Normalizer {
    /// By Macenko's method.
    Macenko(macenko::Map),
    /// By Reinhard's method.
    Reinhard(reinhard::Map),
}

impl Normalizer {
    /// Gives an image the target's stain.
    pub fn apply(&self, image: &mut RgbImage) {
        let pixels = image.as_chunks_mut::<3>().0;
        match self {
            Self::Macenko(map) => map.apply(pixels),
            Self::Reinhard(map) => map.apply(pixels),
        }
    }
}

/// The inverse of a matrix by cofactors, for changes between colours and stains. Not finite for one that has none.
pub fn inverse(m: [[f64; 3]; 3]) -> [[f64; 3]; 3] {
    let cofactor = |row: usize, column: usize| {
        let at = |r: usize, c: usize| m[(row + r) % 3][(column + c) % 3];
        at(1, 1) * at(2, 2) - at(1, 2) * at(2, 1)
    };
    let determinant: f64 = (0..3).map(|column| m[0][column] * cofactor(0, column)).sum();
    std::array::from_fn(|row| std::array::from_fn(|column| cofactor(column, row) / determinant))
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// `x a + y b`.
fn combine(x: f64, a: [f64; 3], y: f64, b: [f64; 3]) -> [f64; 3] {
    std::array::from_fn(|i| x * a[i] + y * b[i])
}

#[cfg(test)]
mod tests;
