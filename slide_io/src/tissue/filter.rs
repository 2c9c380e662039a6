//! Filters on low-resolution masks: median, entropy, Otsu's threshold, holes, pieces, dilation. Images are row-major slices.

use rayon::prelude::*;

/// Median over a square of side `2 * radius + 1`, clipped at the border (a sliding histogram, Huang 1979).
pub(crate) fn median(values: &[u8], width: usize, height: usize, radius: usize) -> Vec<u8> {
    if radius == 0 {
        return values.to_vec();
    }
    sliding(values, width, height, radius, |counts, size| rank(counts, size / 2))
}

/// Shannon entropy of the grey levels in a square of side `2 * radius + 1`, clipped at the border: levels of 8 grey values, the
/// square's median in the middle of one, so 0 to 5 bits; 51 steps a bit. (With levels that lie where they happen to, glass whose
/// light falls off slowly has 1 bit wherever it passes from one to the next.) Where most of the square is glass, a median of
/// `glass` or more, what is brighter counts as glass too: nothing that lies on it is.
pub(crate) fn entropy(grey: &[u8], width: usize, height: usize, radius: usize, glass: u8) -> Vec<u8> {
    sliding(grey, width, height, radius, |counts, size| {
        let median = rank(counts, size / 2);
        let above = usize::from(median) + 4;
        let (lowest, rest) = counts.split_at(above % 8);
        let glass_from = if median >= glass { above.saturating_sub(8 + lowest.len()) } else { rest.len() };
        let (levels, glass) = rest.split_at(glass_from);
        let bits: f64 = std::iter::once(lowest)
            .chain(levels.chunks(8))
            .chain(std::iter::once(glass))
            .map(|level| level.iter().sum::<u32>())
            .filter(|&count| count > 0)
            .map(|count| f64::from(count) / f64::from(size))
            .map(|share| -share * share.log2())
            .sum();
        (bits * 51.0).round() as u8
    })
}

/// `of` the histogram, and its sum, of the square of side `2 * radius + 1` around every pixel, clipped at the border.
fn sliding(
    values: &[u8],
    width: usize,
    height: usize,
    radius: usize,
    of: impl Fn(&[u32; 256], u32) -> u8 + Sync,
) -> Vec<u8> {
    let mut out = vec![0; values.len()];
    out.par_chunks_mut(width.max(1)).enumerate().for_each(|(y, line)| {
        let rows = y.saturating_sub(radius)..(y + radius + 1).min(height);
        let mut counts = [0u32; 256];
        let mut size = 0;
        let mut column = |counts: &mut [u32; 256], x: usize, enters: bool| {
            for row in rows.clone() {
                let count = &mut counts[usize::from(values[row * width + x])];
                *count = if enters { *count + 1 } else { *count - 1 };
            }
            size = if enters { size + rows.len() as u32 } else { size - rows.len() as u32 };
            size
        };
        let mut size = 0;
        for x in 0..radius.min(width) {
            size = column(&mut counts, x, true);
        }
        for (x, pixel) in line.iter_mut().enumerate() {
            if x + radius < width {
                size = column(&mut counts, x + radius, true);
            }
            if x > radius {
                size = column(&mut counts, x - radius - 1, false);
            }
            *pixel = of(&counts, size);
        }
    });
    out
}

/// The value that has `below` smaller or equal ones before it in sorted order.
fn rank(counts: &[u32; 256], below: u32) -> u8 {
    let mut seen = 0;
    for (value, &count) in counts.iter().enumerate() {
        seen += count;
        if seen > below {
            return value as u8;
        }
    }
    255
}

/// Otsu's threshold: the value `t` for which the classes `<= t` and `> t` are furthest apart (largest between-class
/// variance). Among equal ones, the middle of the first run, so that an empty gap is cut in its middle. 0 if there are
/// no two classes.
pub(crate) fn otsu(histogram: &[u64; 256]) -> u8 {
    let total: u64 = histogram.iter().sum();
    let sum: f64 = histogram.iter().enumerate().map(|(v, &n)| v as f64 * n as f64).sum();
    let (mut count, mut below, mut best, mut first, mut last) = (0u64, 0.0, 0.0, 0, 0);
    for (value, &n) in histogram.iter().enumerate() {
        count += n;
        below += value as f64 * n as f64;
        if count == 0 || count == total {
            continue;
        }
        let (w0, w1) = (count as f64, (total - count) as f64);
        let distance = below / w0 - (sum - below) / w1;
        let variance = w0 * w1 * distance * distance;
        if variance > best * (1.0 + 1e-12) {
            (best, first, last) = (variance, value, value);
        } else if n == 0 && last + 1 == value && best > 0.0 {
            last = value;
        }
    }
    ((first + last) / 2) as u8
}

/// Turns background that is enclosed by tissue and at most `max_area` pixels large into tissue.
pub(crate) fn fill_holes(mask: &mut [bool], width: usize, height: usize, max_area: f64) {
    if max_area <= 0.0 {
        return;
    }
    // A hole is 4-connected where tissue is 8-connected: a diagonal chain of tissue encloses.
    components(mask, width, height, false, |mask, pixels| {
        let open = |&i: &usize| i % width == 0 || i % width == width - 1 || i < width || i / width == height - 1;
        if pixels.len() as f64 <= max_area && !pixels.iter().any(open) {
            pixels.iter().for_each(|&i| mask[i] = true);
        }
    });
}

/// Turns tissue pieces of fewer than `min_area` pixels into background.
pub(crate) fn remove_pieces(mask: &mut [bool], width: usize, height: usize, min_area: f64) {
    components(mask, width, height, true, |mask, pixels| {
        if (pixels.len() as f64) < min_area {
            pixels.iter().for_each(|&i| mask[i] = false);
        }
    });
}

/// Hands every connected component of the pixels equal to `value` to `each`: 8-connected for tissue, 4-connected for
/// background. `each` may flip the pixels it is given.
fn components(
    mask: &mut [bool],
    width: usize,
    height: usize,
    value: bool,
    mut each: impl FnMut(&mut [bool], &[usize]),
) {
    let mut seen: Vec<bool> = mask.iter().map(|&m| m != value).collect();
    let mut pixels = Vec::new();
    for start in 0..mask.len() {
        if seen[start] {
            continue;
        }
        seen[start] = true;
        pixels.clear();
        pixels.push(start);
        let mut next = 0;
        while next < pixels.len() {
            let (x, y) = (pixels[next] % width, pixels[next] / width);
            next += 1;
            for j in y.saturating_sub(1)..(y + 2).min(height) {
                for i in x.saturating_sub(1)..(x + 2).min(width) {
                    let index = j * width + i;
                    if !seen[index] && (value || i == x || j == y) {
                        seen[index] = true;
                        pixels.push(index);
                    }
                }
            }
        }
        each(mask, &pixels);
    }
}

/// Widens tissue by a rectangle of `radius_x`, `radius_y` pixels on every side.
pub(crate) fn dilate(mask: &mut [bool], width: usize, height: usize, radius_x: usize, radius_y: usize) {
    if radius_x == 0 && radius_y == 0 {
        return;
    }
    let sums = integral(mask, width, height);
    let node = |x: usize, y: usize| sums[y * (width + 1) + x];
    for y in 0..height {
        let (y0, y1) = (y.saturating_sub(radius_y), (y + radius_y + 1).min(height));
        for x in 0..width {
            let (x0, x1) = (x.saturating_sub(radius_x), (x + radius_x + 1).min(width));
            mask[y * width + x] = node(x1, y1) + node(x0, y0) > node(x0, y1) + node(x1, y0);
        }
    }
}

/// Narrows by the radius on every side but the image's own.
pub(crate) fn erode(mask: &mut [bool], width: usize, height: usize, radius: usize) {
    let invert = |mask: &mut [bool]| mask.iter_mut().for_each(|pixel| *pixel = !*pixel);
    invert(mask);
    dilate(mask, width, height, radius, radius);
    invert(mask);
}

/// Integral image of `(width + 1) x (height + 1)` nodes: tissue pixels above and to the left of each node.
pub(crate) fn integral(mask: &[bool], width: usize, height: usize) -> Vec<u32> {
    let mut sums = vec![0u32; (width + 1) * (height + 1)];
    for y in 0..height {
        let mut row = 0;
        for x in 0..width {
            row += u32::from(mask[y * width + x]);
            sums[(y + 1) * (width + 1) + x + 1] = sums[y * (width + 1) + x + 1] + row;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(entries: &[(usize, u64)]) -> [u64; 256] {
        let mut h = [0; 256];
        entries.iter().for_each(|&(v, n)| h[v] = n);
        h
    }

    #[test]
    fn otsu_worked_by_hand() {
        // The 6 x 6 example of the literature: levels 0..5 with counts 8, 7, 2, 6, 9, 4.
        // Between-class variances (weights as shares): t=0 .2222*.7778*(0-3.0357)^2 = 1.5926; t=1 .4167*.5833*(.4667-3.7143)^2
        // = 2.5635; t=2 .4722*.5278*(.6471-3.8947)^2 = 2.6287; t=3 .6389*.3611*(1.2609-4.3077)^2 = 2.1417. Largest: t = 2.
        assert_eq!(otsu(&histogram(&[(0, 8), (1, 7), (2, 2), (3, 6), (4, 9), (5, 4)])), 2);
    }

    #[test]
    fn otsu_cuts_an_empty_gap_in_its_middle() {
        // Two spikes at 10 and 20: every t from 10 to 19 is as good; the middle is 14.
        assert_eq!(otsu(&histogram(&[(10, 50), (20, 5)])), 14);
        assert_eq!(otsu(&histogram(&[(7, 100)])), 0);
        assert_eq!(otsu(&[0; 256]), 0);
    }

    #[test]
    fn the_median_is_the_sorted_middle() {
        let (width, height, radius) = (13, 9, 2);
        let values: Vec<u8> = (0..width * height).map(|i| ((i * 97 + i * i * 31) % 251) as u8).collect();
        let got = median(&values, width, height, radius);
        for y in 0..height {
            for x in 0..width {
                let mut window = Vec::new();
                for j in y.saturating_sub(radius)..(y + radius + 1).min(height) {
                    for i in x.saturating_sub(radius)..(x + radius + 1).min(width) {
                        window.push(values[j * width + i]);
                    }
                }
                window.sort_unstable();
                assert_eq!(got[y * width + x], window[window.len() / 2], "at {x}, {y}");
            }
        }
        assert_eq!(median(&values, width, height, 0), values);
        assert_eq!(median(&[9, 1], 2, 1, 25), [9, 9]);
    }

    #[test]
    fn entropy_is_that_of_the_window() {
        // A window of 3 x 3 whose median is 7, so a level is 3 to 10: four of it, two of the level below, three of one above.
        let values = [7, 2, 200, 7, 7, 202, 2, 10, 200];
        let expected = |counts: &[f64]| {
            let all: f64 = counts.iter().sum();
            (counts.iter().map(|n| -n / all * (n / all).log2()).sum::<f64>() * 51.0).round() as u8
        };
        assert_eq!(entropy(&values, 3, 3, 1, 255)[4], expected(&[4.0, 2.0, 3.0]));
        // The corner sees 7, 2, 7 and 7.
        assert_eq!(entropy(&values, 3, 3, 1, 255)[0], expected(&[3.0, 1.0]));
        // Every value once: 32 levels.
        let all: Vec<u8> = (0..256 * 4).map(|i| (i % 256) as u8).collect();
        assert_eq!(entropy(&all, 32, 32, 31, 255)[0], 255);
        // On glass of 7 and more what is brighter counts as glass.
        assert_eq!(entropy(&values, 3, 3, 1, 7)[4], expected(&[7.0, 2.0]));
        // Light that falls off by one grey value in two pixels has no texture.
        let falling: Vec<u8> = (0..900).map(|i| 200 - (i % 30 / 2) as u8).collect();
        assert!(entropy(&falling, 30, 30, 4, 255).iter().all(|&e| e == 0));
    }

    fn picture(rows: &[&str]) -> (Vec<bool>, usize, usize) {
        let mask = rows.iter().flat_map(|r| r.bytes().map(|b| b == b'#')).collect();
        (mask, rows[0].len(), rows.len())
    }

    #[test]
    fn a_diagonal_ring_encloses_and_the_border_does_not() {
        let (mut mask, w, h) = picture(&["..#..", ".#.#.", "..#..", "#....", ".#..."]);
        fill_holes(&mut mask, w, h, 1.0);
        assert_eq!(mask, picture(&["..#..", ".###.", "..#..", "#....", ".#..."]).0);
    }

    #[test]
    fn pieces_are_connected_over_corners() {
        let (mut mask, w, h) = picture(&["#...#", ".#...", "..#.."]);
        remove_pieces(&mut mask, w, h, 3.0);
        assert_eq!(mask, picture(&["#....", ".#...", "..#.."]).0);
    }

    #[test]
    fn erosion_comes_from_inside_the_image() {
        let (mut mask, w, h) = picture(&["####.", "####.", "####."]);
        erode(&mut mask, w, h, 1);
        assert_eq!(mask, picture(&["###..", "###..", "###.."]).0);
    }

    #[test]
    fn dilation_is_a_rectangle() {
        let (mut mask, w, h) = picture(&[".....", "..#..", "....."]);
        dilate(&mut mask, w, h, 1, 0);
        assert_eq!(mask, picture(&[".....", ".###.", "....."]).0);
    }
}
