//! Patch positions at an exact µm/px.

use serde::{Deserialize, Serialize};

use crate::geometry::{Mpp, Point};

/// How a slide is cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GridSpec {
    /// Scale of the patches, µm/px. Exact: the slide is resampled to it.
    pub mpp: Mpp,
    /// Side of a patch, px at `mpp`.
    pub size: u32,
    /// Distance between patches, px at `mpp`; equal to `size` for no overlap.
    pub stride: u32,
    /// Smallest share of tissue in a kept patch, 0 to 1.
    pub min_tissue: f64,
}

impl Default for GridSpec {
    fn default() -> Self {
        // 0.5 µm/px (20x) and 256 px are the field's usual choice (CLAM, TRIDENT, PANDA solutions); half a patch of tissue.
        Self { mpp: Mpp(0.5), size: 256, stride: 256, min_tissue: 0.5 }
    }
}

/// The kept patches of one slide: sorted, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// How it was made.
    pub spec: GridSpec,
    /// Top left corners in level-0 pixels.
    pub origins: Vec<Point>,
}
