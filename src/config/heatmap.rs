//! `[heatmap]`: what the slide-level heads attend to, as pictures.

use anyhow::{Result, ensure};
use evaluation::heatmap::{Colormap, Scale};
use serde::{Deserialize, Serialize};

/// Attention heatmaps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Heatmap {
    /// Slides that `gensis run` draws, evenly over the classes; 0 draws none.
    pub slides: usize,
    /// How attention becomes colour: its rank on the slide, or its size.
    pub scale: Scale,
    /// The colours.
    pub colormap: Colormap,
    /// Share of the colour in what is shown, 0 to 1; the rest is the slide.
    pub alpha: f64,
    /// What the GeoJSON holds.
    pub geojson: Outlines,
    /// Smallest rank of a patch in a region, 0 to 1: 0.9 outlines the tenth of the patches with the most attention.
    pub threshold: f64,
}

/// What the GeoJSON of a heatmap holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outlines {
    /// Every patch as a detection with its attention and rank, for QuPath's measurement maps.
    Patches,
    /// The patches above the threshold, merged into annotations.
    Regions,
}

impl Default for Heatmap {
    fn default() -> Self {
        Self {
            slides: 12,
            // CLAM's: the size of softmax weights differs by orders of magnitude between slides.
            scale: Scale::Percentile,
            colormap: Colormap::Viridis,
            alpha: 0.5,
            geojson: Outlines::Patches,
            threshold: 0.9,
        }
    }
}

impl Heatmap {
    /// Refuses values that make no sense.
    ///
    /// # Errors
    /// A share outside 0 to 1.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [("alpha", self.alpha), ("threshold", self.threshold)] {
            ensure!((0.0..=1.0).contains(&value), "heatmap.{name} = {value} is not between 0 and 1");
        }
        Ok(())
    }
}
