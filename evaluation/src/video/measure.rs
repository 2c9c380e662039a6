//! Region similarity J and contour accuracy F of one object in one frame (Perazzi et al. 2016, A Benchmark Dataset and
//! Evaluation Methodology for Video Object Segmentation, section 4), pixel for pixel as DAVIS's own evaluation.

/// Tolerance of a contour as a share of the image diagonal.
const TOLERANCE: f64 = 0.008;

/// Where an object is: `width` pixels a row, row by row.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    /// Whether each pixel belongs to it.
    pub pixels: &'a [bool],
    /// Pixels along x.
    pub width: usize,
}

impl Region<'_> {
    fn height(&self) -> usize {
        self.pixels.len() / self.width
    }
}

/// J = |P ∩ G| / |P ∪ G|; 1 where both are empty.
pub fn region_similarity(predicted: Region, truth: Region) -> f64 {
    let pairs = || predicted.pixels.iter().zip(truth.pixels);
    let union = pairs().filter(|(p, g)| **p || **g).count();
    let both = pairs().filter(|(p, g)| **p && **g).count();
    if union == 0 { 1.0 } else { both as f64 / union as f64 }
}

/// F = 2PR / (P + R) of the contours: P the share of the predicted contour within the tolerance of the true one, R the
/// converse. The tolerance is [`contour_tolerance`].
pub fn contour_accuracy(predicted: Region, truth: Region) -> f64 {
    let radius = contour_tolerance(truth.width, truth.height());
    contour_accuracy_within(predicted, truth, radius)
}

/// ⌈0.008 times the diagonal⌉, px.
pub fn contour_tolerance(width: usize, height: usize) -> usize {
    (TOLERANCE * (width as f64).hypot(height as f64)).ceil() as usize
}

/// As [`contour_accuracy`], with a tolerance of `radius` px.
pub fn contour_accuracy_within(predicted: Region, truth: Region, radius: usize) -> f64 {
    let (ours, theirs) = (contour(predicted), contour(truth));
    let count = |contour: &[bool]| contour.iter().filter(|pixel| **pixel).count();
    let hits = |contour: &[bool], near: &[bool]| contour.iter().zip(near).filter(|(a, b)| **a && **b).count();
    let (n_ours, n_theirs) = (count(&ours), count(&theirs));
    let (precision, recall) = match (n_ours, n_theirs) {
        (0, 0) => (1.0, 1.0),
        (0, _) => (1.0, 0.0),
        (_, 0) => (0.0, 1.0),
        _ => (
            hits(&ours, &dilated(&theirs, truth.width, radius)) as f64 / n_ours as f64,
            hits(&theirs, &dilated(&ours, predicted.width, radius)) as f64 / n_theirs as f64,
        ),
    };
    if precision + recall == 0.0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) }
}

/// Pixels that differ from the one to the right, below, or below to the right. The last row looks right only, the last
/// column below only, and the last pixel nowhere.
fn contour(region: Region) -> Vec<bool> {
    let (width, height) = (region.width, region.height());
    let at = |x: usize, y: usize| region.pixels[y * width + x];
    let edge = |x: usize, y: usize| {
        let here = at(x, y);
        match (x + 1 < width, y + 1 < height) {
            (true, true) => here != at(x + 1, y) || here != at(x, y + 1) || here != at(x + 1, y + 1),
            (true, false) => here != at(x + 1, y),
            (false, true) => here != at(x, y + 1),
            (false, false) => false,
        }
    };
    (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| edge(x, y)).collect()
}

/// Pixels within `radius` of one that is set (a disk: dx² + dy² ≤ radius²). Every set pixel marks where its span begins and
/// ends in the rows around it; running sums along the rows fill them.
fn dilated(set: &[bool], width: usize, radius: usize) -> Vec<bool> {
    let height = set.len() / width;
    let half_widths: Vec<usize> = (0..=radius).map(|dy| (radius * radius - dy * dy).isqrt()).collect();
    let mut changes = vec![0_i32; (width + 1) * height];
    for (at, _) in set.iter().enumerate().filter(|(_, set)| **set) {
        let (x, y) = (at % width, at / width);
        for row in y.saturating_sub(radius)..(y + radius + 1).min(height) {
            let half = half_widths[row.abs_diff(y)];
            changes[row * (width + 1) + x.saturating_sub(half)] += 1;
            changes[row * (width + 1) + (x + half + 1).min(width)] -= 1;
        }
    }
    let row = |changes: &[i32]| {
        let mut covered = 0;
        changes[..width]
            .iter()
            .map(|change| {
                covered += change;
                covered > 0
            })
            .collect::<Vec<bool>>()
    };
    changes.chunks_exact(width + 1).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pixels(rows: &[&str]) -> Vec<bool> {
        rows.iter().flat_map(|row| row.bytes()).map(|byte| byte == b'1').collect()
    }

    /// A square and the same moved by a pixel, worked by hand: J = 2 / 6.
    #[test]
    fn the_worked_example() {
        let truth = pixels(&["0000", "0110", "0110", "0000"]);
        let predicted = pixels(&["0000", "0011", "0011", "0000"]);
        let region = |pixels| Region { pixels, width: 4 };
        assert_eq!(region_similarity(region(&predicted), region(&truth)), 1.0 / 3.0);
        assert_eq!(contour(region(&truth)), pixels(&["1110", "1010", "1110", "0000"]));
        assert_eq!(contour(region(&predicted)), pixels(&["0111", "0100", "0111", "0000"]));
        assert_eq!(contour_accuracy_within(region(&predicted), region(&truth), 1), 1.0);
        assert_eq!(contour_tolerance(854, 480), 8);
    }

    #[test]
    fn nothing_and_everything() {
        let (none, some) = (vec![false; 12], pixels(&["0110", "0110", "0000"]));
        let region = |pixels| Region { pixels, width: 4 };
        let both = |a, b| (region_similarity(region(a), region(b)), contour_accuracy(region(a), region(b)));
        assert_eq!(both(&none, &none), (1.0, 1.0));
        assert_eq!(both(&some, &none), (0.0, 0.0));
        assert_eq!(both(&none, &some), (0.0, 0.0));
        assert_eq!(both(&some, &some), (1.0, 1.0));
    }

    proptest! {
        /// Against the definition: some set pixel lies in the disk.
        #[test]
        fn a_dilation_is_all_that_is_near(width in 1..12_usize, height in 1..9_usize, radius in 0..5_usize, bits: u128) {
            let set: Vec<bool> = (0..width * height).map(|i| bits >> (i % 128) & 3 == 3).collect();
            let near = |x: usize, y: usize| (0..set.len()).any(|i| {
                set[i] && (i % width).abs_diff(x).pow(2) + (i / width).abs_diff(y).pow(2) <= radius * radius
            });
            let expected: Vec<bool> = (0..set.len()).map(|i| near(i % width, i / width)).collect();
            prop_assert_eq!(dilated(&set, width, radius), expected);
        }
    }
}
