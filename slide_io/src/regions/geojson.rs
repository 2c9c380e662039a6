//! Regions as GeoJSON, the way QuPath and TRIDENT write and read it (RFC 7946 but for its longitudes and latitudes:
//! these are level-0 pixels).

mod coordinates;
mod writer;

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{Annotation, Ignored, Polygon, Regions, Ring};
use crate::error::{Error, Result};
use coordinates::Nested;
pub(super) use writer::{write, write_detections};

/// Longest file, in bytes: a few million corners.
const MAX_BYTES: u64 = 256 << 20;

/// What some editors put before UTF-8.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Whether a file that begins so may be GeoJSON.
pub(super) fn detect(head: &[u8]) -> bool {
    let text = head.strip_prefix(BYTE_ORDER_MARK.as_bytes()).unwrap_or(head).trim_ascii_start();
    matches!(text.first(), Some(b'{' | b'['))
}

pub(super) fn read(path: &Path) -> Result<Regions> {
    let bytes = fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if bytes > MAX_BYTES {
        return Err(Error::limit(path, format!("GeoJSON of {bytes} bytes; the limit is {MAX_BYTES}")));
    }
    let text = fs::read(path).map_err(|e| Error::io(path, e))?;
    let text = String::from_utf8(text).map_err(|e| Error::bad(path, format!("it is no UTF-8 text: {e}")))?;
    let regions = parse(&text).map_err(|what| Error::bad(path, what))?;
    match regions.ignored.first() {
        Some(Ignored { feature, reason }) if regions.annotations.is_empty() => {
            let count = regions.ignored.len();
            let what = format!("none of its {count} features is an area to use ({feature}: {reason}): draw polygons");
            Err(Error::unsupported(path, what))
        }
        _ => Ok(regions),
    }
}

/// Any object of GeoJSON: which of the fields it has depends on its type.
#[derive(Deserialize)]
struct Object {
    #[serde(rename = "type")]
    kind: String,
    features: Option<Vec<Object>>,
    geometry: Option<Box<Object>>,
    geometries: Option<Vec<Object>>,
    coordinates: Option<Nested>,
    properties: Option<Properties>,
    id: Option<Value>,
}

/// The properties that matter here, as QuPath names them; those of other tools may be anything.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Properties {
    #[serde(rename = "objectType")]
    object_type: Option<Value>,
    classification: Option<Value>,
    #[serde(rename = "isMissing")]
    is_missing: Option<Value>,
    #[serde(rename = "childObjects")]
    children: Option<Vec<Object>>,
}

fn parse(text: &str) -> std::result::Result<Regions, String> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let no_json = |e: serde_json::Error| format!("it is no GeoJSON: {e}");
    let mut regions = Regions::default();
    if text.trim_start().starts_with('[') {
        add_all(&mut regions, serde_json::from_str(text).map_err(no_json)?, "feature")?;
        return Ok(regions);
    }
    let object: Object = serde_json::from_str(text).map_err(no_json)?;
    match object.kind.as_str() {
        "FeatureCollection" => {
            let features = object.features.ok_or("a FeatureCollection without `features`")?;
            add_all(&mut regions, features, "feature")?;
        }
        _ => add(&mut regions, object, "feature 1")?,
    }
    Ok(regions)
}

fn add_all(regions: &mut Regions, objects: Vec<Object>, name: &str) -> std::result::Result<(), String> {
    objects.into_iter().zip(1..).try_for_each(|(object, number)| add(regions, object, &format!("{name} {number}")))
}

/// Adds a feature or a bare geometry, which errors and notes call `name`.
fn add(regions: &mut Regions, object: Object, name: &str) -> std::result::Result<(), String> {
    let failed = |what: String| format!("{name}: {what}");
    let (geometry, properties, id) = match object.kind.as_str() {
        "Feature" => (object.geometry, object.properties.unwrap_or_default(), object.id),
        _ => (Some(Box::new(object)), Properties::default(), None),
    };
    let mut polygons = Vec::new();
    let no_area = match (&geometry, no_region(&properties, id.as_ref())) {
        (_, Some(reason)) => Some(reason),
        (None, None) => Some("it has no geometry".to_owned()),
        (Some(geometry), None) => add_polygons(&mut polygons, geometry).map_err(failed)?,
    };
    match no_area {
        None => {
            let (class, color) = class(properties.classification.as_ref());
            regions.annotations.push(Annotation { class, color, polygons });
        }
        Some(reason) => regions.ignored.push(Ignored { feature: name.to_owned(), reason }),
    }
    add_all(regions, properties.children.unwrap_or_default(), &format!("{name}, child"))
}

/// Why a feature is none of the regions that people draw: QuPath exports its other objects the same way. Before 0.3 it
/// wrote their kind as `id`.
fn no_region(properties: &Properties, id: Option<&Value>) -> Option<String> {
    let kind = properties.object_type.as_ref().or(id).and_then(Value::as_str)?;
    match kind {
        "detection"
        | "cell"
        | "tile"
        | "root"
        | "PathDetectionObject"
        | "PathCellObject"
        | "PathTileObject"
        | "PathRootObject" => Some(format!("it is no annotation but a {kind}")),
        _ if properties.is_missing.as_ref().and_then(Value::as_bool) == Some(true) => {
            Some("it is a core that is missing".to_owned())
        }
        _ => None,
    }
}

/// Name and colour of a class: an object as QuPath writes it, or its name alone.
fn class(value: Option<&Value>) -> (Option<String>, Option<[u8; 3]>) {
    let Some(value) = value else { return (None, None) };
    let names = || {
        let names: Option<Vec<&str>> = value.get("names")?.as_array()?.iter().map(Value::as_str).collect();
        names.map(|names| names.join(": "))
    };
    let name = value.as_str().or_else(|| value.get("name")?.as_str()).map(str::to_owned).or_else(names);
    (name.filter(|name| !name.trim().is_empty()), color(value))
}

/// `color: [r, g, b]`, or `colorRGB` as Java packs it, before QuPath 0.4.
fn color(class: &Value) -> Option<[u8; 3]> {
    if let Some(packed) = class.get("colorRGB").and_then(Value::as_i64) {
        let [_, r, g, b] = (packed as u32).to_be_bytes();
        return Some([r, g, b]);
    }
    let parts = class.get("color")?.as_array()?;
    let parts: Option<Vec<u8>> = parts.iter().map(|part| u8::try_from(part.as_u64()?).ok()).collect();
    parts?.try_into().ok()
}

/// Adds the polygons of a geometry; or gives the reason why it is no area.
fn add_polygons(polygons: &mut Vec<Polygon>, geometry: &Object) -> std::result::Result<Option<String>, String> {
    let coordinates = || geometry.coordinates.as_ref().ok_or(format!("a {} without coordinates", geometry.kind));
    let before = polygons.len();
    match geometry.kind.as_str() {
        "Polygon" => polygons.extend(polygon(coordinates()?)?),
        "MultiPolygon" => {
            for part in coordinates()?.many("its polygons")? {
                polygons.extend(polygon(part)?);
            }
        }
        "GeometryCollection" => {
            for part in geometry.geometries.as_ref().ok_or("a GeometryCollection without `geometries`")? {
                // Points and lines beside areas are no loss.
                add_polygons(polygons, part)?;
            }
        }
        "Point" | "MultiPoint" | "LineString" | "MultiLineString" => {
            return Ok(Some(format!("a {} is no area", geometry.kind)));
        }
        other => return Err(format!("{other:?} is no geometry")),
    }
    Ok((polygons.len() == before).then(|| format!("a {} without an area", geometry.kind)))
}

/// The polygon with these rings; none if there are no rings, or no points in the first.
fn polygon(rings: &Nested) -> std::result::Result<Option<Polygon>, String> {
    let rings = rings.many("its rings")?;
    if matches!(rings.first(), Some(Nested::Many(points)) if points.is_empty()) {
        return Ok(None);
    }
    let mut rings =
        rings.iter().zip(1..).map(|(points, number)| ring(points).map_err(|e| format!("ring {number}: {e}")));
    let Some(exterior) = rings.next() else { return Ok(None) };
    Ok(Some(Polygon { exterior: exterior?, holes: rings.collect::<std::result::Result<_, _>>()? }))
}

fn ring(points: &Nested) -> std::result::Result<Ring, String> {
    let mut ring = Ring::new();
    for (point, number) in points.many("its points")?.iter().zip(1..) {
        match *point {
            Nested::Position(position) => ring.push(position),
            _ => return Err(format!("point {number} is not two numbers")),
        }
    }
    if ring.len() > 1 && ring.first() == ring.last() {
        ring.pop();
    }
    match ring.len() {
        count @ 0..3 => Err(format!("{count} different points enclose nothing")),
        _ => Ok(ring),
    }
}
