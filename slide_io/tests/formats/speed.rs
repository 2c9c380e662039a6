//! A measurement, not a test: `cargo test --release --test formats -- --ignored --nocapture speed`.

use std::time::Instant;

use slide_io::pyramid::write_pyramid;
use slide_io::{RgbImage, Slide};

use crate::sample::{aperio, panda, region, tissue};

#[test]
#[ignore = "a measurement of half a minute"]
fn speed_of_both_readers() {
    let side = 8192;
    let folder = tempfile::tempdir().unwrap();
    let patch = tissue(1024, 1024, 11);
    let image = RgbImage::from_fn(side, side, |x, y| *patch.get_pixel(x % 1024, y % 1024));
    for (file, spec) in [("panda.tiff", panda()), ("aperio.svs", aperio())] {
        let path = folder.path().join(file);
        let start = Instant::now();
        write_pyramid(&path, &image, &spec).unwrap();
        let written = start.elapsed().as_secs_f64();
        let megabytes = std::fs::metadata(&path).unwrap().len() as f64 / 1e6;
        eprintln!("{file}: {side} x {side}, tiles of {} px, {megabytes:.1} MB, written in {written:.2} s", spec.tile);
        let grid: Vec<_> = (0..side / 256)
            .flat_map(|y| (0..side / 256).map(move |x| region(0, i64::from(x) * 256, i64::from(y) * 256, 256, 256)))
            .collect();
        for format in slide_io::format::FORMATS {
            for threads in [1, 2] {
                let slide = Slide::open_as(&path, format.name).unwrap();
                let start = Instant::now();
                std::thread::scope(|scope| {
                    for part in grid.chunks(grid.len().div_ceil(threads)) {
                        scope.spawn(|| part.iter().for_each(|region| drop(slide.read(region).unwrap())));
                    }
                });
                let rate = grid.len() as f64 / start.elapsed().as_secs_f64();
                eprintln!("  {}, {threads} thread(s): {rate:.0} patches of 256 px a second", format.name);
            }
        }
    }
}
