//! DINO's multi-crop augmentation: one patch in, two global and some local crops out.
//!
//! The random numbers of a view are drawn in this order, a gate first and its parameters only where the gate opens:
//! crop (see [`Rect::random`]); horizontal flip; vertical flip; colour jitter [order of the four operations, then the
//! strengths of brightness, contrast, saturation, hue]; greyscale; blur [standard deviation]; solarisation (second
//! global view only). The views are drawn one after the other: global 1, global 2, locals.
//!
//! Source: `DataAugmentationDINO` of facebookresearch/dino `main_dino.py`, with an optional vertical flip for tissue.

use anyhow::{Result, ensure};
use image::RgbImage;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

use crate::config::Crops;
use crate::data::blur::{MAX_SIGMA, gaussian_blur};
use crate::data::color;
use crate::data::crop::{Rect, crop_and_resize, uniform};

/// Bytes of at least this are inverted by solarisation.
const SOLARIZE_THRESHOLD: u8 = 128;

/// Which view of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// The first global view: blurred.
    Global1,
    /// The second global view: seldom blurred, sometimes solarised. It may show another image than the first.
    Global2,
    /// A local view: small, sometimes blurred.
    Local,
}

/// The crops of one patch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Views {
    /// The two global crops.
    pub globals: Vec<RgbImage>,
    /// The local crops.
    pub locals: Vec<RgbImage>,
}

/// All crops of one patch.
///
/// # Errors
/// An empty image.
pub fn crops(image: &RgbImage, crops: &Crops, rng: &mut impl Rng) -> Result<Views> {
    let globals = [Recipe::Global1, Recipe::Global2];
    Ok(Views {
        globals: globals.into_iter().map(|recipe| view(image, recipe, crops, rng)).collect::<Result<_>>()?,
        locals: (0..crops.local_count).map(|_| view(image, Recipe::Local, crops, rng)).collect::<Result<_>>()?,
    })
}

/// One crop of one patch.
///
/// # Errors
/// An empty image.
pub fn view(image: &RgbImage, recipe: Recipe, crops: &Crops, rng: &mut impl Rng) -> Result<RgbImage> {
    ensure!(image.width() > 0 && image.height() > 0, "the image is empty");
    let (side, scale, blur) = match recipe {
        Recipe::Global1 => (crops.global_size, crops.global_scale, crops.blur[0]),
        Recipe::Global2 => (crops.global_size, crops.global_scale, crops.blur[1]),
        Recipe::Local => (crops.local_size, crops.local_scale, crops.blur[2]),
    };
    let rect = Rect::random(image.dimensions(), scale, rng);
    let mut view = crop_and_resize(image, rect, (side, side))?;
    if chance(crops.hflip, rng) {
        color::flip_horizontal(&mut view);
    }
    if chance(crops.vflip, rng) {
        color::flip_vertical(&mut view);
    }
    if chance(crops.jitter, rng) {
        jitter(&mut view, crops.jitter_strength, rng);
    }
    if chance(crops.grayscale, rng) {
        color::grayscale(&mut view);
    }
    if chance(blur, rng) {
        gaussian_blur(&mut view, uniform(crops.blur_sigma, rng));
    }
    if recipe == Recipe::Global2 && chance(crops.solarize, rng) {
        color::solarize(&mut view, SOLARIZE_THRESHOLD);
    }
    Ok(view)
}

fn chance(probability: f64, rng: &mut impl Rng) -> bool {
    rng.random::<f64>() < probability
}

/// Torchvision's `ColorJitter`: factors uniform in 1 ± strength (hue: a shift in ± strength), applied in random order. An
/// operation of strength 0 is left out.
fn jitter(view: &mut RgbImage, strength: [f64; 4], rng: &mut impl Rng) {
    let mut order = [0, 1, 2, 3];
    order.shuffle(rng);
    let [brightness, contrast, saturation] =
        [0, 1, 2].map(|op| uniform([(1.0 - strength[op]).max(0.0), 1.0 + strength[op]], rng) as f32);
    let hue = uniform([-strength[3], strength[3]], rng);
    for op in order {
        match op {
            _ if strength[op] == 0.0 => {}
            0 => color::brightness(view, brightness),
            1 => color::contrast(view, contrast),
            2 => color::saturation(view, saturation),
            _ => color::hue(view, hue),
        }
    }
}

/// Whether the settings make sense.
///
/// # Errors
/// The first one that does not, by its name in the configuration.
pub fn check(crops: &Crops) -> Result<()> {
    ensure!(crops.global_size > 0, "crops.global_size must not be 0");
    ensure!(crops.local_count == 0 || crops.local_size > 0, "crops.local_size must not be 0");
    for (name, [low, high]) in [("global_scale", crops.global_scale), ("local_scale", crops.local_scale)] {
        ensure!(0.0 < low && low <= high && high <= 1.0, "crops.{name}: 0 < {low} <= {high} <= 1 does not hold");
    }
    let [g1, g2, local] = crops.blur;
    let gates = [
        ("hflip", crops.hflip),
        ("vflip", crops.vflip),
        ("jitter", crops.jitter),
        ("grayscale", crops.grayscale),
        ("blur", g1),
        ("blur", g2),
        ("blur", local),
        ("solarize", crops.solarize),
    ];
    for (name, probability) in gates {
        ensure!((0.0..=1.0).contains(&probability), "crops.{name}: {probability} is not a probability");
    }
    let [brightness, contrast, saturation, hue] = crops.jitter_strength;
    for strength in [brightness, contrast, saturation] {
        ensure!((0.0..=10.0).contains(&strength), "crops.jitter_strength: {strength} is not between 0 and 10");
    }
    ensure!((0.0..=0.5).contains(&hue), "crops.jitter_strength: a hue shift of {hue} is not between 0 and 0.5");
    let [low, high] = crops.blur_sigma;
    ensure!(
        0.0 <= low && low <= high && high <= MAX_SIGMA,
        "crops.blur_sigma: 0 <= {low} <= {high} <= {MAX_SIGMA} does not hold"
    );
    ensure!(
        crops.std.iter().all(|&std| std > 0.0) && crops.mean.iter().all(|mean| mean.is_finite()),
        "crops.mean and crops.std: a mean must be finite and a standard deviation positive"
    );
    Ok(())
}
