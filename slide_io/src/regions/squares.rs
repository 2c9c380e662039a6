//! What squares of one size cover together, as polygons along their sides.

use super::{Polygon, trace};
use crate::geometry::Point;

/// Most cells that the sides of all squares, prolonged, may cut the plane into; beyond that squares stay apart. A grid of
/// patches has a few times as many cells as patches.
const MOST_CELLS: usize = 1 << 26;
/// How far apart two sides may be that are meant to be one: both were rounded.
const SNAP: i64 = 1;

/// The union of the squares with these upper left corners and sides of `side`, one polygon for each piece, in the order
/// of their first corners.
pub(super) fn union(origins: &[Point], side: f64) -> Vec<Polygon> {
    let side = side.round().max(1.0) as i64;
    let spans = |axis: fn(&Point) -> i64| -> Vec<[i64; 2]> {
        let mut starts: Vec<i64> = origins.iter().map(axis).collect();
        starts.sort_unstable();
        starts.dedup();
        let snapped = |end: i64| {
            let next = starts.partition_point(|&start| start < end - SNAP);
            starts.get(next).copied().filter(|&start| start <= end + SNAP).unwrap_or(end)
        };
        origins.iter().map(|origin| [axis(origin), snapped(axis(origin) + side)]).collect()
    };
    let (across, down) = (spans(|p| p.x), spans(|p| p.y));
    let (columns, rows) = (edges(&across), edges(&down));
    let (width, height) = (columns.len().saturating_sub(1), rows.len().saturating_sub(1));
    if width * height > MOST_CELLS {
        return across.iter().zip(&down).map(|(x, y)| square(*x, *y)).collect();
    }
    let mut covered = vec![false; width * height];
    for (x, y) in across.iter().zip(&down) {
        let [left, right] = x.map(|edge| columns.partition_point(|&known| known < edge));
        let [top, bottom] = y.map(|edge| rows.partition_point(|&known| known < edge));
        for row in top..bottom {
            covered[row * width + left..row * width + right].fill(true);
        }
    }
    trace::outlines(&covered, (width, height), |(column, row)| [columns[column] as f64, rows[row] as f64])
}

/// Every start and end once, ascending.
fn edges(spans: &[[i64; 2]]) -> Vec<i64> {
    let mut edges: Vec<i64> = spans.iter().flatten().copied().collect();
    edges.sort_unstable();
    edges.dedup();
    edges
}

fn square([left, right]: [i64; 2], [top, bottom]: [i64; 2]) -> Polygon {
    let corners = [[left, top], [right, top], [right, bottom], [left, bottom]];
    Polygon { exterior: corners.map(|corner| corner.map(|edge| edge as f64)).to_vec(), holes: vec![] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(corners: &[(i64, i64)]) -> Vec<Point> {
        corners.iter().map(|&(x, y)| Point::new(x, y)).collect()
    }

    #[test]
    fn neighbours_are_one_piece_and_their_shared_side_is_gone() {
        let found = union(&points(&[(0, 0), (10, 0), (40, 0)]), 10.0);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].area(), found[0].exterior.len()), (200.0, 4));
        assert_eq!(found[1].area(), 100.0);
        assert!(union(&[], 10.0).is_empty());
    }

    #[test]
    fn a_rounded_step_leaves_no_slit() {
        // A step of 10.4: corners at 0, 10, 21, 31, sides of 10.4.
        let corners: Vec<(i64, i64)> = [0, 10, 21, 31].iter().flat_map(|&x| [(x, 0), (x, 10)]).collect();
        let found = union(&points(&corners), 10.4);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].exterior.len(), found[0].holes.len()), (4, 0), "{found:?}");
    }

    #[test]
    fn overlapping_squares_count_once_and_rings_have_holes() {
        assert_eq!(union(&points(&[(0, 0), (5, 5)]), 10.0)[0].area(), 175.0);
        let ring: Vec<(i64, i64)> = (0..9).filter(|&i| i != 4).map(|i| (i % 3 * 10, i / 3 * 10)).collect();
        let found = union(&points(&ring), 10.0);
        assert_eq!((found.len(), found[0].holes.len(), found[0].area()), (1, 1, 800.0));
    }

    #[test]
    fn detections_are_written_for_qupath_and_are_no_regions_to_work_on() {
        use crate::regions::{Detection, Regions, write_detections};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.geojson");
        let detection = |value: f64| Detection {
            polygon: square([0, 256], [0, 256]),
            class: Some("Attention".into()),
            color: Some([1, 2, 3]),
            measurements: vec![("Attention".into(), value), ("Percentile".into(), 99.5)],
        };
        write_detections(&path, &[detection(0.25), detection(0.5)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let properties = &json["features"][0]["properties"];
        assert_eq!(properties["objectType"], "detection");
        assert_eq!(properties["classification"]["name"], "Attention");
        assert_eq!(properties["measurements"], serde_json::json!({ "Attention": 0.25, "Percentile": 99.5 }));
        assert_eq!(json["features"][1]["geometry"]["coordinates"][0].as_array().unwrap().len(), 5);
        assert_ne!(json["features"][0]["id"], json["features"][1]["id"]);
        let error = Regions::read(&path).unwrap_err().to_string();
        assert!(error.contains("no annotation but a detection"), "{error}");
        assert!(write_detections(&path, &[detection(f64::NAN)]).is_err());
    }
}
