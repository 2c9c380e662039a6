//! Between images as planes, `[C, H, W]`, which is what tensors hold, and as pixels, `[H, W, C]`, which is what the
//! products of a convolution want.

/// Side of the squares in which values are turned, so that both sides of a copy stay in the first-level cache.
const TILE: usize = 8;

/// `count` pixels from planes that begin `plane` apart: `source[c * plane + p] -> target[p * channels + c]`.
pub fn to_pixels(source: &[f32], plane: usize, channels: usize, count: usize, target: &mut [f32]) {
    for c in (0..channels).step_by(TILE) {
        for p in (0..count).step_by(TILE) {
            let (width, height) = (TILE.min(count - p), TILE.min(channels - c));
            if width == TILE && height == TILE {
                let mut tile = [[0.0; TILE]; TILE];
                for (i, row) in tile.iter_mut().enumerate() {
                    row.copy_from_slice(&source[(c + i) * plane + p..][..TILE]);
                }
                for j in 0..TILE {
                    let pixel = &mut target[(p + j) * channels + c..][..TILE];
                    for i in 0..TILE {
                        pixel[i] = tile[i][j];
                    }
                }
            } else {
                for i in 0..height {
                    for j in 0..width {
                        target[(p + j) * channels + c + i] = source[(c + i) * plane + p + j];
                    }
                }
            }
        }
    }
}

/// Pixels to planes, of which `planes` are the parts to fill, each of whole rows of `width`; a row of the source takes
/// `pitch` pixels. `offset[c]` is added.
pub fn to_planes(source: &[f32], (width, pitch): (usize, usize), offset: Option<&[f32]>, planes: &mut [&mut [f32]]) {
    let channels = planes.len();
    let rows = planes.first().map_or(0, |plane| plane.len() / width);
    for (group, planes) in planes.chunks_mut(TILE).enumerate() {
        let c = group * TILE;
        let mut shift = [0.0; TILE];
        if let Some(offset) = offset {
            shift[..planes.len()].copy_from_slice(&offset[c..][..planes.len()]);
        }
        for y in 0..rows {
            for x in (0..width).step_by(TILE) {
                let count = TILE.min(width - x);
                let first = (y * pitch + x) * channels + c;
                let mut tile = [[0.0; TILE]; TILE];
                for (j, row) in tile.iter_mut().enumerate().take(count) {
                    row[..planes.len()].copy_from_slice(&source[first + j * channels..][..planes.len()]);
                }
                for (i, plane) in planes.iter_mut().enumerate() {
                    let target = &mut plane[y * width + x..][..count];
                    for (j, value) in target.iter_mut().enumerate() {
                        *value = tile[j][i] + shift[i];
                    }
                }
            }
        }
    }
}
