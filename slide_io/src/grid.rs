//! Patch positions at an exact µm/px.
//!
//! Column `i` starts at level-0 pixel `round(i * stride * target / native)`. The product is taken anew for every column,
//! so rounding never adds up: the thousandth patch is as well placed as the first, within half a level-0 pixel.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::geometry::{Mpp, Point, Size};
use crate::mask::Mask;
use crate::quality::{DropCounts, DropReason};

/// How a slide is cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GridSpec {
    /// Scale of the patches, µm/px. Exact: the slide is resampled to it.
    pub mpp: Mpp,
    /// Side of a patch, px at `mpp`.
    pub size: u32,
    /// Distance between patches, px at `mpp`; 0 takes `size`: no overlap, no gaps.
    pub stride: u32,
    /// Smallest share of tissue in a kept patch, 0 to 1; 0 keeps the background too.
    pub min_tissue: f64,
}

impl Default for GridSpec {
    fn default() -> Self {
        // 0.5 µm/px (20x) and 256 px are the field's usual choice (CLAM, TRIDENT, PANDA solutions); half a patch of tissue.
        Self { mpp: Mpp(0.5), size: 256, stride: 0, min_tissue: 0.5 }
    }
}

/// Most positions of a grid on one slide: their corners take 1.6 GB.
const MAX_POSITIONS: usize = 100_000_000;

impl GridSpec {
    /// Distance between patches, px at their scale.
    pub fn step(&self) -> u32 {
        if self.stride == 0 { self.size } else { self.stride }
    }

    /// The same with the distance between patches given: equal ones cut alike.
    pub fn resolved(&self) -> Self {
        Self { stride: self.step(), ..self.clone() }
    }

    /// Level-0 pixels per patch pixel on a slide of `native` µm/px; below 1 where the slide is coarser than the patches.
    pub fn ratio(&self, native: Mpp) -> f64 {
        self.mpp.0 / native.0
    }

    /// Side of a patch in level-0 pixels on a slide of `native` µm/px, exact.
    pub fn side_level0(&self, native: Mpp) -> f64 {
        f64::from(self.size) * self.ratio(native)
    }

    /// Checks the values on their own.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the value that makes no sense.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::Usage(what));
        if !(self.mpp.0.is_finite() && self.mpp.0 > 0.0) {
            return wrong(format!("grid.mpp is {}: give the µm/px of the patches, for example 0.5", self.mpp.0));
        }
        if self.size == 0 {
            return wrong("grid.size is 0: give the side of a patch in pixels, for example 256".into());
        }
        if !(0.0..=1.0).contains(&self.min_tissue) {
            return wrong(format!("grid.min_tissue is {}: it is a share, from 0 to 1", self.min_tissue));
        }
        Ok(())
    }
}

/// The kept patches of one slide: sorted, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// How it was made.
    pub spec: GridSpec,
    /// Top left corners in level-0 pixels.
    pub origins: Vec<Point>,
    /// Positions that lie wholly inside the slide, tissue or not.
    pub candidates: usize,
    /// Positions that gave no patch, with the reason.
    pub dropped: Vec<(Point, DropReason)>,
    /// Side of a patch in level-0 pixels, exact.
    pub side_level0: f64,
}

impl Grid {
    /// Cuts a slide of `slide` level-0 pixels at `native` µm/px. A patch is kept if it lies wholly inside the slide and
    /// at least `spec.min_tissue` of it is tissue.
    ///
    /// # Errors
    /// [`Error::Usage`] for a specification or a scale that makes no sense.
    pub fn new(slide: Size, native: Mpp, spec: &GridSpec, mask: &Mask) -> Result<Self> {
        spec.check()?;
        if !(native.0.is_finite() && native.0 > 0.0) {
            return Err(Error::Usage(format!("a slide cannot have {} µm/px", native.0)));
        }
        let side = spec.side_level0(native);
        let step = f64::from(spec.step()) * spec.ratio(native);
        if step < 1.0 {
            return Err(Error::Usage(format!(
                "patches {} px apart at {} would start less than one pixel apart on a slide of {native}: choose a larger grid.stride",
                spec.step(),
                spec.mpp
            )));
        }
        let (columns, rows) = (starts(slide.width, step, side), starts(slide.height, step, side));
        if columns.len().saturating_mul(rows.len()) > MAX_POSITIONS {
            return Err(Error::Usage(format!(
                "patches {} px apart at {} would be {} x {} on a slide of {} x {} px, more than {MAX_POSITIONS}: choose a larger \
                 grid.stride (it is the distance between patches, not their overlap)",
                spec.step(),
                spec.mpp,
                columns.len(),
                rows.len(),
                slide.width,
                slide.height
            )));
        }
        let (mut origins, mut dropped) = (Vec::new(), Vec::new());
        for &y in &rows {
            for &x in &columns {
                // The sum of the mask over a patch of nothing but tissue may miss 1 by the rounding of its borders.
                if mask.fraction(x as f64, y as f64, side, side) + 1e-9 >= spec.min_tissue {
                    origins.push(Point::new(x, y));
                } else {
                    dropped.push((Point::new(x, y), DropReason::Background));
                }
            }
        }
        let candidates = columns.len() * rows.len();
        Ok(Self { spec: spec.clone(), origins, candidates, dropped, side_level0: side })
    }

    /// Number of kept patches.
    pub fn kept(&self) -> usize {
        self.origins.len()
    }

    /// Number of positions that gave no patch, by reason.
    pub fn drop_counts(&self) -> DropCounts {
        let mut counts = DropCounts::new();
        self.dropped.iter().for_each(|(_, reason)| *counts.entry(*reason).or_default() += 1);
        counts
    }

    /// Drops the patches for which `reason` gives one; it is asked once for each, in order.
    pub fn drop_where(&mut self, mut reason: impl FnMut(Point) -> Option<DropReason>) {
        let dropped = &mut self.dropped;
        self.origins.retain(|&origin| match reason(origin) {
            Some(reason) => {
                dropped.push((origin, reason));
                false
            }
            None => true,
        });
    }

    /// Side of a patch in whole level-0 pixels, as other tools store it.
    pub fn patch_size_level0(&self) -> u32 {
        self.side_level0.round() as u32
    }
}

/// Starts along one axis of `length` pixels: every rounded multiple of `step` from which `side` pixels fit.
fn starts(length: u32, step: f64, side: f64) -> Vec<i64> {
    (0u64..)
        .map(|i| (i as f64 * step).round())
        .take_while(|start| start + side <= f64::from(length) + 1e-6)
        .map(|start| start as i64)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tissue::TissueMask;

    fn spec(mpp: f64, size: u32, stride: u32, min_tissue: f64) -> GridSpec {
        GridSpec { mpp: Mpp(mpp), size, stride, min_tissue }
    }

    #[test]
    fn a_grid_worked_by_hand() {
        // 0.25 µm/px to 0.5: a patch of 4 px covers 8 level-0 px. 20 px fit 2 columns (0, 8), 17 px fit 2 rows.
        let slide = Size::new(20, 17);
        let grid = Grid::new(slide, Mpp(0.25), &spec(0.5, 4, 4, 0.0), &TissueMask::full(slide)).unwrap();
        let expected: Vec<Point> = [(0, 0), (8, 0), (0, 8), (8, 8)].map(|(x, y)| Point::new(x, y)).into();
        assert_eq!(grid.origins, expected);
        assert_eq!((grid.candidates, grid.kept(), grid.dropped.len()), (4, 4, 0));
        assert_eq!((grid.side_level0, grid.patch_size_level0()), (8.0, 8));
    }

    #[test]
    fn a_fractional_ratio_does_not_drift() {
        // 0.4863 µm/px to 0.5: 256 px cover 263.212 level-0 px; column 100 starts at round(26321.2) and not at 100 * 263.
        let slide = Size::new(30_000, 300);
        let grid = Grid::new(slide, Mpp(0.4863), &spec(0.5, 256, 256, 0.0), &TissueMask::full(slide)).unwrap();
        assert_eq!(grid.origins[100], Point::new(26_321, 0));
        assert_eq!(grid.origins.len(), 113);
        assert_eq!(grid.patch_size_level0(), 263);
    }

    #[test]
    fn patches_with_too_little_tissue_are_dropped() {
        // One mask pixel is 4 level-0 px; the left half is tissue. Patches of 8 px at x = 0, 4, 8: 1, 0.5 and 0 of it.
        let slide = Size::new(16, 8);
        let rows = [true, true, false, false, true, true, false, false];
        let mask = TissueMask::from_pixels(Size::new(4, 2), slide, rows.to_vec()).unwrap();
        let kept = |min| {
            let grid = Grid::new(slide, Mpp(0.5), &spec(0.5, 8, 4, min), &mask).unwrap();
            assert_eq!(grid.candidates, 3);
            grid.origins.iter().map(|p| p.x).collect::<Vec<_>>()
        };
        assert_eq!(kept(0.0), [0, 4, 8]);
        assert_eq!(kept(0.5), [0, 4]);
        assert_eq!(kept(0.51), [0]);
        assert_eq!(kept(1.0), [0]);
    }

    #[test]
    fn a_slide_smaller_than_a_patch_has_none() {
        let slide = Size::new(255, 1000);
        let grid = Grid::new(slide, Mpp(0.5), &GridSpec::default(), &TissueMask::full(slide)).unwrap();
        assert_eq!((grid.candidates, grid.kept()), (0, 0));
    }

    #[test]
    fn senseless_values_are_refused_by_name() {
        let slide = Size::square(100);
        let message = |spec: GridSpec, native: f64| {
            Grid::new(slide, Mpp(native), &spec, &TissueMask::full(slide)).unwrap_err().to_string()
        };
        assert!(message(spec(0.0, 4, 4, 0.5), 0.5).contains("grid.mpp"));
        assert!(message(spec(f64::NAN, 4, 4, 0.5), 0.5).contains("grid.mpp"));
        assert!(message(spec(0.5, 0, 4, 0.5), 0.5).contains("grid.size"));
        assert!(message(spec(0.5, 0, 4, 0.5), 0.5).contains("grid.size"));
        let huge = Grid::new(
            Size::new(90_000, 90_000),
            Mpp(0.25),
            &spec(0.25, 256, 1, 0.0),
            &TissueMask::full(Size::new(1, 1)),
        );
        assert!(huge.unwrap_err().to_string().contains("not their overlap"));
        let whole = GridSpec { stride: 0, ..spec(0.5, 4, 4, 0.5) };
        assert_eq!((whole.step(), GridSpec { stride: 3, ..whole }.step()), (4, 3));
        assert!(message(spec(0.5, 4, 4, 1.5), 0.5).contains("grid.min_tissue"));
        assert!(message(spec(0.5, 4, 1, 0.5), 1.0).contains("grid.stride"));
        assert!(message(spec(0.5, 4, 4, 0.5), 0.0).contains("µm/px"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_grid_is_exact_sorted_and_inside(
            width in 1u32..60_000, height in 1u32..3_000, native in 0.1f64..2.0, target in 0.2f64..4.0,
            size in 16u32..512, overlap in 0u32..15,
        ) {
            let slide = Size::new(width, height);
            let stride = size - overlap;
            prop_assume!(f64::from(stride) * target / native >= 1.0);
            let grid = Grid::new(slide, Mpp(native), &spec(target, size, stride, 0.0), &TissueMask::full(slide)).unwrap();
            let step = f64::from(stride) * target / native;
            prop_assert!((grid.side_level0 - f64::from(size) * target / native).abs() < 1e-9);
            prop_assert!(grid.origins.is_sorted_by_key(|p| (p.y, p.x)));
            prop_assert_eq!(grid.kept(), grid.candidates);
            for p in &grid.origins {
                for (start, length) in [(p.x, width), (p.y, height)] {
                    prop_assert!(start >= 0 && start as f64 + grid.side_level0 <= f64::from(length) + 1e-5);
                    // No drift: within half a pixel of an exact multiple of the step.
                    let i = (start as f64 / step).round();
                    prop_assert!((start as f64 - i * step).abs() <= 0.5 + 1e-6);
                }
            }
            // No overlap beyond the rounding of a start when the stride is the size, and nothing left out.
            let xs: Vec<i64> = grid.origins.iter().take_while(|p| p.y == 0).map(|p| p.x).collect();
            for pair in xs.windows(2) {
                prop_assert!(((pair[1] - pair[0]) as f64 - step).abs() < 1.0);
            }
            let next = (xs.len() as f64 * step).round();
            prop_assert!(xs.is_empty() || next + grid.side_level0 > f64::from(width));
        }
    }
}
