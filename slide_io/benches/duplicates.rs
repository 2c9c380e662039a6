//! How well copies are told from other pictures, and how long it takes to look for them.
//!
//! ```text
//! cargo bench -p slide_io --bench duplicates -- images FOLDER [EVERY]   copies of every EVERYth image below the folder
//! cargo bench -p slide_io --bench duplicates -- slides SLIDE...         copies of each slide, written as slides
//! cargo bench -p slide_io --bench duplicates -- search COUNT            time to compare COUNT pictures of noise
//! ```
//!
//! The first two print what share of the altered copies is found, and which of the originals are taken for copies of
//! each other.

use std::path::{Path, PathBuf};
use std::time::Instant;

use image::imageops::{self, FilterType};
use rayon::prelude::*;
use slide_io::duplicates::{Criteria, Fingerprint, pairs};
use slide_io::folder::read_image;
use slide_io::jpeg::{self, ColorModel};
use slide_io::pyramid::{PyramidSpec, write_pyramid};
use slide_io::{Mpp, Region, Rgb, RgbImage, Slide, TissueParams};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some("images") if arguments.len() > 1 => {
            let every = arguments.get(2).map_or(1, |text| text.parse().expect("EVERY is a number"));
            images(Path::new(&arguments[1]), every);
        }
        Some("search") if arguments.len() == 2 => search(arguments[1].parse().expect("COUNT is a number")),
        Some("slides") => slides(&arguments[1..].iter().map(PathBuf::from).collect::<Vec<_>>()),
        // `cargo test --benches` and a bare `cargo bench` come here.
        _ => eprintln!("give `images FOLDER [EVERY]`, `slides SLIDE...` or `search COUNT`"),
    }
}

type Alteration = fn(&RgbImage) -> RgbImage;

/// Ways to make a copy, by name.
const COPIES: [(&str, Alteration); 14] = [
    ("JPEG 60", recompressed),
    ("scale 0.5", |image| scaled(image, 0.5)),
    ("scale 0.8", |image| scaled(image, 0.8)),
    ("rotated 90", imageops::rotate90),
    ("rotated 180", imageops::rotate180),
    ("mirrored", imageops::flip_horizontal),
    ("transposed", |image| imageops::flip_horizontal(&imageops::rotate90(image))),
    ("brightness +10 %", brighter),
    ("canvas shifted 5 %", |image| shifted(image, 0.05)),
    ("cropped 5 %", |image| cropped(image, 0.05)),
    ("cropped 10 %", |image| cropped(image, 0.10)),
    ("turned 3 degrees", turned),
    ("warped 1 %", warped),
    ("several at once", |image| recompressed(&cropped(&brighter(&scaled(&imageops::rotate270(image), 0.8)), 0.05))),
];

fn recompressed(image: &RgbImage) -> RgbImage {
    jpeg::decode(&jpeg::encode(image, 60, ColorModel::YCbCr).expect("an image can be encoded")).expect("and decoded")
}

fn scaled(image: &RgbImage, factor: f64) -> RgbImage {
    let side = |pixels: u32| (f64::from(pixels) * factor).round() as u32;
    imageops::resize(image, side(image.width()), side(image.height()), FilterType::Triangle)
}

fn brighter(image: &RgbImage) -> RgbImage {
    let mut copy = image.clone();
    copy.iter_mut().for_each(|value| *value = (f64::from(*value) * 1.1).min(255.0) as u8);
    copy
}

/// Moved right and down on a canvas of the same size, which is white where nothing lies.
fn shifted(image: &RgbImage, share: f64) -> RgbImage {
    let mut canvas = RgbImage::from_pixel(image.width(), image.height(), Rgb([255; 3]));
    let by = |pixels: u32| (f64::from(pixels) * share) as i64;
    imageops::replace(&mut canvas, image, by(image.width()), by(image.height()));
    canvas
}

/// The bottom right part.
fn cropped(image: &RgbImage, share: f64) -> RgbImage {
    let cut = |pixels: u32| (f64::from(pixels) * share).round() as u32;
    let (x, y) = (cut(image.width()), cut(image.height()));
    imageops::crop_imm(image, x, y, image.width() - x, image.height() - y).to_image()
}

/// A slide laid on the scanner at another angle.
fn turned(image: &RgbImage) -> RgbImage {
    let (sin, cos) = 3f64.to_radians().sin_cos();
    moved(image, |x, y, _, _| (cos * x - sin * y, sin * x + cos * y))
}

/// The neighbouring section: soft tissue stretches by its own measure here and there.
fn warped(image: &RgbImage) -> RgbImage {
    moved(image, |x, y, width, height| {
        (x + 0.01 * width * (9.0 * y / height + 1.0).sin(), y + 0.01 * height * (7.0 * x / width).sin())
    })
}

/// Every pixel from where `from` says, relative to the centre; what comes from outside is the border's.
fn moved(image: &RgbImage, from: impl Fn(f64, f64, f64, f64) -> (f64, f64)) -> RgbImage {
    let (width, height) = (f64::from(image.width()), f64::from(image.height()));
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let (x, y) = from(f64::from(x) - width / 2.0, f64::from(y) - height / 2.0, width, height);
        let inside = |at: f64, length: f64| (at + length / 2.0).round().clamp(0.0, length - 1.0) as u32;
        *image.get_pixel(inside(x, width), inside(y, height))
    })
}

fn images(folder: &Path, every: usize) {
    let files: Vec<PathBuf> = walkdir::WalkDir::new(folder)
        .sort_by_file_name()
        .into_iter()
        .filter_map(|entry| Some(entry.ok()?.into_path()))
        .filter(|path| path.extension().is_some_and(|e| ["jpg", "jpeg", "png", "JPEG"].iter().any(|known| e == *known)))
        .collect();
    let print = |image: &RgbImage| Fingerprint::of_image(image).expect("an image with pixels");
    let begun = Instant::now();
    let originals: Vec<_> = files.par_iter().map(|file| print(&read_image(file).expect("a whole image"))).collect();
    println!("{} images, fingerprints in {:.2} s", files.len(), begun.elapsed().as_secs_f64());
    others(&files, &originals);
    let chosen: Vec<usize> = (0..files.len()).step_by(every).collect();
    for (name, copy) in COPIES {
        let copies: Vec<_> =
            chosen.par_iter().map(|&at| print(&copy(&read_image(&files[at]).expect("it was read before")))).collect();
        let originals: Vec<_> = chosen.iter().map(|&at| originals[at].clone()).collect();
        found(name, &Criteria::IMAGES, &originals, &copies);
    }
}

fn slides(files: &[PathBuf]) {
    let folder = tempfile::tempdir().expect("a folder for the copies");
    let print = |path: &Path| {
        let slide = Slide::open(path).expect("a slide");
        Fingerprint::of_slide(&slide, None, &TissueParams::default()).expect("a readable slide")
    };
    let begun = Instant::now();
    let originals: Vec<_> = files.par_iter().map(|file| print(file)).collect();
    println!("{} slides, fingerprints in {:.2} s", files.len(), begun.elapsed().as_secs_f64());
    others(files, &originals);
    for (name, copy) in COPIES {
        let copies: Vec<_> = files
            .iter()
            .enumerate()
            .map(|(at, file)| {
                let slide = Slide::open(file).expect("it was opened before");
                let whole = Region { level: 0, origin: slide_io::Point::new(0, 0), size: slide.size() };
                let path = folder.path().join(format!("{at}.tiff"));
                let mpp = Some(slide.mpp().unwrap_or(Mpp(0.5)));
                let spec = PyramidSpec { levels: vec![1, 4], mpp, ..PyramidSpec::default() };
                write_pyramid(&path, &copy(&slide.read(&whole).expect("it can be read")), &spec).expect("a slide");
                print(&path)
            })
            .collect();
        found(name, &Criteria::SLIDES, &originals, &copies);
    }
}

/// Pictures that have nothing in common: their hashes are random bits.
fn search(count: u32) {
    let noise = |seed: u32| {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        RgbImage::from_fn(64, 64, |_, _| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            Rgb([(state >> 16) as u8; 3])
        })
    };
    let prints: Vec<_> =
        (1..=count).into_par_iter().map(|seed| Fingerprint::of_image(&noise(seed)).expect("an image")).collect();
    let files: Vec<PathBuf> = (0..count).map(|at| PathBuf::from(format!("no file {at}"))).collect();
    for criteria in [Criteria { max_distance: 0, ..Criteria::IMAGES }, Criteria::IMAGES] {
        let begun = Instant::now();
        let found = pairs(&files, &prints, &criteria).expect("few pairs").len();
        let (seconds, threads) = (begun.elapsed().as_secs_f64(), rayon::current_num_threads());
        println!(
            "{count} pictures, distance up to {}: {seconds:.2} s, {threads} threads, {found} pairs",
            criteria.max_distance
        );
    }
}

/// Originals that are taken for copies of each other: their own copies, or mistakes.
fn others(files: &[PathBuf], originals: &[Option<Fingerprint>]) {
    let loose = Criteria { min_similarity: 0.3, ..Criteria::IMAGES };
    let begun = Instant::now();
    let mut pairs = pairs(files, originals, &loose).expect("few pairs");
    let plain = originals.iter().filter(|print| print.is_none()).count();
    println!("compared in {:.2} s; {plain} too plain; pairs of similarity 0.3 or more:", begun.elapsed().as_secs_f64());
    pairs.sort_by(|x, y| y.similarity.total_cmp(&x.similarity));
    for pair in pairs.iter().take(40) {
        let (a, b) = (files[pair.a].display(), files[pair.b].display());
        println!("  {:.3} {:?} {:15} {a} {b}", pair.similarity, pair.kind, pair.orientation.name());
    }
    println!("  {} in all", pairs.len());
}

/// One line: how many copies are found, by the hash and by both, and how alike the least alike are.
fn found(name: &str, criteria: &Criteria, originals: &[Option<Fingerprint>], copies: &[Option<Fingerprint>]) {
    let both: Vec<_> = originals.iter().zip(copies).filter_map(|(a, b)| a.as_ref().zip(b.as_ref())).collect();
    let loosest = Criteria { max_distance: 63, min_similarity: -1.0 };
    let by_hash = Criteria { min_similarity: -1.0, ..Criteria::IMAGES };
    let count = |criteria: &Criteria| both.par_iter().filter(|(a, b)| a.compare(b, criteria).is_some()).count();
    let mut alike: Vec<f32> = both.par_iter().filter_map(|(a, b)| Some(a.compare(b, &loosest)?.similarity)).collect();
    alike.sort_by(f32::total_cmp);
    println!(
        "{name:22} {} of {} found; by the hash alone {}; similarity: least {:.3}, 5 % {:.3}, median {:.3}",
        count(criteria),
        both.len(),
        count(&by_hash),
        alike[0],
        alike[alike.len() / 20],
        alike[alike.len() / 2],
    );
}
