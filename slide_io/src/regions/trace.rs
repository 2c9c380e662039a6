//! From the pixels of a mask to polygons along their sides.
//!
//! The sides between tissue and background are followed with the tissue on the right hand (of one who looks at the
//! picture). Where two pixels of tissue touch at a corner only, the path turns to stay at its own pixel: tissue is
//! joined by sides. A path that comes to a corner a second time has closed a ring on the way, which is cut off: so no
//! ring touches itself, and a bay that is closed by a corner becomes a hole, as valid polygons need it.

use std::collections::HashMap;

use super::{Polygon, Ring, signed_area};
use crate::tissue::TissueMask;

/// A corner of pixels: column and row of the pixel below and right of it.
pub(super) type Corner = (usize, usize);

/// One polygon for each set of tissue pixels that are joined by their sides, in the order of their first pixels.
pub(super) fn polygons(mask: &TissueMask) -> Vec<Polygon> {
    let size = (mask.size().width as usize, mask.size().height as usize);
    let scale = mask.scale();
    outlines(mask.data(), size, |(x, y)| [x as f64 * scale.0, y as f64 * scale.1])
}

/// [`polygons`] of `width` x `height` cells; `level0` says where a corner of theirs lies, further right and down for higher
/// columns and rows.
pub(super) fn outlines(
    tissue: &[bool],
    (width, height): (usize, usize),
    level0: impl Fn(Corner) -> [f64; 2],
) -> Vec<Polygon> {
    let (labels, count) = pieces(tissue, width);
    let outlines = Outlines { tissue, width, height };
    let mut polygons = vec![Polygon::default(); count];
    let mut followed = vec![false; tissue.len()];
    for start in 0..tissue.len() {
        // Every ring has a side on top of a pixel of tissue, followed to the right.
        if !tissue[start] || followed[start] || (start >= width && tissue[start - width]) {
            continue;
        }
        let polygon = &mut polygons[labels[start] as usize];
        for corners in outlines.rings(start, &mut followed) {
            let ring: Ring = corners.into_iter().map(&level0).collect();
            match signed_area(&ring) > 0.0 {
                true => polygon.exterior = ring,
                false => polygon.holes.push(ring),
            }
        }
    }
    polygons
}

/// Of every tissue pixel the number of its piece, from 0 in the order of their first pixels; and how many there are.
fn pieces(tissue: &[bool], width: usize) -> (Vec<u32>, usize) {
    const NONE: u32 = u32::MAX;
    let mut labels = vec![NONE; tissue.len()];
    let mut count = 0;
    let mut waiting = Vec::new();
    for start in 0..tissue.len() {
        if !tissue[start] || labels[start] != NONE {
            continue;
        }
        labels[start] = count;
        waiting.push(start);
        while let Some(pixel) = waiting.pop() {
            let x = pixel % width;
            let sides = [
                (x > 0).then(|| pixel - 1),
                (x + 1 < width).then_some(pixel + 1),
                pixel.checked_sub(width),
                Some(pixel + width),
            ];
            for next in sides.into_iter().flatten() {
                if tissue.get(next) == Some(&true) && labels[next] == NONE {
                    labels[next] = count;
                    waiting.push(next);
                }
            }
        }
        count += 1;
    }
    (labels, count as usize)
}

/// The way along a side, as the eye sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heading {
    Right,
    Down,
    Left,
    Up,
}

impl Heading {
    const ALL: [Self; 4] = [Self::Right, Self::Down, Self::Left, Self::Up];

    fn turned(self, quarters_clockwise: usize) -> Self {
        Self::ALL[(self as usize + quarters_clockwise) % 4]
    }

    fn step(self, (x, y): Corner) -> Corner {
        match self {
            Self::Right => (x + 1, y),
            Self::Down => (x, y + 1),
            Self::Left => (x - 1, y),
            Self::Up => (x, y - 1),
        }
    }
}

struct Outlines<'a> {
    tissue: &'a [bool],
    width: usize,
    height: usize,
}

impl Outlines<'_> {
    /// The rings of the path that begins on top of the pixel `start`: their corners, straight runs merged. Marks the
    /// pixels whose tops it follows.
    fn rings(&self, start: usize, followed: &mut [bool]) -> Vec<Vec<Corner>> {
        let origin = (start % self.width, start / self.width);
        let mut rings = Vec::new();
        let mut path: Vec<Corner> = Vec::new();
        // Corners of the path that it may come to again, with their place on it.
        let mut pinched: HashMap<Corner, usize> = HashMap::new();
        let (mut at, mut heading) = (origin, Heading::Right);
        loop {
            if heading == Heading::Right {
                followed[at.1 * self.width + at.0] = true;
            }
            at = heading.step(at);
            let (left, right) = self.ahead(at, heading);
            let next = match (left, right) {
                (_, false) => heading.turned(1),
                (true, true) => heading.turned(3),
                (false, true) => heading,
            };
            if next != heading {
                if left
                    && !right
                    && let Some(place) = pinched.insert(at, path.len())
                {
                    let ring = path.split_off(place);
                    for corner in &ring {
                        pinched.remove(corner);
                    }
                    pinched.insert(at, place);
                    rings.push(ring);
                }
                path.push(at);
            }
            heading = next;
            if at == origin && heading == Heading::Right {
                rings.push(path);
                return rings;
            }
        }
    }

    /// Whether the pixels ahead of a corner are tissue, on the left hand and on the right.
    fn ahead(&self, (x, y): Corner, heading: Heading) -> (bool, bool) {
        // Pixels around the corner: above left, above right, below left, below right.
        let [nw, ne, sw, se] = [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(i, j)| self.at(x + i, y + j));
        match heading {
            Heading::Right => (ne, se),
            Heading::Down => (se, sw),
            Heading::Left => (sw, nw),
            Heading::Up => (nw, ne),
        }
    }

    /// Whether the pixel above and left of the corner (`x`, `y`) is tissue.
    fn at(&self, x: usize, y: usize) -> bool {
        x > 0 && y > 0 && x <= self.width && y <= self.height && self.tissue[(y - 1) * self.width + x - 1]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::geometry::Size;
    use crate::regions::Regions;

    fn mask(width: usize, bits: &[bool], scale: u32) -> TissueMask {
        let size = Size::new(width as u32, (bits.len() / width) as u32);
        TissueMask::from_pixels(size, Size::new(size.width * scale, size.height * scale), bits.to_vec()).unwrap()
    }

    fn picture(rows: &[&str]) -> TissueMask {
        let bits: Vec<bool> = rows.iter().flat_map(|row| row.bytes().map(|byte| byte == b'#')).collect();
        mask(rows[0].len(), &bits, 1)
    }

    /// A ring from its smallest corner on.
    fn rotated(ring: &Ring) -> Vec<(i64, i64)> {
        let mut ring: Vec<(i64, i64)> = ring.iter().map(|p| (p[0] as i64, p[1] as i64)).collect();
        let first = ring.iter().enumerate().min_by_key(|(_, corner)| **corner).map_or(0, |(place, _)| place);
        ring.rotate_left(first);
        ring
    }

    #[test]
    fn a_square_with_a_hole_by_hand() {
        let found = polygons(&picture(&["....", ".###", ".#.#", ".###"]));
        assert_eq!(found.len(), 1);
        // To the right first: a positive area for the exterior, a negative one for the hole.
        assert_eq!(rotated(&found[0].exterior), [(1, 1), (4, 1), (4, 4), (1, 4)]);
        assert_eq!(found[0].holes.iter().map(rotated).collect::<Vec<_>>(), [[(2, 2), (2, 3), (3, 3), (3, 2)]]);
        assert_eq!(found[0].area(), 8.0);
    }

    #[test]
    fn corners_join_nothing() {
        let found = polygons(&picture(&["#.", ".#"]));
        let outlines: Vec<_> = found.iter().map(|p| rotated(&p.exterior)).collect();
        assert_eq!(outlines, [[(0, 0), (1, 0), (1, 1), (0, 1)], [(1, 1), (2, 1), (2, 2), (1, 2)]]);
    }

    #[test]
    fn a_bay_closed_by_a_corner_is_a_hole() {
        // The pixels at (2, 0) and (1, 1) touch at the corner (2, 1) and are joined the long way round.
        let found = polygons(&picture(&[".###", ".#.#", "#.##", "####"]));
        assert_eq!(found.len(), 1);
        let found = &found[0];
        assert_eq!(found.holes.len() + 1, 3);
        assert_eq!(found.area(), 12.0);
    }

    #[test]
    fn an_island_in_a_hole_is_a_piece_of_its_own() {
        let found = polygons(&picture(&["#####", "#...#", "#.#.#", "#...#", "#####"]));
        assert_eq!(found.iter().map(Polygon::area).collect::<Vec<_>>(), [16.0, 1.0]);
        assert_eq!(found.iter().map(|p| p.holes.len()).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn nothing_has_no_outline_and_everything_one() {
        assert!(polygons(&picture(&["...", "..."])).is_empty());
        let all = polygons(&picture(&["###", "###"]));
        assert_eq!((all.len(), all[0].exterior.len(), all[0].area()), (1, 4, 6.0));
    }

    /// Whether a ring is simple: no corner twice, and turning at every one of them.
    fn is_simple(ring: &Ring) -> bool {
        let corners = rotated(ring);
        let distinct: HashSet<_> = corners.iter().collect();
        let turns = (0..corners.len()).all(|i| {
            let [a, b, c] = [i, i + 1, i + 2].map(|j| corners[j % corners.len()]);
            (a.0 == b.0) != (b.0 == c.0) && (a.0 == b.0) != (a.1 == b.1)
        });
        distinct.len() == corners.len() && turns
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn outlines_give_back_the_pixels(
            width in 1usize..24, height in 1usize..24, share in 0.1f64..0.9, seed in any::<u64>(), scale in 1u32..40,
        ) {
            // A cheap noise: proptest would shrink thousands of booleans one by one.
            let mut state = seed | 1;
            let mut noise = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 11) as f64 / (1u64 << 53) as f64
            };
            let bits: Vec<bool> = (0..width * height).map(|_| noise() < share).collect();
            let mask = mask(width, &bits, scale);
            let regions = Regions::trace(&mask);
            let slide = Size::new(mask.size().width * scale, mask.size().height * scale);
            let filled = regions.mask(mask.size(), slide).unwrap();
            prop_assert_eq!(filled.data(), mask.data());
            // Not only by the rule for filling: areas add up, and the polygons are valid ones.
            let area: f64 = regions.annotations.iter().map(|a| a.area()).sum();
            let pixels = bits.iter().filter(|bit| **bit).count() as f64;
            prop_assert_eq!(area, pixels * f64::from(scale * scale));
            for polygon in regions.annotations.iter().flat_map(|a| &a.polygons) {
                prop_assert!(signed_area(&polygon.exterior) > 0.0 && is_simple(&polygon.exterior));
                prop_assert!(polygon.holes.iter().all(|hole| signed_area(hole) < 0.0 && is_simple(hole)));
            }
        }
    }
}
