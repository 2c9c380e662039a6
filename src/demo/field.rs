//! Maps of the tissue on a lattice of 1 µm: whatever the painter knows about a place, it knows in microns.

use super::noise::lerp;

/// One value for every square micron.
#[derive(Clone, Debug)]
pub struct Field {
    width: usize,
    height: usize,
    values: Vec<f32>,
}

impl Field {
    /// The map of `value(x, y)` over `width` x `height` µm.
    pub fn new(width: usize, height: usize, value: impl Fn(f32, f32) -> f32) -> Self {
        let values = (0..width * height).map(|i| value((i % width) as f32, (i / width) as f32)).collect();
        Self { width, height, values }
    }

    /// Distance to the border of `inside` in µm: positive inside, negative outside.
    pub fn signed_distance(width: usize, height: usize, inside: &[bool]) -> Self {
        let depth = distance(width, height, inside.iter().copied());
        let gap = distance(width, height, inside.iter().map(|&is| !is));
        // The border runs half-way between the lattice points on its two sides.
        let values = depth.iter().zip(&gap).map(|(&d, &g)| if d > 0.0 { d - 0.5 } else { 0.5 - g }).collect();
        // The lattice makes stairs of slanted borders; one pass of smoothing takes them away.
        Self { width, height, values }.softened()
    }

    /// Width and height in µm.
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// The values, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The value at a place in µm, interpolated; the border's value beyond the border.
    pub fn at(&self, x: f32, y: f32) -> f32 {
        let x = x.clamp(0.0, self.width as f32 - 1.001);
        let y = y.clamp(0.0, self.height as f32 - 1.001);
        let (ix, iy) = (x as usize, y as usize);
        let (fx, fy) = (x - ix as f32, y - iy as f32);
        let i = iy * self.width + ix;
        let top = lerp(self.values[i], self.values[i + 1], fx);
        let bottom = lerp(self.values[i + self.width], self.values[i + self.width + 1], fx);
        lerp(top, bottom, fy)
    }

    /// The direction in which the values grow fastest, as an angle; measured over 3 µm to either side.
    pub fn uphill(&self, x: f32, y: f32) -> f32 {
        let dx = self.at(x + 3.0, y) - self.at(x - 3.0, y);
        let dy = self.at(x, y + 3.0) - self.at(x, y - 3.0);
        dy.atan2(dx)
    }

    /// The value that a share of the places where `within` holds lies above.
    pub fn quantile_above(&self, share: f32, within: impl Fn(usize) -> bool) -> f32 {
        let mut values: Vec<f32> = (0..self.values.len()).filter(|&i| within(i)).map(|i| self.values[i]).collect();
        if values.is_empty() {
            return f32::INFINITY;
        }
        let rank = (((1.0 - share) * values.len() as f32) as usize).min(values.len() - 1);
        *values.select_nth_unstable_by(rank, f32::total_cmp).1
    }

    fn softened(mut self) -> Self {
        let (w, h) = (self.width, self.height);
        for row in self.values.chunks_exact_mut(w) {
            let mut left = row[0];
            for x in 0..w {
                let right = row[(x + 1).min(w - 1)];
                let here = row[x];
                row[x] = 0.25 * (left + right) + 0.5 * here;
                left = here;
            }
        }
        let mut above = self.values[..w].to_vec();
        for y in 0..h {
            for (x, above) in above.iter_mut().enumerate() {
                let here = self.values[y * w + x];
                let below = self.values[(y + 1).min(h - 1) * w + x];
                self.values[y * w + x] = 0.25 * (*above + below) + 0.5 * here;
                *above = here;
            }
        }
        self
    }
}

/// Euclidean distance of every point to the nearest point that is not `inside`, exact, in two linear passes
/// (Felzenszwalb and Huttenlocher, "Distance transforms of sampled functions", 2012).
fn distance(width: usize, height: usize, inside: impl Iterator<Item = bool>) -> Vec<f32> {
    // Farther than any distance in the map, and its square still exact enough in single precision.
    let far = (width + height) as f32;
    let mut squared: Vec<f32> = inside.map(|is| if is { far * far } else { 0.0 }).collect();
    let mut envelope = Envelope::default();
    for row in squared.chunks_exact_mut(width) {
        envelope.transform(row);
    }
    let mut column = vec![0.0; height];
    for x in 0..width {
        for y in 0..height {
            column[y] = squared[y * width + x];
        }
        envelope.transform(&mut column);
        for y in 0..height {
            squared[y * width + x] = column[y].sqrt();
        }
    }
    squared
}

/// The lower envelope of parabolas, one rooted at each sample.
#[derive(Default)]
struct Envelope {
    roots: Vec<(f32, f32)>,
    starts: Vec<f32>,
}

impl Envelope {
    fn transform(&mut self, samples: &mut [f32]) {
        self.roots.clear();
        self.starts.clear();
        for (q, &f) in samples.iter().enumerate() {
            let q = q as f32;
            let mut start = f32::NEG_INFINITY;
            while let (Some(&(r, g)), Some(&s)) = (self.roots.last(), self.starts.last()) {
                start = ((f + q * q) - (g + r * r)) / (2.0 * (q - r));
                if start > s {
                    break;
                }
                self.roots.pop();
                self.starts.pop();
                start = f32::NEG_INFINITY;
            }
            self.roots.push((q, f));
            self.starts.push(start);
        }
        let mut k = 0;
        for (q, sample) in samples.iter_mut().enumerate() {
            let q = q as f32;
            while k + 1 < self.starts.len() && self.starts[k + 1] < q {
                k += 1;
            }
            let (r, f) = self.roots[k];
            *sample = (q - r) * (q - r) + f;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_the_brute_force_one() {
        let (w, h) = (23, 17);
        let inside: Vec<bool> = (0..w * h).map(|i| (i * 7919) % 11 != 0).collect();
        let fast = distance(w, h, inside.iter().copied());
        for (i, fast) in fast.into_iter().enumerate() {
            let (x, y) = ((i % w) as f32, (i / w) as f32);
            let slow = (0..w * h)
                .filter(|&j| !inside[j])
                .map(|j| (x - (j % w) as f32).hypot(y - (j / w) as f32))
                .fold(f32::INFINITY, f32::min);
            assert!((fast - slow).abs() < 1e-3, "at {x},{y}: {fast} against {slow}");
        }
    }

    #[test]
    fn signed_distance_of_a_disc() {
        let disc: Vec<bool> =
            (0..101 * 101).map(|i| ((i % 101) as f32 - 50.0).hypot((i / 101) as f32 - 50.0) < 30.0).collect();
        let field = Field::signed_distance(101, 101, &disc);
        for (x, y) in [(50.0, 35.0), (50.0, 42.0), (85.0, 50.0), (71.0, 71.0)] {
            let exact = 30.0 - (x - 50.0_f32).hypot(y - 50.0);
            assert!((field.at(x, y) - exact).abs() < 1.0, "at {x},{y}: {} against {exact}", field.at(x, y));
        }
        // Uphill from the left rim is to the right.
        assert!(field.uphill(25.0, 50.0).abs() < 0.1);
    }

    #[test]
    fn quantile_takes_its_share() {
        let ramp = Field::new(100, 10, |x, _| x);
        let threshold = ramp.quantile_above(0.3, |_| true);
        let share = ramp.values().iter().filter(|&&v| v > threshold).count() as f32 / 1000.0;
        assert!((share - 0.3).abs() < 0.02, "{share}");
    }
}
