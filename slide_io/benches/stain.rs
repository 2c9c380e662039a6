//! What stain normalisation costs: `cargo bench -p slide_io --bench stain`. One thread, the best of seven.

use std::hint::black_box;
use std::time::Instant;

use slide_io::stain::{Method, StainParams, Target};
use slide_io::{Rgb, RgbImage};

fn main() {
    // Every mixture of two stains, in an order that no cache knows.
    let tissue = |side: u32| {
        RgbImage::from_fn(side, side, |x, y| {
            let place = (x * 7919 + y * 104_729) % 10_000;
            let amounts = [f64::from(place % 100) / 70.0, f64::from(place / 100) / 110.0];
            let light = |h: f64, e: f64| (242.0 * (-amounts[0] * h - amounts[1] * e).exp()) as u8;
            Rgb([light(0.65, 0.18), light(0.70, 0.87), light(0.29, 0.45)])
        })
    };
    let (patch, sample) = (tissue(256), tissue(512));
    for normalize in [Method::Macenko, Method::Reinhard] {
        let target = Target::new(&StainParams { normalize, ..StainParams::default() });
        let target = target.expect("the defaults make sense").expect("there is a target");
        let pixels = sample.as_raw().as_chunks().0;
        let normalizer = target.normalizer(pixels).expect("the sample has two stains");
        let mut changed = patch.clone();
        let estimate = best(|| _ = black_box(target.normalizer(black_box(pixels))));
        let apply = best(|| {
            changed.copy_from_slice(&patch);
            normalizer.apply(black_box(&mut changed));
        });
        println!("{normalize:?}: statistics of 512 x 512 px {estimate:.1} ms, a patch of 256 x 256 px {apply:.2} ms");
    }
}

/// Milliseconds of the fastest of seven.
fn best(mut work: impl FnMut()) -> f64 {
    let times = (0..7).map(|_| {
        let start = Instant::now();
        work();
        1e3 * start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}
