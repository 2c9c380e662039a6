//! Whole slides at low resolution: the copy the tissue mask is made from, and pictures for quality control.
//!
//! Only the pyramid is read, never the label or macro image: those show names and barcodes.

use std::cmp::Ordering as CmpOrdering;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use fast_image_resize::FilterType;
use image::{Rgb, RgbImage};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::geometry::{Point, Size};
use crate::grid::Grid;
use crate::mask::Mask;
use crate::patch::resample;
use crate::quality::DropReason;
use crate::slide::Slide;

/// Side of the blocks in which a level is read, px of that level: 48 MB of RGB per thread at most, however large it is.
const BLOCK: u32 = 4096;

/// A picture of the whole slide, its longer side at most `max_side` px (and never larger than level 0).
///
/// # Errors
/// Errors of reading the slide.
pub fn thumbnail(slide: &Slide, max_side: u32) -> Result<RgbImage> {
    let full = slide.size();
    let factor = (f64::from(full.width.max(full.height)) / f64::from(max_side.max(1))).max(1.0);
    let side = |pixels: u32| (f64::from(pixels) / factor).round().max(1.0) as u32;
    read_whole(slide, Size::new(side(full.width), side(full.height)))
}

/// The whole slide, averaged down to `out` px, from the coarsest level that is fine enough. Damaged tiles are white.
pub(crate) fn read_whole(slide: &Slide, out: Size) -> Result<RgbImage> {
    read_mended(slide, out).map(|(image, _)| image)
}

/// As [`read_whole`], and the rectangles of damaged tiles in level-0 px (corner, width, height). Slides of one level show
/// here what a pyramid shows only when its patches are read; where a coarse tile is damaged, the finer ones below it count.
pub(crate) fn read_mended(slide: &Slide, out: Size) -> Result<(RgbImage, Vec<Damaged>)> {
    let full = slide.size();
    let factor = (f64::from(full.width) / f64::from(out.width)).min(f64::from(full.height) / f64::from(out.height));
    let resolution = slide.resolution_for_overview(factor);
    let level = slide.resolutions()[resolution];
    let damaged = Mutex::new(Vec::new());
    let descents = AtomicU64::new(0);
    let (whole, lost) = (AtomicU64::new(0), AtomicU64::new(0));
    let image = shrink(level.size, out, BLOCK, slide.shift(resolution), |x, y, size| {
        whole.fetch_add(area(size), Ordering::Relaxed);
        match slide.read_at(resolution, x, y, size) {
            Err(Error::BadFile { .. }) => {}
            result => return result,
        }
        let (image, cells, unread) = read_around_damage(slide, resolution, (x, y), size, &descents)?;
        lost.fetch_add(unread, Ordering::Relaxed);
        damaged.lock().unwrap_or_else(PoisonError::into_inner).extend(cells);
        Ok(image)
    })?;
    let mut damaged = damaged.into_inner().unwrap_or_else(PoisonError::into_inner);
    damaged
        .sort_by(|a, b| (a.corner.1, a.corner.0).partial_cmp(&(b.corner.1, b.corner.0)).unwrap_or(CmpOrdering::Equal));
    match damaged.first() {
        Some(first) if lost.into_inner() == whole.into_inner() => Err(Error::bad(slide.path(), first.reason.clone())),
        _ => Ok((image, damaged)),
    }
}

/// A part of a slide that cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Damaged {
    /// Top left corner, level-0 px.
    pub corner: (f64, f64),
    /// Width and height, level-0 px.
    pub size: (f64, f64),
    /// What is wrong with it.
    pub reason: String,
}

/// A rectangle of a resolution read tile by tile. What a damaged tile hides comes from the next finer level, as long as there
/// is one and no more than [`MOST_DESCENTS`] were taken from them; the rest is white, listed, and counted in pixels.
fn read_around_damage(
    slide: &Slide,
    resolution: usize,
    (x, y): (i64, i64),
    size: Size,
    descents: &AtomicU64,
) -> Result<(RgbImage, Vec<Damaged>, u64)> {
    let tile = slide.tile(resolution);
    let (right, bottom) = (x + i64::from(size.width), y + i64::from(size.height));
    let edges = |start: i64, end: i64, side: u32| {
        let side = i64::from(side.max(1));
        let inner = (start.div_euclid(side) + 1..).map(move |i| i * side).take_while(move |edge| *edge < end);
        std::iter::once(start).chain(inner).chain([end]).collect::<Vec<_>>()
    };
    let mut image = RgbImage::from_pixel(size.width, size.height, Rgb([255; 3]));
    let (mut damaged, mut unread) = (Vec::new(), 0);
    for rows in edges(y, bottom, tile.height).windows(2) {
        for columns in edges(x, right, tile.width).windows(2) {
            let cell = Size::new((columns[1] - columns[0]) as u32, (rows[1] - rows[0]) as u32);
            let part = match slide.read_at(resolution, columns[0], rows[0], cell) {
                Err(Error::BadFile { what, .. }) => match below(slide, resolution, cell, descents) {
                    Some(finer) => {
                        let from_finer = read_finer(slide, (resolution, finer), (columns[0], rows[0]), cell, descents)?;
                        let (part, below, lost) = from_finer;
                        damaged.extend(below);
                        unread += if lost { area(cell) } else { 0 };
                        part
                    }
                    None => {
                        let scaled = |pixels: f64| pixels * slide.resolutions()[resolution].downsample;
                        damaged.push(Damaged {
                            corner: (scaled(columns[0] as f64), scaled(rows[0] as f64)),
                            size: (scaled(f64::from(cell.width)), scaled(f64::from(cell.height))),
                            reason: what,
                        });
                        unread += area(cell);
                        continue;
                    }
                },
                part => part?,
            };
            image::imageops::replace(&mut image, &part, columns[0] - x, rows[0] - y);
        }
    }
    Ok((image, damaged, unread))
}

/// Damaged tiles of an overview that are looked for in finer levels, at most: a slide that is damaged throughout is not read
/// tile by tile down to level 0.
const MOST_DESCENTS: u64 = 256;

/// The finer level in which to look for a damaged part of a resolution.
fn below(slide: &Slide, resolution: usize, cell: Size, descents: &AtomicU64) -> Option<usize> {
    let finer = slide.finer_level(resolution)?;
    let ratio = slide.resolutions()[resolution].downsample / slide.resolutions()[finer].downsample;
    let fits = area(cell) as f64 * ratio * ratio <= f64::from(BLOCK) * f64::from(BLOCK);
    (fits && descents.fetch_add(1, Ordering::Relaxed) < MOST_DESCENTS).then_some(finer)
}

/// A rectangle of a resolution made from a finer one, what of that is damaged, and whether that is all of it.
fn read_finer(
    slide: &Slide,
    (resolution, finer): (usize, usize),
    (x, y): (i64, i64),
    size: Size,
    descents: &AtomicU64,
) -> Result<(RgbImage, Vec<Damaged>, bool)> {
    let (coarse, fine) = (slide.resolutions()[resolution], slide.resolutions()[finer]);
    let ratio = coarse.downsample / fine.downsample;
    let along = |start: i64, length: u32, extent: u32| {
        let at = |place: i64| ((place as f64 * ratio).round() as i64).clamp(0, i64::from(extent));
        // At least a pixel: sides of levels are rounded.
        let first = at(start).min(i64::from(extent) - 1);
        (first, (at(start + i64::from(length)) - first).max(1) as u32)
    };
    let (left, width) = along(x, size.width, fine.size.width);
    let (top, height) = along(y, size.height, fine.size.height);
    let (image, damaged, unread) = read_around_damage(slide, finer, (left, top), Size::new(width, height), descents)?;
    let lost = unread == area(Size::new(width, height));
    Ok((image::imageops::thumbnail(&image, size.width, size.height), damaged, lost))
}

fn area(size: Size) -> u64 {
    u64::from(size.width) * u64::from(size.height)
}

/// Averages a whole level of `source` px down to `out` px, block by block. `read` gives a rectangle of the level. The
/// blocks carry the margin of the filter, so the result does not depend on their size. What lies at the corner of the slide is
/// `shift` px right of and below the level's.
fn shrink(
    source: Size,
    out: Size,
    block: u32,
    shift: f64,
    read: impl Fn(i64, i64, Size) -> Result<RgbImage> + Sync,
) -> Result<RgbImage> {
    let scale = (f64::from(source.width) / f64::from(out.width), f64::from(source.height) / f64::from(out.height));
    // Output pixels per block, so that a block and its margins stay near `block` source pixels.
    let per_block = |scale: f64| ((f64::from(block) / scale) as u32).max(1);
    let (cut_x, cut_y) = (cuts(out.width, per_block(scale.0)), cuts(out.height, per_block(scale.1)));
    let blocks: Vec<_> = cut_y.iter().flat_map(|&y| cut_x.iter().map(move |&x| (x, y))).collect();
    let parts: Vec<RgbImage> = blocks
        .par_iter()
        .map(|&((x, width), (y, height))| {
            let (left, right) = span(x, width, scale.0, source.width);
            let (top, bottom) = span(y, height, scale.1, source.height);
            let image = read(left, top, Size::new((right - left) as u32, (bottom - top) as u32))?;
            let corner = |start: u32, scale: f64, first: i64| f64::from(start) * scale - first as f64 + shift;
            let corner = (corner(x, scale.0, left), corner(y, scale.1, top));
            let covered = (f64::from(width) * scale.0, f64::from(height) * scale.1);
            resample(&image, corner, covered, Size::new(width, height), FilterType::Bilinear)
        })
        .collect::<Result<_>>()?;
    let mut whole = RgbImage::new(out.width, out.height);
    for (&((x, _), (y, _)), part) in blocks.iter().zip(&parts) {
        image::imageops::replace(&mut whole, part, i64::from(x), i64::from(y));
    }
    Ok(whole)
}

/// Cuts `length` into pieces (start, length) of at most `piece`.
fn cuts(length: u32, piece: u32) -> Vec<(u32, u32)> {
    (0..length).step_by(piece as usize).map(|start| (start, piece.min(length - start))).collect()
}

/// The source pixels that `width` output pixels from `x` need, margin of the triangle filter included.
fn span(x: u32, width: u32, scale: f64, limit: u32) -> (i64, i64) {
    let margin = scale.max(1.0).ceil() + 1.0;
    let left = (f64::from(x) * scale - margin).floor().max(0.0);
    let right = (f64::from(x + width) * scale + margin).ceil().min(f64::from(limit));
    (left as i64, right as i64)
}

/// Colours of the quality-control picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridColours {
    /// Outline of the tissue mask.
    pub tissue: Rgb<u8>,
    /// Borders of the kept patches.
    pub patch: Rgb<u8>,
    /// Borders of the patches dropped for ink, folds, unreadable tiles and blur.
    pub dropped: [(DropReason, Rgb<u8>); 4],
}

impl Default for GridColours {
    fn default() -> Self {
        // Colours that no stain has.
        let dropped = [
            (DropReason::Pen, Rgb([255, 140, 0])),
            (DropReason::Fold, Rgb([250, 230, 0])),
            (DropReason::Unreadable, Rgb([220, 0, 0])),
            (DropReason::Blur, Rgb([0, 190, 200])),
        ];
        Self { tissue: Rgb([0, 170, 60]), patch: Rgb([20, 60, 220]), dropped }
    }
}

/// Draws the outline of the tissue and the borders of the patches on a picture of the whole slide of `slide` level-0 px:
/// the kept ones over those dropped, these in the colour of their reason. Background is not drawn.
pub fn draw_grid(picture: &mut RgbImage, slide: Size, mask: Option<&Mask>, grid: &Grid, colours: &GridColours) {
    let (width, height) = picture.dimensions();
    if width == 0 || height == 0 {
        return;
    }
    let scale = (f64::from(slide.width) / f64::from(width), f64::from(slide.height) / f64::from(height));
    if let Some(mask) = mask {
        outline(picture, scale, mask, colours.tissue);
    }
    for (origin, reason) in &grid.dropped {
        if let Some((_, colour)) = colours.dropped.iter().find(|(known, _)| known == reason) {
            border(picture, scale, *origin, grid.side_level0, *colour);
        }
    }
    for origin in &grid.origins {
        border(picture, scale, *origin, grid.side_level0, colours.patch);
    }
}

/// The border of a square of `side` level-0 px at `origin`.
fn border(picture: &mut RgbImage, scale: (f64, f64), origin: Point, side: f64, colour: Rgb<u8>) {
    let pixel = |level0: f64, scale: f64, limit: u32| (level0 / scale).round().clamp(0.0, f64::from(limit - 1)) as u32;
    let (width, height) = picture.dimensions();
    let (x0, y0) = (pixel(origin.x as f64, scale.0, width), pixel(origin.y as f64, scale.1, height));
    let (x1, y1) = (pixel(origin.x as f64 + side, scale.0, width), pixel(origin.y as f64 + side, scale.1, height));
    for x in x0..=x1 {
        picture.put_pixel(x, y0, colour);
        picture.put_pixel(x, y1, colour);
    }
    for y in y0..=y1 {
        picture.put_pixel(x0, y, colour);
        picture.put_pixel(x1, y, colour);
    }
}

/// Colours the pixels of tissue that touch background or the picture's border.
fn outline(picture: &mut RgbImage, scale: (f64, f64), mask: &Mask, colour: Rgb<u8>) {
    let (width, height) = picture.dimensions();
    let tissue: Vec<bool> = (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .map(|(x, y)| mask.fraction(f64::from(x) * scale.0, f64::from(y) * scale.1, scale.0, scale.1) >= 0.5)
        .collect();
    let at = |x: u32, y: u32| tissue[(y * width + x) as usize];
    for y in 0..height {
        for x in 0..width {
            let border = x == 0 || y == 0 || x == width - 1 || y == height - 1;
            if at(x, y) && (border || !(at(x - 1, y) && at(x + 1, y) && at(x, y - 1) && at(x, y + 1))) {
                picture.put_pixel(x, y, colour);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::GridSpec;

    /// A grid with these corners and this side, in level-0 px.
    fn grid(origins: &[Point], side_level0: f64) -> Grid {
        Grid { spec: GridSpec::default(), origins: origins.to_vec(), candidates: 0, dropped: vec![], side_level0 }
    }

    fn noise(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            let v = x.wrapping_mul(2_654_435_761).wrapping_add(y.wrapping_mul(40_503)) ^ (x * y);
            Rgb([(v >> 8) as u8, (v >> 16) as u8, (x * 255 / width) as u8])
        })
    }

    fn part(image: &RgbImage, x: i64, y: i64, size: Size) -> RgbImage {
        image::imageops::crop_imm(image, x as u32, y as u32, size.width, size.height).to_image()
    }

    #[test]
    fn blocks_leave_no_trace() {
        let source = noise(611, 407);
        for out in [Size::new(61, 40), Size::new(100, 33), Size::new(611, 407)] {
            let read = |x, y, size| Ok(part(&source, x, y, size));
            let size = Size::new(611, 407);
            let whole = shrink(size, out, 10_000, 0.0, read).unwrap();
            let blocks = shrink(size, out, 90, 0.0, read).unwrap();
            let worst = whole.iter().zip(blocks.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            // The same weights from another start: only the last bit of the fixed-point sums may differ.
            assert!(worst <= 1, "{worst} for {out:?}");
        }
    }

    /// The wavelet's coarse part is sharper than an average.
    #[test]
    fn jpeg_2000_is_shown_from_its_wavelet_levels() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let golden = |name: &str| root.join("tests/golden/breadth").join(name);
        let real = |name: &str| root.join("../../shared/data").join(name);
        for (path, factor) in [
            (golden("jpeg2000_tiles.tif"), 4),
            (golden("jpeg2000_aperio_ycbcr_tiles.tif"), 4),
            (real("slides/TCGA-CR-7395-01A-01-TS1.svs"), 8),
            (real("slides_derived/oral_normal400x_j2k33003.svs"), 16),
        ] {
            let Ok(slide) = Slide::open(&path) else {
                eprintln!("skipped: no {}", path.display());
                continue;
            };
            let Size { width, height } = slide.levels()[0].size;
            let out = Size::new(width / factor, height / factor);
            let resolution = slide.resolution_for_overview(f64::from(factor));
            assert!(!slide.levels().contains(&slide.resolutions()[resolution]), "{}", path.display());
            let shown = read_whole(&slide, out).unwrap();
            let whole = shrink(slide.size(), out, BLOCK, 0.0, |x, y, size| slide.read_at(0, x, y, size)).unwrap();
            let sum: u64 = shown.iter().zip(whole.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            let mean = sum as f64 / shown.len() as f64;
            eprintln!("{}: {mean:.2} grey levels", path.display());
            assert!(mean < 5.0, "{}: {mean}", path.display());
        }
    }

    #[test]
    fn an_unscaled_level_is_copied() {
        let source = noise(50, 20);
        let copy = shrink(Size::new(50, 20), Size::new(50, 20), 16, 0.0, |x, y, s| Ok(part(&source, x, y, s))).unwrap();
        assert_eq!(copy, source);
    }

    #[test]
    fn a_flat_level_stays_flat() {
        let source = RgbImage::from_pixel(997, 503, Rgb([200, 120, 30]));
        let size = Size::new(997, 503);
        let small = shrink(size, Size::new(31, 16), 128, 0.0, |x, y, s| Ok(part(&source, x, y, s))).unwrap();
        assert!(small.pixels().all(|p| p.0 == [200, 120, 30]));
    }

    #[test]
    fn the_grid_is_drawn_where_the_patches_are() {
        let (slide, colours) = (Size::new(400, 200), GridColours::default());
        let mut picture = RgbImage::new(40, 20);
        let mut one = grid(&[Point::new(100, 50)], 80.0);
        one.dropped = vec![(Point::new(100, 50), DropReason::Blur), (Point::new(0, 0), DropReason::Background)];
        draw_grid(&mut picture, slide, None, &one, &colours);
        let drawn: Vec<_> = picture.enumerate_pixels().filter(|p| *p.2 == colours.patch).map(|p| (p.0, p.1)).collect();
        assert_eq!(drawn.len(), 32); // the border of 9 x 9
        assert!(drawn.iter().all(|&(x, y)| (10..=18).contains(&x) && (5..=13).contains(&y)));
        assert!(drawn.contains(&(10, 5)) && drawn.contains(&(18, 13)) && !drawn.contains(&(14, 9)));
        one.dropped.push((Point::new(200, 50), DropReason::Blur));
        draw_grid(&mut picture, slide, None, &one, &colours);
        assert_eq!(*picture.get_pixel(24, 5), Rgb([0, 190, 200]));
        assert_eq!(*picture.get_pixel(0, 0), Rgb([0; 3]));
    }

    #[test]
    fn the_outline_follows_the_mask_and_patches_may_touch_the_border() {
        let slide = Size::new(100, 100);
        let bits = (0..100).map(|i| i % 10 >= 2 && i / 10 >= 2 && i % 10 < 8 && i / 10 < 8).collect();
        let mask = Mask::new(Size::square(10), slide, bits).unwrap();
        let (mut picture, colours) = (RgbImage::new(50, 50), GridColours::default());
        draw_grid(&mut picture, slide, Some(&mask), &grid(&[], 0.0), &colours);
        let drawn = picture.pixels().filter(|p| **p == colours.tissue).count();
        assert_eq!(drawn, 4 * 29); // the border of 30 x 30
        draw_grid(&mut picture, slide, None, &grid(&[Point::new(90, 90), Point::new(-5, 0)], 20.0), &colours);
        assert_eq!(*picture.get_pixel(49, 49), colours.patch);
    }
}
