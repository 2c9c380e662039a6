//! JPEG streams through libjpeg-turbo: whole images, and the abbreviated streams that TIFF tiles hold.
//!
//! Slides store their tiles as JPEG bodies whose tables lie elsewhere in the file, and say in a TIFF tag, not in the
//! JPEG, whether the components are RGB or YCbCr. `splice` makes such a tile a complete stream that any decoder reads
//! the right way, `split` is its inverse for writing. Decoding uses the accurate DCT and smooth chroma upsampling,
//! the settings of OpenSlide, so that both give the same pixels.

use std::cell::RefCell;

use image::RgbImage;
use turbojpeg::{Colorspace, Compressor, Decompressor, Image, PixelFormat, ScalingFactor, Subsamp};

/// What the three components of a JPEG are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ColorModel {
    /// Luma and two chroma planes at half resolution (4:2:0): small, the usual choice.
    #[default]
    YCbCr,
    /// Red, green and blue at full resolution, as Aperio scanners store them.
    Rgb,
}

/// Why a JPEG was refused.
#[derive(Debug, thiserror::Error)]
pub enum JpegError {
    /// libjpeg-turbo found the data damaged. Its warnings count as damage too: they mean invented pixels.
    #[error("{0}")]
    Codec(#[from] turbojpeg::Error),
    /// The marker segments are not those of a JPEG image.
    #[error("{0}")]
    Stream(&'static str),
}

/// What the frame header of a stream says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub width: usize,
    pub height: usize,
}

/// More scans than this are an attack, not an image.
const MAX_SCANS: u32 = 100;
/// Largest image [`decode`] accepts, in pixels.
const MAX_PIXELS: usize = 1 << 28;

const SOI: u8 = 0xD8;
const EOI: u8 = 0xD9;
const SOS: u8 = 0xDA;
const APP0: u8 = 0xE0;
const APP14: u8 = 0xEE;
const APP15: u8 = 0xEF;

thread_local! {
    // A decompressor holds tens of kB of tables and is not Sync: one a thread, made on first use.
    static DECOMPRESSOR: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
}

#[cfg(test)]
thread_local! {
    /// Frames decoded on this thread, for tests that count them.
    pub(crate) static DECODED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Decodes a complete JPEG to RGB.
///
/// # Errors
/// Damaged or truncated data, and images above 2^28 pixels.
pub fn decode(stream: &[u8]) -> Result<RgbImage, JpegError> {
    let mut frame = None;
    headers(stream, |marker, segment| frame = frame.or(frame_of(marker, segment)))?;
    let frame = frame.ok_or(JpegError::Stream("it has no frame header"))?;
    if frame.width.saturating_mul(frame.height) > MAX_PIXELS {
        return Err(JpegError::Stream("it has more than 2^28 pixels"));
    }
    let mut pixels = vec![0; frame.width * frame.height * 3];
    decode_frame(stream, frame, 0, &mut pixels)?;
    RgbImage::from_raw(frame.width as u32, frame.height as u32, pixels).ok_or(JpegError::Stream("its size overflows"))
}

/// Encodes an RGB image as a complete JPEG; `quality` is 1 to 100.
///
/// # Errors
/// A quality out of range or an empty image.
pub fn encode(image: &RgbImage, quality: u8, color: ColorModel) -> Result<Vec<u8>, JpegError> {
    let mut compressor = Compressor::new()?;
    compressor.set_quality(i32::from(quality))?;
    match color {
        ColorModel::YCbCr => compressor.set_subsamp(Subsamp::Sub2x2)?,
        ColorModel::Rgb => {
            compressor.set_subsamp(Subsamp::None)?;
            compressor.set_colorspace(Colorspace::RGB)?;
        }
    }
    let (width, height) = (image.width() as usize, image.height() as usize);
    let format = PixelFormat::RGB;
    Ok(compressor.compress_to_vec(Image { pixels: image.as_raw(), width, pitch: width * 3, height, format })?)
}

/// How often libjpeg-turbo can halve an image while decoding it.
pub(crate) const MAX_HALVINGS: u8 = 3;

/// Decodes a complete stream of known size into width x height x 3 bytes, both halved `halvings` times (at most
/// [`MAX_HALVINGS`]) and rounded up. Halving happens in the inverse DCT, from the coefficients that the smaller size needs.
pub(crate) fn decode_frame(stream: &[u8], frame: Frame, halvings: u8, pixels: &mut [u8]) -> Result<(), JpegError> {
    #[cfg(test)]
    DECODED.set(DECODED.get() + 1);
    DECOMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            let mut decompressor = Decompressor::new()?;
            decompressor.set_scan_limit(MAX_SCANS)?;
            *slot = Some(decompressor);
        }
        let decompressor = slot.as_mut().ok_or(JpegError::Stream("no decompressor"))?;
        decompressor.set_scaling_factor(ScalingFactor::new(1, 1 << halvings))?;
        let [width, height] = [frame.width, frame.height].map(|side| side.div_ceil(1 << halvings));
        let target = Image { pixels, width, pitch: width * 3, height, format: PixelFormat::RGB };
        Ok(decompressor.decompress(stream, target)?)
    })
}

/// Joins a tile with the tables of its TIFF directory into one complete stream in `out`.
///
/// libjpeg guesses the colour model from a JFIF or Adobe segment or the component numbers; the TIFF knows it. So both
/// segments are dropped, with all other notes, and an Adobe segment that states `color` takes their place.
pub(crate) fn splice(tables: &[u8], tile: &[u8], color: ColorModel, out: &mut Vec<u8>) -> Result<Frame, JpegError> {
    out.clear();
    out.extend([0xFF, SOI]);
    let transform = match color {
        ColorModel::Rgb => 0,
        ColorModel::YCbCr => 1,
    };
    out.extend([0xFF, APP14, 0, 14]);
    out.extend(*b"Adobe\x00\x64\x00\x00\x00\x00");
    out.push(transform);
    if !tables.is_empty() {
        headers(tables, |marker, segment| {
            if !is_a_note(marker) {
                out.extend(segment);
            }
        })?;
    }
    let mut frame = None;
    let scans = headers(tile, |marker, segment| {
        frame = frame.or(frame_of(marker, segment));
        if !is_a_note(marker) {
            out.extend(segment);
        }
    })?;
    out.extend(scans);
    frame.ok_or(JpegError::Stream("it has no frame header"))
}

/// Parts a complete stream into its tables (a stream of their own, for the TIFF directory) and the rest (for the tile),
/// without notes. Streams of one encoder and quality have equal tables.
pub(crate) fn split(stream: &[u8]) -> Result<(Vec<u8>, Vec<u8>), JpegError> {
    const DQT: u8 = 0xDB;
    const DHT: u8 = 0xC4;
    let (mut tables, mut tile) = (vec![0xFF, SOI], vec![0xFF, SOI]);
    let scans = headers(stream, |marker, segment| match marker {
        marker if is_a_note(marker) => {}
        DQT | DHT => tables.extend(segment),
        _ => tile.extend(segment),
    })?;
    tables.extend([0xFF, EOI]);
    tile.extend(scans);
    Ok((tables, tile))
}

/// Whether a segment holds no part of the picture: application data, such as EXIF, or a comment. Scanners may write names there.
fn is_a_note(marker: u8) -> bool {
    const COM: u8 = 0xFE;
    matches!(marker, APP0..=APP15 | COM)
}

/// Shows `visit` every marker segment before the image data (with its marker and length bytes) and returns the rest
/// of the stream, from the first scan on; nothing where the stream holds tables only.
fn headers<'a>(stream: &'a [u8], mut visit: impl FnMut(u8, &'a [u8])) -> Result<&'a [u8], JpegError> {
    let mut rest = stream.strip_prefix(&[0xFF, SOI]).ok_or(JpegError::Stream("it is not a JPEG stream"))?;
    loop {
        match *rest {
            [] | [0xFF] | [0xFF, EOI, ..] => return Ok(&[]),
            [0xFF, SOS, ..] => return Ok(rest),
            [0xFF, 0xFF, ..] => rest = &rest[1..],
            // Markers without a length, which have no place here: libjpeg would go on behind them at once.
            [0xFF, 0x01 | 0xD0..=0xD8, ..] => return Err(JpegError::Stream("a header segment is damaged")),
            [0xFF, marker, high, low, ..] => {
                let length = 2 + usize::from(u16::from_be_bytes([high, low]));
                let segment = rest.get(..length).ok_or(JpegError::Stream("a header segment is cut off"))?;
                visit(marker, segment);
                rest = &rest[length.max(4).min(rest.len())..];
            }
            _ => return Err(JpegError::Stream("a header segment is damaged")),
        }
    }
}

/// The frame header, where `segment` is one.
fn frame_of(marker: u8, segment: &[u8]) -> Option<Frame> {
    let is_frame = matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC);
    match *segment {
        [_, _, _, _, _, y1, y0, x1, x0, ..] if is_frame => {
            Some(Frame { width: u16::from_be_bytes([x1, x0]).into(), height: u16::from_be_bytes([y1, y0]).into() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 4) as u8, (y * 5) as u8, 128 + (x ^ y) as u8 / 2]))
    }

    #[test]
    fn split_and_splice_give_the_same_pixels() {
        for color in [ColorModel::YCbCr, ColorModel::Rgb] {
            let whole = encode(&gradient(48, 40), 90, color).unwrap();
            let (tables, tile) = split(&whole).unwrap();
            assert!(tile.len() + 300 < whole.len(), "the tables were taken out");
            let mut joined = Vec::new();
            let frame = splice(&tables, &tile, color, &mut joined).unwrap();
            assert_eq!(frame, Frame { width: 48, height: 40 });
            assert_eq!(decode(&joined).unwrap(), decode(&whole).unwrap());
        }
    }

    #[test]
    fn the_stated_color_model_wins_over_the_streams_own() {
        let image = gradient(32, 32);
        let (tables, tile) = split(&encode(&image, 95, ColorModel::Rgb).unwrap()).unwrap();
        let (mut right, mut wrong) = (Vec::new(), Vec::new());
        splice(&tables, &tile, ColorModel::Rgb, &mut right).unwrap();
        splice(&tables, &tile, ColorModel::YCbCr, &mut wrong).unwrap();
        let worst = |stream: &[u8]| {
            let decoded = decode(stream).unwrap();
            decoded.iter().zip(image.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
        };
        assert!(worst(&right) < 30, "{}", worst(&right));
        assert!(worst(&wrong) > 100, "{}", worst(&wrong));
    }

    #[test]
    fn damage_is_an_error() {
        let whole = encode(&gradient(64, 64), 80, ColorModel::YCbCr).unwrap();
        for cut in 0..whole.len() - 1 {
            assert!(decode(&whole[..cut]).is_err(), "{cut} of {} bytes", whole.len());
        }
        assert!(decode(b"").is_err());
        assert!(decode(b"\xff\xd8\xff\xe0\x00\x00\xff\xd9").is_err());
    }
}
