//! Ordinary images (PNG, JPEG) as slides of one level: photographs of a field of view, exported regions.
//!
//! They say nothing about their scale, which comes from `--mpp` or the csv. The whole image is held in memory, decoded once.

use std::path::Path;

use ::image::{DynamicImage, Rgb, RgbImage, imageops};

use super::{Area, Head, Info, Opened, Reader, Storage, chunk, metadata};
use crate::error::{Error, Result};
use crate::folder::read_with;
use crate::geometry::{Level, Size};

/// The index file of a MIRAX slide is a JPEG too, and no picture of the slide.
pub(super) fn detect(path: &Path, head: &Head) -> bool {
    let is_index = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("mrxs"));
    !is_index && (head.bytes.starts_with(b"\x89PNG\r\n\x1a\n") || head.bytes.starts_with(b"\xff\xd8\xff"))
}

pub(super) fn open(path: &Path) -> Result<Opened> {
    let image = read_with(path, composited)?;
    let size = Size::new(image.width(), image.height());
    let levels = vec![Level { size, downsample: 1.0 }];
    let mut info = Info {
        vendor: "image".to_owned(),
        storage: vec![Storage { tile: size, halvings: 0, shifts: false }],
        ..Info::default()
    };
    metadata::describe_levels(&levels, &mut info.properties);
    info.levels = levels;
    Ok(Opened { info, reader: Box::new(ImageReader { image }) })
}

/// RGB, what is transparent on white.
fn composited(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let image = image.into_rgba8();
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [r, g, b, alpha] = image.get_pixel(x, y).0;
        Rgb([r, g, b].map(|value| chunk::on_white(value, alpha, false)))
    })
}

struct ImageReader {
    image: RgbImage,
}

impl Reader for ImageReader {
    fn read(&self, Area { x, y, size, .. }: Area) -> Result<RgbImage> {
        Ok(imageops::crop_imm(&self.image, x, y, size.width, size.height).to_image())
    }

    fn read_associated(&self, name: &str) -> Result<RgbImage> {
        Err(Error::Usage(format!("an image file has no associated image `{name}`")))
    }
}

#[cfg(test)]
mod tests {
    use crate::{Grid, GridSpec, Mpp, Point, Region, Size, Slide, TissueMask};
    use ::image::{Rgb, RgbImage, Rgba, RgbaImage};

    #[test]
    fn a_png_is_a_slide_of_one_level_without_a_scale() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("field.png");
        let image = RgbImage::from_fn(300, 200, |x, y| Rgb([x as u8, y as u8, 7]));
        image.save(&path).unwrap();
        let slide = Slide::open(&path).unwrap();
        assert_eq!((slide.format().as_str(), slide.mpp(), slide.size()), ("image (image)", None, Size::new(300, 200)));
        let region = Region { level: 0, origin: Point::new(280, -10), size: Size::square(40) };
        let part = slide.read(&region).unwrap();
        assert_eq!(part.get_pixel(3, 12), image.get_pixel(283, 2));
        assert_eq!((part.get_pixel(3, 9), part.get_pixel(20, 20)), (&Rgb([255; 3]), &Rgb([255; 3])));
        let spec = GridSpec { mpp: Mpp(0.5), size: 64, stride: 64, min_tissue: 0.0 };
        let grid = Grid::new(slide.size(), Mpp(0.25), &spec, &TissueMask::full(slide.size())).unwrap();
        assert_eq!(grid.kept(), 2, "128 level-0 px a patch");
        let index = folder.path().join("index.mrxs");
        std::fs::copy(&path, &index).unwrap();
        let refused = Slide::open(&index).unwrap_err().to_string();
        assert!(refused.contains("not a slide") && refused.contains("index.mrxs"), "{refused}");
        std::fs::write(&path, &std::fs::read(&path).unwrap()[..500]).unwrap();
        assert!(Slide::open(&path).unwrap_err().to_string().contains("field.png"));
    }

    #[test]
    fn what_is_transparent_is_white() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("region.png");
        let image =
            RgbaImage::from_fn(40, 30, |x, _| Rgba([200, 100, 0, [0, 51, 255][x as usize / 20 + usize::from(x > 9)]]));
        image.save(&path).unwrap();
        let slide = Slide::open(&path).unwrap();
        let all = slide.read(&Region { level: 0, origin: Point::new(0, 0), size: slide.size() }).unwrap();
        let seen = [5, 15, 30].map(|x| all.get_pixel(x, 3).0);
        assert_eq!(seen, [[255; 3], [244, 224, 204], [200, 100, 0]]);
    }
}
