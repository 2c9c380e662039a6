//! Seeded, smooth, endless noise: the texture of everything the painter draws.
//!
//! Gradient noise (Perlin, "Improving noise", 2002) over a hash instead of a permutation table, so that a value
//! depends on the seed and the position alone and can be asked for in any order, from any thread.

/// A noise function of the plane with features of about one unit.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    seed: u32,
}

/// The eight gradients, at odd multiples of 22.5° so that none runs along the lattice.
const GRADIENTS: [(f32, f32); 8] = {
    const C: f32 = 0.923_879_5;
    const S: f32 = 0.382_683_43;
    [(C, S), (S, C), (-S, C), (-C, S), (-C, -S), (-S, -C), (S, -C), (C, -S)]
};

/// Scales gradient noise, whose extremes are ±√½, to about ±1.
const GAIN: f32 = std::f32::consts::SQRT_2;

impl Noise {
    /// The noise of `seed`.
    pub fn new(seed: u32) -> Self {
        Self { seed }
    }

    /// Uniform in [0, 1), without any smoothness: one value for each lattice point.
    pub fn cell(&self, x: i32, y: i32) -> f32 {
        (self.hash(x, y) >> 8) as f32 / (1u32 << 24) as f32
    }

    /// Smooth noise in about [-1, 1].
    pub fn at(&self, x: f32, y: f32) -> f32 {
        let (x0, y0) = (x.floor(), y.floor());
        let (fx, fy) = (x - x0, y - y0);
        let (ix, iy) = (x0 as i32, y0 as i32);
        let corner = |dx: i32, dy: i32| {
            let (gx, gy) = GRADIENTS[(self.hash(ix + dx, iy + dy) >> 29) as usize];
            gx * (fx - dx as f32) + gy * (fy - dy as f32)
        };
        let (u, v) = (fade(fx), fade(fy));
        let top = lerp(corner(0, 0), corner(1, 0), u);
        let bottom = lerp(corner(0, 1), corner(1, 1), u);
        GAIN * lerp(top, bottom, v)
    }

    /// Fractal noise in about [-1, 1]: `octaves` layers, each of half the size and half the strength of the one before.
    pub fn fractal(&self, x: f32, y: f32, octaves: u32) -> f32 {
        let (mut sum, mut weight, mut scale) = (0.0, 0.0, 1.0);
        for octave in 0..octaves {
            // The shift keeps the lattices of the layers from meeting at the origin.
            let shift = 17.3 * octave as f32;
            sum += self.at(x * scale + shift, y * scale - shift) / scale;
            weight += 1.0 / scale;
            scale *= 2.0;
        }
        sum / weight
    }

    fn hash(&self, x: i32, y: i32) -> u32 {
        let mixed =
            self.seed ^ (x as u32).wrapping_mul(0x9E37_79B1) ^ (y as u32).wrapping_mul(0x85EB_CA77).rotate_left(13);
        finish(mixed)
    }
}

/// Spreads every bit of the input over the output (the finaliser "lowbias32" of C. Wellons).
fn finish(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x7FEB_352D);
    h ^= h >> 15;
    h = h.wrapping_mul(0x846C_A68B);
    h ^ (h >> 16)
}

fn fade(t: f32) -> f32 {
    t * t * t * (t * (t * 6.0 - 15.0) + 10.0)
}

/// The point at `t` between `a` (0) and `b` (1).
pub fn lerp(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

/// 0 below `low`, 1 above `high`, smooth between them.
pub fn ramp(low: f32, high: f32, x: f32) -> f32 {
    let t = ((x - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_smooth_centred_and_of_its_seed() {
        let (noise, other) = (Noise::new(1), Noise::new(2));
        let points: Vec<(f32, f32)> =
            (0..10_000).map(|i| ((i % 100) as f32 * 0.37 - 20.0, (i / 100) as f32 * 0.41)).collect();
        let values: Vec<f32> = points.iter().map(|&(x, y)| noise.at(x, y)).collect();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.05, "mean {mean}");
        assert!(values.iter().all(|v| v.abs() <= 1.01));
        assert!(values.iter().any(|v| v.abs() > 0.6));
        for &(x, y) in &points {
            assert!((noise.at(x + 1e-3, y) - noise.at(x, y)).abs() < 0.01);
        }
        let same = points.iter().filter(|&&(x, y)| (noise.at(x, y) - other.at(x, y)).abs() < 1e-6).count();
        assert!(same < 100, "{same} values shared by two seeds");
    }

    #[test]
    fn cells_are_uniform() {
        let noise = Noise::new(7);
        let mut bins = [0u32; 10];
        for i in 0..20_000 {
            bins[(noise.cell(i % 200 - 100, i / 200) * 10.0) as usize] += 1;
        }
        // 2000 expected a bin, standard deviation 42.
        assert!(bins.iter().all(|&n| (1750..2250).contains(&n)), "{bins:?}");
    }
}
