//! Reading a bank back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, ensure};
use image::RgbImage;
use slide_io::archive::{OpenArchives, Place};
use slide_io::{Error, Patch, PatchKey, PatchSource};

use super::{Decoder, Header, Kind, shard};

/// A finished bank. As a [`PatchSource`] it holds all its images, those of the first image of the data set first, each
/// with the class of the image it was made of.
pub struct SyntheticBank {
    folder: PathBuf,
    header: Header,
    source: Arc<dyn PatchSource>,
    decoder: Option<Arc<dyn Decoder>>,
    images: Vec<Stored>,
    /// Where the images of each image of the data set begin among them, and where the last end.
    starts: Vec<usize>,
    open: OpenArchives,
}

/// A stored image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stored {
    /// The image of the data set it was made of.
    pub source: usize,
    /// Whether of it alone.
    pub kind: Kind,
    /// Which of this kind.
    pub k: usize,
    /// The other image of an interpolation.
    pub secondary: Option<usize>,
    /// Weight of `source` against `secondary`.
    pub alpha: f32,
    place: Place,
    checksum: u32,
}

/// An image read from a bank.
#[derive(Clone, Debug)]
pub struct Synthetic {
    /// Its pixels.
    pub image: RgbImage,
    /// The other image of an interpolation.
    pub secondary: Option<usize>,
    /// Weight of the image it was made of against the other.
    pub alpha: f32,
}

impl SyntheticBank {
    /// Opens the bank in `folder`, which must be the one that `header` describes. `source` is the data set it was made of;
    /// `decoder` is needed for a bank of latents.
    ///
    /// # Errors
    /// A bank of another encoder, data set or setting (both values are named), one with missing shards, a source of
    /// another size.
    pub fn open(
        folder: &Path,
        header: &Header,
        source: Arc<dyn PatchSource>,
        decoder: Option<Arc<dyn Decoder>>,
    ) -> Result<Self> {
        ensure!(
            source.len() == header.images,
            "the bank is made of {} images, and there are {}",
            header.images,
            source.len()
        );
        let mut images = Vec::new();
        let mut missing = Vec::new();
        for number in 0..header.shards() {
            match shard::index(folder, header, number)? {
                Some(index) => images.extend(index.images.iter().map(|entry| Stored {
                    source: entry.source,
                    kind: entry.kind,
                    k: entry.k,
                    secondary: entry.secondary,
                    alpha: entry.alpha,
                    place: entry.place(),
                    checksum: entry.checksum,
                })),
                None => missing.push(number),
            }
        }
        ensure!(
            missing.is_empty(),
            "{} of the {} shard files in {} are missing or cut short, the first is {}: run `gensis augment`",
            missing.len(),
            header.shards(),
            folder.display(),
            shard::path(folder, missing.first().copied().unwrap_or(0)).display()
        );
        let ordered = images.is_sorted_by_key(|stored| (stored.source, stored.kind, stored.k));
        ensure!(ordered, "the shard files in {} do not belong together", folder.display());
        let starts =
            (0..=header.images).map(|source| images.partition_point(|stored| stored.source < source)).collect();
        let (folder, header) = (folder.to_owned(), header.clone());
        Ok(Self { folder, header, source, decoder, images, starts, open: OpenArchives::default() })
    }

    /// What the bank is.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What is stored, in order.
    pub fn images(&self) -> &[Stored] {
        &self.images
    }

    /// Where image `k` of this kind of image `source` is; `None` where that image could not be read when the bank was
    /// made, or for a `k` that was not made.
    pub fn find(&self, source: usize, kind: Kind, k: usize) -> Option<usize> {
        let range = *self.starts.get(source)?..*self.starts.get(source + 1)?;
        self.images[range.clone()]
            .iter()
            .position(|stored| (stored.kind, stored.k) == (kind, k))
            .map(|at| range.start + at)
    }

    /// Image `k` of this kind of image `source` of the data set.
    ///
    /// # Errors
    /// One that was not made, and errors of reading it.
    pub fn get(&self, source: usize, kind: Kind, k: usize) -> slide_io::Result<Synthetic> {
        let missing = || {
            let item = self.source.key(source).item;
            Error::Usage(format!("the bank has no {} image {k} of {item}", kind.name()))
        };
        let at = self.find(source, kind, k).ok_or_else(missing)?;
        let Stored { secondary, alpha, .. } = self.images[at];
        Ok(Synthetic { image: self.pixels(at)?, secondary, alpha })
    }

    fn pixels(&self, at: usize) -> slide_io::Result<RgbImage> {
        let stored = &self.images[at];
        let number = stored.source / self.header.shard;
        let tar = shard::path(&self.folder, number);
        let bad = |what: String| Error::bad(&tar, format!("{}: {what}", self.key(at).item));
        let bytes = self.open.read(number, &tar, stored.place)?;
        if crc32fast::hash(&bytes) != stored.checksum {
            return Err(bad("its bytes have changed: remove the file, and `gensis augment` makes it again".into()));
        }
        let image = self.header.storage.decode(&bytes, self.decoder.as_deref()).map_err(|e| bad(format!("{e:#}")))?;
        let [width, height] = self.header.size;
        match image.dimensions() == (width, height) {
            true => Ok(image),
            false => Err(bad(format!("{} x {} px, not {width} x {height}", image.width(), image.height()))),
        }
    }
}

impl PatchSource for SyntheticBank {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn key(&self, index: usize) -> PatchKey {
        let Stored { source, kind, k, .. } = self.images[index];
        let PatchKey { item, origin } = self.source.key(source);
        PatchKey { item: format!("{item} ({} {k})", kind.name()), origin }
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.source.label(self.images[index].source)
    }

    fn classes(&self) -> &[String] {
        self.source.classes()
    }

    fn read(&self, index: usize) -> slide_io::Result<Patch> {
        Ok(Patch { key: self.key(index), image: self.pixels(index)?, label: self.label(index) })
    }
}
