//! The perceptual hash: which way the lowest frequencies of a small grey picture swing.
//!
//! pHash (Zauner 2010), with one change: a bit tells whether a coefficient of the discrete cosine transform is
//! positive, not whether it is above the median of the 64. The hash of a turned or mirrored picture then is the same
//! bits permuted and inverted, so eight orientations cost eight bit counts and no second transform, and the distance is
//! symmetric. The two rules find the same copies (see the figures in [`duplicates`](super)).

use super::orientation::Orientation;

/// Side of the picture that is transformed.
pub(super) const PICTURE: usize = 32;

/// Side of the block of coefficients that is kept.
const KEPT: usize = 8;

/// Bits of odd columns and of odd rows: the coefficients that change sign when the picture is mirrored. The first bit
/// is the mean of the picture, always positive and left out.
const ODD_COLUMNS: u64 = 0xAAAA_AAAA_AAAA_AAAA;
const ODD_ROWS: u64 = 0xFF00_FF00_FF00_FF00;

/// Coefficients up to this are zero but for rounding: they belong to neither side. A grey level more in one corner of
/// the picture changes them by about 1.
const ROUNDING: f64 = 1e-6;

/// Signs of 63 coefficients, and the same of the transposed picture. Bit `8 v + u` belongs to the frequency `u` along x
/// and `v` along y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hash {
    bits: u64,
    transposed: u64,
}

impl Hash {
    /// The hash of a grey picture of 32 x 32, row-major.
    pub(super) fn new(picture: &[f32]) -> Self {
        let coefficients = coefficients(picture);
        let bit = |v: usize, u: usize| u64::from(coefficients[v * KEPT + u] > ROUNDING);
        let (mut bits, mut transposed) = (0, 0);
        for at in 1..KEPT * KEPT {
            bits |= bit(at / KEPT, at % KEPT) << at;
            transposed |= bit(at % KEPT, at / KEPT) << at;
        }
        Self { bits, transposed }
    }

    /// Bits that differ when `other` is brought into `orientation`, 0 to 63.
    pub(super) fn distance(self, other: Self, orientation: Orientation) -> u32 {
        let bits = if orientation.transposed { other.transposed } else { other.bits };
        (self.bits ^ bits ^ flips(orientation)).count_ones()
    }

    /// The smallest [`distance`](Self::distance) over the eight orientations.
    pub(super) fn smallest_distance(self, other: Self) -> u32 {
        Orientation::ALL.iter().map(|&orientation| self.distance(other, orientation)).min().unwrap_or(0)
    }
}

/// The bits that mirroring inverts.
fn flips(orientation: Orientation) -> u64 {
    let columns = if orientation.flipped_x { ODD_COLUMNS } else { 0 };
    let rows = if orientation.flipped_y { ODD_ROWS } else { 0 };
    columns ^ rows
}

/// The 8 x 8 lowest frequencies of the two-dimensional DCT-II (unnormalised, as SciPy's) of a 32 x 32 picture; row `v`,
/// column `u`.
fn coefficients(picture: &[f32]) -> [f64; KEPT * KEPT] {
    let cosine = |frequency: usize, at: usize| {
        2.0 * (std::f64::consts::PI * frequency as f64 * (2 * at + 1) as f64 / (2 * PICTURE) as f64).cos()
    };
    let cosines: Vec<[f64; PICTURE]> = (0..KEPT).map(|k| std::array::from_fn(|at| cosine(k, at))).collect();
    let mut rows = [[0.0; KEPT]; PICTURE];
    for (row, pixels) in rows.iter_mut().zip(picture.chunks_exact(PICTURE)) {
        for (value, cosines) in row.iter_mut().zip(&cosines) {
            *value = cosines.iter().zip(pixels).map(|(cosine, &pixel)| cosine * f64::from(pixel)).sum();
        }
    }
    std::array::from_fn(|at| {
        let (v, u) = (at / KEPT, at % KEPT);
        rows.iter().zip(&cosines[v]).map(|(row, cosine)| row[u] * cosine).sum()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    fn picture(value: impl Fn(f64, f64) -> f64) -> Vec<f32> {
        (0..PICTURE * PICTURE).map(|at| value((at % PICTURE) as f64, (at / PICTURE) as f64) as f32).collect()
    }

    #[test]
    fn one_wave_has_one_coefficient() {
        // Along x the sum of 2 cos^2 over 32 places is 32, along y that of 2 is 64.
        let wave = picture(|x, _| (std::f64::consts::PI * 3.0 * (2.0 * x + 1.0) / 64.0).cos());
        for (at, value) in coefficients(&wave).into_iter().enumerate() {
            let expected = if at == 3 { 2048.0 } else { 0.0 };
            // The picture is in single precision.
            assert!((value - expected).abs() < 1e-3, "{at}: {value}");
        }
    }

    #[test]
    fn a_ramp_has_the_bits_that_can_be_worked_out() {
        // Brighter on the left and at the top: the odd waves along either axis are positive, all others vanish.
        let odd = [1, 3, 5, 7, 8, 24, 40, 56].iter().fold(0, |bits, at| bits | 1u64 << at);
        let ramp = Hash::new(&picture(|x, y| 100.0 - 2.0 * x - y));
        assert_eq!(ramp, Hash { bits: odd, transposed: odd });
        let dark = Hash::new(&picture(|x, y| 2.0 * x + y));
        assert_eq!(dark, Hash { bits: 0, transposed: 0 });
        assert_eq!(ramp.distance(dark, Orientation::ALL[0]), 8);
        // A half turn inverts the 32 bits with one odd index: 8 of them as they should be, 24 of waves that neither
        // has.
        assert_eq!(ramp.distance(dark, Orientation::ALL[3]), 24);
    }

    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        picture: String,
        grey: Vec<f32>,
        frequencies: Vec<f64>,
        phash: String,
    }

    /// `tests/golden/duplicates`: the transform is SciPy's; with the median for a threshold the bits are imagehash's.
    #[test]
    fn the_coefficients_are_those_of_imagehash() {
        let golden: Golden = serde_json::from_str(include_str!("../../../tests/golden/duplicates/cases.json")).unwrap();
        assert_eq!(golden.cases.len(), 5);
        for case in golden.cases {
            let found = coefficients(&case.grey);
            for (value, expected) in found.iter().zip(&case.frequencies) {
                // Both sum in double precision, in another order; the reference is rounded to 1e-6.
                assert!((value - expected).abs() < 1e-5, "{}: {value}, {expected}", case.picture);
            }
            let mut sorted = found;
            sorted.sort_by(f64::total_cmp);
            let median = (sorted[31] + sorted[32]) / 2.0;
            let phash: String = found.iter().map(|&value| if value > median { '1' } else { '0' }).collect();
            assert_eq!(phash, case.phash, "{}", case.picture);
            // Half of the signs fall like that too: the two rules differ only around the median.
            let between = |value: &&f64| (**value > median) != (**value > 0.0);
            let hash = Hash::new(&case.grey);
            let bits = (1..64).filter(|at| (hash.bits >> at & 1 == 1) != (&case.phash[*at..=*at] == "1")).count();
            assert_eq!(bits, found[1..].iter().filter(between).count(), "{}", case.picture);
        }
    }

    proptest! {
        #[test]
        fn a_turned_picture_has_the_same_bits_elsewhere(
            grey in prop::collection::vec(0u8..=255, PICTURE * PICTURE),
            other in prop::collection::vec(0u8..=255, PICTURE * PICTURE),
            turn in 0usize..8,
        ) {
            let orientation = Orientation::ALL[turn];
            let float = |grey: &[u8]| grey.iter().map(|&value| f32::from(value)).collect::<Vec<_>>();
            let hash = Hash::new(&float(&grey));
            let turned = Hash::new(&float(&orientation.apply(&grey, PICTURE)));
            prop_assert_eq!(turned.distance(hash, orientation), 0);
            prop_assert_eq!(hash.distance(turned, orientation.inverse()), 0);
            let other = Hash::new(&float(&other));
            prop_assert_eq!(hash.distance(other, orientation), other.distance(hash, orientation.inverse()));
            prop_assert_eq!(hash.smallest_distance(other), turned.smallest_distance(other));
            prop_assert_eq!(hash.smallest_distance(other), other.smallest_distance(hash));
        }
    }
}
