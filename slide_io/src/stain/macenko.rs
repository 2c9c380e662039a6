//! Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009.
//!
//! Optical densities of stains add up, so the pixels of a section stained with two of them lie in a plane, between the
//! two directions of the pure stains. The plane is that of the two largest principal components; the pure stains are the
//! first and last percentile of the angles in it; the amounts of both are put on the scale of the reference by their
//! 99th percentile.
//!
//! Differences from the implementation that everybody follows (Veta's, and torchstain's, 240 / 0.15 / 1): amounts are
//! never negative; their 99th percentile is that of the tissue, not of tissue and glass; angles are taken around the
//! mean, so that none of them wraps, whatever sign the components come with; and what is brighter than glass keeps its
//! excess, so that a blank patch stays the same to the byte.

use super::exponential::{exp, ln, map_pixels, times};
use super::{MIN_TISSUE, NoStatistics, StainParams, combine, dot};

/// The percentile of an amount that counts as the largest.
const STRONGEST: f64 = 99.0;

/// Two stains closer than this cannot be told apart: 3°, where those of H&E are 15° to 40° apart.
const MIN_SINE: f64 = 0.05;

/// A smaller largest amount (optical density) is noise and no stain.
const MIN_STRONGEST: f64 = 0.05;

/// Colours of the two stains of a slide, and the largest amounts of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stains {
    /// Optical densities in red, green and blue of haematoxylin and of eosin, of length 1.
    pub colours: [[f64; 3]; 2],
    /// Their largest amounts (99th percentile), in optical density.
    pub strongest: [f64; 2],
}

impl Stains {
    /// The reference of Veta's implementation, which torchstain and others took over.
    pub const REFERENCE: Self =
        Self { colours: [[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]], strongest: [1.9705, 1.0308] };

    /// The stains of `pixels` (RGB). Tissue is what has a density of `params.min_density` in every channel.
    ///
    /// # Errors
    /// Too few pixels of tissue, or tissue of one colour.
    pub fn estimate(pixels: &[[u8; 3]], params: &StainParams) -> Result<Self, NoStatistics> {
        let densities = params.densities();
        let tissue: Vec<[f64; 3]> = pixels
            .iter()
            .map(|pixel| pixel.map(|byte| densities[usize::from(byte)]))
            .filter(|density| density.iter().all(|&d| d >= params.min_density))
            .collect();
        if tissue.len() < MIN_TISSUE {
            return Err(NoStatistics::LittleTissue { tissue: tissue.len(), pixels: pixels.len() });
        }
        let mean = mean(&tissue);
        let [first, second] = principal_plane(covariance(&tissue, mean));
        let (x, y) = (dot(mean, first), dot(mean, second));
        let length = x.hypot(y);
        // The mean direction within the plane, and the one across.
        let along = combine(x / length, first, y / length, second);
        let across = combine(-y / length, first, x / length, second);
        let mut angles: Vec<f64> = tissue.iter().map(|&d| dot(d, across).atan2(dot(d, along))).collect();
        let [one, other] = [params.percentile, 100.0 - params.percentile].map(|percent| {
            let (sin, cos) = percentile(&mut angles, percent).sin_cos();
            combine(cos, along, sin, across)
        });
        // Haematoxylin takes more of the red light.
        let colours = if one[0] > other[0] { [one, other] } else { [other, one] };
        // `max` makes 0 of what is not a number: a plane that does not hold the mean direction has no stains either.
        let sine = (1.0 - dot(one, other).powi(2)).max(0.0).sqrt();
        if sine < MIN_SINE {
            return Err(NoStatistics::OneColour);
        }
        let shares = shares(colours);
        let strongest = shares.map(|share| {
            let mut amounts: Vec<f64> = tissue.iter().map(|&density| dot(density, share)).collect();
            percentile(&mut amounts, STRONGEST)
        });
        if strongest.iter().any(|&amount| amount < MIN_STRONGEST) {
            return Err(NoStatistics::OneColour);
        }
        Ok(Self { colours, strongest })
    }

    /// The map from these stains to those of `target`.
    pub fn map_to(&self, target: &Self, params: &StainParams) -> Map {
        let scale = |stain: usize| target.strongest[stain] / self.strongest[stain];
        Map {
            light: params.light,
            shares: shares(self.colours).map(|share| share.map(|v| v as f32)),
            colours: [0, 1].map(|stain| target.colours[stain].map(|v| (v * scale(stain)) as f32)),
        }
    }
}

/// The map from the stains of one slide to others.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    light: u8,
    /// What a density of red, green and blue adds to the amount of each of the slide's stains.
    shares: [[f32; 3]; 2],
    /// Densities of the target for an amount of 1 of each of the slide's stains.
    colours: [[f32; 3]; 2],
}

impl Map {
    pub(super) fn apply(&self, pixels: &mut [[u8; 3]]) {
        let Self { shares, colours: [of_haematoxylin, of_eosin], .. } = *self;
        let light = f32::from(self.light);
        let darkest = light.ln();
        map_pixels(pixels, |[r, g, b]| {
            // Nothing is perfectly black, and what is brighter than glass holds no stain.
            let density = |v: f32| (darkest - ln(v.max(1.0))).max(0.0);
            let densities = [density(r), density(g), density(b)];
            let haematoxylin = times(shares[0], densities).max(0.0);
            let eosin = times(shares[1], densities).max(0.0);
            let stained = |v: f32, channel: usize| {
                v.max(light) * exp(-haematoxylin * of_haematoxylin[channel] - eosin * of_eosin[channel])
            };
            [stained(r, 0), stained(g, 1), stained(b, 2)]
        });
    }
}

/// The amounts of two stains are the scalar products of a density with these: least squares.
fn shares([a, b]: [[f64; 3]; 2]) -> [[f64; 3]; 2] {
    let (aa, ab, bb) = (dot(a, a), dot(a, b), dot(b, b));
    let determinant = aa * bb - ab * ab;
    [combine(bb / determinant, a, -ab / determinant, b), combine(aa / determinant, b, -ab / determinant, a)]
}

fn mean(vectors: &[[f64; 3]]) -> [f64; 3] {
    std::array::from_fn(|i| vectors.iter().map(|v| v[i]).sum::<f64>() / vectors.len() as f64)
}

fn covariance(vectors: &[[f64; 3]], mean: [f64; 3]) -> [[f64; 3]; 3] {
    let mut sums = [[0.0; 3]; 3];
    for vector in vectors {
        let centred = combine(1.0, *vector, -1.0, mean);
        for (i, row) in sums.iter_mut().enumerate() {
            for (j, sum) in row.iter_mut().enumerate() {
                *sum += centred[i] * centred[j];
            }
        }
    }
    sums.map(|row| row.map(|sum| sum / vectors.len() as f64))
}

/// The eigenvectors of the two largest eigenvalues of a symmetric matrix, of length 1: Jacobi's rotations.
fn principal_plane(mut m: [[f64; 3]; 3]) -> [[f64; 3]; 2] {
    let mut vectors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    // Convergence is quadratic: 3 x 3 matrices are diagonal to the last bit after five or six sweeps.
    for _ in 0..12 {
        for (p, q) in [(0, 1), (0, 2), (1, 2)] {
            if m[p][q] == 0.0 {
                continue;
            }
            let theta = (m[q][q] - m[p][p]) / (2.0 * m[p][q]);
            let tangent = theta.signum() / (theta.abs() + theta.hypot(1.0));
            let cosine = 1.0 / tangent.hypot(1.0);
            let sine = tangent * cosine;
            for row in &mut m {
                (row[p], row[q]) = (cosine * row[p] - sine * row[q], sine * row[p] + cosine * row[q]);
            }
            let (a, b) = (m[p], m[q]);
            (m[p], m[q]) = (combine(cosine, a, -sine, b), combine(sine, a, cosine, b));
            let (a, b) = (vectors[p], vectors[q]);
            (vectors[p], vectors[q]) = (combine(cosine, a, -sine, b), combine(sine, a, cosine, b));
        }
    }
    let mut order = [0, 1, 2];
    order.sort_by(|&i, &j| m[j][j].total_cmp(&m[i][i]));
    [vectors[order[0]], vectors[order[1]]]
}

/// The percentile of `values` with linear interpolation, as numpy's. Reorders them.
fn percentile(values: &mut [f64], percent: f64) -> f64 {
    let place = percent / 100.0 * (values.len() - 1) as f64;
    let (_, &mut low, above) = values.select_nth_unstable_by(place as usize, f64::total_cmp);
    let high = above.iter().copied().min_by(f64::total_cmp).unwrap_or(low);
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_numpy() {
        // numpy.percentile([3, 1, 4, 1, 5, 9, 2, 6], [0, 1, 50, 90, 99, 100])
        let values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0];
        for (percent, expected) in [(0.0, 1.0), (1.0, 1.0), (50.0, 3.5), (90.0, 6.9), (99.0, 8.79), (100.0, 9.0)] {
            let found = percentile(&mut values.clone(), percent);
            assert!((found - expected).abs() < 1e-12, "{percent}: {found}");
        }
        assert_eq!(percentile(&mut [7.0], 99.0), 7.0);
    }

    #[test]
    fn the_principal_plane_of_a_known_matrix() {
        // Eigenvalues 3, 2 and 1 along three orthogonal directions.
        let root = |n: f64| n.sqrt();
        let axes = [
            [1.0 / root(3.0), 1.0 / root(3.0), 1.0 / root(3.0)],
            [1.0 / root(2.0), -1.0 / root(2.0), 0.0],
            [1.0 / root(6.0), 1.0 / root(6.0), -2.0 / root(6.0)],
        ];
        let m = std::array::from_fn(|i| {
            std::array::from_fn(|j| (0..3).map(|k| (3 - k) as f64 * axes[k][i] * axes[k][j]).sum())
        });
        for (found, expected) in principal_plane(m).into_iter().zip(axes) {
            assert!((dot(found, expected).abs() - 1.0).abs() < 1e-14, "{found:?} {expected:?}");
        }
        let diagonal = principal_plane([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 2.0]]);
        assert_eq!(diagonal, [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
    }

    #[test]
    fn shares_unmix_what_was_mixed() {
        let colours = Stains::REFERENCE.colours;
        let density = combine(0.7, colours[0], 1.3, colours[1]);
        let [haematoxylin, eosin] = shares(colours).map(|share| dot(share, density));
        assert!((haematoxylin - 0.7).abs() < 1e-12 && (eosin - 1.3).abs() < 1e-12, "{haematoxylin} {eosin}");
    }
}
