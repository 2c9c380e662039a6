//! Masks given as images: PNG of any depth, and TIFF as far as it is read natively.

use std::path::Path;

use image::{DynamicImage, ImageError, ImageFormat, ImageReader};

use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::mask_file::Kind;
use crate::slide::Slide;
use crate::tissue::TissueMask;

/// How far one side may be from what the other asks for: a rounding, or the share by which pyramids are off.
const SHAPE_TOLERANCE: (f64, f64) = (1.0, 0.005);

/// The mask of [`read_mask`](super::read_mask) from an image.
pub(super) fn read(path: &Path, size: Size, slide: Size) -> Result<TissueMask> {
    let refused = |what: &str| Err(Error::unsupported(path, format!("no mask to use: {what}")));
    match Kind::of(path)? {
        Kind::Tiff { lossy: true, .. } | Kind::Jpeg => {
            refused("it is compressed with losses (JPEG), which moves borders: store it as PNG or as a lossless TIFF")
        }
        Kind::Tiff { sparse: true, .. } => {
            refused("some of its tiles are not stored, and whether they are inside is not known")
        }
        // Samples of 16 bits are read by their upper half, in which a 1 is nothing.
        Kind::Tiff { depth, .. } if depth != 8 => {
            refused(&format!("its TIFF has {depth} bits a sample: store it with 8, or as PNG"))
        }
        Kind::Other => refused("it is neither GeoJSON nor a PNG or TIFF image"),
        Kind::Png { .. } => {
            let image = decode_png(path)?;
            let own = Size::new(image.width(), image.height());
            check_shape(path, own, slide)?;
            let inside = inside_of(&image);
            let width = own.width as usize;
            shrink(own, size, slide, |y, rows| Ok(inside[y as usize * width..(y + rows) as usize * width].to_vec()))
        }
        Kind::Tiff { .. } => {
            let image = Slide::open_as(path, "tiff")?;
            check_shape(path, image.size(), slide)?;
            let width = image.size().width;
            shrink(image.size(), size, slide, |y, rows| {
                let pixels = image.read_at(0, 0, i64::from(y), Size::new(width, rows))?;
                Ok(pixels.pixels().map(|pixel| pixel.0 != [0; 3]).collect())
            })
        }
    }
}

fn decode_png(path: &Path) -> Result<DynamicImage> {
    let mut reader = ImageReader::open(path).map_err(|e| Error::io(path, e))?;
    reader.set_format(ImageFormat::Png);
    reader.decode().map_err(|error| match error {
        ImageError::IoError(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => Error::io(path, e),
        ImageError::Limits(e) => Error::limit(path, format!("its pixels pass the limit of 512 MiB: {e}")),
        other => Error::bad(path, other.to_string()),
    })
}

/// Of every pixel, row by row: whether it is neither black nor transparent.
fn inside_of(image: &DynamicImage) -> Vec<bool> {
    fn any<T: Copy + PartialEq + Default>(samples: &[T], channels: usize, alpha: bool) -> Vec<bool> {
        let zero = T::default();
        let inside = |pixel: &[T]| {
            let colours = if alpha { &pixel[..channels - 1] } else { pixel };
            !(alpha && pixel[channels - 1] == zero) && colours.iter().any(|sample| *sample != zero)
        };
        samples.chunks_exact(channels).map(inside).collect()
    }
    match image {
        DynamicImage::ImageLuma8(image) => any(image.as_raw(), 1, false),
        DynamicImage::ImageLumaA8(image) => any(image.as_raw(), 2, true),
        DynamicImage::ImageRgb8(image) => any(image.as_raw(), 3, false),
        DynamicImage::ImageRgba8(image) => any(image.as_raw(), 4, true),
        DynamicImage::ImageLuma16(image) => any(image.as_raw(), 1, false),
        other => any(other.to_rgba16().as_raw(), 4, true),
    }
}

fn check_shape(path: &Path, image: Size, slide: Size) -> Result<()> {
    let [w, h, w0, h0] = [image.width, image.height, slide.width, slide.height].map(f64::from);
    let (pixels, share) = SHAPE_TOLERANCE;
    let near = |side: f64, asked: f64| (side - asked).abs() <= pixels.max(share * asked);
    if near(w, h * w0 / h0) || near(h, w * h0 / w0) {
        return Ok(());
    }
    Err(Error::unsupported(
        path,
        format!("no mask of this slide: it has {w} x {h} px, which is not the shape of {w0} x {h0}"),
    ))
}

/// A mask of `size` pixels from an image of `own` pixels, of which `rows` gives some from a row on.
fn shrink(own: Size, size: Size, slide: Size, rows: impl Fn(u32, u32) -> Result<Vec<bool>>) -> Result<TissueMask> {
    let columns: Vec<_> = (0..size.width).map(|x| covered(x, size.width, own.width)).collect();
    let mut data = Vec::with_capacity(size.width as usize * size.height as usize);
    for y in 0..size.height {
        let (top, height) = covered(y, size.height, own.height);
        let band = rows(top, height)?;
        data.extend(columns.iter().map(|&(left, width)| {
            let line = |row: u32| {
                let start = (row * own.width + left) as usize;
                band[start..start + width as usize].iter().filter(|inside| **inside).count()
            };
            2 * (0..height).map(line).sum::<usize>() >= (width * height) as usize
        }));
    }
    TissueMask::from_pixels(size, slide, data)
}

/// First and number of the `own` pixels along a side whose centres lie on pixel `index` of `count`; where there are
/// none, the pixel under its centre.
fn covered(index: u32, count: u32, own: u32) -> (u32, u32) {
    let scale = f64::from(own) / f64::from(count);
    let before = |edge: f64| (edge * scale - 0.5).ceil().clamp(0.0, f64::from(own)) as u32;
    let (first, end) = (before(f64::from(index)), before(f64::from(index) + 1.0));
    match first < end {
        true => (first, end - first),
        false => ((((f64::from(index) + 0.5) * scale) as u32).min(own - 1), 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pixel_of_a_finer_image_is_on_one_of_the_mask() {
        for (count, own) in [(7, 100), (3, 10), (5, 5), (1, 9), (64, 1000)] {
            let spans: Vec<_> = (0..count).map(|i| covered(i, count, own)).collect();
            assert_eq!(spans[0].0, 0);
            assert!(spans.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0), "{spans:?}");
            assert_eq!(spans.last().map(|(first, length)| first + length), Some(own));
        }
        assert_eq!((0..6).map(|i| covered(i, 6, 2)).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1].map(|i| (i, 1)));
    }
}
