use std::fs;

use ::image::{GrayImage, ImageBuffer, Luma, LumaA, Rgb, RgbImage, Rgba};
use proptest::prelude::*;
use proptest::sample::Index;
use serde::Deserialize;

use super::*;
use crate::pyramid::{PyramidSpec, write_pyramid};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/regions");

/// What shapely says: see `tests/golden/regions/make.py`.
#[derive(Deserialize)]
struct Expected {
    slide: [u32; 2],
    areas: Vec<f64>,
    masks: Vec<Vec<String>>,
    tissue: Tissue,
}

#[derive(Deserialize)]
struct Tissue {
    scale: u32,
    rows: Vec<String>,
    outlines: Vec<Outline>,
}

#[derive(Debug, PartialEq, PartialOrd, Deserialize)]
struct Outline {
    exterior: Vec<[f64; 2]>,
    holes: Vec<Vec<[f64; 2]>>,
}

fn expected() -> Expected {
    serde_json::from_str(&fs::read_to_string(format!("{GOLDEN}/expected.json")).unwrap()).unwrap()
}

fn pixels(rows: &[String]) -> (Size, Vec<bool>) {
    let size = Size::new(rows[0].len() as u32, rows.len() as u32);
    (size, rows.iter().flat_map(|row| row.bytes().map(|byte| byte == b'#')).collect())
}

fn tissue() -> (TissueMask, Expected) {
    let expected = expected();
    let ((size, data), scale) = (pixels(&expected.tissue.rows), expected.tissue.scale);
    let mask = TissueMask::from_pixels(size, Size::new(size.width * scale, size.height * scale), data).unwrap();
    (mask, expected)
}

/// Tissue everywhere.
fn whole(size: Size, slide: Size) -> Mask {
    Mask::new(size, slide, vec![true; size.width as usize * size.height as usize]).unwrap()
}

#[test]
fn areas_and_insides_are_those_of_shapely() {
    let expected = expected();
    let regions = Regions::read(Path::new(&format!("{GOLDEN}/annotations.geojson"))).unwrap();
    let classes: Vec<_> = regions.annotations.iter().map(|a| a.class.as_deref()).collect();
    assert_eq!(classes, [Some("Tumor"), Some("Stroma"), None, Some("Ignore*")]);
    assert_eq!(regions.annotations[0].polygons.len(), 2);
    for (annotation, area) in regions.annotations.iter().zip(&expected.areas) {
        // Both sum the same products of coordinates in double precision, in another order.
        assert!((annotation.area() - area).abs() < 1e-9 * area, "{} {area}", annotation.area());
    }
    let slide = Size::new(expected.slide[0], expected.slide[1]);
    for rows in &expected.masks {
        let (size, inside) = pixels(rows);
        assert!(regions.mask(size, slide).unwrap().data() == inside, "{size:?}");
    }
}

#[test]
fn outlines_are_the_union_of_the_pixels_as_shapely_makes_it() {
    let (mask, expected) = tissue();
    let scale = f64::from(expected.tissue.scale);
    let rotated = |ring: &Ring| {
        let mut ring: Vec<[f64; 2]> = ring.iter().map(|p| p.map(|v| v / scale)).collect();
        let first = (0..ring.len()).min_by(|&a, &b| ring[a].partial_cmp(&ring[b]).unwrap()).unwrap();
        ring.rotate_left(first);
        ring
    };
    let outline = |polygon: &Polygon| {
        let mut holes: Vec<_> = polygon.holes.iter().map(rotated).collect();
        holes.sort_by(|a, b| a.partial_cmp(b).unwrap());
        Outline { exterior: rotated(&polygon.exterior), holes }
    };
    let mut found: Vec<_> =
        Regions::trace(&mask).annotations.iter().flat_map(|a| &a.polygons).map(outline).collect::<Vec<_>>();
    found.sort_by(|a, b| a.partial_cmp(b).unwrap());
    assert_eq!(found, expected.tissue.outlines);
    assert!(found.iter().any(|outline| outline.holes.len() > 1));
}

#[test]
fn written_tissue_is_the_file_that_shapely_read_and_comes_back() {
    let (mask, _) = tissue();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("contours_geojson/s.geojson");
    let regions = Regions::trace(&mask);
    regions.write(&path).unwrap();
    let written = fs::read_to_string(&path).unwrap();
    assert_eq!(written, fs::read_to_string(format!("{GOLDEN}/tissue.geojson")).unwrap());
    assert_eq!(Regions::read(&path).unwrap(), regions);
    let slide = Size::new(mask.size().width * 16, mask.size().height * 16);
    assert_eq!(read_mask(&path, &whole(mask.size(), slide), slide).unwrap().mask.data(), mask.data());
}

fn parse(text: &str) -> Result<Regions> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.geojson");
    fs::write(&path, text).unwrap();
    Regions::read(&path)
}

fn square(x: i32, side: i32) -> String {
    let (left, right) = (x, x + side);
    format!("[[[{left},0],[{right},0],[{right},{side}],[{left},{side}],[{left},0]]]")
}

fn feature(x: i32, properties: &str) -> String {
    let coordinates = square(x, 10);
    format!(
        r#"{{"type":"Feature","geometry":{{"type":"Polygon","coordinates":{coordinates}}},"properties":{properties}}}"#
    )
}

#[test]
fn every_form_of_geojson_is_read() {
    let polygon = format!(r#"{{"type":"Polygon","coordinates":{}}}"#, square(5, 10));
    let with_height = polygon.replace("[5,0]", "[5,0,3.5]");
    let open = polygon.replace(",[5,0]]]", "]]");
    let collection =
        format!(r#"{{"type":"GeometryCollection","geometries":[{{"type":"Point","coordinates":[1,2]}},{polygon}]}}"#);
    let multi = format!(r#"{{"coordinates":[{}],"type":"MultiPolygon"}}"#, square(5, 10));
    let one = feature(5, "null");
    let list = format!("\u{feff} [{one}]");
    let features = format!(r#"{{"crs":{{"type":"name"}},"features":[{one}],"type":"FeatureCollection"}}"#);
    for text in [polygon, with_height, open, collection, multi, one, list, features] {
        let regions = parse(&text).unwrap();
        assert_eq!((regions.annotations.len(), regions.ignored.len()), (1, 0), "{text}");
        let expected = vec![[5.0, 0.0], [15.0, 0.0], [15.0, 10.0], [5.0, 10.0]];
        assert_eq!(regions.annotations[0].polygons, [Polygon { exterior: expected, holes: Vec::new() }], "{text}");
    }
    assert_eq!(parse(r#"{"type":"FeatureCollection","features":[]}"#).unwrap(), Regions::default());
}

#[test]
fn classes_of_old_and_new_files() {
    let class = |properties: &str| {
        let annotation = parse(&feature(0, properties)).unwrap().annotations.remove(0);
        (annotation.class, annotation.color)
    };
    let named = |name: &str, color| (Some(name.to_owned()), color);
    assert_eq!(class(r#"{"classification":{"name":"Tumor","color":[200,0,1]}}"#), named("Tumor", Some([200, 0, 1])));
    // QuPath 0.2 packs 0xffc80000.
    assert_eq!(class(r#"{"classification":{"name":"Tumor","colorRGB":-3670016}}"#), named("Tumor", Some([200, 0, 0])));
    assert_eq!(class(r#"{"classification":"Stroma"}"#), named("Stroma", None));
    assert_eq!(class(r#"{"classification":{"names":["Tumor","Positive"]}}"#), named("Tumor: Positive", None));
    assert_eq!(class(r#"{"classification":null,"tissue_id":3}"#), (None, None));
    assert_eq!(class(r#"{"classification":{"name":" "}}"#), (None, None));
}

#[test]
fn exclusions_are_known_by_their_class() {
    let is_exclusion = |class: &str| Annotation { class: Some(class.into()), ..Annotation::default() }.is_exclusion();
    for class in ["Ignore*", "Artefact*", "ignore", "Exclude", "EXCLUSION", "artifacts", " artefact "] {
        assert!(is_exclusion(class), "{class}");
    }
    for class in ["Region*", "region*", "Tumor", "", "Ignored by nobody"] {
        assert!(!is_exclusion(class), "{class}");
    }
    assert!(!Annotation::default().is_exclusion());
}

#[test]
fn exclusions_are_taken_away_wherever_they_stand() {
    let (left, right) = (feature(0, r#"{"classification":"exclude"}"#), feature(10, "{}"));
    let mask = |features: &[&str]| {
        let regions = parse(&format!("[{}]", features.join(","))).unwrap();
        let mask = regions.mask(Size::new(3, 1), Size::new(30, 10)).unwrap();
        mask.data().iter().map(|&inside| if inside { '#' } else { '.' }).collect::<String>()
    };
    let all = format!(r#"{{"type":"Polygon","coordinates":{}}}"#, square(0, 30));
    assert_eq!(mask(&[&left, &all]), ".##");
    assert_eq!(mask(&[&all, &left]), ".##");
    assert_eq!(mask(&[&right, &left]), ".#.");
    assert_eq!(mask(&[&left]), ".##", "nothing but exclusions: everything else");
    assert_eq!(mask(&[]), "...");
}

#[test]
fn what_is_no_region_is_listed_with_its_reason() {
    let cell = feature(0, r#"{"objectType":"cell"}"#);
    let old = feature(0, "{}").replacen(r#""Feature""#, r#""Feature","id":"PathDetectionObject""#, 1);
    let core = feature(0, r#"{"objectType":"tmaCore","isMissing":true}"#);
    let nothing = r#"{"type":"Feature","geometry":null,"properties":{}}"#;
    let point = r#"{"type":"Feature","geometry":{"type":"Point","coordinates":[3,4]},"properties":{}}"#;
    let empty = r#"{"type":"Polygon","coordinates":[]}"#;
    let parent = feature(0, &format!(r#"{{"objectType":"annotation","childObjects":[{cell},{}]}}"#, feature(9, "{}")));
    let all = [&cell, &old, &core, nothing, point, empty, &parent];
    let regions = parse(&format!("[{}]", all.join(","))).unwrap();
    assert_eq!(regions.annotations.len(), 2, "the parent and one child");
    let ignored: Vec<_> = regions.ignored.iter().map(|i| format!("{}: {}", i.feature, i.reason)).collect();
    let expected = [
        "feature 1: it is no annotation but a cell",
        "feature 2: it is no annotation but a PathDetectionObject",
        "feature 3: it is a core that is missing",
        "feature 4: it has no geometry",
        "feature 5: a Point is no area",
        "feature 6: a Polygon without an area",
        "feature 7, child 1: it is no annotation but a cell",
    ];
    assert_eq!(ignored, expected);
    let error = parse(&format!("[{point},{cell}]")).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }));
    assert!(error.to_string().contains("none of its 2 features is an area to use (feature 1: a Point is no area)"));
}

#[test]
fn damaged_files_say_where() {
    let damaged = |text: &str, what: &str| {
        let error = parse(text).unwrap_err();
        assert!(matches!(error, Error::BadFile { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("s.geojson") && message.contains(what), "{message}");
    };
    let second =
        |coordinates: &str| format!(r#"[{},{{"type":"Polygon","coordinates":{coordinates}}}]"#, feature(0, "{}"));
    damaged(&second("[[[0,0],[1,1],[0,0]]]"), "feature 2: ring 1: 2 different points enclose nothing");
    damaged(&second("[[[0,0],[1,1],[5,0]],[[0,0]]]"), "feature 2: ring 2: 1 different points");
    damaged(&second("[[[0,0],[1,null],[5,0]]]"), "feature 2: ring 1: point 2 is not two numbers");
    damaged(&second(r#"[[[0,0],[1,"1"],[5,0]]]"#), "feature 2: ring 1: point 2 is not two numbers");
    damaged(&second("[[[0,0],[1],[5,0]]]"), "feature 2: ring 1: point 2 is not two numbers");
    damaged(&second("[[0,0],[1,1],[5,0]]"), "feature 2: ring 1: its points are no list");
    damaged(&second("[0,0]"), "feature 2: its rings are no list");
    damaged(&second("null"), "feature 2: a Polygon without coordinates");
    // What is no JSON has no features to count yet.
    damaged(&second("[[[0,0],[1e999,1],[5,0]]]"), "line 1 column");
    damaged(&second("[[[0,0],[NaN,1],[5,0]]]"), "line 1 column");
    damaged(&feature(0, "{}")[..70], "EOF while parsing");
    damaged(r#"{"type":"Feature","geometry":{"type":"Circle"}}"#, "feature 1: \"Circle\" is no geometry");
    damaged(r#"{"type":"FeatureCollection"}"#, "without `features`");
    damaged("", "EOF");
    damaged(&second(&"[".repeat(100_000)), "recursion limit");
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Regions::read(&folder.path().join("gone.geojson")), Err(Error::Io { .. })));
}

#[test]
fn all_kinds_of_annotations_come_back_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.geojson");
    let triangle = |x: f64| vec![[x, 0.25], [x + 9.5, 0.25], [x, 7.0]];
    let polygon = |x| Polygon { exterior: triangle(x), holes: vec![triangle(x + 1.0)] };
    let regions = Regions {
        annotations: vec![
            Annotation {
                class: Some("Tumor \"é\"".into()),
                color: Some([1, 2, 3]),
                polygons: vec![polygon(0.0), polygon(50.5)],
            },
            Annotation { class: None, color: None, polygons: vec![polygon(-3.0)] },
            Annotation { class: None, color: None, polygons: vec![polygon(-3.0)] },
        ],
        ignored: Vec::new(),
    };
    regions.write(&path).unwrap();
    assert_eq!(Regions::read(&path).unwrap(), regions);
    let first = fs::read(&path).unwrap();
    Regions::read(&path).unwrap().write(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), first, "the same regions give the same bytes");
    // Two equal annotations are still two objects.
    let value: serde_json::Value = serde_json::from_slice(&first).unwrap();
    let ids: Vec<_> = (0..3).map(|i| value["features"][i]["id"].as_str().unwrap()).collect();
    assert!(ids[1] != ids[2]);
    for id in ids {
        let (version, variant) = (id.as_bytes()[14], id.as_bytes()[19]);
        assert!(id.len() == 36 && version == b'8' && b"89ab".contains(&variant), "{id}");
    }
    Regions::default().write(&path).unwrap();
    assert_eq!(Regions::read(&path).unwrap(), Regions::default());
    let broken = Polygon { exterior: vec![[0.0, 0.0], [1.0, f64::NAN], [1.0, 1.0]], holes: Vec::new() };
    let broken = Annotation { polygons: vec![broken], ..Annotation::default() };
    let broken = Regions { annotations: vec![broken], ignored: Vec::new() };
    assert!(matches!(broken.write(&path), Err(Error::Usage(_))));
}

#[test]
fn annotations_of_another_slide_are_counted() {
    let regions = parse(&format!("[{},{},{}]", feature(0, "{}"), feature(95, "{}"), feature(200, "{}"))).unwrap();
    assert_eq!(regions.outside(Size::new(100, 50)), 1);
    assert_eq!(regions.outside(Size::new(1000, 50)), 0);
}

#[test]
fn the_file_of_a_slide_is_found_or_unclear() {
    let folder = tempfile::tempdir().unwrap();
    let touch = |name: &str| fs::write(folder.path().join(name), "").unwrap();
    assert_eq!(for_slide(folder.path(), "S.01").unwrap(), None);
    touch("S.01.tiff");
    touch("S.01.png");
    touch("S.geojson");
    assert_eq!(for_slide(folder.path(), "S.01").unwrap(), Some(folder.path().join("S.01.png")));
    touch("S.01.geojson");
    let error = for_slide(folder.path(), "S.01").unwrap_err();
    assert!(matches!(error, Error::Usage(_)));
    assert!(error.to_string().contains("S.01.geojson and S.01.png"), "{error}");
}

/// Masks as images: a disc on 60 x 40 pixels, over a slide ten times as large.
fn disc(x: u32, y: u32) -> bool {
    (f64::from(x) - 25.5).hypot(f64::from(y) - 17.5) < 13.0
}

const SLIDE: Size = Size::new(600, 400);

fn at_disc_scale(path: &Path) -> Result<TissueMask> {
    read_mask(path, &whole(Size::new(60, 40), SLIDE), SLIDE).map(|drawn| drawn.mask)
}

#[test]
fn images_of_every_depth_are_masks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.png");
    let expected: Vec<bool> = (0..2400).map(|i| disc(i % 60, i / 60)).collect();
    let check = |kind: &str| {
        let mask = at_disc_scale(&path).unwrap();
        assert!(mask.data() == expected, "{kind}");
        assert_eq!(mask.scale(), (10.0, 10.0));
    };
    let value = |x, y, inside: u8| if disc(x, y) { inside } else { 0 };
    GrayImage::from_fn(60, 40, |x, y| Luma([value(x, y, 1)])).save(&path).unwrap();
    check("the smallest value of 8 bits");
    ImageBuffer::from_fn(60, 40, |x, y| Luma([u16::from(value(x, y, 1))])).save(&path).unwrap();
    check("the smallest value of 16 bits");
    RgbImage::from_fn(60, 40, |x, y| Rgb([0, 0, value(x, y, 200)])).save(&path).unwrap();
    check("any colour");
    ImageBuffer::from_fn(60, 40, |x, y| Rgba([255, 255, 255, value(x, y, 255)])).save(&path).unwrap();
    check("white on a transparent ground");
    ImageBuffer::from_fn(60, 40, |x, y| LumaA([value(x, y, 9), 255u8])).save(&path).unwrap();
    check("grey and opaque");
    let mut encoder = tiff::encoder::TiffEncoder::new(fs::File::create(&path).unwrap())
        .unwrap()
        .with_compression(tiff::encoder::Compression::Lzw);
    let grey: Vec<u8> = (0..2400).map(|i| value(i % 60, i / 60, 1)).collect();
    encoder.write_image::<tiff::encoder::colortype::Gray8>(60, 40, &grey).unwrap();
    check("a TIFF, whatever its name");
}

#[test]
fn an_image_finer_than_the_mask_is_shared_by_halves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.png");
    // Columns of 4 image pixels a mask pixel: 3, 2, 1 and 0 of 4 inside.
    let inside = [3, 2, 1, 0];
    GrayImage::from_fn(16, 8, |x, _| Luma([u8::from(x % 4 < inside[x as usize / 4])])).save(&path).unwrap();
    let mask = read_mask(&path, &whole(Size::new(4, 2), Size::new(1600, 800)), Size::new(1600, 800)).unwrap().mask;
    assert_eq!(mask.data(), [true, true, false, false].repeat(2));
    // And one that is coarser is enlarged.
    let mask = read_mask(&path, &whole(Size::new(32, 16), Size::new(1600, 800)), Size::new(1600, 800)).unwrap().mask;
    assert_eq!(mask.data()[..12], [1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1].map(|v| v == 1));
}

#[test]
fn images_that_are_no_mask_of_the_slide_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.png");
    let refusal = |what: &str| {
        let error = at_disc_scale(&path).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("mask.png") && message.contains(what), "{message}");
    };
    GrayImage::new(60, 42).save(&path).unwrap();
    refusal("it has 60 x 42 px, which is not the shape of 600 x 400");
    GrayImage::new(400, 600).save(&path).unwrap();
    refusal("it has 400 x 600 px");
    // 37 x 25 and 37 x 24 are roundings of 37.5 x 25.
    for height in [24, 25, 26] {
        GrayImage::new(37, height).save(&path).unwrap();
        assert_eq!(at_disc_scale(&path).is_ok(), height < 26, "{height}");
    }
    RgbImage::new(60, 40).save_with_format(&path, ::image::ImageFormat::Jpeg).unwrap();
    refusal("losses");
    write_pyramid(&path, &RgbImage::new(60, 40), &PyramidSpec { levels: vec![1], ..PyramidSpec::default() }).unwrap();
    refusal("losses");
    fs::write(&path, "P5 60 40").unwrap();
    refusal("neither GeoJSON nor a PNG or TIFF");
    GrayImage::new(60, 40).save(&path).unwrap();
    fs::write(&path, &fs::read(&path).unwrap()[..60]).unwrap();
    assert!(matches!(at_disc_scale(&path), Err(Error::BadFile { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_file_makes_it_panic(
        changes in proptest::collection::vec((any::<Index>(), any::<Index>()), 1..6),
        cut in any::<Index>(),
    ) {
        // Characters that mean something in JSON, put where they do not belong.
        let (first, second) = (feature(0, r#"{"classification":"exclude"}"#), feature(3, "{}"));
        let mut text = format!("[{first},{second}]").into_bytes();
        let letters = b"[]{},:\"0123456789.eE-nN";
        for (place, letter) in changes {
            let place = place.index(text.len());
            text[place] = letters[letter.index(letters.len())];
        }
        text.truncate(text.len() - cut.index(text.len()) / 20);
        if let Ok(regions) = parse(std::str::from_utf8(&text).unwrap()) {
            let mask = regions.mask(Size::new(20, 10), Size::new(40, 20)).unwrap();
            prop_assert_eq!(mask.data().len(), 200);
        }
    }
}
