//! What people draw: regions in place of the tissue mask, label masks.

use std::fs;
use std::path::{Path, PathBuf};

use slide_io::{Point, Rgb, RgbImage, h5};

use crate::cohort::{JOB, REFERENCE, SLIDES};
use crate::folder::{assert_same, below, failures, results, table};
use crate::program::{Ended, gensis};

fn tile(out: &Path, more: &[&str]) -> Ended {
    let experiment = REFERENCE.cohort.experiment();
    let line = ["tile", "--config", experiment.to_str().unwrap(), "--out", out.to_str().unwrap()];
    gensis(line.into_iter().chain(more.iter().copied()))
}

fn coordinates(run: &Path, slide: &str) -> h5::Coordinates {
    h5::read_coordinates(&run.join(JOB).join(format!("patches/{slide}_patches.h5"))).unwrap()
}

#[test]
fn contours_given_back_give_the_same_patches() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second, roi] = ["first", "second", "roi"].map(|name| folder.path().join(name));
    tile(&first, &[]).with_code(0);
    fs::rename(first.join("contours_geojson"), &roi).unwrap();
    assert_eq!(roi.read_dir().unwrap().count(), SLIDES);
    tile(&second, &["--roi", roi.to_str().unwrap()]).with_code(0);
    for slide in ["s00", "s05", "s11"] {
        assert_eq!(coordinates(&second, slide).origins, coordinates(&first, slide).origins);
    }
    // What was found in them is what they are.
    let pictures = |run: &Path| below(&results(run), "thumbnails/");
    assert_same(&pictures(&second), &pictures(&first));
    assert!(!second.join("contours_geojson").exists(), "they are in the folder that was given");
    // Edited where they lie, they are not written over.
    let edited = second.join("contours_geojson");
    fs::rename(&roi, &edited).unwrap();
    let half = r#"{"type":"Polygon","coordinates":[[[0,0],[400,0],[400,800],[0,800],[0,0]]]}"#;
    fs::write(edited.join("s05.geojson"), half).unwrap();
    let again = tile(&second, &["--update", "--roi", edited.to_str().unwrap()]).with_code(0);
    again.saying(["(11 up to date)"]);
    assert_eq!(fs::read_to_string(edited.join("s05.geojson")).unwrap(), half);
    assert!(coordinates(&second, "s05").origins.iter().all(|origin| origin.x < 400));
}

/// A folder with a square of level-0 px from 210 to 456 as the region of `s00`, in QuPath's manner, and a class.
fn square(folder: &Path, class: Option<&str>) -> PathBuf {
    let roi = folder.join("drawn");
    fs::create_dir_all(&roi).unwrap();
    let class = class.map_or(String::new(), |name| format!(r#","classification":{{"name":"{name}"}}"#));
    let ring = "[[210,210],[456,210],[456,456],[210,456],[210,210]]";
    let text = format!(
        r#"{{"type":"FeatureCollection","features":[{{"type":"Feature","geometry":{{"type":"Polygon","coordinates":[{ring}]}},"properties":{{"objectType":"annotation"{class}}}}}]}}"#
    );
    fs::write(roi.join("s00.geojson"), text).unwrap();
    roi
}

#[test]
fn drawn_regions_take_the_place_of_the_tissue_mask() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let roi = square(folder.path(), None);
    let all = ["--roi", roi.to_str().unwrap(), "--set", "grid.min_tissue=1.0", "--set", "grid.stride=64"];
    let said = tile(&run, &all).with_code(3).stderr;
    // Squares of 128 px within 208..464 (a pixel of the mask is 16 px), in steps of 64: 256 and 320 along each side.
    let corners: Vec<Point> = [(256, 256), (320, 256), (256, 320), (320, 320)].map(|(x, y)| Point::new(x, y)).into();
    let job = "20x_128px_64px_overlap";
    let read = |run: &Path| h5::read_coordinates(&run.join(job).join("patches/s00_patches.h5")).unwrap().origins;
    assert_eq!(read(&run), corners, "{said}");
    tile(&folder.path().join("none"), &["--roi", "no/where"]).with_error(["data.roi", "no/where"]);
    let far = folder.path().join("far");
    fs::create_dir(&far).unwrap();
    let ring = "[[9000,0],[9400,0],[9400,400],[9000,0]]";
    fs::write(far.join("s00.geojson"), format!(r#"{{"type":"Polygon","coordinates":[{ring}]}}"#)).unwrap();
    let off = folder.path().join("off");
    tile(&off, &["--roi", far.to_str().unwrap()]).with_code(3).saying(["s00.geojson covers nothing of the slide"]);
    // Nobody drew on the others.
    let failed = failures(&run);
    assert_eq!(failed.len(), SLIDES - 1);
    assert!(failed.iter().all(|(_, _, reason)| reason.contains("no regions are drawn on it")), "{failed:?}");

    // The file edited: what was drawn is left out now of the tissue that was found.
    square(folder.path(), Some("Ignore*"));
    let out = folder.path().join("excluded");
    tile(&out, &all).with_code(3);
    let kept = read(&out);
    let found = folder.path().join("found");
    tile(&found, &all[2..]).with_code(0);
    let found = read(&found);
    assert!(!kept.is_empty() && kept.iter().all(|origin| found.contains(origin)));
    assert!(found.contains(&Point::new(256, 256)) && !kept.contains(&Point::new(256, 256)));
    // An area with the tissue inside it only.
    let corner = r#"{"type":"Polygon","coordinates":[[[0,0],[400,0],[400,400],[0,400],[0,0]]]}"#;
    fs::write(roi.join("s00.geojson"), corner).unwrap();
    let [drawn, inside] = ["area", "inside"].map(|name| folder.path().join(name));
    tile(&drawn, &all).with_code(3);
    tile(&inside, &[&all[..], &["--set", "data.roi_within_tissue=true"]].concat()).with_code(3);
    let (drawn, both) = (read(&drawn), read(&inside));
    assert!(!both.is_empty() && both.len() < drawn.len() && both.iter().all(|origin| drawn.contains(origin)));
    assert!(drawn.contains(&Point::new(0, 0)) && !both.contains(&Point::new(0, 0)), "the corner is glass");
}

#[test]
fn edited_outlines_are_never_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    tile(&run, &[]).with_code(0);
    let outlines = |slide: &str| run.join(format!("contours_geojson/{slide}.geojson"));
    let before = fs::read(outlines("s01")).unwrap();
    fs::write(outlines("s00"), r#"{"type":"Polygon","coordinates":[[[0,0],[800,0],[800,800],[0,800],[0,0]]]}"#)
        .unwrap();
    let edited = fs::read(outlines("s00")).unwrap();
    let wider = ["--update", "--set", "tissue.dilate_um=64"];
    tile(&run, &wider).with_code(0).saying(["s00.geojson was edited and is left as it is"]);
    assert_eq!(fs::read(outlines("s00")).unwrap(), edited);
    assert_ne!(fs::read(outlines("s01")).unwrap(), before);
    // What the program wrote it may write again.
    tile(&run, &["--update"]).with_code(0);
    assert_eq!(fs::read(outlines("s01")).unwrap(), before);
}

#[test]
fn an_edited_region_is_cut_anew() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let roi = square(folder.path(), None);
    let more = ["--roi", roi.to_str().unwrap()];
    tile(&run, &more).with_code(3);
    let before = coordinates(&run, "s00").origins;
    tile(&run, &more).with_code(3).saying(["(1 up to date)"]);
    // Asked for after the slides were cut without it, it counts for all of them.
    let whole = folder.path().join("whole");
    tile(&whole, &[]).with_code(0);
    tile(&whole, &["--update", more[0], more[1]]).with_code(3).saying(["(0 up to date)"]);
    assert!(!whole.join(JOB).join("patches/s01_patches.h5").exists());
    fs::write(roi.join("s00.geojson"), r#"{"type":"Polygon","coordinates":[[[0,0],[800,0],[800,800],[0,800],[0,0]]]}"#)
        .unwrap();
    tile(&run, &more).with_code(3).saying(["(0 up to date)"]);
    assert!(coordinates(&run, "s00").origins.len() > before.len());
}

#[test]
fn shares_of_label_masks_lie_beside_the_coordinates() {
    let folder = tempfile::tempdir().unwrap();
    let [run, masks] = ["run", "masks"].map(|name| folder.path().join(name));
    fs::create_dir(&masks).unwrap();
    // Left of 384 px benign (2), right of it Gleason 4.
    let mask = RgbImage::from_fn(800, 800, |x, _| Rgb([if x < 384 { 2 } else { 4 }, 0, 0]));
    mask.save(masks.join("s00_mask.png")).unwrap();
    let setting = format!("data.label_masks={masks:?}");
    tile(&run, &["--set", &setting]).with_code(0);
    let found = coordinates(&run, "s00");
    let labels = found.labels.unwrap();
    assert_eq!(labels.labels, [0, 1, 2, 3, 4, 5]);
    assert!(found.origins.iter().any(|o| o.x < 256) && found.origins.iter().any(|o| o.x >= 384));
    for (origin, shares) in found.origins.iter().zip(labels.values.chunks_exact(6)) {
        let benign = ((384 - origin.x) as f32 / 128.0).clamp(0.0, 1.0);
        assert_eq!(shares, [0.0, 0.0, benign, 0.0, 1.0 - benign, 0.0], "at {origin:?}");
    }
    assert_eq!(coordinates(&run, "s01").labels, None);
    // It changes no patch, so nothing but the coordinates is made anew, and features hold no shares.
    let trained = folder.path().join("trained");
    crate::folder::copy(&REFERENCE.run, &trained);
    let masked = REFERENCE.cohort.run(&trained, &["--update", "--set", &setting]).with_code(0);
    masked.saying(["pretrain: up to date", "dino, 213 patches of 12 slides (12 up to date)"]);
    assert!(coordinates(&trained, "s00").labels.is_some());
    // A mask that does not fit is that slide's failure.
    RgbImage::new(700, 800).save(masks.join("s01_mask.png")).unwrap();
    let again = folder.path().join("again");
    tile(&again, &["--set", &setting]).with_code(3);
    let failed = failures(&again);
    assert!(failed.len() == 1 && failed[0].1 == "s01" && failed[0].2.contains("700 x 800 px"), "{failed:?}");
    assert_eq!(table(&again.join("cohort.csv")).len(), SLIDES);
}
