//! The native reader against OpenSlide, the written pyramid against its source, many threads against one.

use slide_io::pyramid::write_pyramid;
use slide_io::{RgbImage, Slide};

use crate::sample::{Random, aperio, panda, region, tissue};

/// Aperio's numbers of JPEG 2000 of YCbCr and of RGB components.
#[cfg(feature = "openslide")]
const JPEG_2000_YCBCR: u16 = 33003;
#[cfg(feature = "openslide")]
const JPEG_2000_RGB: u16 = 33005;

/// Largest share of a JPEG 2000 slide's values that two decoders may round to different whole numbers: those whose sum lies
/// within the rounding of f32 of a half. Measured: 0.00064 and 0.00059 on two slides; three times as many, since how many
/// lie there depends on the picture. Another step or filter anywhere in the decoder moves most values.
#[cfg(feature = "openslide")]
const ROUNDED_OTHERWISE: f64 = 0.002;

/// The compression number in the first directory of a TIFF.
#[cfg(feature = "openslide")]
fn compression(path: &std::path::Path) -> u16 {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut decoder = tiff::decoder::Decoder::new(file).unwrap();
    let first = decoder.ifd_pointer().unwrap();
    let tags = decoder.read_directory(first).unwrap();
    decoder.read_directory_tags(&tags).get_tag_unsigned(tiff::tags::Tag::Compression).unwrap()
}

/// Compares both readers on `count` random regions over all levels; whether both read the file. A quarter of the regions
/// lies across a corner or an edge of the level: what is outside is white in both.
///
/// There are three kinds of agreement. Where the downsample is whole, every pixel is equal: both use libjpeg's accurate DCT
/// and smooth chroma upsampling. Of JPEG 2000 few values ([`ROUNDED_OTHERWISE`]) may differ by 1: two decoders round the
/// sums of the irreversible wavelet differently; and by 2 where the components are YCbCr, since a chroma of one more or
/// less moves blue by 1.77.
/// Where it is not, OpenSlide resamples by the fraction of a pixel that its whole level-0 position leaves, while the
/// native reader gives the stored pixel. There the two must be equal from the level's corner (fraction zero), and
/// elsewhere OpenSlide's pixel must lie in the range of the stored pixel and its eight neighbours, ±1 for rounding.
/// Not compared there: pixels on tile seams and slide borders, which OpenSlide then blends with its background.
#[cfg(feature = "openslide")]
fn agree(path: &std::path::Path, count: usize) -> bool {
    let [native, openslide] = ["tiff", "openslide"].map(|format| {
        Slide::open_as(path, format).map_err(|error| eprintln!("{format} alone does not read it: {error}")).ok()
    });
    let (Some(native), Some(openslide)) = (native, openslide) else { return false };
    assert_eq!(native.levels(), openslide.levels(), "{}", path.display());
    assert_eq!(native.magnification(), openslide.magnification());
    match (native.mpp(), openslide.mpp()) {
        (Some(a), Some(b)) => assert!((a.0 / b.0 - 1.0).abs() < 1e-5, "{a} {b}"),
        (a, b) => assert_eq!(a, b),
    }
    for (name, value) in native.properties() {
        match (openslide.properties().get(name), value.parse::<f64>()) {
            (Some(theirs), Ok(ours)) => {
                let theirs: f64 = theirs.parse().unwrap();
                assert!((ours - theirs).abs() <= 1e-9 * ours.abs(), "{name}: {ours} {theirs}");
            }
            (Some(theirs), Err(_)) => assert_eq!(value, theirs, "{name}"),
            // Derived from the resolution tags by this crate, for both readers.
            (None, _) => assert!(!name.starts_with("aperio."), "{name}"),
        }
    }
    let mut names = [native.associated_names(), openslide.associated_names()];
    names.iter_mut().for_each(|names| names.sort());
    assert_eq!(names[0], names[1]);
    for name in &names[0] {
        assert_eq!(native.read_associated(name).unwrap(), openslide.read_associated(name).unwrap(), "{name}");
    }
    let mut random = Random(7);
    let (mut exact, mut resampled) = (0, 0);
    // By how much a value may differ; not at all, but in JPEG 2000.
    let allowed = match compression(path) {
        JPEG_2000_RGB => 1,
        JPEG_2000_YCBCR => 2,
        _ => 0,
    };
    let (mut values, mut differences) = (0, 0);
    for index in 0..count {
        let level = index % native.levels().len();
        let (size, downsample) = (native.levels()[level].size, native.levels()[level].downsample);
        let (width, height) = (random.range(1, 300), random.range(1, 300));
        let whole = index < native.levels().len() && level > 0;
        let (far_x, far_y) = (i64::from(size.width), i64::from(size.height));
        let (x, y) = match (whole, random.range(0, 8)) {
            (true, _) => (0, 0),
            (false, 0) => {
                ([-width / 2, far_x - width / 2][index / 4 % 2], [-height / 2, far_y - height / 2][index / 8 % 2])
            }
            (false, 1) => ([-width / 2, far_x - width / 2][index / 4 % 2], random.range(-height, far_y)),
            (false, _) => (random.range(-width, far_x), random.range(-height, far_y)),
        };
        let (width, height) = if whole { (size.width, size.height) } else { (width as u32, height as u32) };
        let at = |position: i64| (position as f64 * downsample).round() as i64;
        let wanted = region(level, at(x), at(y), width, height);
        let (a, b) = (native.read(&wanted).unwrap(), openslide.read(&wanted).unwrap());
        if whole || downsample.fract() == 0.0 {
            let differing = a.iter().zip(b.iter()).filter(|(a, b)| a != b).count();
            let worst = a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
            assert!(worst <= allowed, "{} level {level} {wanted:?}: {worst}", path.display());
            (values, differences) = (values + a.len(), differences + differing);
            exact += 1;
        } else {
            let around = region(level, at(x - 1), at(y - 1), width + 2, height + 2);
            let tile = native.properties()[&format!("openslide.level[{level}].tile-width")].parse().unwrap();
            within_neighbours(&native.read(&around).unwrap(), &b, (x, y), (size.width, size.height), tile);
            resampled += 1;
        }
    }
    let slide = path.file_name().unwrap().display();
    if allowed > 0 {
        let share = differences as f64 / values as f64;
        eprintln!("{slide}: JPEG 2000, {share:.5} of the values differ, by {allowed} at most");
        assert!(share < ROUNDED_OTHERWISE, "{share}");
    }
    eprintln!("{slide}: {exact} regions equal, {resampled} at a fractional downsample within their neighbours");
    true
}

/// Checks every pixel of `image` against the stored pixels `around` it (one more on each side).
#[cfg(feature = "openslide")]
fn within_neighbours(around: &RgbImage, image: &RgbImage, origin: (i64, i64), extent: (u32, u32), tile: i64) {
    let near = |position: i64, extent: u32| {
        let (in_tile, end) = (position.rem_euclid(tile), i64::from(extent));
        in_tile == 0 || in_tile == tile - 1 || position <= 0 || position >= end - 1
    };
    for (x, y, pixel) in image.enumerate_pixels() {
        let (level_x, level_y) = (origin.0 + i64::from(x), origin.1 + i64::from(y));
        if near(level_x, extent.0) || near(level_y, extent.1) {
            continue;
        }
        for channel in 0..3 {
            let values = (0..9).map(|i| around.get_pixel(x + i % 3, y + i / 3).0[channel]);
            let (low, high) = values.fold((255, 0), |(low, high), v| (v.min(low), v.max(high)));
            let value = pixel.0[channel];
            let fits = value >= low.saturating_sub(1) && value <= high.saturating_add(1);
            assert!(fits, "({level_x}, {level_y}): {value} is not in {low}..={high}");
        }
    }
}

#[test]
#[cfg(feature = "openslide")]
fn native_pixels_are_openslides_on_real_slides() {
    let files = crate::sample::real_files();
    let compared = files.iter().filter(|path| agree(path, 200)).count();
    assert!(files.is_empty() || compared >= 8, "{compared} slides were read by both");
}

#[test]
#[cfg(feature = "openslide")]
fn native_pixels_are_openslides_on_written_pyramids() {
    let folder = tempfile::tempdir().unwrap();
    let shapes = [("whole", 1600, 1280), ("fractional", 1501, 1107)];
    for (shape, width, height) in shapes {
        for (layout, spec) in [("panda.tiff", panda()), ("aperio.svs", aperio())] {
            let path = folder.path().join(format!("{shape}_{layout}"));
            write_pyramid(&path, &tissue(width, height, 1), &spec).unwrap();
            assert!(agree(&path, 100), "{}", path.display());
        }
    }
}

#[test]
fn a_written_pyramid_is_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let source = tissue(1000, 700, 2);
    for (file, spec, format) in [
        ("a.tiff", panda(), "tiff (generic-tiff)"),
        ("a.svs", aperio(), "tiff (aperio)"),
        ("odd.name", panda(), "tiff (generic-tiff)"),
    ] {
        let path = folder.path().join(file);
        write_pyramid(&path, &source, &slide_io::pyramid::PyramidSpec { quality: 95, ..spec.clone() }).unwrap();
        let slide = Slide::open(&path).unwrap();
        assert_eq!(slide.format(), format);
        let mpp = slide.mpp().unwrap().0;
        assert!((mpp - if file == "a.svs" { 0.499 } else { 0.4863 }).abs() < 1e-6, "{mpp}");
        assert_eq!(slide.levels().len(), spec.levels.len());
        for (level, factor) in spec.levels.iter().enumerate() {
            let size = slide.levels()[level].size;
            assert_eq!((size.width, size.height), (1000 / factor, 700 / factor));
            let image = slide.read(&region(level, 0, 0, size.width, size.height)).unwrap();
            let mean = |x: u32, y: u32, channel: usize| {
                let inside =
                    (0..factor * factor).map(|i| source.get_pixel(x * factor + i % factor, y * factor + i / factor));
                inside.map(|pixel| u32::from(pixel.0[channel])).sum::<u32>() as f64 / f64::from(factor * factor)
            };
            let errors = image
                .enumerate_pixels()
                .flat_map(|(x, y, pixel)| [0, 1, 2].map(|c| (f64::from(pixel.0[c]) - mean(x, y, c)).abs()));
            let average = errors.sum::<f64>() / image.len() as f64;
            // JPEG 95 with halved chroma blurs the coloured grain; half a level of rounding is the floor.
            assert!(average < 4.0, "{file} level {level}: mean difference {average}");
        }
        let again = folder.path().join("again");
        write_pyramid(&again, &source, &slide_io::pyramid::PyramidSpec { quality: 95, ..spec }).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap(), "same image, same bytes");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "no temporary file is left: {left:?}");
}

#[test]
fn outside_the_slide_is_white() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slide.tiff");
    write_pyramid(&path, &RgbImage::new(300, 200), &slide_io::pyramid::PyramidSpec { levels: vec![1, 4], ..panda() })
        .unwrap();
    for format in crate::sample::tiff_readers() {
        let slide = Slide::open_as(&path, format.name).unwrap();
        let around = slide.read(&region(1, -40, -80, 100, 100)).unwrap();
        for (x, y, pixel) in around.enumerate_pixels() {
            let inside = (10..85).contains(&x) && (20..70).contains(&y);
            let expected = if inside { pixel.0.iter().all(|value| *value < 4) } else { pixel.0 == [255; 3] };
            assert!(expected, "{} ({x}, {y}): {pixel:?}", format.name);
        }
        let far = slide.read(&region(0, 1 << 40, -(1 << 40), 5, 5)).unwrap();
        assert!(far.iter().all(|value| *value == 255));
        assert!(slide.read(&region(2, 0, 0, 1, 1)).is_err(), "no such level");
        assert!(slide.read(&region(0, 0, 0, 0, 1)).is_err(), "nothing to read");
        assert!(matches!(slide.read(&region(0, 0, 0, 1 << 20, 1 << 20)), Err(slide_io::Error::Limit { .. })));
    }
}

#[test]
fn many_threads_read_what_one_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slide.svs");
    write_pyramid(&path, &tissue(1500, 1000, 3), &aperio()).unwrap();
    for format in crate::sample::tiff_readers() {
        let slide = Slide::open_as(&path, format.name).unwrap();
        let mut random = Random(4);
        let regions: Vec<_> =
            (0..120).map(|i| region(i % 2, random.range(-50, 1500), random.range(-50, 1000), 130, 90)).collect();
        let alone: Vec<_> = regions.iter().map(|region| slide.read(region).unwrap()).collect();
        let fresh = Slide::open_as(&path, format.name).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (fresh, regions, alone) = (&fresh, &regions, &alone);
                scope.spawn(move || {
                    let mut random = Random(thread);
                    for _ in 0..200 {
                        let index = random.range(0, regions.len() as i64) as usize;
                        assert!(fresh.read(&regions[index]).unwrap() == alone[index], "{:?}", regions[index]);
                    }
                });
            }
        });
    }
}
