//! Views of synthetic and interpolated images, for Gen-DINO: what a batch of crops shows beside the patches themselves.
//!
//! The random numbers of a patch are drawn in this order: whether its second view is synthetic, and which of its synthetic
//! images (where it can be); global 1 (real), global 2, locals (each first which image, where that is random); then, for
//! the disentanglement loss, which interpolated image, its view, and the views of the secondary image (for four targets
//! first which of that image's synthetic ones).

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use image::RgbImage;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use slide_io::PatchSource;

use super::read;
use crate::config::{Crops, Locals, Recipe, Targets};
use crate::data::augment::{self, Views, view};
use crate::sample::bank::{Kind, SyntheticBank, partner};
use crate::sample::interpolate::mix_pixels;

/// Where the synthetic and interpolated images of a variant come from.
pub struct Synthetics {
    /// How the variant is trained.
    pub recipe: Recipe,
    /// The patches themselves.
    pub source: Arc<dyn PatchSource>,
    /// The bank of synthetic images, where the recipe shows any.
    pub generative: Option<Arc<SyntheticBank>>,
    /// Where interpolated images come from, where the recipe has a disentanglement loss.
    pub interpolated: Option<Interpolations>,
}

/// Where interpolated images come from.
pub enum Interpolations {
    /// A bank.
    Stored(Arc<SyntheticBank>),
    /// Pixels, mixed when they are needed: the same secondary images and weights as a bank would have.
    Pixels {
        /// The experiment's seed.
        seed: u64,
        /// Interpolations of every image.
        count: usize,
        /// Smallest and largest weight of the first image.
        alpha: [f64; 2],
        /// Images that cannot be read, ascending.
        without: Vec<usize>,
    },
}

/// The views behind the disentanglement loss, of one patch.
pub struct Mixed {
    /// Of the interpolated image, first recipe.
    pub view: RgbImage,
    /// Of the secondary image: real with the first recipe, and with four targets synthetic with the second.
    pub secondary: Vec<RgbImage>,
    /// Weight of the patch itself.
    pub alpha: f32,
}

/// The views behind the disentanglement loss, of a batch: normalised, channel-major.
#[derive(Clone, Debug, PartialEq)]
pub struct MixedBatch {
    /// Of the interpolated images, `[size, 3, g, g]`.
    pub views: Vec<f32>,
    /// Of the secondary images, `[targets * size, 3, g, g]`, target-major: all real ones, then all synthetic ones.
    pub secondary: Vec<f32>,
    /// Weights of the patches themselves, `[size]`.
    pub alphas: Vec<f32>,
}

impl Synthetics {
    /// The crops of patch `index`, and with a disentanglement loss the views behind it.
    ///
    /// # Errors
    /// A synthetic or secondary image that is missing or cannot be read.
    pub fn views(
        &self,
        index: usize,
        image: &RgbImage,
        crops: &Crops,
        rng: &mut ChaCha8Rng,
    ) -> Result<(Views, Option<Mixed>)> {
        let shown = self.recipe.synthetic > 0.0 && rng.random::<f64>() < self.recipe.synthetic;
        let synthetic = if shown { Some(self.synthetic(index, rng)?) } else { None };
        let second = synthetic.as_ref().unwrap_or(image);
        let globals = vec![
            view(image, augment::Recipe::Global1, crops, rng)?,
            view(second, augment::Recipe::Global2, crops, rng)?,
        ];
        let real = crops.local_count.div_ceil(2);
        let mut local = |number: usize| {
            let of = match self.recipe.locals {
                Locals::AllReal => image,
                Locals::Split if number < real => image,
                Locals::Split => second,
                Locals::Random if rng.random() => image,
                Locals::Random => second,
            };
            view(of, augment::Recipe::Local, crops, rng)
        };
        let locals = (0..crops.local_count).map(&mut local).collect::<Result<_>>()?;
        let mixed = match &self.interpolated {
            Some(interpolated) => Some(self.mixed(interpolated, (index, image), shown, crops, rng)?),
            None => None,
        };
        Ok((Views { globals, locals }, mixed))
    }

    /// One of the synthetic images of patch `index`.
    fn synthetic(&self, index: usize, rng: &mut ChaCha8Rng) -> Result<RgbImage> {
        let bank = self.generative.as_ref().context("there is no bank of synthetic images")?;
        let k = rng.random_range(0..bank.header().generative);
        Ok(bank.get(index, Kind::Generative, k)?.image)
    }

    fn mixed(
        &self,
        interpolated: &Interpolations,
        (index, image): (usize, &RgbImage),
        shown: bool,
        crops: &Crops,
        rng: &mut ChaCha8Rng,
    ) -> Result<Mixed> {
        let real = |other: usize| {
            read(&*self.source, other)
                .map_err(|failure| anyhow!("its secondary image {}: {}", failure.key.item, failure.reason))
        };
        let (picture, other, alpha) = match interpolated {
            Interpolations::Stored(bank) => {
                let k = rng.random_range(0..bank.header().interpolated);
                let stored = bank.get(index, Kind::Interpolated, k)?;
                let other = stored.secondary.context("an interpolated image without a secondary one")?;
                (stored.image, other, stored.alpha)
            }
            Interpolations::Pixels { seed, count, alpha, without } => {
                let k = rng.random_range(0..*count);
                let (other, alpha) = partner(*seed, index, k, self.source.len(), without, *alpha);
                (mix_pixels(image, &real(other)?, f64::from(alpha))?, other, alpha)
            }
        };
        let picture = view(&picture, augment::Recipe::Global1, crops, rng)?;
        let second = real(other)?;
        let mut secondary = vec![view(&second, augment::Recipe::Global1, crops, rng)?];
        if self.recipe.targets == Targets::Four {
            // As the patch's own second view: synthetic, or where that is real, real.
            let second = if shown { self.synthetic(other, rng)? } else { second };
            secondary.push(view(&second, augment::Recipe::Global2, crops, rng)?);
        }
        Ok(Mixed { view: picture, secondary, alpha })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use slide_io::Rgb;

    use super::super::fake::Pictures;
    use super::super::training::{Batches, TrainingLoader};
    use super::super::{CropBatch, MultiCrop};
    use super::*;
    use crate::config::{Bank, BankFormat, GenDino, Interpolation, Variant};
    use crate::sample::bank::{Generator, Header, Latent, Origin, Part, Picture, Request, Work};

    /// Plain images whose colour says what they are: green 100 for synthetic, 200 for interpolated ones, red the source.
    struct Plain;

    impl Generator for Plain {
        fn decode(&self, _: &[Latent]) -> Result<Vec<RgbImage>> {
            Ok(vec![])
        }

        fn generate(&self, requests: &[Request]) -> Result<Vec<Picture>> {
            let shade = |request: &Request| match request.kind {
                Kind::Generative => 100,
                Kind::Interpolated => 200,
            };
            let color = |request: &Request| Rgb([request.source as u8, shade(request), 0]);
            let image = |request| Picture::Image(RgbImage::from_pixel(20, 20, color(request)));
            Ok(requests.iter().map(image).collect())
        }
    }

    const IMAGES: usize = 24;

    fn bank(folder: &Path, source: &Arc<Pictures>) -> Arc<SyntheticBank> {
        let origin = Origin {
            data: "pictures".into(),
            images: IMAGES,
            without: vec![],
            encoder: "e".into(),
            autoencoder: "a".into(),
            diffusion: "d".into(),
            sampler: serde_json::Value::Null,
            size: [20, 20],
        };
        let bank = Bank { format: BankFormat::Png, alpha: [0.3, 0.7], ..Bank::default() };
        let header = Header::new(&bank, origin, Interpolation::Slerp, 4).unwrap();
        Work::new(folder, &header, Part::WHOLE).unwrap().run(&Plain, 8, |_| ()).unwrap();
        Arc::new(SyntheticBank::open(folder, &header, source.clone(), None).unwrap())
    }

    /// Crops without any change of colour; a pixel is then its byte.
    fn plain() -> Crops {
        Crops {
            global_size: 8,
            local_count: 5,
            local_size: 4,
            jitter: 0.0,
            grayscale: 0.0,
            solarize: 0.0,
            blur: [0.0; 3],
            mean: [0.0; 3],
            std: [1.0 / 255.0; 3],
            ..Crops::default()
        }
    }

    fn batches(gen_dino: &GenDino, variant: Variant, bad: fn(usize) -> bool, threads: usize) -> Vec<CropBatch> {
        let folder = tempfile::tempdir().unwrap();
        let source = Pictures::new(IMAGES, bad);
        let bank = bank(folder.path(), &source);
        let recipe = gen_dino.recipe(variant);
        let interpolated = match variant {
            Variant::PixelMixing => Interpolations::Pixels { seed: 4, count: 1, alpha: [0.3, 0.7], without: vec![] },
            _ => Interpolations::Stored(bank.clone()),
        };
        let synthetics = Synthetics {
            source: source.clone(),
            generative: (recipe.synthetic > 0.0).then_some(bank),
            interpolated: (recipe.disentangle > 0.0).then_some(interpolated),
            recipe,
        };
        let treatment = MultiCrop::new(plain()).unwrap().with(Some(synthetics));
        let batches = Batches { size: 4, per_epoch: 0, seed: 11, threads, ahead: 2 };
        TrainingLoader::treated(source, treatment, batches).unwrap().epoch(1, 0).map(Result::unwrap).collect()
    }

    /// Red and green of the first pixel of every crop.
    fn colours(values: &[f32], side: usize) -> Vec<[f32; 2]> {
        let plane = side * side;
        values.chunks_exact(3 * plane).map(|crop| [crop[0], crop[plane]].map(f32::round)).collect()
    }

    fn is_synthetic(crops: &[[f32; 2]]) -> Vec<bool> {
        crops.iter().map(|crop| crop[1] == 100.0).collect()
    }

    #[test]
    fn the_second_view_and_half_of_the_locals_are_synthetic() {
        for batch in batches(&GenDino::default(), Variant::Full, |_| false, 2) {
            let globals = colours(&batch.globals, 8);
            assert_eq!(globals[4..], batch.indices.iter().map(|&i| [i as f32, 100.0]).collect::<Vec<_>>()[..]);
            // A picture's own red is its index too.
            assert!(globals[..4].iter().zip(&batch.indices).all(|(crop, &index)| crop[0] == index as f32));
            let locals = colours(&batch.locals, 4);
            assert!(is_synthetic(&locals)[12..].iter().all(|&synthetic| synthetic), "crops 4 and 5 of 5");
            assert!(is_synthetic(&locals)[..12].iter().filter(|&&synthetic| synthetic).count() <= 2, "{locals:?}");
            let mixed = batch.mixed.unwrap();
            assert_eq!(colours(&mixed.views, 8), batch.indices.iter().map(|&i| [i as f32, 200.0]).collect::<Vec<_>>());
            for (place, (&index, &alpha)) in batch.indices.iter().zip(&mixed.alphas).enumerate() {
                let (other, expected) = partner(4, index, 0, IMAGES, &[], [0.3, 0.7]);
                assert_eq!((colours(&mixed.secondary, 8)[place][0], alpha), (other as f32, expected));
            }
        }
    }

    #[test]
    fn locals_and_the_share_of_synthetic_views_follow_the_options() {
        let shares = |gen_dino: &GenDino, variant| {
            let batches = batches(gen_dino, variant, |_| false, 2);
            let share = |crops: Vec<[f32; 2]>| is_synthetic(&crops).iter().filter(|&&s| s).count();
            let globals: usize = batches.iter().map(|batch| share(colours(&batch.globals, 8)[4..].to_vec())).sum();
            let locals: usize = batches.iter().map(|batch| share(colours(&batch.locals, 4))).sum();
            (globals, locals, batches[0].mixed.is_some())
        };
        let default = GenDino::default();
        let all_real = GenDino { locals: Locals::AllReal, ..default.clone() };
        // A real picture may have a green of 100 by chance: 1 of 256 of its pixels.
        let (globals, locals, _) = shares(&all_real, Variant::Full);
        assert!(globals == 24 && locals <= 4, "{globals} {locals}");
        let (_, locals, _) = shares(&GenDino { locals: Locals::Random, ..default.clone() }, Variant::Full);
        // Expected 60 of 120, standard deviation 5.5.
        assert!((36..=84).contains(&locals), "{locals}");
        let (globals, _, _) = shares(&GenDino { synthetic: 0.5, ..default.clone() }, Variant::Full);
        // Expected 12 of 24, standard deviation 2.4.
        assert!((3..=21).contains(&globals), "{globals}");
        let (globals, locals, mixed) = shares(&default, Variant::WithoutGenerative);
        assert!(globals <= 2 && locals <= 4 && mixed);
        assert_eq!(shares(&default, Variant::WithoutDisentanglement), (24, 48, false));
    }

    #[test]
    fn four_targets_bring_a_synthetic_view_of_the_secondary_image() {
        let four = GenDino { targets: Targets::Four, ..GenDino::default() };
        for batch in batches(&four, Variant::Full, |_| false, 2) {
            let secondary = colours(&batch.mixed.unwrap().secondary, 8);
            assert_eq!(secondary.len(), 8);
            for place in 0..4 {
                assert_eq!(secondary[4 + place], [secondary[place][0], 100.0]);
            }
        }
        let without = batches(&four, Variant::WithoutGenerative, |_| false, 1);
        assert_eq!(colours(&without[0].mixed.as_ref().unwrap().secondary, 8).len(), 4);
    }

    #[test]
    fn pixels_are_mixed_as_the_bank_would_mix_embeddings() {
        for batch in batches(&GenDino::default(), Variant::PixelMixing, |_| false, 2) {
            let mixed = batch.mixed.unwrap();
            for (view, &index) in colours(&mixed.views, 8).iter().zip(&batch.indices) {
                let (other, alpha) = partner(4, index, 0, IMAGES, &[], [0.3, 0.7]);
                let expected = (alpha * index as f32 + (1.0 - alpha) * other as f32).round();
                assert!((view[0] - expected).abs() <= 1.0, "{} {expected}", view[0]);
            }
        }
    }

    #[test]
    fn threads_change_nothing_and_a_patch_with_an_unreadable_partner_is_replaced() {
        let four = GenDino { targets: Targets::Four, locals: Locals::Random, synthetic: 0.7, ..GenDino::default() };
        let one = batches(&four, Variant::Full, |_| false, 1);
        assert_eq!(one, batches(&four, Variant::Full, |_| false, 3));
        let bad = batches(&four, Variant::Full, |index| index == 8, 2);
        let shown: HashSet<usize> = bad.iter().flat_map(|batch| batch.indices.clone()).collect();
        for index in 0..IMAGES {
            let lost = index == 8 || partner(4, index, 0, IMAGES, &[], [0.3, 0.7]).0 == 8;
            assert!(!(lost && shown.contains(&index)), "{index}");
        }
        assert_eq!(bad.len(), 6);
    }
}
