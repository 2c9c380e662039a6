//! Patches that should not be learnt from, each with its reason: glass, pen ink, folds, blur, unreadable tiles.
//!
//! Ink and folds are found on the low-resolution copy that the tissue mask is made from, so they cost nothing more. Blur
//! and glass between the tissue need the patches themselves; those two rules are off by default because they read the
//! slide. A patch is dropped for one reason, the first that is found: too little tissue, ink, folds, damage, then glass and blur.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use image::RgbImage;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::geometry::{Mpp, Point, Size};
use crate::grid::{Grid, GridSpec};
use crate::mask::Mask;
use crate::patch::{Footprint, read_patch};
use crate::slide::Slide;
use crate::tissue::{Overview, TissueMask, densities, filter, is_red_ink, luminance, saturation};
use crate::walk::{self, Walk};

/// A stroke of a pen is 0.3 mm wide and more; smaller pieces of an ink's colour are pigment or dust, mm².
const MIN_INK_MM2: f64 = 0.02;

/// Smaller dense pieces are nuclei, mm²: the core of a star-shaped fold is no larger.
const MIN_FOLD_MM2: f64 = 0.001;

/// A share is a difference of sums, so one of nothing may miss 0 by a rounding.
const ROUNDING: f64 = 1e-9;

/// Patches read at a time by the rules that need pixels.
const CHUNK: usize = 256;

/// Rules that drop patches, beside the share of tissue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QualityParams {
    /// Largest share of a patch covered by pen ink, 0 to 1; 1 turns the rule off.
    pub max_ink: f64,
    /// Largest share of a patch covered by folded tissue, 0 to 1; 1 turns the rule off.
    pub max_fold: f64,
    /// Tissue whose optical density, against the slide's glass, is this many times the median of its tissue is folded.
    pub fold_density: f64,
    /// Largest share of near-white pixels in the patch at its own scale, 0 to 1; 1 turns the rule off, and with it the
    /// reading of patches.
    pub max_glass: f64,
    /// Smallest sharpness, the variance of the Laplacian of the luminance at the patch's own scale (grey levels
    /// squared; [`sharpness`]); 0 turns the rule off, and with it the reading of patches.
    pub min_sharpness: f64,
    /// Whether the stored tiles under every patch are looked at: what a broken copy left out is then known before anything
    /// reads the patches. Two short reads a tile; damage in the middle of a tile shows when it is decoded.
    pub check_tiles: bool,
}

impl Default for QualityParams {
    fn default() -> Self {
        Self {
            // The mask excludes ink that is coloured; this drops what lies around a stroke too.
            max_ink: 0.05,
            // Off: dense lymphoid tissue is as dark as a fold at low resolution.
            max_fold: 1.0,
            // A fold is two layers, blurred at 8 µm/px.
            fold_density: 1.8,
            max_glass: 1.0,
            min_sharpness: 0.0,
            check_tiles: true,
        }
    }
}

impl QualityParams {
    /// Checks the values on their own.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the value that makes no sense.
    pub fn check(&self) -> Result<()> {
        for (name, share) in [("max_ink", self.max_ink), ("max_fold", self.max_fold), ("max_glass", self.max_glass)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::Usage(format!("quality.{name} is {share}: it is a share, from 0 to 1")));
            }
        }
        if !(self.fold_density.is_finite() && self.fold_density > 1.0) {
            let density = self.fold_density;
            return Err(Error::Usage(format!(
                "quality.fold_density is {density}: folded tissue is denser, so above 1"
            )));
        }
        if !(self.min_sharpness.is_finite() && self.min_sharpness >= 0.0) {
            return Err(Error::Usage(format!("quality.min_sharpness is {}: it is 0 or more", self.min_sharpness)));
        }
        Ok(())
    }

    /// Whether a rule needs the patches themselves.
    fn reads_patches(&self) -> bool {
        self.max_glass < 1.0 || self.min_sharpness > 0.0
    }
}

/// Why a position of the grid gave no patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// Too little tissue by the mask, or too much glass in the patch itself.
    Background,
    /// Pen ink.
    Pen,
    /// Folded tissue.
    Fold,
    /// A tile under it cannot be read.
    Unreadable,
    /// Out of focus.
    Blur,
}

impl DropReason {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Background, Self::Pen, Self::Fold, Self::Unreadable, Self::Blur];
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Background => "background",
            Self::Pen => "pen",
            Self::Fold => "fold",
            Self::Unreadable => "unreadable",
            Self::Blur => "blur",
        })
    }
}

/// How many positions were dropped for which reason.
pub type DropCounts = BTreeMap<DropReason, usize>;

/// `214 patches dropped: 180 background, 30 pen, 4 blur`; empty where none was.
pub fn describe(counts: &DropCounts) -> String {
    let total: usize = counts.values().sum();
    if total == 0 {
        return String::new();
    }
    let noun = if total == 1 { "patch" } else { "patches" };
    format!("{total} {noun} dropped: {}", list(counts))
}

/// `180 background, 30 pen, 4 blur`; empty where none was.
pub fn list(counts: &DropCounts) -> String {
    let parts: Vec<_> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.join(", ")
}

/// Ink, folds and damage on the low-resolution copy of a slide.
#[derive(Clone, Debug)]
pub struct Artefacts {
    /// Pen ink, on tissue and beside it.
    pub ink: Mask,
    /// Tissue in two layers.
    pub folds: Mask,
    /// Where the overview cannot be read, so that nobody knows what is there.
    pub unreadable: Mask,
}

impl Artefacts {
    /// Finds them on the `overview` of a slide of `slide` level-0 px at `mpp` µm/px, on which `tissue` was found. Folds only
    /// where the rules ask for them.
    ///
    /// # Errors
    /// Values that make no sense, and tissue that was not found on this overview.
    pub fn find(
        Overview { image: overview, unreadable, .. }: &Overview,
        slide: Size,
        mpp: Mpp,
        tissue: &TissueMask,
        params: &QualityParams,
    ) -> Result<Self> {
        params.check()?;
        let size = Size::new(overview.width(), overview.height());
        if tissue.size() != size {
            return Err(Error::Usage(format!(
                "tissue of {:?} px was not found on an overview of {size:?}",
                tissue.size()
            )));
        }
        let (width, height) = (size.width as usize, size.height as usize);
        let mut ink: Vec<bool> = overview.pixels().map(|p| is_ink(p.0)).collect();
        let area = f64::from(slide.width) * f64::from(slide.height) / ink.len().max(1) as f64;
        let mm2 = area * mpp.0 * mpp.0 * 1e-6;
        filter::remove_pieces(&mut ink, width, height, MIN_INK_MM2 / mm2);
        let folds = if params.max_fold < 1.0 {
            let mut folds = folds(overview, tissue, &ink, params.fold_density);
            filter::remove_pieces(&mut folds, width, height, MIN_FOLD_MM2 / mm2);
            Mask::new(size, slide, folds)?
        } else {
            Mask::none(slide)
        };
        Ok(Self { ink: Mask::new(size, slide, ink)?, folds, unreadable: unreadable.clone() })
    }
}

/// Whether a pixel of the overview has the colour of a pen's ink: green or blue (no stain of H&E or DAB leaves more green
/// than red), saturated red (eosin and blood hold more blue), or black, which is darker and greyer than any stain.
fn is_ink([r, g, b]: [u8; 3]) -> bool {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    let cold = g.saturating_sub(r) > 25 || (g >= r && b.saturating_sub(r) > 50);
    // Pure black is the padding of a scanner.
    let black = max < 90 && max - min < 25 && max > 12;
    cold || is_red_ink([r, g, b]) || black
}

/// Tissue that is `times` as dense as the slide's median. What a mask holds of glass and fat, as one by entropy does, has no say in
/// that.
fn folds(overview: &RgbImage, tissue: &TissueMask, ink: &[bool], times: f64) -> Vec<bool> {
    /// Glass varies by less around its optical density of 0.
    const STAINED: f64 = 0.035;
    let density = densities(overview);
    let is_tissue = |i: usize| tissue.data()[i] && !ink[i];
    let mut sorted: Vec<f64> =
        (0..ink.len()).filter(|&i| is_tissue(i) && density[i] > STAINED).map(|i| density[i]).collect();
    if sorted.is_empty() {
        return vec![false; ink.len()];
    }
    let middle = sorted.len() / 2;
    let (_, &mut median, _) = sorted.select_nth_unstable_by(middle, f64::total_cmp);
    (0..ink.len()).map(|i| is_tissue(i) && density[i] >= times * median).collect()
}

/// Sharpness of a patch: the variance of the Laplacian (4 neighbours) of the luminance, grey levels squared
/// (Pech-Pacheco et al., ICPR 2000). It falls with blur, and with the amount of structure: compare patches of one scale.
pub fn sharpness(patch: &RgbImage) -> f64 {
    let (width, height) = (patch.width() as usize, patch.height() as usize);
    if width < 3 || height < 3 {
        return 0.0;
    }
    let grey: Vec<f64> = patch.pixels().map(|p| f64::from(luminance(p.0))).collect();
    let (mut sum, mut squares) = (0.0, 0.0);
    for y in 1..height - 1 {
        for x in 1..width - 1 {
            let i = y * width + x;
            let laplacian = grey[i - 1] + grey[i + 1] + grey[i - width] + grey[i + width] - 4.0 * grey[i];
            sum += laplacian;
            squares += laplacian * laplacian;
        }
    }
    let n = ((width - 2) * (height - 2)) as f64;
    squares / n - (sum / n) * (sum / n)
}

/// Share of near-white pixels of a patch: luminance above 220 and hardly any colour.
pub fn glass_share(patch: &RgbImage) -> f64 {
    let glass = patch.pixels().filter(|p| luminance(p.0) > 220 && saturation(p.0) < 20).count();
    glass as f64 / (f64::from(patch.width()) * f64::from(patch.height())).max(1.0)
}

/// Moves from `grid.origins` to `grid.dropped` what the rules refuse. Background of which nothing but ink is missing to
/// `min_tissue` is called pen, and background that the overview could not read is called unreadable. `native` is the slide's
/// µm/px. Returns what is wrong at the positions of which a tile cannot be read.
///
/// # Errors
/// Values that make no sense; `tissue` of another size than the overview the artefacts were found on.
pub fn sort_out(
    grid: &mut Grid,
    slide: &Slide,
    native: Mpp,
    tissue: &TissueMask,
    artefacts: &Artefacts,
    params: &QualityParams,
) -> Result<BTreeMap<Point, String>> {
    params.check()?;
    let side = grid.side_level0;
    let share = |mask: &Mask, origin: Point| mask.fraction(origin.x as f64, origin.y as f64, side, side);
    for (origin, reason) in &mut grid.dropped {
        if share(&artefacts.unreadable, *origin) > ROUNDING {
            *reason = DropReason::Unreadable;
        }
    }
    if params.max_ink < 1.0 {
        let either = tissue.or(&artefacts.ink)?;
        for (origin, reason) in &mut grid.dropped {
            let inked = share(&artefacts.ink, *origin) > params.max_ink + ROUNDING;
            if inked && share(&either, *origin) + ROUNDING >= grid.spec.min_tissue {
                *reason = DropReason::Pen;
            }
        }
    }
    grid.drop_where(|origin| {
        let above = |mask: &Mask, most: f64| most < 1.0 && share(mask, origin) > most + ROUNDING;
        match (above(&artefacts.ink, params.max_ink), above(&artefacts.folds, params.max_fold)) {
            (true, _) => Some(DropReason::Pen),
            (_, true) => Some(DropReason::Fold),
            _ => None,
        }
    });
    let mut damage = if params.check_tiles { damaged(slide, native, grid) } else { BTreeMap::new() };
    grid.drop_where(|origin| damage.contains_key(&origin).then_some(DropReason::Unreadable));
    if params.reads_patches() {
        let found = look_at_patches(slide, native, &grid.spec, &grid.origins, params)?;
        let unreadable = grid.origins.iter().zip(&found);
        damage.extend(unreadable.filter_map(|(origin, (_, error))| Some((*origin, error.clone()?))));
        let mut reasons = found.into_iter().map(|(reason, _)| reason);
        grid.drop_where(|_| reasons.next().flatten());
    }
    Ok(damage)
}

/// Positions with a tile that does not begin or end as it should and cannot be read, and why.
fn damaged(slide: &Slide, native: Mpp, grid: &Grid) -> BTreeMap<Point, String> {
    let ratio = grid.spec.ratio(native);
    let resolution = slide.resolution_for(ratio);
    let (level, tile) = (slide.resolutions()[resolution], slide.tile(resolution));
    let mut seen: HashMap<(u32, u32), Option<String>> = HashMap::new();
    let mut damage = BTreeMap::new();
    for &origin in &grid.origins {
        for (column, row) in walk::tiles(&Footprint::new(&level, origin, ratio, grid.spec.size), tile, level.size) {
            // A disk that does not answer is not the tile's fault: reading the patches will say so.
            let probe = || match slide.probe(resolution, column, row) {
                Ok(()) | Err(Error::Io { .. }) => None,
                Err(error) => Some(error.to_string()),
            };
            if let Some(error) = seen.entry((column, row)).or_insert_with(probe) {
                damage.insert(origin, error.clone());
            }
        }
    }
    damage
}

/// What the rules on pixels say of the patches at `origins`, in their order, and what is wrong with those that cannot be read.
/// Every stored tile is decoded once.
fn look_at_patches(
    slide: &Slide,
    native: Mpp,
    spec: &GridSpec,
    origins: &[Point],
    params: &QualityParams,
) -> Result<Vec<(Option<DropReason>, Option<String>)>> {
    let walk = Walk::new(slide, native, spec, origins);
    let mut reasons = vec![(None, None); origins.len()];
    for chunk in walk.order().chunks(CHUNK) {
        let found: Vec<_> = chunk
            .par_iter()
            .map(|&index| {
                let reason = match read_patch(slide, native, origins[index], spec) {
                    // The disk may answer tomorrow; only damage is there to stay.
                    Err(error @ Error::Io { .. }) => return Err(error),
                    Err(error) => (Some(DropReason::Unreadable), Some(error.to_string())),
                    Ok(patch) if glass_share(&patch) > params.max_glass => (Some(DropReason::Background), None),
                    Ok(patch) if sharpness(&patch) < params.min_sharpness => (Some(DropReason::Blur), None),
                    Ok(_) => (None, None),
                };
                Ok((index, reason))
            })
            .collect();
        for found in found {
            let (index, reason) = found?;
            reasons[index] = reason;
            walk.done(slide, index);
        }
    }
    Ok(reasons)
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;
    use crate::pyramid::{ColorModel, PyramidSpec, write_pyramid};
    use crate::tissue::TissueParams;

    const GLASS: Rgb<u8> = Rgb([240, 238, 239]);
    const EOSIN: Rgb<u8> = Rgb([225, 160, 190]);
    const FOLD: Rgb<u8> = Rgb([190, 90, 130]);
    const GREEN: Rgb<u8> = Rgb([40, 150, 70]);

    fn draw(image: &mut RgbImage, x: u32, y: u32, w: u32, h: u32, colour: Rgb<u8>) {
        (y..y + h).for_each(|j| (x..x + w).for_each(|i| image.put_pixel(i, j, colour)));
    }

    /// The grid of a slide at 8 µm/px, whose overview is the slide, with patches of 10 px; and the slide's file.
    fn sorted(image: &RgbImage, params: &QualityParams) -> Grid {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slide.tiff");
        let spec =
            PyramidSpec { tile: 64, quality: 95, levels: vec![1], color: ColorModel::Rgb, ..PyramidSpec::default() };
        write_pyramid(&path, image, &PyramidSpec { mpp: Some(Mpp(8.0)), ..spec }).unwrap();
        let slide = Slide::open(&path).unwrap();
        let (size, mpp) = (slide.size(), Mpp(8.0));
        let rules = TissueParams { smooth: 1, max_hole_mm2: 0.0, min_piece_mm2: 0.0, ..TissueParams::default() };
        let tissue = TissueMask::from_rgb(image, size, mpp, &rules).unwrap();
        let nothing = Mask::new(size, size, vec![false; image.pixels().len()]).unwrap();
        let overview = Overview { image: image.clone(), unreadable: nothing, damage: None };
        let artefacts = Artefacts::find(&overview, size, mpp, &tissue, params).unwrap();
        let spec = GridSpec { mpp, size: 10, stride: 10, min_tissue: 0.5 };
        let mut grid = Grid::new(size, mpp, &spec, &tissue).unwrap();
        sort_out(&mut grid, &slide, mpp, &tissue, &artefacts, params).unwrap();
        assert_eq!(grid.kept() + grid.dropped.len(), grid.candidates);
        grid
    }

    #[test]
    fn every_reason_is_counted_once() {
        // 10 x 10 positions: 60 of tissue, of which 10 under ink and 4 folded, and 10 of ink on glass.
        let mut image = RgbImage::from_pixel(100, 100, GLASS);
        draw(&mut image, 0, 0, 100, 60, EOSIN);
        draw(&mut image, 0, 10, 100, 10, GREEN);
        draw(&mut image, 20, 40, 40, 10, FOLD);
        draw(&mut image, 0, 80, 100, 10, GREEN);
        let params = QualityParams { max_fold: 0.5, ..QualityParams::default() };
        let counts = sorted(&image, &params).drop_counts();
        let expected = [(DropReason::Background, 30), (DropReason::Pen, 20), (DropReason::Fold, 4)];
        assert_eq!(counts, expected.into());
        assert_eq!(describe(&counts), "54 patches dropped: 30 background, 20 pen, 4 fold");
        // Turned off, what is left is what the tissue mask says: ink is no tissue, a fold is.
        let off = QualityParams { max_ink: 1.0, ..QualityParams::default() };
        assert_eq!(sorted(&image, &off).drop_counts(), [(DropReason::Background, 50)].into());
        assert_eq!(describe(&DropCounts::new()), "");
        assert_eq!(describe(&[(DropReason::Blur, 1)].into()), "1 patch dropped: 1 blur");
    }

    /// The star-shaped fold in the middle of a real slide, on glass of 182; another slide of the same scanner has none.
    #[test]
    fn a_real_fold_is_found() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/slides_derived");
        for (file, folded) in
            [("bcnb_351899_Npos3_aperio240_noMPP.svs", true), ("bcnb_590960_Npos1-2_panda512.tiff", false)]
        {
            let Ok(slide) = Slide::open(root.join(file)) else {
                eprintln!("skipped: no {file} beside the repository (shared/data)");
                continue;
            };
            let (size, mpp, params) = (slide.size(), Mpp(0.5), TissueParams::default());
            let overview = Overview::read(&slide, mpp, &params).unwrap();
            let tissue = TissueMask::from_rgb(&overview.image, size, mpp, &params).unwrap();
            let rules = QualityParams { max_fold: 0.05, ..QualityParams::default() };
            let artefacts = Artefacts::find(&overview, size, mpp, &tissue, &rules).unwrap();
            let spec = GridSpec { mpp, size: 128, stride: 128, ..GridSpec::default() };
            let mut grid = Grid::new(size, mpp, &spec, &tissue).unwrap();
            sort_out(&mut grid, &slide, mpp, &tissue, &artefacts, &rules).unwrap();
            let mut folds = grid.dropped.iter().filter(|(_, reason)| *reason == DropReason::Fold);
            let middle = (0.61 * f64::from(size.width), 0.64 * f64::from(size.height));
            let holds = |x: i64, middle: f64| (0.0..128.0).contains(&(middle - x as f64));
            match folded {
                true => assert!(folds.any(|(at, _)| holds(at.x, middle.0) && holds(at.y, middle.1)), "{grid:?}"),
                false => assert!(folds.count() * 30 < grid.kept(), "dense tissue is not folded"),
            }
        }
    }

    #[test]
    fn a_patch_beside_a_stroke_is_dropped_by_the_share_of_ink() {
        let mut image = RgbImage::from_pixel(100, 100, EOSIN);
        draw(&mut image, 0, 0, 100, 12, GREEN); // reaches 2 px of 10 into the second row
        let dropped = |max_ink| sorted(&image, &QualityParams { max_ink, ..QualityParams::default() }).drop_counts();
        assert_eq!(dropped(0.05), [(DropReason::Pen, 20)].into());
        assert_eq!(dropped(0.3), [(DropReason::Pen, 10)].into());
    }

    #[test]
    fn specks_of_an_inks_colour_are_no_ink() {
        let mut image = RgbImage::from_pixel(100, 100, EOSIN);
        draw(&mut image, 51, 51, 6, 6, Rgb([40, 40, 42])); // 0.002 mm² of pigment
        assert!(sorted(&image, &QualityParams::default()).dropped.is_empty());
    }

    #[test]
    fn inks_and_stains_by_colour() {
        for ink in [[40, 150, 70], [30, 70, 190], [60, 62, 140], [215, 40, 60], [35, 35, 40]] {
            assert!(is_ink(ink), "{ink:?}");
        }
        // Eosin, haematoxylin, a vessel full of blood, DAB, glass, padding.
        for stain in [[225, 160, 190], [90, 60, 130], [200, 85, 105], [130, 85, 50], [240, 240, 240], [0, 0, 0]] {
            assert!(!is_ink(stain), "{stain:?}");
        }
    }

    #[test]
    fn blurred_and_glassy_patches_are_seen_in_the_pixels() {
        // A chequerboard of 2 px on the left, nothing on the right; the border is one of JPEG's blocks.
        let mut image = RgbImage::from_fn(100, 100, |x, y| match (x < 56, (x / 2 + y / 2) % 2 == 0) {
            (false, _) => Rgb([180, 110, 150]),
            (true, true) => Rgb([225, 160, 190]),
            (true, false) => Rgb([135, 60, 110]),
        });
        let params = QualityParams { min_sharpness: 20.0, max_glass: 0.5, ..QualityParams::default() };
        let grid = sorted(&image, &params);
        assert_eq!(grid.drop_counts(), [(DropReason::Blur, 40)].into());
        assert!(grid.origins.iter().all(|origin| origin.x <= 50));
        draw(&mut image, 0, 0, 40, 4, Rgb([250; 3])); // 0.4 of four patches
        assert_eq!(sorted(&image, &params).drop_counts(), [(DropReason::Blur, 40)].into());
        let params = QualityParams { max_glass: 0.2, ..params };
        assert_eq!(sorted(&image, &params).drop_counts()[&DropReason::Background], 4);
    }

    #[test]
    fn sharpness_by_hand() {
        // One bright pixel in 3 x 3: the only Laplacian is alone, so its variance is 0. In 4 x 3: -4v and v.
        let mut patch = RgbImage::from_pixel(4, 3, Rgb([10; 3]));
        patch.put_pixel(1, 1, Rgb([30; 3]));
        // Laplacians -80 and 20: mean -30, variance 2500.
        assert_eq!(sharpness(&patch), 2500.0);
        assert_eq!(sharpness(&RgbImage::from_pixel(64, 64, EOSIN)), 0.0);
        assert_eq!(sharpness(&RgbImage::new(2, 2)), 0.0);
    }

    #[test]
    fn a_tile_that_cannot_be_read_is_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slide.tiff");
        let image = RgbImage::from_fn(128, 64, |x, y| Rgb([200, 120 + (x % 7 * 9) as u8, 150 + (y % 5 * 9) as u8]));
        let spec = PyramidSpec { tile: 64, levels: vec![1], mpp: Some(Mpp(0.5)), ..PyramidSpec::default() };
        write_pyramid(&path, &image, &spec).unwrap();
        // The second tile's stream is cut by an end marker in its middle.
        let mut bytes = std::fs::read(&path).unwrap();
        let starts: Vec<usize> = (0..bytes.len() - 1).filter(|&i| bytes[i..i + 2] == [0xff, 0xda]).collect();
        let second = *starts.last().unwrap();
        bytes[second + 20..second + 22].copy_from_slice(&[0xff, 0xd9]);
        std::fs::write(&path, bytes).unwrap();
        let slide = Slide::open(&path).unwrap();
        let full = TissueMask::full(slide.size());
        let spec = GridSpec { mpp: Mpp(0.5), size: 64, stride: 64, min_tissue: 0.0 };
        let mut grid = Grid::new(slide.size(), Mpp(0.5), &spec, &full).unwrap();
        let params = QualityParams { min_sharpness: 0.001, max_ink: 1.0, ..QualityParams::default() };
        let overview = Overview::read(&slide, Mpp(0.5), &TissueParams { mpp: 2.0, ..TissueParams::default() }).unwrap();
        assert!(overview.damage.unwrap().contains("column 1, row 0"));
        assert_eq!((overview.image.dimensions(), overview.unreadable.share()), ((32, 16), 0.5));
        let nothing = Mask::new(Size::square(1), slide.size(), vec![false]).unwrap();
        let artefacts = Artefacts { ink: nothing.clone(), folds: nothing, unreadable: overview.unreadable };
        // These masks are not of one overview, so nothing is said of ink.
        let no_ink = QualityParams { max_ink: 1.0, ..QualityParams::default() };
        // With the tissue of the mended overview the second patch would be background; nobody knows that.
        let left = TissueMask::from_pixels(Size::new(2, 1), slide.size(), vec![true, false]).unwrap();
        let strict = GridSpec { min_tissue: 0.5, ..spec.clone() };
        let mut by_overview = Grid::new(slide.size(), Mpp(0.5), &strict, &left).unwrap();
        sort_out(&mut by_overview, &slide, Mpp(0.5), &left, &artefacts, &no_ink).unwrap();
        assert_eq!(by_overview.dropped, [(Point::new(64, 0), DropReason::Unreadable)]);
        sort_out(&mut grid, &slide, Mpp(0.5), &full, &artefacts, &params).unwrap();
        assert_eq!(grid.origins, [Point::new(0, 0)]);
        assert_eq!(grid.dropped, [(Point::new(64, 0), DropReason::Unreadable)]);
    }

    #[test]
    fn senseless_rules_are_refused_by_name() {
        let message = |params: QualityParams| params.check().unwrap_err().to_string();
        let with = QualityParams::default;
        assert!(message(QualityParams { max_ink: 1.5, ..with() }).contains("quality.max_ink"));
        assert!(message(QualityParams { fold_density: 1.0, ..with() }).contains("quality.fold_density"));
        assert!(message(QualityParams { min_sharpness: f64::NAN, ..with() }).contains("quality.min_sharpness"));
    }
}
