//! How alike two small grey pictures are, fine detail counted, after the best shift and zoom.
//!
//! Two pictures of different tissue may agree in their coarse shades: bars of tissue on glass all look the same from afar.
//! So the local mean is taken out first, and what remains is compared by normalised cross-correlation, which does not
//! depend on brightness and contrast. A cut border moves and stretches a picture by some per cent, which would ruin the
//! correlation of details; so a few zooms and shifts are tried, first at half size, then around the best at full size.

/// Side of the pictures that are compared.
pub(super) const SIDE: usize = 64;

/// Half the side of the window whose mean is taken out, px.
const LOCAL: usize = 4;

/// Zooms tried at half size, and the steps around the best at full size.
const ZOOMS: [f32; 5] = [0.90, 0.95, 1.0, 1.05, 1.10];
const FINE_ZOOMS: [f32; 3] = [-0.02, 0.0, 0.02];

/// Furthest shift, px of the half-sized picture: 9 % of a side.
const SHIFT: isize = 3;

/// A pair that agrees less than this at half size is not looked at closer.
const HOPELESS: f32 = 0.25;

/// A square picture of [`SIDE`] px without its local mean, and the same at half size.
pub(super) struct Detail {
    full: Vec<f32>,
    half: Vec<f32>,
}

impl Detail {
    /// Of grey values, row-major.
    pub(super) fn new(grey: &[u8]) -> Self {
        let full = without_local_mean(grey);
        let half = halved(&full);
        Self { full, half }
    }

    /// Standard deviation of the detail, grey levels.
    pub(super) fn contrast(&self) -> f32 {
        (self.full.iter().map(|v| v * v).sum::<f32>() / self.full.len() as f32).sqrt()
    }

    /// The largest normalised cross-correlation with `other`, -1 to 1, over small shifts and zooms of it.
    pub(super) fn similarity(&self, other: &Self) -> f32 {
        let centre = (0.0, 0, 0);
        let coarse = best(&self.half, &other.half, &ZOOMS, centre, SHIFT);
        if coarse.similarity < HOPELESS {
            return coarse.similarity;
        }
        let fine = |a: &Self, b: &Self, zoom: f32, (dx, dy): (isize, isize)| {
            best(&a.full, &b.full, &FINE_ZOOMS.map(|step| zoom + step), (zoom, 2 * dx, 2 * dy), 1).similarity
        };
        // Both ways, since only one of the two is moved: so the order does not matter.
        let there = fine(self, other, coarse.zoom, (coarse.dx, coarse.dy));
        there.max(fine(other, self, 1.0 / coarse.zoom, (-coarse.dx, -coarse.dy)))
    }
}

/// A way to lay one picture over the other, and how well they then agree.
#[derive(Clone, Copy, Debug)]
struct Fit {
    similarity: f32,
    zoom: f32,
    dx: isize,
    dy: isize,
}

/// The best of `zooms` of `b`, and of shifts up to `reach` around (`dx`, `dy`).
fn best(a: &[f32], b: &[f32], zooms: &[f32], (zoom, dx, dy): (f32, isize, isize), reach: isize) -> Fit {
    let side = a.len().isqrt();
    // Room for the furthest shift there can be: 3 px at half size, and one step more at full size.
    let margin = side / 2 * 7 / 32;
    let window = normalised(a, side, margin, 0, 0);
    let mut best = Fit { similarity: -1.0, zoom, dx, dy };
    for &zoom in zooms {
        let zoomed = zoomed(b, side, zoom);
        for dy in dy - reach..=dy + reach {
            for dx in dx - reach..=dx + reach {
                let other = normalised(&zoomed, side, margin, dx, dy);
                let similarity = window.iter().zip(&other).map(|(a, b)| a * b).sum();
                if similarity > best.similarity {
                    best = Fit { similarity, zoom, dx, dy };
                }
            }
        }
    }
    best
}

/// The window `margin` px from the border, shifted, with mean 0 and length 1.
fn normalised(values: &[f32], side: usize, margin: usize, dx: isize, dy: isize) -> Vec<f32> {
    let (left, top) = (margin.saturating_add_signed(dx), margin.saturating_add_signed(dy));
    let width = side - 2 * margin;
    let mut window: Vec<f32> =
        (top..top + width).flat_map(|y| &values[y * side + left..y * side + left + width]).copied().collect();
    let mean = window.iter().sum::<f32>() / window.len() as f32;
    window.iter_mut().for_each(|value| *value -= mean);
    let length = window.iter().map(|value| value * value).sum::<f32>().sqrt();
    // Nothing but one grey agrees with nothing.
    let factor = if length > 0.0 { 1.0 / length } else { 0.0 };
    window.iter_mut().for_each(|value| *value *= factor);
    window
}

/// The picture magnified about its centre, bilinear; what lies outside repeats the border.
fn zoomed(values: &[f32], side: usize, zoom: f32) -> Vec<f32> {
    if zoom == 1.0 {
        return values.to_vec();
    }
    let (centre, last) = ((side - 1) as f32 / 2.0, (side - 1) as f32);
    let places: Vec<(usize, usize, f32)> = (0..side)
        .map(|at| {
            let place = (centre + (at as f32 - centre) / zoom).clamp(0.0, last);
            let low = place as usize;
            (low, (low + 1).min(side - 1), place.fract())
        })
        .collect();
    let mut out = Vec::with_capacity(values.len());
    for &(top, bottom, v) in &places {
        for &(left, right, u) in &places {
            let row = |y: usize| (1.0 - u) * values[y * side + left] + u * values[y * side + right];
            out.push((1.0 - v) * row(top) + v * row(bottom));
        }
    }
    out
}

/// Grey minus the mean of the window around it, which is clipped at the border.
fn without_local_mean(grey: &[u8]) -> Vec<f32> {
    let side = grey.len().isqrt();
    let columns = box_means(&grey.iter().map(|&v| f32::from(v)).collect::<Vec<_>>(), side);
    let means = box_means(&columns, side);
    grey.iter().zip(&means).map(|(&value, mean)| f32::from(value) - mean).collect()
}

/// Means along each row, written as columns: twice gives the means over squares, the right way round.
fn box_means(values: &[f32], side: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for (y, row) in values.chunks_exact(side).enumerate() {
        for x in 0..side {
            let window = &row[x.saturating_sub(LOCAL)..(x + LOCAL + 1).min(side)];
            out[x * side + y] = window.iter().sum::<f32>() / window.len() as f32;
        }
    }
    out
}

/// Means of 2 x 2.
fn halved(values: &[f32]) -> Vec<f32> {
    let side = values.len().isqrt();
    let half = side / 2;
    let mean = |x: usize, y: usize| {
        let at = 2 * y * side + 2 * x;
        (values[at] + values[at + 1] + values[at + side] + values[at + side + 1]) / 4.0
    };
    (0..half * half).map(|i| mean(i % half, i / half)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Smooth blotches of a few px, different for every seed; `zoom` and `shift` (px) move them.
    fn blotches(seed: u32, zoom: f32, shift: f32) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let spots: Vec<[f32; 4]> = (0..120)
            .map(|_| [80.0 * random() - 8.0, 80.0 * random() - 8.0, 2.0 + 3.0 * random(), random() - 0.5])
            .collect();
        let centre = (SIDE - 1) as f32 / 2.0;
        let value = |x: f32, y: f32| {
            let (x, y) = ((x - centre) / zoom + centre - shift, (y - centre) / zoom + centre + shift / 2.0);
            let spot = |[cx, cy, r, v]: &[f32; 4]| v * (-((x - cx).powi(2) + (y - cy).powi(2)) / (r * r)).exp();
            (128.0 + 90.0 * spots.iter().map(spot).sum::<f32>()).clamp(0.0, 255.0) as u8
        };
        (0..SIDE * SIDE).map(|at| value((at % SIDE) as f32, (at / SIDE) as f32)).collect()
    }

    fn similarity(a: &[u8], b: &[u8]) -> f32 {
        Detail::new(a).similarity(&Detail::new(b))
    }

    #[test]
    fn a_picture_agrees_with_itself_whatever_its_brightness_and_contrast() {
        let picture = blotches(1, 1.0, 0.0);
        assert!(similarity(&picture, &picture) > 0.9999);
        let faint: Vec<u8> = picture.iter().map(|&value| value / 2 + 40).collect();
        // What remains is the rounding to half as many grey levels.
        assert!(similarity(&picture, &faint) > 0.99);
        let negative: Vec<u8> = picture.iter().map(|&value| 255 - value).collect();
        assert!(similarity(&picture, &negative) < 0.4);
        assert!(similarity(&picture, &[7; SIDE * SIDE]).abs() < 1e-6);
    }

    #[test]
    fn small_shifts_and_zooms_are_found_and_other_pictures_are_not() {
        let picture = blotches(2, 1.0, 0.0);
        for (zoom, shift) in [(1.0, 3.0), (1.0, -4.0), (0.96, 0.0), (1.07, 2.0), (0.91, -2.0)] {
            let moved = blotches(2, zoom, shift);
            let found = similarity(&picture, &moved);
            // Zooms are tried in steps of 0.02: at the border of the window that is a third of a pixel.
            assert!(found > 0.9, "zoom {zoom}, shift {shift}: {found}");
            assert!((found - similarity(&moved, &picture)).abs() < 0.02, "zoom {zoom}, shift {shift}");
        }
        for seed in 3..40 {
            let found = similarity(&picture, &blotches(seed, 1.0, 0.0));
            assert!(found < 0.5, "{seed}: {found}");
        }
    }

    #[test]
    fn the_local_mean_is_that_of_the_window() {
        let mut grey = vec![10; SIDE * SIDE];
        grey[0] = 35;
        grey[20 * SIDE + 20] = 91;
        let detail = without_local_mean(&grey);
        // 5 x 5 at the corner, 9 x 9 inside.
        for (x, y, expected) in
            [(0, 0, 24.0), (4, 4, -1.0 / 81.0 * 25.0), (20, 20, 80.0), (24, 16, -1.0), (25, 20, 0.0)]
        {
            let found = detail[y * SIDE + x];
            assert!((found - expected).abs() < 1e-4, "({x}, {y}): {found}, expected {expected}");
        }
    }

    #[test]
    fn halving_averages_four() {
        let picture: Vec<f32> = (0..16).map(|value| value as f32).collect();
        assert_eq!(halved(&picture), [2.5, 4.5, 10.5, 12.5]);
        assert_eq!(zoomed(&picture, 4, 1.0), picture);
        // Twice as large about the centre, 1.5: the places are 0.75, 1.25, 1.75, 2.25.
        assert_eq!(zoomed(&picture, 4, 2.0)[..4], [3.75, 4.25, 4.75, 5.25]);
    }
}
