//! Patches with the stain of a reference: a [`PatchSource`] around another.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use image::RgbImage;

use super::{ImageStatistics, Normalizer, Target};
use crate::error::{Error, Result};
use crate::patch::{Patch, PatchKey, PatchSource};

/// Patches that the statistics of a slide or folder are estimated from, evenly spaced over it: many regions and every
/// block, at a third of a second of reading.
const SAMPLE_PATCHES: usize = 64;

/// Pixels that statistics are estimated from, about: 2,600 of them lie beyond the 99th percentile.
const SAMPLE_PIXELS: usize = 1 << 18;

/// The patches of another source, each with the stain of a [`Target`].
///
/// Where the source has slides ([`PatchSource::slide_ends`]), the statistics are those of each slide; otherwise those of
/// each image or of all, as [`ImageStatistics`] says. They are estimated when they are needed first, and depend on the
/// source alone, never on the order of reading.
///
/// A slide without statistics gives an error with every patch, never the patch as it was.
/// [`estimate_slide`](Self::estimate_slide) tells before.
pub struct Normalized {
    source: Arc<dyn PatchSource>,
    target: Target,
    /// One per slide, or one per image.
    own: Vec<OnceLock<Result<Normalizer, String>>>,
    /// Of all images together.
    folder: OnceLock<Result<Normalizer, String>>,
}

impl Normalized {
    /// The patches of `source` with the stain of `target`. Nothing is read yet.
    pub fn new(source: Arc<dyn PatchSource>, target: Target) -> Self {
        let items = match (source.slide_ends().len(), target.params.images) {
            (0, ImageStatistics::Each) => source.len(),
            (0, ImageStatistics::Folder) => 0,
            (slides, _) => slides,
        };
        Self { source, target, own: (0..items).map(|_| OnceLock::new()).collect(), folder: OnceLock::new() }
    }

    /// Estimates the statistics of slide `slide`, unless that was done. Slides without patches need none.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the slide's id where it has none.
    pub fn estimate_slide(&self, slide: usize) -> Result<()> {
        if self.patches_of(slide).is_empty() { Ok(()) } else { self.of_slide(slide).map(|_| ()) }
    }

    fn patches_of(&self, slide: usize) -> Range<usize> {
        let ends = self.source.slide_ends();
        if slide == 0 { 0..ends[0] } else { ends[slide - 1]..ends[slide] }
    }

    fn of_slide(&self, slide: usize) -> Result<&Normalizer> {
        let patches = self.patches_of(slide);
        let normalizer = self.own[slide].get_or_init(|| self.estimate(patches.clone()));
        normalizer.as_ref().map_err(|why| {
            let id = self.source.key(patches.start).item;
            Error::unsupported(id, format!("its stain cannot be normalised: {why}"))
        })
    }

    /// For image `index`: its own statistics, or the folder's where it has none or shall have none.
    fn of_image(&self, index: usize, image: &RgbImage) -> Result<&Normalizer> {
        let own = || self.target.normalizer(&thinned(image, SAMPLE_PIXELS)).map_err(|why| why.to_string());
        if let Some(Ok(normalizer)) = self.own.get(index).map(|known| known.get_or_init(own)) {
            return Ok(normalizer);
        }
        let folder = self.folder.get_or_init(|| self.estimate(0..self.source.len()));
        folder.as_ref().map_err(|why| {
            let what = format!("its stain cannot be normalised, nor that of its folder: {why}");
            Error::unsupported(self.source.key(index).item, what)
        })
    }

    /// From a sample of the patches in `range`. What cannot be read is passed over: it is reported when its turn comes.
    fn estimate(&self, range: Range<usize>) -> Result<Normalizer, String> {
        let count = range.len().min(SAMPLE_PATCHES);
        let (mut pixels, mut unreadable) = (Vec::new(), None);
        for number in 0..count {
            match self.source.read(range.start + number * range.len() / count) {
                Ok(patch) => pixels.extend(thinned(&patch.image, SAMPLE_PIXELS / count)),
                Err(error) => unreadable = unreadable.or(Some(error)),
            }
        }
        match unreadable {
            Some(error) if pixels.is_empty() => {
                Err(format!("none of {count} patches looked at can be read, the first because of {error}"))
            }
            _ => self.target.normalizer(&pixels).map_err(|why| why.to_string()),
        }
    }
}

/// About `count` pixels of an image, on a regular grid; all of them where it has no more.
fn thinned(image: &RgbImage, count: usize) -> Vec<[u8; 3]> {
    let step = (image.as_raw().len() as f64 / 3.0 / count.max(1) as f64).sqrt().ceil().max(1.0) as usize;
    let rows = image.as_chunks::<3>().0.chunks_exact(image.width().max(1) as usize);
    rows.step_by(step).flat_map(|row| row.iter().step_by(step).copied()).collect()
}

impl PatchSource for Normalized {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn key(&self, index: usize) -> PatchKey {
        self.source.key(index)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.source.label(index)
    }

    fn classes(&self) -> &[String] {
        self.source.classes()
    }

    fn slide_ends(&self) -> &[usize] {
        self.source.slide_ends()
    }

    fn prefers_few_slides(&self) -> bool {
        self.source.prefers_few_slides()
    }

    fn read(&self, index: usize) -> Result<Patch> {
        // First the patch: where it cannot be read, that is the reason to give.
        let mut patch = self.source.read(index)?;
        let ends = self.source.slide_ends();
        let normalizer = match ends.is_empty() {
            true => self.of_image(index, &patch.image)?,
            false => self.of_slide(ends.partition_point(|&end| end <= index))?,
        };
        normalizer.apply(&mut patch.image);
        Ok(patch)
    }
}
