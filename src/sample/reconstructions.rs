//! What the first stage makes of the images of the data set: the best that an image drawn in its latents can be.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use slide_io::{Error, Patch, PatchKey, PatchSource};

use super::painter::Painter;
use crate::data::latents::LatentFile;

/// The images of another source after the autoencoder, decoded from the stored latents one by one.
pub struct Reconstructions {
    painter: Painter,
    latents: LatentFile,
    /// Record of every image of the source that could be read.
    records: HashMap<usize, usize>,
    source: Arc<dyn PatchSource>,
}

impl Reconstructions {
    /// Of the images of `source` whose `latents` are stored.
    ///
    /// # Errors
    /// A disk that fails.
    pub fn new(painter: Painter, latents: LatentFile, source: Arc<dyn PatchSource>) -> Result<Self> {
        let record = |record: usize| Ok((latents.source(record)?, record));
        let records = (0..latents.len()).map(record).collect::<Result<_>>()?;
        Ok(Self { painter, latents, records, source })
    }

    /// Which images of the source there are.
    pub fn images(&self) -> Vec<usize> {
        let mut images: Vec<usize> = self.records.keys().copied().collect();
        images.sort_unstable();
        images
    }
}

impl PatchSource for Reconstructions {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn key(&self, index: usize) -> PatchKey {
        let PatchKey { item, origin } = self.source.key(index);
        PatchKey { item: format!("{item} (reconstructed)"), origin }
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.source.label(index)
    }

    fn classes(&self) -> &[String] {
        self.source.classes()
    }

    fn read(&self, index: usize) -> slide_io::Result<Patch> {
        let failed = |what: String| Error::Usage(format!("{}: {what}", self.key(index).item));
        let record = *self.records.get(&index).ok_or_else(|| failed("it has no latent".into()))?;
        let stored = self.latents.read(record, 0).map_err(|error| failed(format!("{error:#}")))?;
        let images = self.painter.decoded(vec![stored.latent]).map_err(|error| failed(format!("{error:#}")))?;
        let image = images.into_iter().next().ok_or_else(|| failed("the autoencoder gave no image".into()))?;
        Ok(Patch { key: self.key(index), image, label: self.label(index) })
    }
}
