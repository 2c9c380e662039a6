//! How alike two small grey pictures are, fine detail counted, after the best shift and zoom.
//!
//! Two pictures of different tissue may agree in their coarse shades: bars of tissue on glass all look the same from
//! afar. So the local mean is taken out first, what remains is divided by its local strength, since one flame in the
//! dark would outweigh everything else, and the rest is compared by normalised cross-correlation, which does not depend
//! on brightness and contrast. A cut border moves and stretches a picture by some per cent, which would ruin the
//! correlation of details; so a few zooms and shifts are tried, first at half size, then around the best at full size.

/// Side of the pictures that are compared.
pub(super) const SIDE: usize = 64;

/// Half the side of the window whose mean is taken out, and of that whose strength is divided by, px.
const MEAN_WINDOW: usize = 4;
const STRENGTH_WINDOW: usize = 7;

/// What is added to the local strength (variance), so that flat parts are not blown up: this share of the picture's
/// own, and one grey level.
const GLOBAL_SHARE: f32 = 0.25;
const GREY_LEVEL: f32 = 1.0;

/// Zooms tried at half size, and the steps around the best at full size.
const ZOOMS: [f32; 5] = [0.90, 0.95, 1.0, 1.05, 1.10];
const FINE_ZOOMS: [f32; 3] = [-0.02, 0.0, 0.02];

/// Furthest shift, px of the half-sized picture: 9 % of a side.
const SHIFT: isize = 3;

/// A pair that agrees less than this at half size is not looked at closer.
const HOPELESS: f32 = 0.25;

/// A square picture of [`SIDE`] px without its local mean and strength, and the same at half size.
pub(super) struct Detail {
    full: Vec<f32>,
    half: Vec<f32>,
    contrast: f32,
}

impl Detail {
    /// Of grey values, row-major.
    pub(super) fn new(grey: &[u8]) -> Self {
        let detail = without_local_mean(grey);
        let energy: Vec<f32> = detail.iter().map(|value| value * value).collect();
        let variance = energy.iter().sum::<f32>() / energy.len() as f32;
        let local = local_means(&energy, STRENGTH_WINDOW);
        let strength = |local: &f32| (local + GLOBAL_SHARE * variance + GREY_LEVEL).sqrt();
        let full: Vec<f32> = detail.iter().zip(&local).map(|(value, local)| value / strength(local)).collect();
        let half = halved(&full);
        Self { full, half, contrast: variance.sqrt() }
    }

    /// Standard deviation of the detail before it was divided, grey levels.
    pub(super) fn contrast(&self) -> f32 {
        self.contrast
    }

    /// The largest normalised cross-correlation, -1 to 1, over small shifts and zooms of the one or the other. The
    /// order of the two changes it by no more than rounding.
    pub(super) fn similarity(&self, other: &Self) -> f32 {
        let (there, back) = (self.coarse(other), other.coarse(self));
        let coarse = there.similarity.max(back.similarity);
        if coarse < HOPELESS {
            return coarse;
        }
        self.fine(other, there).max(other.fine(self, back))
    }

    fn coarse(&self, moved: &Self) -> Fit {
        let from = Fit { similarity: -1.0, zoom: 1.0, dx: 0, dy: 0 };
        best(&self.half, &moved.half, &ZOOMS, SHIFT, from)
    }

    fn fine(&self, moved: &Self, coarse: Fit) -> f32 {
        let from = Fit { similarity: -1.0, dx: 2 * coarse.dx, dy: 2 * coarse.dy, ..coarse };
        best(&self.full, &moved.full, &FINE_ZOOMS.map(|step| coarse.zoom + step), 1, from).similarity
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

/// The best of `zooms` of `b`, and of shifts up to `reach` px around those of `from`.
fn best(a: &[f32], b: &[f32], zooms: &[f32], reach: isize, from: Fit) -> Fit {
    let side = a.len().isqrt();
    // Room for the furthest shift there can be, 3 px at half size and 7 at full; rows of whole blocks for [`dot`].
    let margin = side / 8;
    let window = normalised(a, side, margin);
    let mut best = from;
    for &zoom in zooms {
        let zoomed = zoomed(b, side, zoom);
        let sums = Sums::new(&zoomed, side);
        for dy in from.dy - reach..=from.dy + reach {
            for dx in from.dx - reach..=from.dx + reach {
                let corner = (margin.saturating_add_signed(dx), margin.saturating_add_signed(dy));
                let similarity = correlation(&window, &zoomed, &sums, corner);
                if similarity > best.similarity {
                    best = Fit { similarity, zoom, dx, dy };
                }
            }
        }
    }
    best
}

/// The square `margin` px from the border with mean 0 and length 1, row-major.
fn normalised(values: &[f32], side: usize, margin: usize) -> Vec<f32> {
    let width = side - 2 * margin;
    let mut window: Vec<f32> =
        rows(values, side, (margin, margin), width).flat_map(|row| row.iter().copied()).collect();
    let mean = window.iter().sum::<f32>() / window.len() as f32;
    window.iter_mut().for_each(|value| *value -= mean);
    let factor = inverse_length(dot(&window, &window));
    window.iter_mut().for_each(|value| *value *= factor);
    window
}

/// Normalised cross-correlation of a window of mean 0 and length 1 with the square of its size at `corner`.
fn correlation(window: &[f32], values: &[f32], sums: &Sums, corner: (usize, usize)) -> f32 {
    let width = window.len().isqrt();
    let other = rows(values, sums.side, corner, width);
    let product: f32 = window.chunks_exact(width).zip(other).map(|(row, other)| dot(row, other)).sum();
    // The mean of the other square cancels in the product, since the window's is 0.
    product * inverse_length(sums.squared_deviation(corner, width))
}

/// Sums of the values, and of their squares, over all that is above and to the left, `(side + 1) x (side + 1)`.
struct Sums {
    side: usize,
    values: Vec<[f64; 2]>,
}

impl Sums {
    fn new(picture: &[f32], side: usize) -> Self {
        let mut values = vec![[0.0; 2]; (side + 1) * (side + 1)];
        for (y, row) in picture.chunks_exact(side).enumerate() {
            let mut left = [0.0; 2];
            for (x, &value) in row.iter().enumerate() {
                let value = f64::from(value);
                left = [left[0] + value, left[1] + value * value];
                let above = values[y * (side + 1) + x + 1];
                values[(y + 1) * (side + 1) + x + 1] = [above[0] + left[0], above[1] + left[1]];
            }
        }
        Self { side, values }
    }

    /// Sum of the squared deviations from the mean, over a square.
    fn squared_deviation(&self, (left, top): (usize, usize), width: usize) -> f32 {
        let at = |x: usize, y: usize| self.values[y * (self.side + 1) + x];
        let corners = [at(left, top), at(left + width, top), at(left, top + width), at(left + width, top + width)];
        let [sum, squares] = [0, 1].map(|k| corners[3][k] - corners[2][k] - corners[1][k] + corners[0][k]);
        (squares - sum * sum / (width * width) as f64) as f32
    }
}

/// Nothing but one grey agrees with nothing.
fn inverse_length(squares: f32) -> f32 {
    if squares > f32::EPSILON { 1.0 / squares.sqrt() } else { 0.0 }
}

/// The rows of a square part of a picture.
fn rows(values: &[f32], side: usize, (left, top): (usize, usize), width: usize) -> impl Iterator<Item = &[f32]> {
    (top..top + width).map(move |y| &values[y * side + left..y * side + left + width])
}

/// The inner product, summed in eight lanes: in one, each addition would wait for the one before.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (a_blocks, b_blocks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + rest
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

/// Grey minus the mean of the window around it.
fn without_local_mean(grey: &[u8]) -> Vec<f32> {
    let values: Vec<f32> = grey.iter().map(|&value| f32::from(value)).collect();
    let means = local_means(&values, MEAN_WINDOW);
    values.iter().zip(&means).map(|(value, mean)| value - mean).collect()
}

/// Means over squares that reach `radius` px to each side, clipped at the border.
fn local_means(values: &[f32], radius: usize) -> Vec<f32> {
    row_means(&row_means(values, radius), radius)
}

/// Means along each row, written as columns: twice gives the means over squares, the right way round.
fn row_means(values: &[f32], radius: usize) -> Vec<f32> {
    let side = values.len().isqrt();
    let mut out = vec![0.0; values.len()];
    let window = |x: usize| (x.saturating_sub(radius), (x + radius + 1).min(side));
    let windows: Vec<(usize, usize, f64)> =
        (0..side).map(window).map(|(start, end)| (start, end, 1.0 / (end - start) as f64)).collect();
    // In double precision, since differences of these sums are taken.
    let mut sums = vec![0.0f64; side + 1];
    for (y, row) in values.chunks_exact(side).enumerate() {
        for (x, &value) in row.iter().enumerate() {
            sums[x + 1] = sums[x] + f64::from(value);
        }
        for (x, &(start, end, share)) in windows.iter().enumerate() {
            out[x * side + y] = ((sums[end] - sums[start]) * share) as f32;
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
            assert_eq!(found, similarity(&moved, &picture), "zoom {zoom}, shift {shift}");
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
