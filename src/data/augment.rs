//! DINO's multi-crop augmentation: one patch in, two global and some local crops out.
//!
//! The random numbers of a view are drawn in this order, a gate first and its parameters only where the gate opens:
//! crop (see [`Rect::random`]); horizontal flip; vertical flip; stain [three factors, three shifts] (no draw at all where
//! `crops.stain` is 0); colour jitter [order of the four operations, then the
//! strengths of brightness, contrast, saturation, hue]; greyscale; blur [standard deviation]; solarisation (second
//! global view only). The views are drawn one after the other: global 1, global 2, locals.
//!
//! Source: `DataAugmentationDINO` of facebookresearch/dino `main_dino.py`, with an optional vertical flip and stain
//! augmentation for tissue.

use anyhow::{Result, ensure};
use image::RgbImage;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

use crate::config::Crops;
use crate::data::blur::{MAX_SIGMA, gaussian_blur};
use crate::data::color;
use crate::data::crop::{Rect, crop_and_resize, uniform};
use crate::data::stain;

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
    if crops.stain > 0.0 && chance(crops.stain, rng) {
        let [factor, shift] = crops.stain_strength;
        let factors = std::array::from_fn(|_| uniform([1.0 - factor, 1.0 + factor], rng));
        let shifts = std::array::from_fn(|_| uniform([-shift, shift], rng));
        stain::change(&mut view, factors, shifts);
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
        ("stain", crops.stain),
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
    let [factor, shift] = crops.stain_strength;
    ensure!(
        (0.0..=1.0).contains(&factor) && (0.0..=1.0).contains(&shift),
        "crops.stain_strength: {factor} and {shift} are not both between 0 and 1"
    );
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::order::item_rng;
    use image::Rgb;

    fn picture() -> RgbImage {
        RgbImage::from_fn(48, 40, |x, y| Rgb([(x * 5) as u8, (y * 6) as u8, ((x * y) % 251) as u8]))
    }

    /// Every gate closed: a view is then the crop alone.
    fn plain() -> Crops {
        Crops {
            global_size: 24,
            local_size: 12,
            hflip: 0.0,
            jitter: 0.0,
            grayscale: 0.0,
            blur: [0.0; 3],
            solarize: 0.0,
            ..Crops::default()
        }
    }

    #[test]
    fn the_recipe_s_sizes_and_count() {
        let views = crops(&picture(), &Crops::default(), &mut item_rng(0, 0, 0)).unwrap();
        assert!(views.globals.len() == 2 && views.globals.iter().all(|view| view.dimensions() == (224, 224)));
        assert!(views.locals.len() == 8 && views.locals.iter().all(|view| view.dimensions() == (96, 96)));
        assert_eq!(views, crops(&picture(), &Crops::default(), &mut item_rng(0, 0, 0)).unwrap());
        assert!(crops(&RgbImage::new(0, 0), &Crops::default(), &mut item_rng(0, 0, 0)).is_err());
    }

    /// With one gate open, a view is that operation on the crop alone, and happens as often as its probability says.
    #[test]
    fn each_gate_does_its_own_operation_with_its_probability() {
        type Case = (&'static str, Recipe, fn(&mut Crops, f64), fn(&mut RgbImage));
        let cases: [Case; 8] = [
            ("hflip", Recipe::Local, |c, p| c.hflip = p, color::flip_horizontal),
            ("vflip", Recipe::Local, |c, p| c.vflip = p, color::flip_vertical),
            ("grayscale", Recipe::Global1, |c, p| c.grayscale = p, color::grayscale),
            ("solarize", Recipe::Global2, |c, p| c.solarize = p, |view| color::solarize(view, 128)),
            ("no solarize", Recipe::Global1, |c, _| c.solarize = 1.0, |_| {}),
            ("blur 1", Recipe::Global1, |c, p| c.blur = [p, 0.0, 0.0], |view| gaussian_blur(view, 1.5)),
            ("blur 2", Recipe::Global2, |c, p| c.blur = [0.0, p, 0.0], |view| gaussian_blur(view, 1.5)),
            ("blur local", Recipe::Local, |c, p| c.blur = [0.0, 0.0, p], |view| gaussian_blur(view, 1.5)),
        ];
        let image = picture();
        for (name, recipe, open, operation) in cases {
            let mut gated = Crops { blur_sigma: [1.5, 1.5], ..plain() };
            open(&mut gated, 0.3);
            let (n, mut opened) = (600, 0);
            for index in 0..n {
                let unchanged = view(&image, recipe, &plain(), &mut item_rng(5, 0, index)).unwrap();
                let mut changed = unchanged.clone();
                operation(&mut changed);
                let got = view(&image, recipe, &gated, &mut item_rng(5, 0, index)).unwrap();
                opened += usize::from(got != unchanged);
                assert!(got == unchanged || got == changed, "{name}");
            }
            // 180 of 600 expected, standard deviation 11; a flip or a greyscale never leaves these crops as they were.
            let expected = if name == "no solarize" { 0..=0 } else { 135..=225 };
            assert!(expected.contains(&opened), "{name}: {opened} of {n}");
        }
    }

    #[test]
    fn jitter_strengths_stay_in_their_ranges_and_zero_means_off() {
        let gray = RgbImage::from_pixel(4, 4, Rgb([100; 3]));
        let (mut low, mut high) = (255, 0);
        for index in 0..500 {
            let mut view = gray.clone();
            jitter(&mut view, [0.4, 0.0, 0.0, 0.0], &mut item_rng(1, 0, index));
            let value = view.get_pixel(0, 0).0[0];
            (low, high) = (low.min(value), high.max(value));
        }
        assert!((60..=61).contains(&low) && (138..=140).contains(&high), "{low} {high}");
        let mut view = picture();
        jitter(&mut view, [0.0; 4], &mut item_rng(1, 0, 0));
        assert_eq!(view, picture());
    }

    /// The draws in the documented order, applied in the drawn order; all 24 orders occur.
    #[test]
    fn jitter_applies_its_operations_in_the_drawn_order() {
        let strength = [0.4, 0.4, 0.2, 0.1];
        let mut orders = std::collections::BTreeMap::new();
        for index in 0..1200 {
            let mut rng = item_rng(2, 0, index);
            let mut order = [0, 1, 2, 3];
            order.shuffle(&mut rng);
            *orders.entry(order).or_insert(0) += 1;
            let draws: [f64; 4] = std::array::from_fn(|_| rng.random());
            let factor = |op: usize| (1.0 - strength[op] + 2.0 * strength[op] * draws[op]) as f32;
            let mut expected = RgbImage::from_fn(6, 5, |x, y| Rgb([40 * x as u8, 50 * y as u8, 90]));
            let mut view = expected.clone();
            for op in order {
                match op {
                    0 => color::brightness(&mut expected, factor(0)),
                    1 => color::contrast(&mut expected, factor(1)),
                    2 => color::saturation(&mut expected, factor(2)),
                    _ => color::hue(&mut expected, 0.2 * draws[3] - 0.1),
                }
            }
            jitter(&mut view, strength, &mut item_rng(2, 0, index));
            assert_eq!(view, expected, "{order:?}");
        }
        // 50 each expected, standard deviation 7.
        assert!(orders.len() == 24 && orders.values().all(|&count| (20..=85).contains(&count)), "{orders:?}");
    }

    /// Pins the order of draws: a change here changes every training run.
    #[test]
    fn the_draws_are_fixed() {
        let mut settings = Crops { global_size: 8, local_size: 6, local_count: 2, vflip: 0.5, ..Crops::default() };
        settings.blur = [0.5; 3];
        let views = crops(&picture(), &settings, &mut item_rng(42, 3, 17)).unwrap();
        let sums: Vec<u32> = views
            .globals
            .iter()
            .chain(&views.locals)
            .map(|view| view.iter().zip(1u32..).map(|(&byte, place)| u32::from(byte) * place).sum())
            .collect();
        assert_eq!(sums, [1753257, 3113680, 738213, 1071845]);
    }

    /// Images per second on one core, normalised batches included, the best of five rounds:
    /// `cargo test --release --lib -- --ignored --nocapture crops_per_second`.
    #[test]
    #[ignore = "a measurement"]
    fn crops_per_second() {
        let image = image::imageops::resize(&picture(), 224, 224, image::imageops::FilterType::Triangle);
        let small = Crops { global_size: 64, local_size: 32, local_count: 4, ..Crops::default() };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        for (name, settings, n) in [("2 x 224 + 8 x 96", Crops::default(), 60), ("2 x 64 + 4 x 32", small, 600)] {
            let normalize = crate::data::normalize::Normalize::new(settings.mean, settings.std);
            let batch = |images: &[RgbImage]| pool.install(|| normalize.images(&images.iter().collect::<Vec<_>>()));
            let best = (0..5)
                .map(|_| {
                    let start = std::time::Instant::now();
                    for index in 0..n {
                        let views = crops(&image, &settings, &mut item_rng(0, 0, index)).unwrap();
                        std::hint::black_box((batch(&views.globals), batch(&views.locals)));
                    }
                    n as f64 / start.elapsed().as_secs_f64()
                })
                .fold(0.0, f64::max);
            println!("{name}: {best:.0} images/s");
        }
    }
}
