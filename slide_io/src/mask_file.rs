//! Files that hold masks: finding the one of a slide, and whether its pixels mean what was painted.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use tiff::TiffError;
use tiff::decoder::Decoder;
use tiff::tags::Tag;

use crate::error::{Error, Result};

/// The one file of those names that exists in `folder`; `None` if there is none.
///
/// # Errors
/// [`Error::Usage`] if there are several: which one is meant cannot be told.
pub fn find(folder: &Path, names: impl IntoIterator<Item = String>) -> Result<Option<PathBuf>> {
    let mut found: Vec<String> = names.into_iter().filter(|name| folder.join(name).is_file()).collect();
    match found.len() {
        0 => Ok(None),
        1 => Ok(found.pop().map(|name| folder.join(name))),
        _ => Err(Error::Usage(format!("{}: {} are for one slide: keep one", folder.display(), found.join(" and ")))),
    }
}

/// An image, and what the way it is stored means for the values of its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TIFF or BigTIFF.
    Tiff {
        /// Compressed with losses: values may have changed.
        lossy: bool,
        /// Some tiles are not stored. They read as white.
        sparse: bool,
        /// Bits a sample.
        depth: u8,
        /// Whether pixels are places in a palette of colours.
        palette: bool,
    },
    /// PNG.
    Png {
        /// Bits a sample.
        depth: u8,
        /// Whether pixels are places in a palette of colours.
        palette: bool,
    },
    /// JPEG: values have changed.
    Jpeg,
    /// Anything else.
    Other,
}

impl Kind {
    /// Of a file, by its first bytes and the tags of its first image.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::BadFile`] for a TIFF without readable tags.
    pub fn of(path: &Path) -> Result<Self> {
        // A PNG's depth and colour type end at byte 26.
        let mut head = Vec::new();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        (&file).take(26).read_to_end(&mut head).map_err(|e| Error::io(path, e))?;
        Ok(match head.as_slice() {
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => {
                tiff_kind(path).map_err(|e| Error::bad(path, e.to_string()))?
            }
            [b'\x89', b'P', b'N', b'G', .., depth, color] if head.len() == 26 => {
                Self::Png { depth: *depth, palette: *color == 3 }
            }
            [0xff, 0xd8, 0xff, ..] => Self::Jpeg,
            _ => Self::Other,
        })
    }
}

fn tiff_kind(path: &Path) -> std::result::Result<Kind, TiffError> {
    let mut decoder = Decoder::new(BufReader::new(File::open(path)?))?;
    let compression: u32 = decoder.find_tag_unsigned(Tag::Compression)?.unwrap_or(1);
    // Old and new JPEG; JPEG XR; JPEG 2000 of Aperio and others; WebP; JPEG XL.
    let lossy = matches!(compression, 6 | 7 | 22610 | 33003..=33005 | 34712 | 34934 | 50001 | 50002 | 52546);
    let lengths = match decoder.find_tag_unsigned_vec::<u64>(Tag::TileByteCounts)? {
        Some(lengths) => lengths,
        None => decoder.find_tag_unsigned_vec(Tag::StripByteCounts)?.unwrap_or_default(),
    };
    let bits: Vec<u32> = decoder.find_tag_unsigned_vec(Tag::BitsPerSample)?.unwrap_or_default();
    let depth = bits.first().map_or(1, |&bits| bits.min(255) as u8);
    let palette = decoder.find_tag_unsigned(Tag::PhotometricInterpretation)? == Some(3_u32);
    Ok(Kind::Tiff { lossy, sparse: lengths.contains(&0), depth, palette })
}
