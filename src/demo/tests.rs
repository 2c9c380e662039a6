//! The cohort as a whole: same bytes every time, files that agree with the csv, classes that differ in what they mean.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use image::imageops::{FilterType, resize};
use slide_io::{Point, Region, Slide};

use super::field::Field;
use super::*;

fn small(slides: usize) -> DemoSpec {
    DemoSpec { slides, side_um: 260, seed: 5 }
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = [dir.to_owned(), dir.join("slides")].into_iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    names
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect()
}

fn paint_with_threads(threads: usize, spec: &DemoSpec) -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| paint_cohort(dir.path(), spec, |_| ())).unwrap();
    files(dir.path())
}

#[test]
fn same_seed_same_bytes_from_any_number_of_threads() {
    let (one, two) = (paint_with_threads(1, &small(6)), paint_with_threads(2, &small(6)));
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    assert_eq!(one.len(), 7);
    for (name, bytes) in &one {
        assert!(bytes == &two[name], "{name} differs between 1 and 2 threads");
    }
    let other = paint_with_threads(2, &DemoSpec { seed: 6, ..small(6) });
    assert!(one["demo_01.tiff"] != other["demo_01.tiff"], "two seeds, one slide");
}

#[test]
fn classes_are_balanced_and_patients_have_one_class() {
    let plans = plan(&DemoSpec::default());
    assert_eq!(plans.len(), 24);
    let ids: BTreeSet<_> = plans.iter().map(|p| &p.id).collect();
    assert_eq!(ids.len(), 24);
    let mut cases: BTreeMap<&str, Vec<Class>> = BTreeMap::new();
    for plan in &plans {
        cases.entry(&plan.case).or_default().push(plan.class);
        assert!((0.45..=0.55).contains(&plan.mpp.0), "{}", plan.mpp.0);
    }
    for class in Class::ALL {
        assert_eq!(plans.iter().filter(|p| p.class == class).count(), 8);
        let of_class = |slides: &&Vec<Class>| slides[0] == class;
        assert_eq!(cases.values().filter(of_class).filter(|slides| slides.len() == 2).count(), 2);
        assert_eq!(cases.values().filter(of_class).count(), 6);
    }
    assert!(cases.values().all(|slides| slides.iter().all(|&class| class == slides[0])));
    assert!(plans.iter().any(|p| p.scanner == Scanner::Aperio));
}

#[test]
fn stain_does_not_know_the_class() {
    let plan = plan(&small(3)).remove(0);
    let stains = Class::ALL.map(|class| format!("{:?}", SlidePlan { class, ..plan.clone() }.stain()));
    assert_eq!(stains[0], stains[1]);
    assert_eq!(stains[0], stains[2]);
}

#[test]
fn tissue_is_coloured_and_glass_is_not() {
    for plan in plan(&small(6)) {
        let (anatomy, _) = plan.tissue();
        let image = plan.paint();
        let (mut tissue, mut glass) = (Vec::new(), Vec::new());
        for (px, py, pixel) in image.enumerate_pixels().filter(|(px, py, _)| px % 3 == 0 && py % 3 == 0) {
            let (x, y) = (px as f32 * plan.mpp.0 as f32, py as f32 * plan.mpp.0 as f32);
            let [r, g, b] = pixel.0.map(f32::from);
            let saturation = (r.max(g).max(b) - r.min(g).min(b)) / r.max(g).max(b).max(1.0);
            match anatomy.tissue(x, y) {
                depth if depth > 5.0 => tissue.push(saturation),
                depth if depth < -5.0 => glass.push(saturation),
                _ => {}
            }
        }
        let share =
            |values: &[f32], above: f32| values.iter().filter(|&&s| s > above).count() as f32 / values.len() as f32;
        assert!(share(&tissue, 0.12) > 0.8, "{}: pale tissue, {}", plan.id, share(&tissue, 0.12));
        assert!(share(&glass, 0.06) < 0.02, "{}: tinted glass, {}", plan.id, share(&glass, 0.06));
        let covered = tissue.len() as f32 / (tissue.len() + glass.len()) as f32;
        assert!((0.3..0.9).contains(&covered), "{}: tissue covers {covered}", plan.id);
    }
}

#[test]
fn a_part_of_a_diseased_slide_is_diseased() {
    for plan in plan(&DemoSpec { slides: 6, side_um: 420, seed: 1 }) {
        let (_, cells) = plan.tissue();
        let count = |kind: cells::Kind| cells.iter().filter(|c| c.kind == kind).count() as f32;
        let benign = count(cells::Kind::Enterocyte);
        assert!(benign > 100.0, "{}: {benign} benign nuclei", plan.id);
        let (pencil, pleomorphic) = (count(cells::Kind::Pencil), count(cells::Kind::Pleomorphic));
        match plan.class {
            Class::Benign => assert!(pencil == 0.0 && pleomorphic == 0.0, "{}", plan.id),
            Class::Adenoma => assert!(pencil > 60.0 && pleomorphic == 0.0, "{}: {pencil}", plan.id),
            Class::Carcinoma => assert!(pencil == 0.0 && pleomorphic > 60.0, "{}: {pleomorphic}", plan.id),
        }
    }
}

/// Nuclei as a pathologist would measure them, on the pixels: the share of the section that is stained by haematoxylin,
/// and how thick the thickest twentieth of it is (radius of the largest disc inside, µm).
fn measure_nuclei(plan: &SlidePlan) -> (f32, f32) {
    let (image, stain) = (plan.paint(), plan.stain());
    // At half the resolution chromatin is smooth, and a pale nucleus whole.
    let image = resize(&image, image.width() / 2, image.height() / 2, FilterType::Triangle);
    let dark: Vec<bool> = image.pixels().map(|&pixel| stain.unmix(pixel).haematoxylin > 0.36).collect();
    let pale = image.pixels().filter(|&&pixel| stain.unmix(pixel).eosin < 0.08).count();
    let depth = Field::signed_distance(image.width() as usize, image.height() as usize, &dark);
    let radius = depth.quantile_above(0.05, |i| dark[i]) * 2.0 * plan.mpp.0 as f32;
    let nuclei = dark.iter().filter(|&&d| d).count();
    (nuclei as f32 / (dark.len() - pale) as f32, radius)
}

#[test]
fn classes_differ_in_the_nuclei_that_can_be_measured() {
    let plans = plan(&DemoSpec { slides: 9, side_um: 420, seed: 2 });
    let mut measures: BTreeMap<Class, Vec<(f32, f32)>> = BTreeMap::new();
    let measured: Vec<_> = plans.par_iter().map(|p| (p.class, measure_nuclei(p))).collect();
    for (class, measure) in measured {
        measures.entry(class).or_default().push(measure);
    }
    let mean = |class: Class, part: fn(&(f32, f32)) -> f32| {
        measures[&class].iter().map(part).sum::<f32>() / measures[&class].len() as f32
    };
    let (share, radius) = (|class| mean(class, |m| m.0), |class| mean(class, |m| m.1));
    for class in Class::ALL {
        eprintln!("{class:?}: share {:.3} radius {:.2} µm {:?}", share(class), radius(class), measures[&class]);
    }
    // Both diseases crowd the section with nuclei, and thicken them. The bounds are half-way to what these seeds show.
    for class in [Class::Adenoma, Class::Carcinoma] {
        assert!(share(class) > 1.25 * share(Class::Benign));
        assert!(radius(class) > 1.4 * radius(Class::Benign));
    }
}

#[test]
fn classes_differ_in_the_nuclei_that_are_drawn() {
    let plans = plan(&DemoSpec { slides: 9, side_um: 420, seed: 3 });
    // Area that the largest twentieth of a slide's nuclei exceeds, µm².
    let large: Vec<(Class, f32)> = plans
        .par_iter()
        .map(|plan| {
            let nuclei = plan.tissue().1.into_iter().filter(|c| c.is_nucleus() && c.kind != cells::Kind::Plasma);
            let mut areas: Vec<f32> = nuclei.map(|c| c.area()).collect();
            areas.sort_by(f32::total_cmp);
            (plan.class, areas[areas.len() * 19 / 20])
        })
        .collect();
    let extreme = |class: Class, pick: fn(f32, f32) -> f32| {
        large.iter().filter(|(c, _)| *c == class).map(|&(_, area)| area).reduce(pick).unwrap()
    };
    eprintln!("{large:?}");
    assert!(extreme(Class::Adenoma, f32::min) > 1.3 * extreme(Class::Benign, f32::max));
    assert!(extreme(Class::Carcinoma, f32::min) > 1.1 * extreme(Class::Adenoma, f32::max));
}

#[test]
fn slides_open_with_their_levels_scale_and_labels() {
    let dir = tempfile::tempdir().unwrap();
    let done = AtomicUsize::new(0);
    paint_cohort(dir.path(), &small(6), |_| {
        done.fetch_add(1, Ordering::Relaxed);
    })
    .unwrap();
    assert_eq!(done.into_inner(), 6);
    let mut rows = csv::Reader::from_path(dir.path().join("labels.csv")).unwrap();
    assert_eq!(rows.headers().unwrap(), vec!["slide_id", "case_id", "label"]);
    let rows: Vec<[String; 3]> = rows.deserialize().collect::<Result<_, _>>().unwrap();
    let plans = plan(&small(6));
    assert_eq!(rows.len(), plans.len());
    for (row, plan) in rows.iter().zip(&plans) {
        assert_eq!(row, &[plan.id.clone(), plan.case.clone(), plan.class.name().to_owned()]);
        let slide = Slide::open(dir.path().join("slides").join(plan.file_name())).unwrap();
        assert!((slide.mpp().unwrap().0 - plan.mpp.0).abs() < 1e-4, "{:?} for {:?}", slide.mpp(), plan.mpp);
        assert_eq!(slide.levels().len(), 3);
        let vendor = if plan.scanner == Scanner::Aperio { "aperio" } else { "generic" };
        assert!(slide.format().contains(vendor), "{}", slide.format());
        // What is read is what was painted, but for JPEG.
        let painted = plan.paint();
        let size = slide.size();
        assert_eq!((size.width, size.height), painted.dimensions());
        let read = slide.read(&Region { level: 0, origin: Point { x: 0, y: 0 }, size }).unwrap();
        let error: u64 = read.iter().zip(painted.iter()).map(|(&a, &b)| u64::from(a.abs_diff(b))).sum();
        let mean_error = error as f64 / read.len() as f64;
        assert!(mean_error < 4.0, "{}: {mean_error} grey levels", plan.id);
    }
    assert!(rows.iter().zip(&plans).any(|(_, plan)| plan.scanner == Scanner::Aperio));
}

#[test]
fn impossible_cohorts_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = |spec: DemoSpec| paint_cohort(dir.path(), &spec, |_| ()).unwrap_err().to_string();
    assert!(refusal(DemoSpec { slides: 2, ..small(2) }).contains("at least 3"));
    assert!(refusal(DemoSpec { side_um: 50, ..small(6) }).contains("200 to 5000"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    fs::create_dir(dir.path().join("slides")).unwrap();
    fs::write(dir.path().join("slides/mine.tiff"), b"").unwrap();
    assert!(refusal(small(3)).contains("mine.tiff"));
    assert_eq!(fs::read_dir(dir.path().join("slides")).unwrap().count(), 1);
}

#[test]
#[ignore = "paints all slides of the demo; run it to measure time and sizes"]
fn the_default_cohort_is_small() {
    let dir = tempfile::tempdir().unwrap();
    let start = std::time::Instant::now();
    paint_cohort(dir.path(), &DemoSpec::default(), |_| ()).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let megabytes: Vec<f64> = files(dir.path()).values().map(|bytes| bytes.len() as f64 / 1e6).collect();
    let largest = megabytes.iter().copied().fold(0.0, f64::max);
    eprintln!("{seconds:.1} s, {:.1} MB in all, {largest:.2} MB the largest", megabytes.iter().sum::<f64>());
    assert!(largest < 2.0, "{largest} MB");
}
