//! The pixels of one chunk of a TIFF, a tile or a strip: decompressed, then brought to RGB.
//!
//! JPEG goes through libjpeg-turbo and JPEG 2000 through hayro-jpeg2000. Everything else becomes bytes (deflate through
//! flate2, to the end of the stream, where its checksum is; LZW and PackBits through the crate `tiff`), then samples of
//! 8 bits (the predictor undone), then colours: grey of either polarity, palette or RGB, alpha composited on white.

use std::io::{Cursor, Read};

use tiff::TiffResult;
use tiff::decoder::Decoder;
use tiff::encoder::TiffEncoder;
use tiff::tags::Tag;

use super::directory::Directory;
use super::{jpeg2000, tile_cache};
use crate::geometry::Size;
use crate::jpeg::{self, ColorModel, Frame};

/// Largest tile or strip, in bytes of its samples or of RGB, and so also the most that one compressed tile may have.
pub(super) const MAX_CHUNK_BYTES: u64 = 64 << 20;

/// TIFF's compression number of JPEG.
pub(super) const JPEG: u16 = 7;
pub(super) const UNCOMPRESSED: u16 = 1;
const LZW: u16 = 5;
const DEFLATE: u16 = 8;
/// Deflate before it was standardised, the same stream.
const DEFLATE_OLD: u16 = 32946;
const PACKBITS: u16 = 32773;
/// JPEG 2000 whose colours are those of the stream.
const JPEG_2000: u16 = 34712;
/// Aperio's number of JPEG 2000 of YCbCr components.
const JPEG_2000_YCBCR: u16 = 33003;
/// Aperio's number of JPEG 2000 of RGB components.
const JPEG_2000_RGB: u16 = 33005;

const WHITE_IS_ZERO: u16 = 0;
const BLACK_IS_ZERO: u16 = 1;
const RGB: u16 = 2;
const PALETTE: u16 = 3;
const YCBCR: u16 = 6;

/// [`Directory::planar`] of colours stored apart.
pub(super) const PLANES_APART: u16 = 2;

/// Whether a compression is JPEG 2000 under one of its numbers.
pub(super) fn is_jpeg_2000(compression: u16) -> bool {
    matches!(compression, JPEG_2000 | JPEG_2000_YCBCR | JPEG_2000_RGB)
}

/// Why the pixels of a directory cannot be read here.
pub(super) fn check_decodable(directory: &Directory) -> Result<(), String> {
    let Directory { samples, photometric, chunk, compression, .. } = *directory;
    let through_samples = match compression {
        JPEG | JPEG_2000 | JPEG_2000_YCBCR | JPEG_2000_RGB => false,
        UNCOMPRESSED | LZW | DEFLATE | DEFLATE_OLD | PACKBITS => true,
        other => return Err(format!("TIFF compression {other}{} is not read natively", name(other))),
    };
    let bits = directory.bits.first().copied().unwrap_or(1);
    let of_bits = |known: &[u16]| known.contains(&bits) && directory.bits.iter().all(|other| *other == bits);
    if !of_bits(if through_samples && photometric != PALETTE { &[8, 16] } else { &[8] }) {
        return Err(format!("samples of {:?} bits are not read natively, only 8 and 16", directory.bits));
    }
    if directory.sample_format != 1 {
        return Err("samples that are not unsigned integers are not read natively".to_owned());
    }
    let planes_apart = directory.planar == PLANES_APART && samples > 1;
    let colors_known = match compression {
        JPEG if planes_apart => matches!((samples, photometric), (3, RGB)),
        JPEG => matches!((samples, photometric), (1, BLACK_IS_ZERO) | (3, RGB | YCBCR)),
        JPEG_2000 => matches!((samples, photometric), (3, RGB)) && !planes_apart,
        JPEG_2000_YCBCR | JPEG_2000_RGB => samples == 3 && !planes_apart,
        _ => match photometric {
            WHITE_IS_ZERO | BLACK_IS_ZERO => samples >= 1,
            PALETTE => samples >= 1 && directory.color_map.len() == 3 << bits,
            RGB => samples >= 3,
            _ => false,
        },
    };
    if !colors_known {
        let apart = if planes_apart { ", stored apart," } else { "" };
        return Err(format!("{samples} samples{apart} of photometric kind {photometric} are not read natively"));
    }
    if through_samples && directory.fill_order != 1 {
        return Err("bytes of reversed bits are not read natively".to_owned());
    }
    if has_predictor(compression) && !matches!(directory.predictor, 1 | 2) {
        return Err(format!("the predictor {} is not read natively", directory.predictor));
    }
    let pixel = u64::from(samples).max(3) * u64::from(bits / 8);
    let bytes = u64::from(chunk.width).saturating_mul(u64::from(chunk.height)).saturating_mul(pixel);
    let limit = if is_jpeg_2000(compression) { jpeg2000::MAX_BYTES } else { MAX_CHUNK_BYTES };
    if bytes > limit {
        let Size { width, height } = chunk;
        return Err(format!(
            "tiles or strips of {width} x {height} px are above the native limit of {limit} bytes: save it with tiles"
        ));
    }
    Ok(())
}

/// What a compression that is not read is known as, in brackets.
fn name(compression: u16) -> &'static str {
    match compression {
        2..=4 => " (CCITT fax)",
        6 => " (old-style JPEG)",
        34887 => " (LERC)",
        34925 => " (LZMA)",
        34934 | 22610 => " (JPEG XR)",
        50000 => " (Zstandard)",
        50001 => " (WebP)",
        50002 | 52546 => " (JPEG XL)",
        _ => "",
    }
}

fn has_predictor(compression: u16) -> bool {
    matches!(compression, LZW | DEFLATE | DEFLATE_OLD)
}

/// The RGB pixels of a chunk of `size` pixels, halved `halvings` times; `planes` are its stored bytes, one for every
/// sample where the planes are stored apart. The directory passed [`check_decodable`].
///
/// # Errors
/// What is wrong with the stored bytes.
pub(super) fn decode(image: &Directory, size: Size, halvings: u8, planes: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    if let Some(hole) = planes.iter().find(|bytes| is_hole(image, bytes)) {
        return Err(format!("its bytes are all {}: a hole in the file, as an incomplete copy leaves", hole[0]));
    }
    match (image.compression, planes) {
        (JPEG, [whole]) => jpeg(image, size, halvings, color_model(image), whole),
        (JPEG, _) => {
            let gray = |bytes: &Vec<u8>| jpeg(image, size, halvings, ColorModel::YCbCr, bytes);
            let planes = planes.iter().map(|bytes| Ok(gray(bytes)?.into_iter().step_by(3).collect()));
            Ok(interleave(&planes.collect::<Result<Vec<Vec<u8>>, String>>()?))
        }
        (JPEG_2000 | JPEG_2000_RGB, [whole]) => jpeg2000::decode(whole, size, halvings, false),
        (JPEG_2000_YCBCR, [whole]) => jpeg2000::decode(whole, size, halvings, true),
        (_, [whole]) => Ok(colors(image, samples(image, size, whole)?)),
        _ => {
            let planes = planes.iter().map(|bytes| samples(image, size, bytes));
            Ok(colors(image, interleave(&planes.collect::<Result<Vec<_>, _>>()?)))
        }
    }
}

/// Bytes at either end of a chunk that [`is_suspect`] looks at.
pub(super) const PROBE: usize = 16;

/// Whether a chunk may be damaged, by its first and last bytes: no more than a reason to decode it.
pub(super) fn is_suspect(image: &Directory, first: &[u8; PROBE], last: &[u8; PROBE]) -> bool {
    // JPEG and JPEG 2000 end alike; padding may follow.
    let ends = last.windows(2).any(|pair| pair == [0xFF, 0xD9]);
    match image.compression {
        JPEG => !first.starts_with(&[0xFF, 0xD8]) || !ends,
        compression if is_jpeg_2000(compression) => !first.starts_with(&[0xFF, 0x4F]) || !ends,
        _ => [0, 255].iter().any(|value| first.iter().chain(last).all(|byte| byte == value)),
    }
}

/// Whether the bytes are those of a disk that was never written to. No compression makes so many of them; of uncompressed
/// ones, a colour image that is black to the last bit has no light on it, and white or grey ones mean something.
fn is_hole(image: &Directory, bytes: &[u8]) -> bool {
    let same = |value: u8| bytes.iter().all(|byte| *byte == value);
    match image.compression {
        UNCOMPRESSED => bytes.len() > 16 && image.photometric == RGB && same(0),
        _ => bytes.len() > 16 && (same(0) || same(255)),
    }
}

/// A JPEG chunk of whole pixels with its tables, and the colour model that the directory states, as a complete stream.
///
/// # Errors
/// What is wrong with the stored bytes.
pub(super) fn complete_jpeg(image: &Directory, bytes: &[u8]) -> Result<Vec<u8>, String> {
    Ok(spliced(image, color_model(image), bytes)?.0)
}

fn spliced(image: &Directory, color: ColorModel, bytes: &[u8]) -> Result<(Vec<u8>, Frame), String> {
    let mut stream = Vec::with_capacity(bytes.len() + image.jpeg_tables.len() + 16);
    let frame = jpeg::splice(&image.jpeg_tables, bytes, color, &mut stream).map_err(|e| e.to_string())?;
    Ok((stream, frame))
}

fn color_model(image: &Directory) -> ColorModel {
    if image.photometric == RGB { ColorModel::Rgb } else { ColorModel::YCbCr }
}

fn jpeg(image: &Directory, size: Size, halvings: u8, color: ColorModel, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let (stream, frame) = spliced(image, color, bytes)?;
    if frame.width != size.width as usize || frame.height != size.height as usize {
        let (Size { width, height }, Frame { width: w, height: h }) = (size, frame);
        return Err(format!("its JPEG has {w} x {h} px, the directory says {width} x {height}"));
    }
    let Size { width, height } = size.halved(halvings);
    let mut pixels = tile_cache::shared().buffer(width as usize * height as usize * 3);
    jpeg::decode_frame(&stream, frame, halvings, &mut pixels).map_err(|e| e.to_string())?;
    Ok(pixels)
}

/// The samples of one stored chunk, of 8 bits each, row by row: those of all planes, or of one where they are apart.
fn samples(image: &Directory, size: Size, stored: &[u8]) -> Result<Vec<u8>, String> {
    let per_pixel = if image.planar == PLANES_APART { 1 } else { usize::from(image.samples) };
    let wide = image.bits.first() == Some(&16);
    let row = size.width as usize * per_pixel * if wide { 2 } else { 1 };
    let mut bytes = decompress(image.compression, stored, row, size.height as usize)?;
    let predicted = image.predictor == 2 && has_predictor(image.compression);
    if !wide {
        if predicted {
            bytes.chunks_exact_mut(row).for_each(|line| {
                (per_pixel..row).for_each(|i| line[i] = line[i].wrapping_add(line[i - per_pixel]));
            });
        }
        return Ok(bytes);
    }
    let value = if image.big_endian { u16::from_be_bytes } else { u16::from_le_bytes };
    let mut values: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|pair| value(*pair)).collect();
    if predicted {
        values.chunks_exact_mut(row / 2).for_each(|line| {
            (per_pixel..line.len()).for_each(|i| line[i] = line[i].wrapping_add(line[i - per_pixel]));
        });
    }
    // As libtiff: 65535 is 257 times 255.
    Ok(values.into_iter().map(|value| ((u32::from(value) + 128) / 257) as u8).collect())
}

/// The `rows` x `row` bytes of a chunk.
fn decompress(compression: u16, stored: &[u8], row: usize, rows: usize) -> Result<Vec<u8>, String> {
    let bytes = row * rows;
    match compression {
        UNCOMPRESSED => {
            let whole = stored.get(..bytes).map(<[u8]>::to_vec);
            whole.ok_or_else(|| format!("it has {} bytes, its pixels need {bytes}", stored.len()))
        }
        DEFLATE | DEFLATE_OLD => {
            let mut inflated = Vec::with_capacity(bytes + 1);
            // One byte more than needed, so that the end of the stream, and the checksum there, is met.
            let mut stream = flate2::read::ZlibDecoder::new(stored).take(bytes as u64 + 1);
            stream.read_to_end(&mut inflated).map_err(|e| format!("its deflate stream is damaged: {e}"))?;
            if inflated.len() < bytes {
                return Err(format!("its deflate stream ends after {} of {bytes} bytes", inflated.len()));
            }
            inflated.truncate(bytes);
            Ok(inflated)
        }
        // Without this code in front, bytes of zero would decode to black pixels.
        LZW if !matches!(stored, [0x80, second, ..] if second & 0x80 == 0) => {
            Err("its LZW stream does not begin with a clear code".to_owned())
        }
        _ => decode_by_tiff(compression, stored, row, rows).map_err(|e| e.to_string()),
    }
}

/// Decompresses by the crate `tiff`, as the only strip of a grey TIFF in memory: as a reader of files it holds a
/// position, which threads could not share.
fn decode_by_tiff(compression: u16, stored: &[u8], row: usize, rows: usize) -> TiffResult<Vec<u8>> {
    let mut file = Cursor::new(Vec::with_capacity(stored.len() + 256));
    let mut encoder = TiffEncoder::new(&mut file)?;
    let mut directory = encoder.image_directory()?;
    let offset = directory.write_data(stored)?;
    let (width, height) = (u32::try_from(row)?, u32::try_from(rows)?);
    directory.write_tag(Tag::ImageWidth, width)?;
    directory.write_tag(Tag::ImageLength, height)?;
    directory.write_tag(Tag::RowsPerStrip, height)?;
    directory.write_tag(Tag::BitsPerSample, 8_u16)?;
    directory.write_tag(Tag::SamplesPerPixel, 1_u16)?;
    directory.write_tag(Tag::Compression, compression)?;
    directory.write_tag(Tag::PhotometricInterpretation, BLACK_IS_ZERO)?;
    directory.write_tag(Tag::StripOffsets, u32::try_from(offset)?)?;
    directory.write_tag(Tag::StripByteCounts, u32::try_from(stored.len())?)?;
    directory.finish()?;
    file.set_position(0);
    let mut bytes = vec![0; row * rows];
    Decoder::new(file)?.read_chunk_bytes(0, &mut bytes)?;
    Ok(bytes)
}

/// One sample of every plane for every pixel.
fn interleave(planes: &[Vec<u8>]) -> Vec<u8> {
    let length = planes.iter().map(Vec::len).min().unwrap_or(0);
    (0..length).flat_map(|pixel| planes.iter().map(move |plane| plane[pixel])).collect()
}

/// A sample that says how opaque a pixel is.
struct Alpha {
    /// Which sample of a pixel.
    place: usize,
    /// Whether the colours were multiplied by it.
    multiplied: bool,
}

/// The alpha among the samples beyond the colours. Those that are said to be something unspecified are not looked at; a
/// single one of which nothing is said is alpha, multiplied into the colours, as libtiff and so OpenSlide take it.
fn alpha(image: &Directory, colors: usize) -> Option<Alpha> {
    let Some(kinds) = &image.extra_samples else {
        let single = colors == 3 && usize::from(image.samples) == colors + 1;
        return single.then_some(Alpha { place: colors, multiplied: true });
    };
    let beyond = usize::from(image.samples) - colors;
    let place = kinds.iter().take(beyond).position(|kind| matches!(kind, 1 | 2))?;
    Some(Alpha { place: colors + place, multiplied: kinds[place] == 1 })
}

/// RGB of `samples`, over white.
fn colors(image: &Directory, samples: Vec<u8>) -> Vec<u8> {
    let (per_pixel, colors) = (usize::from(image.samples), if image.photometric == RGB { 3 } else { 1 });
    if per_pixel == 3 && colors == 3 {
        return samples;
    }
    let alpha = alpha(image, colors);
    let palette = palette(&image.color_map);
    let mut rgb = Vec::with_capacity(samples.len() / per_pixel * 3);
    for pixel in samples.chunks_exact(per_pixel) {
        let color = match image.photometric {
            WHITE_IS_ZERO => [255 - pixel[0]; 3],
            BLACK_IS_ZERO => [pixel[0]; 3],
            PALETTE => palette[usize::from(pixel[0])],
            _ => [pixel[0], pixel[1], pixel[2]],
        };
        rgb.extend(match &alpha {
            Some(alpha) => color.map(|value| on_white(value, pixel[alpha.place], alpha.multiplied)),
            None => color,
        });
    }
    rgb
}

pub(super) fn on_white(value: u8, alpha: u8, multiplied: bool) -> u8 {
    let value = if multiplied { value } else { ((u16::from(value) * u16::from(alpha) + 127) / 255) as u8 };
    value.saturating_add(255 - alpha)
}

/// The colours of a palette, of 16 bits by the standard; where none is above 255, they are taken as of 8, as libtiff does.
fn palette(map: &[u16]) -> Vec<[u8; 3]> {
    let shift = if map.iter().any(|value| *value > 255) { 8 } else { 0 };
    let length = map.len() / 3;
    (0..length).map(|index| [0, 1, 2].map(|color| (map[color * length + index] >> shift) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_is_composited_on_white() {
        for multiplied in [false, true] {
            assert_eq!(on_white(0, 0, multiplied), 255);
            assert_eq!(on_white(77, 255, multiplied), 77);
        }
        assert_eq!(on_white(100, 128, true), 227);
        assert_eq!(on_white(100, 128, false), 50 + 127);
        assert_eq!(on_white(200, 100, true), 255, "more colour than alpha allows is cut off");
    }

    #[test]
    fn palettes_of_16_and_of_8_bits() {
        assert_eq!(palette(&[0x0100, 0xFFFF, 0, 0x8000, 0x00FF, 0x7FFF]), [[1, 0, 0], [255, 128, 127]]);
        assert_eq!(palette(&[1, 2, 3, 4, 5, 255]), [[1, 3, 5], [2, 4, 255]]);
    }

    #[test]
    fn streams_that_end_early_or_begin_wrong() {
        let wrong = |compression, stored: &[u8]| decompress(compression, stored, 10, 10).unwrap_err();
        assert!(wrong(UNCOMPRESSED, &[1; 99]).contains("99 bytes, its pixels need 100"));
        assert!(wrong(LZW, &[0; 200]).contains("clear code"));
        assert!(wrong(LZW, &[]).contains("clear code"));
        let mut deflated = Vec::new();
        flate2::read::ZlibEncoder::new(&[7; 100][..], flate2::Compression::default())
            .read_to_end(&mut deflated)
            .unwrap();
        assert_eq!(decompress(DEFLATE, &deflated, 10, 10).unwrap(), [7; 100]);
        assert!(decompress(DEFLATE, &deflated, 10, 11).unwrap_err().contains("ends after 100 of 110 bytes"));
        let last = deflated.len() - 1;
        deflated[last] ^= 1;
        assert!(wrong(DEFLATE, &deflated).contains("damaged"), "the checksum is verified");
    }
}
