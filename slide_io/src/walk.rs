//! A walk over the patches of a slide that decodes every stored tile once.
//!
//! Patches that begin in the same tile are read one after the other, row of tiles by row of tiles, and a tile is
//! forgotten as soon as its last patch was read. A grid that lies on the tiles needs one tile at a time; any other needs
//! the tiles under a row of patches. Where those would be more than [`STRIP_BYTES`] the slide is walked in vertical
//! strips, and the tiles on the border of two strips are decoded twice.

use std::collections::HashMap;

use crate::geometry::{Mpp, Point, Size};
use crate::grid::GridSpec;
use crate::patch::{Footprint, Span};
use crate::slide::Slide;

/// Decoded tiles that a walk may need at a time, in bytes.
const STRIP_BYTES: f64 = (64 << 20) as f64;

/// The order of the patches of one slide, and when each tile was needed for the last time.
pub struct Walk {
    resolution: usize,
    /// Indices into the origins.
    order: Vec<usize>,
    /// (patch, column, row): the tile is not needed after that patch. Sorted.
    last_uses: Vec<(usize, u32, u32)>,
}

impl Walk {
    /// A walk over the patches of `spec` at `origins` (level-0 px) on a slide of `native` µm/px.
    pub fn new(slide: &Slide, native: Mpp, spec: &GridSpec, origins: &[Point]) -> Self {
        let resolution = slide.resolution_for(spec.ratio(native));
        let (level, tile) = (slide.resolutions()[resolution], slide.tile(resolution));
        let at = |origin: i64| origin as f64 / level.downsample;
        let strip = strip_width(tile, spec.side_level0(native) / level.downsample);
        let mut order: Vec<usize> = (0..origins.len()).collect();
        order.sort_by_key(|&index| {
            let (x, y) = (at(origins[index].x), at(origins[index].y));
            let (column, row) = (x / f64::from(tile.width), y / f64::from(tile.height));
            ((x / strip).floor() as i64, row.floor() as i64, column.floor() as i64, origins[index].y, origins[index].x)
        });
        let mut last_use = HashMap::new();
        for &index in &order {
            let footprint = Footprint::new(&level, origins[index], spec.ratio(native), spec.size);
            last_use.extend(tiles(&footprint, tile, level.size).map(|tile| (tile, index)));
        }
        let mut last_uses: Vec<_> = last_use.into_iter().map(|((column, row), patch)| (patch, column, row)).collect();
        last_uses.sort_unstable();
        Self { resolution, order, last_uses }
    }

    /// Indices of the patches, in the order to read them.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// To be told when patch `index` was read: forgets the tiles that were read for it and are not needed again.
    pub fn done(&self, slide: &Slide, index: usize) {
        let start = self.last_uses.partition_point(|(patch, ..)| *patch < index);
        for &(_, column, row) in self.last_uses[start..].iter().take_while(|(patch, ..)| *patch == index) {
            slide.release(self.resolution, column, row);
        }
    }
}

/// Column and row of every tile of a level of `extent` px that a patch is made from.
pub(crate) fn tiles(footprint: &Footprint, tile: Size, extent: Size) -> impl Iterator<Item = (u32, u32)> {
    let along = |span: &Span, side: u32, extent: u32| {
        let last = (span.start + i64::from(span.length) - 1).clamp(0, i64::from(extent) - 1);
        span.start.max(0) as u32 / side..=last as u32 / side
    };
    let columns = along(&footprint.x, tile.width, extent.width);
    along(&footprint.y, tile.height, extent.height)
        .flat_map(move |row| columns.clone().map(move |column| (column, row)))
}

/// Widest strip whose tiles under a row of patches of `side` px fit [`STRIP_BYTES`], in px; a whole number of tiles.
fn strip_width(tile: Size, side: f64) -> f64 {
    let (width, height) = (f64::from(tile.width), f64::from(tile.height));
    let rows = (side / height).ceil() + 1.0;
    let columns = STRIP_BYTES / (rows * width * height * 3.0);
    // Patches reach over the right border by their side.
    ((columns - (side / width).ceil()).floor().max(1.0)) * width
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pyramid::{PyramidSpec, write_pyramid};
    use crate::{Grid, TissueMask};

    /// A slide of 600 x 500 px in tiles of 64, and a walk over patches of `size` px, `stride` px apart.
    fn walk(size: u32, stride: u32) -> (Slide, Grid, Walk) {
        walk_at(0.5, size, stride)
    }

    /// The same with patches of `mpp` µm/px; the slide has 0.5.
    fn walk_at(mpp: f64, size: u32, stride: u32) -> (Slide, Grid, Walk) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slide.tiff");
        let image = image::RgbImage::from_fn(600, 500, |x, y| image::Rgb([x as u8, y as u8, 90]));
        let spec = PyramidSpec { tile: 64, levels: vec![1], mpp: Some(Mpp(0.5)), ..PyramidSpec::default() };
        write_pyramid(&path, &image, &spec).unwrap();
        let slide = Slide::open(&path).unwrap();
        let spec = GridSpec { mpp: Mpp(mpp), size, stride, min_tissue: 0.0 };
        let grid = Grid::new(slide.size(), Mpp(0.5), &spec, &TissueMask::full(slide.size())).unwrap();
        let walk = Walk::new(&slide, Mpp(0.5), &spec, &grid.origins);
        (slide, grid, walk)
    }

    #[test]
    fn every_patch_comes_once_and_patches_of_a_tile_together() {
        let (_, grid, walk) = walk(32, 32);
        let mut all = walk.order().to_vec();
        all.sort_unstable();
        assert_eq!(all, (0..grid.origins.len()).collect::<Vec<_>>());
        let tiles: Vec<_> = walk.order().iter().map(|&i| (grid.origins[i].x / 64, grid.origins[i].y / 64)).collect();
        let mut distinct = tiles.clone();
        distinct.dedup();
        let count = distinct.len();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), count, "no tile is returned to");
    }

    #[test]
    fn a_tile_is_let_go_by_the_last_patch_that_touches_it() {
        for (size, stride) in [(32, 32), (50, 37), (100, 64)] {
            let (_, grid, walk) = walk(size, stride);
            let place: HashMap<usize, usize> = walk.order().iter().enumerate().map(|(n, &i)| (i, n)).collect();
            let touches = |patch: usize, column: u32, row: u32| {
                let meets =
                    |at: i64, tile: u32| at < i64::from(tile + 1) * 64 && at + i64::from(size) > i64::from(tile) * 64;
                meets(grid.origins[patch].x, column) && meets(grid.origins[patch].y, row)
            };
            assert!(!walk.last_uses.is_empty());
            for &(patch, column, row) in &walk.last_uses {
                let last = (0..grid.origins.len()).filter(|&i| touches(i, column, row)).max_by_key(|i| place[i]);
                if let Some(last) = last {
                    // The filter's margin may need a tile longer than the patch itself does, never shorter.
                    assert!(place[&patch] >= place[&last], "tile ({column}, {row})");
                }
            }
        }
    }

    #[test]
    fn every_tile_is_decoded_once() {
        // On the tiles, across them, and resampled, with the filter's margin reaching into neighbours.
        for (mpp, size, stride) in [(0.5, 32, 32), (0.5, 50, 37), (0.66, 48, 48), (1.0, 32, 32)] {
            let (slide, grid, walk) = walk_at(mpp, size, stride);
            let before = crate::jpeg::DECODED.get();
            for &index in walk.order() {
                crate::patch::read_patch(&slide, Mpp(0.5), grid.origins[index], &grid.spec).unwrap();
                walk.done(&slide, index);
            }
            let decoded = crate::jpeg::DECODED.get() - before;
            assert_eq!(decoded, walk.last_uses.len(), "{mpp} µm/px, {size} px every {stride}");
        }
    }

    #[test]
    fn a_grid_on_the_tiles_needs_one_at_a_time() {
        let (_, grid, walk) = walk(32, 32);
        for &(patch, column, row) in &walk.last_uses {
            let origin = grid.origins[patch];
            assert_eq!((origin.x / 64, origin.y / 64), (i64::from(column), i64::from(row)));
        }
    }

    #[test]
    fn strips_are_whole_tiles_within_the_budget() {
        assert_eq!(strip_width(Size::square(512), 256.0), 512.0 * 41.0);
        assert_eq!(strip_width(Size::square(4096), 256.0), 4096.0);
        let width = strip_width(Size::square(240), 300.0);
        assert!((width / 240.0 + 2.0) * 3.0 * 240.0 * 240.0 * 3.0 <= STRIP_BYTES);
    }
}
