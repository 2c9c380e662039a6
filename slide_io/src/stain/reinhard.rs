//! Reinhard et al., "Color transfer between images", IEEE Computer Graphics and Applications 21 (5), 2001.
//!
//! Mean and standard deviation of the three axes of Ruderman's l-alpha-beta space (1998) are made those of the
//! reference. The space is the paper's: logarithms of cone responses, decorrelated. Its logarithm suits stained light,
//! whose densities add up; CIELAB, which some take instead, has none. The logarithm is natural and the bytes count as
//! linear light, as in HistomicsTK.
//!
//! The map of a colour moves white too, which would tint glass. So only tissue is mapped in full; towards glass the
//! change fades out in proportion to the optical density, without a seam.

use super::exponential::{exp, ln, map_pixels, times};
use super::{MIN_TISSUE, NoStatistics, StainParams, dot, inverse};

/// Cone responses from red, green and blue (Reinhard et al., equation 4).
const CONES: [[f64; 3]; 3] = [[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]];

/// A smaller deviation is the rounding of bytes: the tissue has one colour.
const MIN_DEVIATION: f64 = 1e-3;

/// Mean and standard deviation of the colours of tissue, in l-alpha-beta.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Colours {
    /// Means of l, alpha and beta.
    pub mean: [f64; 3],
    /// Their standard deviations.
    pub deviation: [f64; 3],
}

impl Colours {
    /// Average of 700 tiles of colon in H&E from several laboratories: the training part of patches_crc5 (of
    /// github.com/Flagy/Colorectal_Carcinoma_Classifier), each by [`Colours::estimate`].
    ///
    /// HistomicsTK's numbers (l 8.74 ± 0.61, a region of TCGA-A2-A3XS-DX1) are those of tissue and glass together, as a
    /// region of TCGA-CR-7395 shows: 8.88 ± 0.65 with its glass, 8.40 ± 0.44 without. Given to tissue alone they bleach
    /// its pale parts.
    pub const REFERENCE: Self = Self { mean: [8.253, -0.126, 0.062], deviation: [0.508, 0.076, 0.024] };

    /// The colours of `pixels` (RGB). Tissue is what has a density of `params.min_density` on the mean of its channels.
    ///
    /// # Errors
    /// Too few pixels of tissue, or tissue of one colour.
    pub fn estimate(pixels: &[[u8; 3]], params: &StainParams) -> Result<Self, NoStatistics> {
        let densities = params.densities();
        let dense = |pixel: &[u8; 3]| pixel.iter().map(|&byte| densities[usize::from(byte)]).sum::<f64>();
        let axes = axes();
        let tissue: Vec<[f64; 3]> = pixels
            .iter()
            .filter(|pixel| dense(pixel) >= 3.0 * params.min_density)
            .map(|pixel| {
                let logs = log_cones(pixel.map(f64::from));
                axes.map(|axis| dot(axis, logs))
            })
            .collect();
        if tissue.len() < MIN_TISSUE {
            return Err(NoStatistics::LittleTissue { tissue: tissue.len(), pixels: pixels.len() });
        }
        let average = |of: &dyn Fn(&[f64; 3]) -> f64| tissue.iter().map(of).sum::<f64>() / tissue.len() as f64;
        let mean = [0, 1, 2].map(|i| average(&|colour| colour[i]));
        let deviation = [0, 1, 2].map(|i| average(&|colour| (colour[i] - mean[i]).powi(2)).sqrt());
        if deviation.iter().any(|&deviation| deviation < MIN_DEVIATION) {
            return Err(NoStatistics::OneColour);
        }
        Ok(Self { mean, deviation })
    }

    /// The map from these colours to those of `target`.
    pub fn map_to(&self, target: &Self, params: &StainParams) -> Map {
        let axes = axes();
        let scale = |axis: usize| target.deviation[axis] / self.deviation[axis];
        let shift = [0, 1, 2].map(|axis| target.mean[axis] - scale(axis) * self.mean[axis]);
        // The axes are orthonormal: back from them leads their transpose.
        let logs = std::array::from_fn(|to| {
            std::array::from_fn(|from| {
                (0..3).map(|axis| axes[axis][to] * scale(axis) * axes[axis][from]).sum::<f64>() as f32
            })
        });
        let offset = std::array::from_fn(|to| (0..3).map(|axis| axes[axis][to] * shift[axis]).sum::<f64>() as f32);
        Map { light: params.light, min_density: params.min_density, logs, offset }
    }
}

/// The map from the colours of one slide to others.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    light: u8,
    min_density: f64,
    /// Logarithms of the cone responses from those of the slide: a matrix, then an offset.
    logs: [[f32; 3]; 3],
    offset: [f32; 3],
}

impl Map {
    pub(super) fn apply(&self, pixels: &mut [[u8; 3]]) {
        let Self { logs, offset, .. } = *self;
        let darkest = f32::from(self.light).ln();
        // Of the sum of three densities: 1 for tissue, 0 for glass.
        let weight = 1.0 / (3.0 * self.min_density as f32);
        let cones = CONES.map(|row| row.map(|v| v as f32));
        let back = inverse(CONES).map(|row| row.map(|v| v as f32));
        map_pixels(pixels, |[r, g, b]| {
            // Nothing is perfectly black.
            let visible = [r.max(1.0), g.max(1.0), b.max(1.0)];
            let density = |v: f32| (darkest - ln(v)).max(0.0);
            let density = density(visible[0]) + density(visible[1]) + density(visible[2]);
            let weight = (density * weight).min(1.0);
            let log = |cone: usize| ln(times(cones[cone], visible));
            let before = [log(0), log(1), log(2)];
            let light = |cone: usize| exp(times(logs[cone], before) + offset[cone]);
            let after = [light(0), light(1), light(2)];
            let blend = |v: f32, channel: usize| v + weight * (times(back[channel], after).clamp(0.0, 255.0) - v);
            [blend(r, 0), blend(g, 1), blend(b, 2)]
        });
    }
}

/// The axes l, alpha and beta over logarithms of cone responses (equation 6), orthonormal.
fn axes() -> [[f64; 3]; 3] {
    [([1.0, 1.0, 1.0], 3.0f64), ([1.0, 1.0, -2.0], 6.0), ([1.0, -1.0, 0.0], 2.0)]
        .map(|(axis, square)| axis.map(|v| v / square.sqrt()))
}

/// Logarithms of the cone responses of a colour; 0 counts as 1.
fn log_cones(colour: [f64; 3]) -> [f64; 3] {
    CONES.map(|row| dot(row, colour.map(|v| v.max(1.0))).ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inverse_is_that_of_the_paper() {
        // Equation 5. It was made before the matrix was rounded to four digits, which moves it by up to 0.018.
        let paper = [[4.4679, -3.5873, 0.1193], [-1.2186, 2.3809, -0.1624], [0.0497, -0.2439, 1.2045]];
        for (found, expected) in inverse(CONES).iter().flatten().zip(paper.iter().flatten()) {
            assert!((found - expected).abs() < 0.02, "{found} {expected}");
        }
    }

    #[test]
    fn the_axes_are_orthonormal() {
        let axes = axes();
        for (i, a) in axes.iter().enumerate() {
            for (j, b) in axes.iter().enumerate() {
                assert!((dot(*a, *b) - f64::from(u8::from(i == j))).abs() < 1e-15);
            }
        }
    }
}
