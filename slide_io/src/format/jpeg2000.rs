//! Tiles of JPEG 2000 through hayro-jpeg2000, bounded before they are decoded.

use hayro_jpeg2000::{DecodeSettings, DecoderContext, Image};
use image::{RgbImage, imageops};

use crate::geometry::Size;

/// Largest tile, in bytes of RGB (1024 x 1024 px): its stream may ask for a precinct around every pixel, each
/// some hundred bytes of bookkeeping for the decoder.
pub(super) const MAX_BYTES: u64 = 3 << 20;

/// The RGB pixels of a JPEG 2000 code stream, whose three components are RGB or, as the TIFF says and the stream does
/// not, YCbCr; halved `halvings` times, as far as the stream goes from its wavelet levels that are as coarse as that.
pub(super) fn decode(stream: &[u8], size: Size, halvings: u8, ycbcr: bool) -> Result<Vec<u8>, String> {
    check_size(stream)?;
    let damaged = |e| format!("its JPEG 2000 is damaged: {e}");
    let settings = DecodeSettings { strict: true, ..DecodeSettings::default() };
    let whole = Image::new(stream, &settings).map_err(damaged)?;
    // Before any memory is spent on it.
    if whole.width() != size.width || whole.height() != size.height || whole.color_space().num_channels() != 3 {
        let (w, h, channels) = (whole.width(), whole.height(), whole.color_space().num_channels());
        let Size { width, height } = size;
        return Err(format!(
            "its JPEG 2000 has {w} x {h} px of {channels} components, the directory says {width} x {height} of 3"
        ));
    }
    let wanted = size.halved(halvings);
    let image = match halvings {
        0 => whole,
        _ => {
            let target_resolution = Some((wanted.width, wanted.height));
            Image::new(stream, &DecodeSettings { target_resolution, ..settings }).map_err(damaged)?
        }
    };
    let given = Size::new(image.width(), image.height());
    let mut context = DecoderContext::default();
    let decoded = image.decode(&mut context).map_err(damaged)?;
    let components = decoded.components();
    let count = given.width as usize * given.height as usize;
    if components.len() != 3 || components.iter().any(|component| component.samples().len() != count) {
        return Err("its JPEG 2000 components are not of one size".to_owned());
    }
    let mut pixels = decoded.data_u8();
    // A bare code stream says nothing about colour; where chroma is subsampled the decoder takes it for YCbCr by itself.
    if ycbcr && !chroma_is_subsampled(stream) {
        for pixel in pixels.as_chunks_mut::<3>().0 {
            // ITU-R BT.601, full range (JFIF 1.02).
            let [y, blue, red] = pixel.map(f32::from);
            let (blue, red) = (blue - 128.0, red - 128.0);
            let rgb = [y + 1.402 * red, y - 0.344_136 * blue - 0.714_136 * red, y + 1.772 * blue];
            // The cast saturates.
            *pixel = rgb.map(|value| (value + 0.5) as u8);
        }
    }
    if given == wanted {
        return Ok(pixels);
    }
    // The stream has fewer wavelet levels than that.
    let image = RgbImage::from_raw(given.width, given.height, pixels).ok_or("its JPEG 2000 has no such size")?;
    Ok(imageops::thumbnail(&image, wanted.width, wanted.height).into_raw())
}

/// Start of a code stream, then of its SIZ segment (ISO 15444-1, A.5.1).
const START: [u8; 4] = [0xFF, 0x4F, 0xFF, 0x51];

/// Of a code stream of three components that stands by itself: whether the last two have fewer samples than the first, as the
/// decoder looks at it.
fn chroma_is_subsampled(stream: &[u8]) -> bool {
    let Some(segment) = stream.strip_prefix(&START).and_then(|rest| rest.first_chunk::<47>()) else { return false };
    let [luma, blue, red] = [39, 42, 45].map(|at| (segment[at], segment[at + 1]));
    blue == red && blue != luma && blue.0 >= luma.0 && blue.1 >= luma.1
}

/// Refuses a code stream that asks the decoder for far more bookkeeping than there are pixels: its SIZ segment may cut the
/// image into tiles of its own of one pixel, on a grid up to 255 times as fine as the pixels.
fn check_size(stream: &[u8]) -> Result<(), String> {
    const MAX_TILES: u64 = 1024;
    const MAX_SUBSAMPLING: u8 = 4;
    let is_start = |at: &usize| stream[*at..].starts_with(&START);
    // In a JP2 container the code stream begins somewhere; every place where it may is held to the rule.
    let ends = if stream.starts_with(&START) { 1 } else { stream.len() };
    for at in (0..ends).filter(is_start) {
        let cut_off = || "its JPEG 2000 header is cut off".to_owned();
        let segment = stream[at + 4..].first_chunk::<47>().ok_or_else(cut_off)?;
        let word =
            |i: usize| u64::from(u32::from_be_bytes([segment[i], segment[i + 1], segment[i + 2], segment[i + 3]]));
        let across =
            |end: usize, tile: usize, start: usize| word(end).saturating_sub(word(start)).div_ceil(word(tile).max(1));
        let tiles = across(4, 20, 28).saturating_mul(across(8, 24, 32));
        if tiles > MAX_TILES {
            return Err(format!("its JPEG 2000 is cut into {tiles} tiles of its own; the limit is {MAX_TILES}"));
        }
        let components = u16::from_be_bytes([segment[36], segment[37]]);
        // Of every component: bits, then how often it is subsampled along x and y.
        let subsampling = (38..47).filter(|i| i % 3 != 2).fold(0, |most, i| segment[i].max(most));
        if components != 3 || subsampling > MAX_SUBSAMPLING {
            return Err(format!("its JPEG 2000 has {components} components, subsampled by up to {subsampling}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_may_not_be_cut_into_more_tiles_than_it_is_worth() {
        let stream = |width: u32, tile: u32, components: u16, subsampling: u8| {
            let mut stream = vec![0xFF, 0x4F, 0xFF, 0x51, 0, 47, 0, 0];
            for word in [width, 32, 0, 0, tile, 32, 0, 0] {
                stream.extend(word.to_be_bytes());
            }
            stream.extend(components.to_be_bytes());
            (0..3).for_each(|_| stream.extend([7, subsampling, 1]));
            stream
        };
        assert_eq!(check_size(&stream(256, 256, 3, 1)), Ok(()));
        assert_eq!(check_size(&stream(1024, 1, 3, 2)), Ok(()));
        let refused = |stream: &[u8], part: &str| assert!(check_size(stream).unwrap_err().contains(part));
        refused(&stream(1025, 1, 3, 1), "cut into 1025 tiles of its own");
        refused(&stream(u32::MAX, 0, 3, 1), "cut into 4294967295 tiles");
        refused(&stream(256, 256, 16_384, 1), "16384 components");
        refused(&stream(256, 256, 3, 255), "subsampled by up to 255");
        refused(&stream(256, 256, 3, 1)[..40], "cut off");
        let in_container = [&b"\0\0\0\x0cjP  \r\n"[..], &stream(5000, 1, 3, 1)].concat();
        refused(&in_container, "cut into 5000 tiles");
    }
}
