//! Filling polygons: a scan line through the centres of every row of pixels, with the edges it crosses kept in a list.

use super::{Polygon, Ring};
use crate::geometry::Size;

/// A side of a ring that crosses the centres of the rows `first..end`.
struct Edge {
    first: usize,
    end: usize,
    /// Upper end, in level-0 pixels.
    x: f64,
    y: f64,
    /// Of x, for every level-0 pixel down.
    slope: f64,
    /// 0 for the exterior, from 1 on for the holes.
    ring: usize,
    /// How crossing it from left to right changes the winding number.
    winding: i32,
}

/// Sets the pixels whose centres are inside `polygon` to `value`. `data` has `size` pixels, row-major, over a slide of
/// `slide` level-0 pixels. Memory goes with the corners of the polygon, time with the rows its edges cross.
pub(super) fn fill(polygon: &Polygon, size: Size, slide: Size, data: &mut [bool], value: bool) {
    let scale_x = f64::from(slide.width) / f64::from(size.width);
    let scale_y = f64::from(slide.height) / f64::from(size.height);
    let mut edges = Vec::new();
    for (index, ring) in std::iter::once(&polygon.exterior).chain(&polygon.holes).enumerate() {
        add_edges(&mut edges, ring, index, scale_y, size.height);
    }
    edges.sort_by_key(|edge| edge.first);
    let rows = edges.first().map_or(0, |edge| edge.first)..edges.iter().map(|edge| edge.end).max().unwrap_or(0);
    let width = size.width as usize;
    let mut waiting = edges.iter().peekable();
    let mut active: Vec<&Edge> = Vec::new();
    let mut crossings = Vec::new();
    let mut windings = vec![0; polygon.holes.len() + 1];
    for row in rows {
        active.retain(|edge| edge.end > row);
        while let Some(edge) = waiting.next_if(|edge| edge.first <= row) {
            active.push(edge);
        }
        let y = (row as f64 + 0.5) * scale_y;
        crossings.clear();
        crossings.extend(active.iter().map(|edge| (edge.x + (y - edge.y) * edge.slope, edge.ring, edge.winding)));
        crossings.sort_by(|a: &(f64, usize, i32), b| a.0.total_cmp(&b.0));
        let line = &mut data[row * width..(row + 1) * width];
        for (from, to) in inside(&crossings, &mut windings) {
            let (from, to) = (centres_before(from, scale_x, size.width), centres_before(to, scale_x, size.width));
            line[from..to.max(from)].fill(value);
        }
    }
}

/// The edges of a ring that cross the centre of a row of a mask of `rows` rows.
fn add_edges(edges: &mut Vec<Edge>, ring: &Ring, index: usize, scale: f64, rows: u32) {
    let Some(&last) = ring.last() else { return };
    for (&a, &b) in std::iter::once(&last).chain(ring).zip(ring) {
        let (top, bottom, winding) = if a[1] < b[1] { (a, b, 1) } else { (b, a, -1) };
        let (first, end) = (centres_before(top[1], scale, rows), centres_before(bottom[1], scale, rows));
        if first < end {
            let slope = (bottom[0] - top[0]) / (bottom[1] - top[1]);
            edges.push(Edge { first, end, x: top[0], y: top[1], slope, ring: index, winding });
        }
    }
}

/// How many of `limit` pixels of `scale` level-0 pixels have their centre before `position`.
fn centres_before(position: f64, scale: f64, limit: u32) -> usize {
    // The cast takes what is no number as 0.
    (position / scale - 0.5).ceil().clamp(0.0, f64::from(limit)) as usize
}

/// The stretches of a line that are inside: where the exterior winds around them and no hole does. `windings` has a
/// zero for each ring, and has them again afterwards: rings are closed, and who has crossed all their sides is outside.
fn inside(crossings: &[(f64, usize, i32)], windings: &mut [i32]) -> Vec<(f64, f64)> {
    let mut stretches = Vec::new();
    let (mut holes, mut start) = (0, None);
    for &(x, ring, winding) in crossings {
        let was_around = windings[ring] != 0;
        windings[ring] += winding;
        let is_around = windings[ring] != 0;
        if ring > 0 {
            holes += i32::from(is_around) - i32::from(was_around);
        }
        match (start, windings[0] != 0 && holes == 0) {
            (None, true) => start = Some(x),
            (Some(from), false) => {
                stretches.push((from, x));
                start = None;
            }
            _ => {}
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(polygon: &Polygon, size: Size, slide: Size) -> Vec<bool> {
        let mut data = vec![false; size.width as usize * size.height as usize];
        fill(polygon, size, slide, &mut data, true);
        data
    }

    /// How often a ring winds around a point: the sum of the angles under which its sides are seen.
    fn winding(ring: &Ring, x: f64, y: f64) -> i64 {
        let angle = |a: [f64; 2], b: [f64; 2]| {
            let (ax, ay, bx, by) = (a[0] - x, a[1] - y, b[0] - x, b[1] - y);
            (ax * by - ay * bx).atan2(ax * bx + ay * by)
        };
        let around: f64 = (0..ring.len()).map(|i| angle(ring[i], ring[(i + 1) % ring.len()])).sum();
        (around / std::f64::consts::TAU).round() as i64
    }

    fn rectangle(x0: f64, y0: f64, x1: f64, y1: f64) -> Ring {
        vec![[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    }

    #[test]
    fn a_centre_on_the_border_belongs_to_the_right_and_below() {
        // Centres at 0.5, 1.5, ...: both rectangles have their sides on centres.
        let slide = Size::square(6);
        let left = Polygon { exterior: rectangle(0.5, 0.5, 2.5, 4.5), holes: Vec::new() };
        let right = Polygon { exterior: rectangle(2.5, 0.5, 5.5, 4.5), holes: Vec::new() };
        let (left, right) = (filled(&left, slide, slide), filled(&right, slide, slide));
        for (i, (left, right)) in left.into_iter().zip(right).enumerate() {
            let (x, y) = (i % 6, i / 6);
            assert_eq!(left, x < 2 && y < 4, "at {x}, {y}");
            assert_eq!(right, (2..5).contains(&x) && y < 4, "at {x}, {y}");
        }
    }

    #[test]
    fn what_lies_outside_is_cut_off() {
        let (size, slide) = (Size::new(4, 3), Size::new(400, 300));
        let far = Polygon { exterior: rectangle(-1e9, -1e9, 1e9, 160.0), holes: Vec::new() };
        assert_eq!(filled(&far, size, slide), [[true; 4], [true; 4], [false; 4]].concat()[..]);
        let beside = Polygon { exterior: rectangle(500.0, 0.0, 900.0, 300.0), holes: Vec::new() };
        assert!(!filled(&beside, size, slide).contains(&true));
    }

    #[test]
    fn an_outline_that_crosses_itself_encloses_all_it_goes_around() {
        // A five-pointed star: its middle is wound around twice.
        let star = [[5.0, 0.0], [8.0, 9.0], [0.0, 3.5], [10.0, 3.5], [2.0, 9.0]];
        let star = Polygon { exterior: star.to_vec(), holes: Vec::new() };
        assert!(filled(&star, Size::square(10), Size::square(10))[5 * 10 + 5]);
        // A bow tie winds around its halves in opposite ways.
        let tie = Polygon { exterior: vec![[0.0, 0.0], [10.0, 10.0], [10.0, 0.0], [0.0, 10.0]], holes: Vec::new() };
        let tie = filled(&tie, Size::square(10), Size::square(10));
        assert!(tie[5 * 10 + 1] && tie[5 * 10 + 8] && !tie[10 + 5] && !tie[8 * 10 + 5]);
    }

    fn ring() -> impl Strategy<Value = Ring> {
        proptest::collection::vec((-60.0f64..160.0, -60.0f64..120.0).prop_map(|(x, y)| [x, y]), 3..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn pixels_are_filled_if_the_outline_winds_around_their_centres(
            exterior in ring(), holes in proptest::collection::vec(ring(), 0..3), width in 1u32..40, height in 1u32..40,
        ) {
            // Twelve random corners cross each other freely; a centre lies on none of the sides but by a miracle.
            let polygon = Polygon { exterior, holes };
            let (size, slide) = (Size::new(width, height), Size::new(100, 60));
            let (scale_x, scale_y) = (100.0 / f64::from(width), 60.0 / f64::from(height));
            for (i, inside) in filled(&polygon, size, slide).into_iter().enumerate() {
                let x = ((i as u32 % width) as f64 + 0.5) * scale_x;
                let y = ((i as u32 / width) as f64 + 0.5) * scale_y;
                let expected = winding(&polygon.exterior, x, y) != 0
                    && polygon.holes.iter().all(|hole| winding(hole, x, y) == 0);
                prop_assert_eq!(inside, expected, "at {}, {}", x, y);
            }
        }
    }
}
