//! Copies among slides and images, and what is said about them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use image::imageops;
use slide_io::manifest::ColumnNames;
use slide_io::{Cohort, Rgb, RgbImage};

use crate::cohort::{section, write_slide};
use crate::folder::{assert_same, failures, files, results, table};
use crate::program::{Ended, gensis};

/// Five slides, one turned and one mirrored copy, and one copied file; with a csv in which all goes wrong that can.
fn draw(root: &Path) -> PathBuf {
    let slides = root.join("slides");
    fs::create_dir_all(&slides).unwrap();
    let slide = |name: &str, image: &RgbImage, mpp: f64| write_slide(&slides.join(name), image, Some(mpp));
    for seed in 0..5 {
        slide(&format!("s{seed}.tiff"), &section(seed, false), 0.5);
    }
    slide("turned.tiff", &imageops::rotate90(&section(0, false)), 0.46);
    slide("mirrored.tiff", &imageops::flip_horizontal(&section(2, false)), 0.5);
    fs::copy(slides.join("s1.tiff"), slides.join("again.tiff")).unwrap();
    let csv = "slide_id,case_id,label,split\n\
        s0,p0,dots,train\nturned,p0,dots,test\n\
        s1,p1,dots,train\nagain,p2,dots,train\n\
        s2,p3,dots,val\nmirrored,p3,stripes,val\n\
        s3,p1,dots,train\ns4,p5,dots,test\n";
    fs::write(root.join("labels.csv"), csv).unwrap();
    slides
}

fn duplicates(kind: &str, data: &Path, out: &Path, more: &[&str]) -> Ended {
    let line = ["duplicates", kind, data.to_str().unwrap(), "--out", out.to_str().unwrap()];
    gensis(line.into_iter().chain(more.iter().copied()))
}

/// Some columns of each row.
fn columns<const N: usize>(path: &Path, names: [&str; N]) -> Vec<[String; N]> {
    table(path).iter().map(|row| names.map(|name| row[name].clone())).collect()
}

#[test]
fn copies_across_splits_are_leaks_and_groups_hold_them_together() {
    let folder = tempfile::tempdir().unwrap();
    let slides = draw(folder.path());
    let (out, labels) = (folder.path().join("out"), folder.path().join("labels.csv"));
    let labels = ["--labels", labels.to_str().unwrap()];
    let ended = duplicates("--slides", &slides, &out, &labels).with_code(3).saying(["duplicates: 8 slides"]);
    assert_eq!(ended.stdout, "3 pairs in 3 groups among 8 slides; 1 leak across splits\n");
    let found = columns(&out.join("pairs.csv"), ["a", "b", "kind", "orientation", "split_a", "group_b", "problem"]);
    let expected = [
        // The copy was turned clockwise; counter-clockwise brings it back.
        ["s0", "turned", "near", "rotate_90", "train", "p0", "leak"],
        ["again", "s1", "exact", "none", "train", "p1", "groups differ"],
        ["mirrored", "s2", "near", "flip_left_right", "val", "p3", "labels differ"],
    ];
    assert_eq!(found, expected);
    assert!(columns(&out.join("pairs.csv"), ["similarity"]).iter().all(|[text]| text.parse::<f32>().unwrap() > 0.7));
    assert_eq!(failures(&out), []);

    // The patients p1 and p2 share a picture, so all their slides are one group.
    let groups: BTreeMap<String, String> = table(&out.join("groups.csv"))
        .into_iter()
        .map(|mut row| (row.remove("slide_id").unwrap(), row.remove("duplicate_group").unwrap()))
        .collect();
    let group = |slide: &str| groups[slide].as_str();
    assert_eq!(group("turned"), group("s0"));
    assert_eq!((group("again"), group("s1"), group("s3")), ("again", "again", "again"));
    assert_eq!(group("mirrored"), group("s2"));
    assert_eq!(group("s4"), "s4");
    let names = ColumnNames {
        slide: "slide_id".into(),
        label: "label".into(),
        group: "duplicate_group".into(),
        split: "split".into(),
        mpp: "mpp".into(),
        stratum: String::new(),
    };
    let cohort = Cohort::load(slides.to_str().unwrap(), Some(&out.join("groups.csv")), &names, None).unwrap();
    assert_eq!(cohort.problems, []);
    assert!(cohort.slides.iter().all(|slide| slide.group.as_ref() == groups.get(&slide.id)));
    assert!(cohort.slides.iter().all(|slide| slide.split.is_some() && slide.label.is_some()));
}

#[test]
fn only_ones_own_folder_is_written_to_again() {
    let folder = tempfile::tempdir().unwrap();
    let slides = draw(folder.path());
    let out = folder.path().join("out");
    let first = duplicates("--slides", &slides, &out, &["--threads", "1"]).with_code(0);
    assert_eq!(first.stdout, "3 pairs in 3 groups among 8 slides; no splits given\n");
    let before = results(&out);
    duplicates("--slides", &slides, &out, &["--threads", "2"]).with_code(0);
    assert_same(&results(&out), &before);
    let stricter = ["--min-similarity", "1"];
    duplicates("--slides", &slides, &out, &stricter).with_error(["other settings", "--out", "--update"]);
    assert_same(&results(&out), &before);
    let ended = duplicates("--slides", &slides, &out, &[&stricter[..], &["--update"]].concat()).with_code(0);
    assert_eq!(ended.stdout, "1 pair in 1 group among 8 slides; no splits given\n");
    let foreign = files(&slides);
    duplicates("--slides", &slides, &slides, &["--update"]).with_error(["files that gensis did not write"]);
    assert_same(&files(&slides), &foreign);
    duplicates("--slides", &folder.path().join("nowhere"), &folder.path().join("new"), &[]).with_error(["nowhere"]);
    assert!(!folder.path().join("new").exists(), "a folder was made for nothing");
}

#[test]
fn unreadable_slides_are_listed_and_blank_ones_are_not_compared() {
    let folder = tempfile::tempdir().unwrap();
    let slides = draw(folder.path());
    let whole = fs::read(slides.join("s3.tiff")).unwrap();
    fs::write(slides.join("short.tiff"), &whole[..whole.len() / 3]).unwrap();
    for (name, grey) in [("blank1.tiff", 244), ("blank2.tiff", 241)] {
        write_slide(&slides.join(name), &RgbImage::from_pixel(700, 700, Rgb([grey; 3])), None);
    }
    let out = folder.path().join("out");
    let ended = duplicates("--slides", &slides, &out, &[]).with_code(3);
    let ended = ended.saying(["duplicates: short: ", "2 slides too plain to compare", "failures.csv"]);
    assert_eq!(ended.stdout, "3 pairs in 3 groups among 11 slides; no splits given\n");
    let failed = failures(&out);
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!((&failed[0].0[..], &failed[0].1[..]), ("duplicates", "short"));
    assert!(failed[0].2.contains("short.tiff"), "{failed:?}");
    let record = fs::read_to_string(out.join("duplicates.json")).unwrap();
    assert!(record.contains("blank1") && record.contains("blank2") && !record.contains("short"), "{record}");
}

#[test]
fn the_same_image_in_train_and_test_is_a_leak() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("out"));
    let picture = |seed: u64| imageops::crop_imm(&section(seed, false), 200, 200, 256, 256).to_image();
    let save = |image: &RgbImage, name: &str| {
        let path = images.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image.save(path).unwrap();
    };
    (0..4).for_each(|seed| save(&picture(seed), &format!("train/a/{seed}.png")));
    (4..6).for_each(|seed| save(&picture(seed), &format!("val/a/{seed}.png")));
    (6..8).for_each(|seed| save(&picture(seed), &format!("test/b/{seed}.png")));
    save(&imageops::rotate180(&picture(1)), "test/b/copy.jpg");
    save(&picture(5), "val/a/copy.png");
    let ended = duplicates("--images", &images, &out, &[]).with_code(3);
    assert_eq!(ended.stdout, "2 pairs in 2 groups among 10 images; 1 leak across splits\n");
    let names = ["a", "b", "kind", "orientation", "label_a", "label_b", "split_a", "split_b", "problem"];
    let expected = [
        ["train/a/1.png", "test/b/copy.jpg", "near", "rotate_180", "a", "b", "train", "test", "leak"],
        ["val/a/5.png", "val/a/copy.png", "exact", "none", "a", "a", "val", "val", ""],
    ];
    assert_eq!(columns(&out.join("pairs.csv"), names), expected);
    fs::remove_file(images.join("test/b/copy.jpg")).unwrap();
    duplicates("--images", &images, &out, &[]).with_code(0);
    gensis(["duplicates", "--out", folder.path().join("none").to_str().unwrap()]).with_error(["--slides", "--images"]);
}
