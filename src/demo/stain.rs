//! Haematoxylin and eosin as optical densities.
//!
//! Light through a stained section follows Beer and Lambert: each dye multiplies the light that is left, so the dyes add
//! up as optical densities (OD), `I = I0 * 10^-OD`. The painter works with amounts of dye; only the last step makes RGB.

use image::Rgb;
use rand::{Rng, RngExt};

use super::noise::lerp;

/// Amounts of the dyes at one place, in optical density along each dye's own colour.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ink {
    /// Haematoxylin: nuclei, blue-violet.
    pub haematoxylin: f32,
    /// Eosin: collagen and cytoplasm, pink.
    pub eosin: f32,
    /// Haemoglobin, stained by eosin to an orange-red of its own.
    pub blood: f32,
}

impl Ink {
    /// Haematoxylin and eosin alone.
    pub const fn new(haematoxylin: f32, eosin: f32) -> Self {
        Self { haematoxylin, eosin, blood: 0.0 }
    }

    /// This ink covered by `other` with an opacity of `alpha`.
    pub fn under(self, other: Ink, alpha: f32) -> Ink {
        Ink {
            haematoxylin: lerp(self.haematoxylin, other.haematoxylin, alpha),
            eosin: lerp(self.eosin, other.eosin, alpha),
            blood: lerp(self.blood, other.blood, alpha),
        }
    }

    /// This ink, `factor` times as much of it.
    pub fn times(self, factor: f32) -> Ink {
        Ink { haematoxylin: self.haematoxylin * factor, eosin: self.eosin * factor, blood: self.blood * factor }
    }
}

// OD of red, green and blue for each dye, unit vectors. Haematoxylin is Ruifrok and Johnston's (2001). Eosin lies between
// theirs (.07 .99 .11, which makes magenta) and Macenko's (2009; .22 .80 .56), as on most scanners.
const HAEMATOXYLIN: [f32; 3] = [0.65, 0.70, 0.29];
const EOSIN: [f32; 3] = [0.17, 0.87, 0.46];
const BLOOD: [f32; 3] = [0.10, 0.70, 0.70];

/// How one laboratory, scanner and day render the dyes.
#[derive(Clone, Debug)]
pub struct Stain {
    haematoxylin: [f32; 3],
    eosin: [f32; 3],
    blood: [f32; 3],
    /// Light through bare glass, 0-255.
    glass: [f32; 3],
}

impl Stain {
    /// The stain of the textbook.
    pub fn reference() -> Self {
        Self { haematoxylin: unit(HAEMATOXYLIN), eosin: unit(EOSIN), blood: unit(BLOOD), glass: [243.0, 242.0, 244.0] }
    }

    /// A stain as laboratories differ: stronger or weaker dyes, slightly turned colours, another white.
    pub fn of_a_laboratory(rng: &mut impl Rng) -> Self {
        let mut dye = |vector: [f32; 3], turn: f32, strength: std::ops::Range<f32>| {
            let strength = rng.random_range(strength);
            unit(vector.map(|v| v + rng.random_range(-turn..turn))).map(|v| v.max(0.0) * strength)
        };
        Self {
            haematoxylin: dye(HAEMATOXYLIN, 0.05, 0.85..1.15),
            eosin: dye(EOSIN, 0.07, 0.8..1.2),
            blood: dye(BLOOD, 0.03, 0.9..1.1),
            glass: {
                let level = rng.random_range(236.0..248.0);
                [0, 1, 2].map(|_| level + rng.random_range(-2.0..2.0))
            },
        }
    }

    /// Light left by `ink`, as RGB in 0-255.
    pub fn light(&self, ink: Ink) -> [f32; 3] {
        [0, 1, 2].map(|c| {
            let density =
                ink.haematoxylin * self.haematoxylin[c] + ink.eosin * self.eosin[c] + ink.blood * self.blood[c];
            self.glass[c] * (-std::f32::consts::LN_10 * density).exp()
        })
    }

    /// Amounts of haematoxylin and eosin that make `pixel`, by least squares in OD: the inverse of [`Stain::light`] where
    /// there is no blood.
    pub fn unmix(&self, pixel: Rgb<u8>) -> Ink {
        let density = [0, 1, 2].map(|c| (self.glass[c] / f32::from(pixel.0[c].max(1))).log10());
        let dot = |a: [f32; 3], b: [f32; 3]| a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
        let (h, e) = (self.haematoxylin, self.eosin);
        let (hh, he, ee) = (dot(h, h), dot(h, e), dot(e, e));
        let (dh, de) = (dot(density, h), dot(density, e));
        let determinant = hh * ee - he * he;
        Ink::new((dh * ee - de * he) / determinant, (de * hh - dh * he) / determinant)
    }
}

fn unit(v: [f32; 3]) -> [f32; 3] {
    let length = v.iter().map(|x| x * x).sum::<f32>().sqrt();
    v.map(|x| x / length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn haematoxylin_is_blue_and_eosin_pink() {
        let stain = Stain::reference();
        let [r, g, b] = stain.light(Ink::new(0.9, 0.2));
        assert!(b > r && b > g, "nucleus {r} {g} {b}");
        let [r, g, b] = stain.light(Ink::new(0.05, 0.4));
        assert!(r > b && b > g, "collagen {r} {g} {b}");
        assert_eq!(stain.light(Ink::default()), stain.glass);
    }

    #[test]
    fn unmixing_inverts_mixing() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for _ in 0..20 {
            let stain = Stain::of_a_laboratory(&mut rng);
            let ink = Ink::new(rng.random_range(0.0..0.9), rng.random_range(0.0..0.6));
            let back = stain.unmix(Rgb(stain.light(ink).map(|v| v.round() as u8)));
            // Rounding to 8 bits is at most half a grey level of about 40 where it is darkest: 0.006 in OD.
            assert!((back.haematoxylin - ink.haematoxylin).abs() < 0.03, "{ink:?} {back:?}");
            assert!((back.eosin - ink.eosin).abs() < 0.03, "{ink:?} {back:?}");
        }
    }
}
