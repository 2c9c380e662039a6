//! Pictures of pictures: rows of images on a white ground.

use std::io::Cursor;
use std::path::Path;

use anyhow::Result;
use image::{ImageFormat, Rgb, RgbImage, imageops};

/// Pixels between images.
const GAP: u32 = 4;

/// Rows of images of one size beside and below each other; shorter rows end early. Small images are enlarged by whole
/// factors to at least `side` px, so that each of their pixels can be seen.
pub fn sheet(rows: &[Vec<RgbImage>], side: u32) -> RgbImage {
    let Some(first) = rows.iter().flatten().next() else { return RgbImage::new(1, 1) };
    let factor = side.div_ceil(first.width().max(1)).max(1);
    let (width, height) = (first.width() * factor, first.height() * factor);
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0) as u32;
    let total = |count: u32, size: u32| GAP + count * (size + GAP);
    let mut sheet = RgbImage::from_pixel(total(columns, width), total(rows.len() as u32, height), Rgb([255; 3]));
    for (y, row) in rows.iter().enumerate() {
        for (x, image) in row.iter().enumerate() {
            let place = |index: usize, size: u32| i64::from(total(index as u32, size));
            let enlarged = imageops::resize(image, width, height, imageops::FilterType::Nearest);
            imageops::replace(&mut sheet, &enlarged, place(x, width), place(y, height));
        }
    }
    sheet
}

/// Writes a picture, atomically.
///
/// # Errors
/// A folder that cannot be written to.
pub fn write_png(path: &Path, image: &RgbImage) -> Result<()> {
    Ok(slide_io::atomic_file::write(path, &png(image)?)?)
}

/// A picture as the bytes of a PNG.
///
/// # Errors
/// A picture without pixels.
pub fn png(image: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_lie_in_their_places_enlarged_by_whole_factors() {
        let image = |value| RgbImage::from_pixel(3, 2, Rgb([value; 3]));
        let sheet = sheet(&[vec![image(10), image(20)], vec![image(30)]], 6);
        assert_eq!(sheet.dimensions(), (4 + 2 * 10, 4 + 2 * 8));
        let at = |x, y| sheet.get_pixel(x, y).0[0];
        assert_eq!([at(4, 4), at(9, 7), at(14, 4), at(4, 12), at(14, 12), at(0, 0)], [10, 10, 20, 30, 255, 255]);
    }
}
