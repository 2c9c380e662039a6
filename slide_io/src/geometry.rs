//! Units of the field as types: scales in µm/px, positions in level-0 pixels, sizes in pixels of the level read.

use serde::{Deserialize, Serialize};

/// A scale in microns per pixel. "20x" is about `Mpp(0.5)`, "40x" about `Mpp(0.25)`; the true value differs per scanner.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mpp(pub f64);

impl std::fmt::Display for Mpp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.4} µm/px", self.0)
    }
}

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Size {
    /// Pixels along x.
    pub width: u32,
    /// Pixels along y.
    pub height: u32,
}

impl Size {
    /// A size of `width` x `height` pixels.
    pub const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// Both sides halved `halvings` times and rounded up.
    pub(crate) const fn halved(self, halvings: u8) -> Self {
        Self::new(self.width.div_ceil(1 << halvings), self.height.div_ceil(1 << halvings))
    }

    /// A square of `side` pixels.
    pub const fn square(side: u32) -> Self {
        Self::new(side, side)
    }
}

/// A position in level-0 pixels. May lie outside the slide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Point {
    /// Level-0 pixels from the left edge.
    pub x: i64,
    /// Level-0 pixels from the top edge.
    pub y: i64,
}

impl Point {
    /// The position (`x`, `y`) in level-0 pixels.
    pub const fn new(x: i64, y: i64) -> Self {
        Self { x, y }
    }
}

/// One resolution of a slide's pyramid.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// Pixels of this level.
    pub size: Size,
    /// Level-0 pixels per pixel of this level; 1 for level 0, rarely an exact integer elsewhere.
    pub downsample: f64,
}

/// A rectangle to read: its origin is in level-0 pixels, its size in pixels of `level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Index into the slide's levels.
    pub level: usize,
    /// Top left corner in level-0 pixels.
    pub origin: Point,
    /// Pixels of `level`.
    pub size: Size,
}
