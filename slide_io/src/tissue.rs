//! Where the tissue is, at low resolution.

use serde::{Deserialize, Serialize};

/// Rules of the tissue mask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TissueParams {
    /// Scale at which the mask is computed, µm/px.
    pub mpp: f64,
}

impl Default for TissueParams {
    fn default() -> Self {
        Self { mpp: 8.0 }
    }
}

/// Tissue or background for every pixel of a low-resolution copy of the slide.
pub struct TissueMask;
