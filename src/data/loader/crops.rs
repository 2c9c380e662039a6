//! Multi-crop batches for DINO.

use anyhow::Result;
use image::RgbImage;
use rand_chacha::ChaCha8Rng;

use super::synthetic::{Mixed, MixedBatch, Synthetics};
use super::training::{EpochBatches, TrainingLoader, Treatment};
use crate::config::Crops;
use crate::data::augment::{self, Views};
use crate::data::normalize::Normalize;

/// The crops of a batch of patches, normalised, channel-major (NCHW) and crop-major: crop 1 of all patches, then crop 2.
#[derive(Clone, Debug, PartialEq)]
pub struct CropBatch {
    /// Patches.
    pub size: usize,
    /// Global crops, `[2 * size, 3, g, g]`.
    pub globals: Vec<f32>,
    /// Local crops, `[local_count * size, 3, l, l]`.
    pub locals: Vec<f32>,
    /// Where the patches are in the source.
    pub indices: Vec<usize>,
    /// The views behind Gen-DINO's disentanglement loss.
    pub mixed: Option<MixedBatch>,
}

/// Multi-crop batches for DINO: see [`TrainingLoader`].
pub type CropLoader = TrainingLoader<MultiCrop>;
/// The multi-crop batches of one epoch.
pub type CropBatches = EpochBatches<MultiCrop>;

/// DINO's recipe, and Gen-DINO's where there are synthetic images.
pub struct MultiCrop {
    crops: Crops,
    normalize: Normalize,
    synthetics: Option<Synthetics>,
}

impl MultiCrop {
    /// Crops of the patches alone.
    ///
    /// # Errors
    /// Crops that make no sense.
    pub fn new(crops: Crops) -> Result<Self> {
        augment::check(&crops)?;
        Ok(Self { normalize: Normalize::new(crops.mean, crops.std), crops, synthetics: None })
    }

    /// Crops of synthetic images too.
    pub fn with(self, synthetics: Option<Synthetics>) -> Self {
        Self { synthetics, ..self }
    }
}

impl Treatment for MultiCrop {
    type Views = (Views, Option<Mixed>);
    type Batch = CropBatch;

    fn views(&self, index: usize, image: RgbImage, rng: &mut ChaCha8Rng) -> Result<Self::Views> {
        match &self.synthetics {
            Some(synthetics) => synthetics.views(index, &image, &self.crops, rng),
            None => Ok((augment::crops(&image, &self.crops, rng)?, None)),
        }
    }

    fn batch(&self, indices: Vec<usize>, views: Vec<Self::Views>) -> CropBatch {
        let crop_major = |of: fn(&Views) -> &[RgbImage], count: usize| -> Vec<&RgbImage> {
            (0..count).flat_map(|crop| views.iter().map(move |(view, _)| &of(view)[crop])).collect()
        };
        let globals = self.normalize.images(&crop_major(|view| &view.globals, 2));
        let locals = self.normalize.images(&crop_major(|view| &view.locals, self.crops.local_count));
        let mixed: Option<Vec<&Mixed>> = views.iter().map(|(_, mixed)| mixed.as_ref()).collect();
        // A batch of which a place stayed empty is an error of the loader's; it may have no views at all.
        let mixed = mixed.filter(|mixed| !mixed.is_empty()).map(|mixed| MixedBatch {
            views: self.normalize.images(&mixed.iter().map(|mixed| &mixed.view).collect::<Vec<_>>()),
            secondary: {
                let targets = mixed[0].secondary.len();
                let views = (0..targets).flat_map(|target| mixed.iter().map(move |mixed| &mixed.secondary[target]));
                self.normalize.images(&views.collect::<Vec<_>>())
            },
            alphas: mixed.iter().map(|mixed| mixed.alpha).collect(),
        });
        CropBatch { size: indices.len(), globals, locals, indices, mixed }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Pictures;
    use super::*;
    use crate::data::Batches;
    use crate::data::order::item_rng;
    use slide_io::PatchSource;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    fn small() -> Crops {
        Crops { global_size: 16, local_count: 3, local_size: 8, ..Crops::default() }
    }

    /// `size` patches of a batch, `per_epoch` of an epoch.
    fn of(source: Arc<Pictures>, crops: Crops, size: usize, per_epoch: usize, threads: usize) -> Result<CropLoader> {
        CropLoader::treated(source, MultiCrop::new(crops)?, Batches { size, per_epoch, seed: 11, threads, ahead: 2 })
    }

    fn loader(source: Arc<Pictures>, per_epoch: usize, threads: usize) -> CropLoader {
        of(source, small(), 4, per_epoch, threads).unwrap()
    }

    fn collect(batches: CropBatches) -> Vec<CropBatch> {
        batches.map(Result::unwrap).collect()
    }

    #[test]
    fn same_bytes_with_any_number_of_threads_and_after_a_resume() {
        let bad = |index| index == 5 || index == 6;
        let one = collect(loader(Pictures::new(30, bad), 0, 1).epoch(2, 0));
        assert_eq!(one.len(), 7);
        assert_eq!(one, collect(loader(Pictures::new(30, bad), 0, 3).epoch(2, 0)));
        assert_eq!(one[3..], collect(loader(Pictures::new(30, bad), 0, 2).epoch(2, 3))[..]);
        assert!(collect(loader(Pictures::new(30, bad), 0, 2).epoch(2, 7)).is_empty());
        assert_ne!(one, collect(loader(Pictures::new(30, bad), 0, 1).epoch(3, 0)));
    }

    #[test]
    fn skipped_batches_are_not_read() {
        let source = Pictures::new(40, |_| false);
        assert_eq!(collect(loader(source.clone(), 0, 2).epoch(0, 8)).len(), 2);
        assert_eq!(source.reads.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn a_batch_is_crop_major_and_its_crops_are_those_of_its_patches() {
        let source = Pictures::new(12, |_| false);
        let batch = loader(source.clone(), 0, 2).epoch(1, 1).next().unwrap().unwrap();
        assert_eq!((batch.size, batch.indices.len()), (4, 4));
        assert_eq!(batch.indices, loader(source.clone(), 0, 2).order.epoch(1)[4..8]);
        assert_eq!((batch.globals.len(), batch.locals.len()), (2 * 4 * 3 * 16 * 16, 3 * 4 * 3 * 8 * 8));
        let normalize = Normalize::new(small().mean, small().std);
        for (place, &index) in batch.indices.iter().enumerate() {
            let image = source.read(index).unwrap().image;
            let views = augment::crops(&image, &small(), &mut item_rng(11, 1, index)).unwrap();
            for (crops, floats) in [(&views.globals, &batch.globals), (&views.locals, &batch.locals)] {
                for (number, crop) in crops.iter().enumerate() {
                    let values = crop.as_raw().len();
                    let start = (number * batch.size + place) * values;
                    assert_eq!(floats[start..start + values], normalize.images(&[crop])[..]);
                }
            }
        }
    }

    #[test]
    fn an_unreadable_patch_is_replaced_by_the_next_and_remembered() {
        let loader = loader(Pictures::new(40, |index| index == 8 || index == 9), 0, 2);
        let order = loader.order.epoch(0);
        let indices: Vec<usize> = collect(loader.epoch(0, 0)).into_iter().flat_map(|batch| batch.indices).collect();
        for (place, &index) in indices.iter().enumerate() {
            let expected = order.iter().cycle().skip(place).find(|&&i| i != 8 && i != 9);
            assert_eq!(Some(&index), expected);
        }
        let failures = loader.failures();
        assert_eq!(failures.iter().map(|f| f.index).collect::<Vec<_>>(), [8, 9]);
        assert_eq!(failures[0].key.item, "picture 8");
        assert_eq!(failures[0].reason, "picture 8: the file is damaged: truncated");
        assert_eq!(failures[1].reason, "panic: decoder broke on 9");
    }

    #[test]
    fn a_replacement_has_crops_of_its_own() {
        // Two patches, one unreadable: the other takes both places.
        let loader = of(Pictures::new(2, |index| index == 1), small(), 2, 0, 1).unwrap();
        let batch = loader.epoch(0, 0).next().unwrap().unwrap();
        assert_eq!(batch.indices, [0, 0]);
        let values = batch.globals.len() / 4;
        assert_ne!(batch.globals[..values], batch.globals[values..2 * values]);
    }

    #[test]
    fn too_many_failures_end_the_epoch_with_an_error() {
        let loader = loader(Pictures::new(200, |index| index % 2 == 1), 0, 2);
        let batches: Vec<_> = loader.epoch(0, 0).collect();
        let error = batches.last().unwrap().as_ref().unwrap_err().to_string();
        assert!(batches[..batches.len() - 1].iter().all(Result::is_ok));
        assert!(error.contains("reads failed, more than 25 %") && error.contains("picture "), "{error}");
        // Half are unreadable: the error comes soon after the 11th failed read, some of them of the same picture.
        assert!((4..=20).contains(&loader.failures().len()), "{}", loader.failures().len());
        // A few failures are tolerated however small the epoch.
        let few = of(Pictures::new(20, |index| index < 3), small(), 4, 0, 2).unwrap();
        assert_eq!(collect(few.epoch(0, 0)).len(), 5);
    }

    #[test]
    fn no_readable_patch_at_all_is_an_error() {
        let loader = of(Pictures::new(8, |_| true), small(), 4, 0, 2).unwrap();
        let mut batches = loader.epoch(0, 0);
        let error = batches.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("reads failed") && error.contains("decoder broke on 0"), "{error}");
        assert!(batches.next().is_none());
    }

    #[test]
    fn a_subset_per_epoch_and_settings_that_make_no_sense() {
        let source = Pictures::new(50, |_| false);
        let subset = loader(source.clone(), 10, 2);
        assert_eq!((subset.steps_per_epoch(), collect(subset.epoch(0, 0)).len()), (2, 2));
        let error = |crops: Crops, batch| of(source.clone(), crops, batch, 0, 1).err().unwrap().to_string();
        assert_eq!(error(small(), 64), "50 patches per epoch do not fill a batch of 64: use a smaller batch");
        assert_eq!(
            error(Crops { local_scale: [0.4, 0.05], ..small() }, 4),
            "crops.local_scale: 0 < 0.4 <= 0.05 <= 1 does not hold"
        );
        assert_eq!(error(Crops { hflip: 1.5, ..small() }, 4), "crops.hflip: 1.5 is not a probability");
    }
}
