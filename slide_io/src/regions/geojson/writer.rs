//! Annotations to GeoJSON.

use std::path::Path;

use serde::{Serialize, Serializer};

use crate::atomic_file;
use crate::error::{Error, Result};
use crate::regions::{Annotation, Detection, Polygon, Ring};

/// Writes annotations; see [`Regions::write`](crate::regions::Regions::write).
pub(in crate::regions) fn write(path: &Path, annotations: &[Annotation]) -> Result<()> {
    let corners = annotations.iter().flat_map(|a| &a.polygons).flat_map(|p| p.holes.iter().chain([&p.exterior]));
    if !corners.flatten().flatten().all(|number| number.is_finite()) {
        return Err(Error::Usage(format!("{}: an outline has a corner that is no number", path.display())));
    }
    atomic_file::write(path, to_text(annotations).as_bytes())
}

/// Writes detections; see [`write_detections`](crate::regions::write_detections).
pub(in crate::regions) fn write_detections(path: &Path, detections: &[Detection]) -> Result<()> {
    let corners =
        detections.iter().flat_map(|d| d.polygon.holes.iter().chain([&d.polygon.exterior])).flatten().flatten();
    let measured = detections.iter().flat_map(|d| &d.measurements).map(|(_, value)| value);
    if !corners.chain(measured).all(|number| number.is_finite()) {
        return Err(Error::Usage(format!("{}: a corner or a measurement is no number", path.display())));
    }
    let lines = detections.iter().zip(0..).map(|(detection, index)| detection_line(detection, index)).collect();
    atomic_file::write(path, collection(lines).as_bytes())
}

/// The fields in this order, whatever the features of serde_json.
#[derive(Serialize)]
struct Feature<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: String,
    geometry: Geometry,
    properties: Properties<'a>,
}

#[derive(Serialize)]
#[serde(tag = "type", content = "coordinates")]
enum Geometry {
    Polygon(Vec<Vec<[Rounded; 2]>>),
    MultiPolygon(Vec<Vec<Vec<[Rounded; 2]>>>),
}

#[derive(Serialize)]
struct Properties<'a> {
    #[serde(rename = "objectType")]
    object_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    classification: Option<Class<'a>>,
    #[serde(skip_serializing_if = "Measurements::is_empty")]
    measurements: Measurements<'a>,
}

/// Names and values as one object, in their order.
#[derive(Default)]
struct Measurements<'a>(&'a [(String, f64)]);

impl Measurements<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Measurements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

#[derive(Serialize)]
struct Class<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    color: Option<[u8; 3]>,
}

/// A whole number of hundredths of a pixel, written as short as can be.
#[derive(Clone, Copy)]
struct Rounded(f64);

impl Rounded {
    fn new(value: f64) -> Self {
        // Adding 0 makes one zero of two.
        Self((value * 100.0).round() / 100.0 + 0.0)
    }
}

impl Serialize for Rounded {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self.0 == self.0.trunc() && self.0.abs() < 1e15 {
            true => serializer.serialize_i64(self.0 as i64),
            false => serializer.serialize_f64(self.0),
        }
    }
}

fn to_text(annotations: &[Annotation]) -> String {
    collection(annotations.iter().zip(0..).map(|(annotation, index)| line(annotation, index)).collect())
}

fn collection(lines: Vec<String>) -> String {
    let end = if lines.is_empty() { "" } else { "\n" };
    format!("{{\"type\":\"FeatureCollection\",\"features\":[{end}{}{end}]}}\n", lines.join(",\n"))
}

fn line(annotation: &Annotation, index: u64) -> String {
    let mut polygons: Vec<_> = annotation.polygons.iter().map(closed_rings).collect();
    let geometry = match (polygons.len(), polygons.pop()) {
        (1, Some(only)) => Geometry::Polygon(only),
        (_, last) => Geometry::MultiPolygon(polygons.into_iter().chain(last).collect()),
    };
    let class = annotation.class.as_deref().map(|name| Class { name, color: annotation.color });
    let properties =
        Properties { object_type: "annotation", classification: class, measurements: Measurements::default() };
    let id = id(annotation.class.as_deref(), &annotation.polygons, index);
    let feature = Feature { kind: "Feature", id, geometry, properties };
    serde_json::to_string(&feature).expect("numbers and texts become JSON")
}

fn detection_line(detection: &Detection, index: u64) -> String {
    let class = detection.class.as_deref().map(|name| Class { name, color: detection.color });
    let measurements = Measurements(&detection.measurements);
    let properties = Properties { object_type: "detection", classification: class, measurements };
    let id = id(detection.class.as_deref(), std::slice::from_ref(&detection.polygon), index);
    let geometry = Geometry::Polygon(closed_rings(&detection.polygon));
    serde_json::to_string(&Feature { kind: "Feature", id, geometry, properties })
        .expect("numbers and texts become JSON")
}

fn closed_rings(polygon: &Polygon) -> Vec<Vec<[Rounded; 2]>> {
    let closed = |ring: &Ring| ring.iter().chain(ring.first()).map(|point| point.map(Rounded::new)).collect();
    std::iter::once(&polygon.exterior).chain(&polygon.holes).map(closed).collect()
}

/// A UUID (version 8 of RFC 9562) made from a feature and its place in the file by FNV-1a, so that the same
/// regions have the same ids. QuPath takes any UUID and tells objects apart by it.
fn id(class: Option<&str>, polygons: &[Polygon], index: u64) -> String {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u128::from(byte)).wrapping_mul((1 << 88) + 0x13b);
        }
    };
    add(&index.to_le_bytes());
    add(class.unwrap_or_default().as_bytes());
    for ring in polygons.iter().flat_map(|p| p.holes.iter().chain([&p.exterior])) {
        add(&(ring.len() as u64).to_le_bytes());
        ring.iter().flatten().for_each(|&number| add(&Rounded::new(number).0.to_le_bytes()));
    }
    let hash = hash & !(0xf << 76) & !(0b11 << 62) | 8 << 76 | 0b10 << 62;
    let hex = format!("{hash:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
