//! Masks of the patch grid: a share of every class per patch, and the label map of the frame that they become.

use rayon::prelude::*;

use super::bilinear::{Tap, taps};
use super::label_map::{LabelMap, VOID};
use crate::error::{Error, Result};

/// Shares of the classes (0 the background) on a grid of patches.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftMask {
    /// Patches along y.
    pub rows: usize,
    /// Patches along x.
    pub columns: usize,
    /// Background and objects.
    pub classes: usize,
    /// `[classes, rows * columns]`, row-major.
    pub values: Vec<f32>,
}

impl SoftMask {
    /// The nearest labels of a mask on a grid of patches, one-hot. Undecided pixels are background.
    ///
    /// # Errors
    /// A grid without patches.
    pub fn from_labels(mask: &LabelMap, rows: usize, columns: usize) -> Result<Self> {
        if rows * columns == 0 {
            return Err(Error::usage("a frame must be at least one patch wide and high"));
        }
        let classes = usize::from(mask.objects()) + 1;
        let small = mask.resized(columns, rows);
        let mut values = vec![0.0; classes * rows * columns];
        for (at, &label) in small.labels().iter().enumerate() {
            let class = if label == VOID { 0 } else { usize::from(label) };
            values[class * rows * columns + at] = 1.0;
        }
        Ok(Self { rows, columns, classes, values })
    }

    /// The class with the largest share per pixel of a frame of `width` x `height`: the shares are enlarged `patch` times
    /// (bilinear, corners not aligned, as PyTorch), each class's stretched to [0, 1], and the labels brought to the frame's
    /// size by nearest neighbour. Of equal shares the lower class wins.
    pub fn labels(&self, patch: usize, width: usize, height: usize) -> LabelMap {
        let (rows, columns) = (taps(self.rows, self.rows * patch), taps(self.columns, self.columns * patch));
        let (tall, wide) = (rows.len(), columns.len());
        let enlarge = |class: &[f32]| {
            let mut shares: Vec<f32> = Vec::with_capacity(tall * wide);
            for &Tap { at: [top, bottom], share: down } in &rows {
                let line = |row: usize| &class[row * self.columns..][..self.columns];
                let (above, below) = (line(top), line(bottom));
                shares.extend(columns.iter().map(|&Tap { at: [left, right], share: along }| {
                    let mix = |line: &[f32]| line[left] * (1.0 - along) + line[right] * along;
                    mix(above) * (1.0 - down) + mix(below) * down
                }));
            }
            stretch(&mut shares);
            shares
        };
        let shares: Vec<Vec<f32>> = self.values.par_chunks(self.rows * self.columns).map(enlarge).collect();
        let winner = |at: usize| {
            let best = |best: usize, class: usize| if shares[class][at] > shares[best][at] { class } else { best };
            (1..self.classes).fold(0, best) as u8
        };
        let labels = (0..tall * wide).into_par_iter().map(winner).collect();
        let map = LabelMap::new(wide, tall, labels).expect("a label per pixel was made");
        map.resized(width, height)
    }
}

/// To [0, 1] from the least to the largest value; a class that is nowhere stays 0. One that is everywhere alike
/// wins everywhere, as in DINO's code, where it becomes 0 / 0.
fn stretch(shares: &mut [f32]) {
    let (low, high) = shares.iter().fold((f32::MAX, f32::MIN), |(low, high), &v| (low.min(v), high.max(v)));
    if high > 0.0 {
        let range = high - low;
        // Interpolating equal shares may miss them by a rounding.
        shares.iter_mut().for_each(|v| *v = if range > 1e-6 * high { (*v - low) / range } else { f32::INFINITY });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_goes_to_the_grid_and_back() {
        // Blocks of 4 px: object 1 at the left, 2 at the lower right, one undecided block.
        let label = |x: usize, y: usize| match (x / 4, y / 4) {
            (0, _) => 1,
            (2, 1) => 2,
            (1, 0) => VOID,
            _ => 0,
        };
        let labels = (0..8).flat_map(|y| (0..12).map(move |x| label(x, y))).collect();
        let map = LabelMap::new(12, 8, labels).unwrap();
        let soft = SoftMask::from_labels(&map, 2, 3).unwrap();
        assert_eq!((soft.classes, soft.values.len()), (3, 18));
        assert_eq!(soft.values[..6], [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]);
        assert_eq!(soft.values[12..], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        let back = soft.labels(4, 12, 8);
        // Borders move by interpolation; the middles of the outer blocks stay.
        for (x, y, expected) in [(0, 0, 1), (0, 7, 1), (11, 0, 0), (11, 7, 2)] {
            assert_eq!(back.labels()[y * 12 + x], expected, "{x} {y}");
        }
        assert!(SoftMask::from_labels(&map, 0, 3).is_err());
    }

    #[test]
    fn a_class_that_is_everywhere_or_nowhere() {
        let mut flat = [0.5, 0.5];
        stretch(&mut flat);
        assert_eq!(flat, [f32::INFINITY; 2]);
        let soft = SoftMask { rows: 1, columns: 2, classes: 2, values: vec![1.0, 1.0, 0.0, 0.0] };
        assert_eq!(soft.labels(2, 4, 2).labels(), [0; 8]);
        let object = SoftMask { values: vec![0.0, 0.0, 1.0, 1.0], ..soft };
        assert_eq!(object.labels(2, 4, 2).labels(), [1; 8]);
    }
}
