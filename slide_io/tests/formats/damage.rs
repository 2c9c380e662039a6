//! Empty, cut, looping, lying and corrupted files: an error that says what is wrong, and nothing else.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use slide_io::pyramid::{PyramidSpec, write_pyramid};
use slide_io::{Error, Mpp, Overview, RgbImage, Slide, TissueParams};

use crate::layout::Layout;
use crate::sample::{Random, aperio, panda, real_files, region, tissue};

const NEXT: u16 = 0;
const IMAGE_WIDTH: u16 = 256;
const IMAGE_LENGTH: u16 = 257;
const SUBFILE: u16 = 254;
const BITS: u16 = 258;
const COMPRESSION: u16 = 259;
const TILE_WIDTH: u16 = 322;
const TILE_OFFSETS: u16 = 324;
const TILE_LENGTHS: u16 = 325;

/// A small slide in memory (classic TIFF, little-endian) whose directories can be tampered with.
struct Slab {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Slab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("whole.tiff");
        let spec = PyramidSpec { tile: 64, levels: vec![1, 2], ..panda() };
        write_pyramid(&path, &tissue(200, 150, 5), &spec).unwrap();
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(&bytes[..4], b"II\x2a\0");
        Self { folder, bytes }
    }

    fn u32(&self, at: usize) -> usize {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap()) as usize
    }

    fn put(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Where directory `index` begins, and its number of entries.
    fn directory(&self, index: usize) -> (usize, usize) {
        let mut at = self.u32(4);
        let entries = |at: usize| usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]));
        for _ in 0..index {
            at = self.u32(at + 2 + 12 * entries(at));
        }
        (at, entries(at))
    }

    /// Where the entry of `tag` in directory `index` begins (`NEXT`: the pointer to the next directory).
    fn entry(&self, index: usize, tag: u16) -> usize {
        let (start, entries) = self.directory(index);
        let tag_at = |entry: usize| u16::from_le_bytes([self.bytes[entry], self.bytes[entry + 1]]);
        let mut all = (0..entries).map(|i| start + 2 + 12 * i);
        if tag == NEXT { start + 2 + 12 * entries } else { all.find(|entry| tag_at(*entry) == tag).unwrap() }
    }

    /// Writes the file as it is now. In place: emptying a file first makes some file systems wait for the disk.
    fn save(&self) -> PathBuf {
        let path = self.folder.path().join("tampered.tiff");
        let mut file = File::options().write(true).create(true).truncate(false).open(&path).unwrap();
        file.set_len(self.bytes.len() as u64).unwrap();
        file.write_all(&self.bytes).unwrap();
        path
    }

    /// Opens the file as it is now, natively.
    fn open(&self) -> slide_io::Result<Slide> {
        Slide::open_as(self.save(), "tiff")
    }
}

#[track_caller]
pub fn refused(result: slide_io::Result<Slide>, part: &str) -> Error {
    let error = result.expect_err(part);
    assert!(error.to_string().contains(part), "`{error}` does not say `{part}`");
    error
}

#[test]
fn what_is_no_slide() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    assert!(matches!(refused(Slide::open(file("empty.svs", b"")), "empty (0 bytes)"), Error::BadFile { .. }));
    assert!(matches!(refused(Slide::open(folder.path().join("absent.svs")), "No such file"), Error::Io { .. }));
    assert!(matches!(Slide::open(folder.path()), Err(Error::Io { .. })));
    let mut random = Random(6);
    for size in [1, 3, 4, 100, 5000] {
        let noise: Vec<u8> = (0..size).map(|_| random.next() as u8 | 1).collect();
        refused(Slide::open(file("noise.svs", &noise)), "not a slide");
        let error = refused(Slide::open(file("notes.txt", &noise)), "not a slide");
        assert!(matches!(error, Error::Unsupported { .. }));
    }
    let mut dicom = vec![0; 200];
    dicom[128..132].copy_from_slice(b"DICM");
    assert!(matches!(refused(Slide::open(file("a.dcm", &dicom)), ""), Error::Unsupported { .. }));
    assert!(matches!(Slide::open_as(folder.path().join("empty.svs"), "zeiss"), Err(Error::Usage(_))));
}

/// OpenSlide opens any tiled TIFF, and refuses what libtiff makes no colours of when it is read.
#[test]
fn samples_that_nobody_reads_are_no_damage() {
    let mut slab = Slab::new();
    for directory in [0, 1] {
        let bits = slab.u32(slab.entry(directory, BITS) + 8);
        slab.bytes[bits..bits + 6].copy_from_slice(&[32, 0, 32, 0, 32, 0]);
    }
    let error = refused(Slide::open(slab.save()), "samples of [32, 32, 32] bits are not read natively");
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

#[test]
fn cut_files_are_refused_wherever_they_are_cut() {
    let mut slab = Slab::new();
    let whole = slab.bytes.clone();
    assert!(slab.open().is_ok());
    let (first, second) = (slab.directory(0).0, slab.directory(1).0);
    let header = 1..16;
    let directories = [first, first + 1, first + 50, second + 2, second + 100];
    let anywhere = (0..whole.len()).step_by(whole.len() / 100);
    for cut in header.chain(directories).chain(anywhere).chain([whole.len() - 1]).filter(|cut| *cut > 0) {
        slab.bytes = whole[..cut].to_vec();
        let error = slab.open().expect_err("cut");
        match (&error, cut) {
            // Too short to be known for a TIFF, or to hold a pointer to anything.
            (Error::Unsupported { .. }, 1..4) => {
                assert!(error.to_string().contains("not recognised"), "{cut}: {error}")
            }
            (Error::BadFile { .. }, _) => {
                let text = error.to_string();
                let told =
                    ["is cut off by the end of the file", "it is cut off"].iter().any(|part| text.contains(part));
                assert!(told, "{cut}: {error}");
            }
            _ => panic!("{cut}: {error}"),
        }
        assert!(Slide::open(slab.save()).is_err(), "{cut}");
    }
}

#[test]
fn a_cut_real_slide_is_refused() {
    let files = real_files();
    for path in files.iter().filter(|path| Slide::open_as(path, "tiff").is_ok()) {
        let whole = std::fs::read(path).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let cut = folder.path().join(path.file_name().unwrap());
        for tenths in 0..10 {
            std::fs::write(&cut, &whole[..whole.len() * tenths / 10]).unwrap();
            let error = Slide::open_as(&cut, "tiff").expect_err("cut").to_string();
            let part = if tenths == 0 { "empty (0 bytes)" } else { "cut off" };
            assert!(error.contains(part), "{tenths}/10: {error}");
        }
    }
}

#[test]
fn directories_that_loop() {
    let mut slab = Slab::new();
    let (first, second) = (slab.directory(0).0 as u32, slab.directory(1).0 as u32);
    for target in [first, second] {
        let next = slab.entry(1, NEXT);
        slab.put(next, target);
        assert!(matches!(refused(slab.open(), "loop"), Error::BadFile { .. }));
        slab.put(next, 0);
        assert!(slab.open().is_ok());
    }
}

#[test]
fn sub_directories_that_loop() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/ome_subifds.tif");
    let mut layout = Layout::new(std::fs::read(path).unwrap());
    let sub = layout.values(layout.entry(0, 330).unwrap())[1];
    let first = layout.get(layout.first());
    layout.put(sub, first);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("loop.tif");
    std::fs::write(&path, &layout.bytes).unwrap();
    let error = refused(Slide::open_as(&path, "tiff"), "its directories form a loop at byte");
    assert!(matches!(error, Error::BadFile { .. }));
}

#[test]
fn pointers_that_lead_nowhere() {
    let mut slab = Slab::new();
    let (next, length) = (slab.entry(1, NEXT), slab.bytes.len() as u32);
    for target in [length - 1, length, length + 1000, u32::MAX] {
        slab.put(next, target);
        refused(slab.open(), "directory 2 is cut off by the end of the file");
    }
    slab.put(next, 0);
    slab.put(4, 0);
    refused(slab.open(), "it has no directory: whatever wrote it was stopped before the end");
}

/// What a copy that was broken off leaves on many file systems: a file of the right length that ends in nothing.
#[test]
fn a_hole_in_the_file_is_told_where_it_is_met() {
    let mut slab = Slab::new();
    let offsets = slab.u32(slab.entry(0, TILE_OFFSETS) + 8);
    let lengths = slab.u32(slab.entry(0, TILE_LENGTHS) + 8);
    let (last, length) = (slab.u32(offsets + 4 * 11), slab.u32(lengths + 4 * 11));
    slab.bytes[last..last + length].fill(0);
    let slide = slab.open().unwrap();
    let error = slide.read(&region(0, 195, 140, 5, 5)).unwrap_err().to_string();
    assert!(error.contains("level 0, tile (column 3, row 2): its bytes are all 0: a hole in the file"), "{error}");
    assert!(slide.read(&region(0, 0, 0, 20, 20)).is_ok());
}

/// A label of the slide's aspect, tiled like it, must not be taken for the slide.
#[test]
fn an_image_that_does_not_say_it_is_a_reduced_copy_is_no_level() {
    let mut slab = Slab::new();
    assert_eq!(slab.open().unwrap().levels().len(), 2);
    let value = slab.entry(1, SUBFILE) + 8;
    slab.put(value, 0);
    let slide = slab.open().unwrap();
    assert_eq!((slide.levels().len(), slide.associated_names().len()), (1, 0));
}

#[test]
fn numbers_that_lie() {
    let tampered = |tag: u16, field: usize, value: u32| {
        let mut slab = Slab::new();
        let entry = slab.entry(1, tag);
        slab.put(entry + field, value);
        slab.open()
    };
    const COUNT: usize = 4;
    const VALUE: usize = 8;
    for count in [0, 1, 5, 1 << 20, u32::MAX] {
        assert!(matches!(refused(tampered(TILE_OFFSETS, COUNT, count), "entries"), Error::BadFile { .. }));
    }
    for (tag, value) in [(IMAGE_WIDTH, u32::MAX), (IMAGE_LENGTH, 1 << 30), (TILE_WIDTH, 1), (TILE_WIDTH, u32::MAX)] {
        assert!(matches!(refused(tampered(tag, VALUE, value), "asks for"), Error::BadFile { .. }));
    }
    for tag in [IMAGE_WIDTH, TILE_WIDTH] {
        assert!(matches!(refused(tampered(tag, VALUE, 0), "0 pixels"), Error::BadFile { .. }));
    }
    refused(tampered(BITS, COUNT, u32::MAX), "more than the file has bytes");
    refused(tampered(COMPRESSION, COUNT, 2), "Compression has 2 values instead of one");
    refused(tampered(COMPRESSION, VALUE, 50000), "compression 50000 (Zstandard) is not read natively");
}

#[test]
fn tiles_that_lie_elsewhere() {
    let mut slab = Slab::new();
    let [offsets, lengths] = [TILE_OFFSETS, TILE_LENGTHS].map(|tag| slab.u32(slab.entry(0, tag) + 8));
    let (offset, length) = (slab.u32(offsets) as u32, slab.u32(lengths) as u32);
    slab.put(lengths, 1 << 24);
    refused(slab.open(), "level 0: tiles reach to byte");
    slab.put(lengths, u32::MAX);
    refused(slab.open(), "it is cut off");
    slab.put(lengths, length);
    slab.put(offsets, 4);
    refused(slab.open(), "level 0: a tile is said to begin at byte 4, which is in the file's header");
    slab.put(offsets, offset + 1);
    let slide = slab.open().unwrap();
    let error = slide.read(&region(0, 0, 0, 9, 9)).unwrap_err().to_string();
    assert!(error.contains("level 0, tile (column 0, row 0): it is not a JPEG stream"), "{error}");
}

#[test]
fn tiles_of_another_size_than_the_directory_says() {
    let mut slab = Slab::new();
    // 200 px in tiles of 50 are as many as in tiles of 64.
    let entry = slab.entry(0, TILE_WIDTH);
    slab.put(entry + 8, 50);
    let error = slab.open().unwrap().read(&region(0, 0, 0, 9, 9)).unwrap_err().to_string();
    assert!(error.contains("its JPEG has 64 x 64 px, the directory says 50 x 64"), "{error}");
}

#[test]
fn a_corrupt_tile_is_an_error_that_names_it_and_spares_the_others() {
    let mut slab = Slab::new();
    let (offsets, lengths) = (slab.u32(slab.entry(0, TILE_OFFSETS) + 8), slab.u32(slab.entry(0, TILE_LENGTHS) + 8));
    let (index, column, row) = (6, 2, 1); // of 4 tiles across
    let (start, length) = (slab.u32(offsets + 4 * index), slab.u32(lengths + 4 * index));
    let whole = slab.bytes.clone();
    let end = start + length;
    // All of it, its header, the second half of its data (which ends too early then).
    for damage in [start..end, start..start + 4, start + length / 2..end] {
        slab.bytes = whole.clone();
        slab.bytes[damage.clone()].fill(0);
        let path = slab.save();
        for format in crate::sample::tiff_readers() {
            let slide = Slide::open_as(&path, format.name).unwrap();
            let bad = region(0, i64::from(column) * 64 + 5, i64::from(row) * 64 + 5, 20, 20);
            let good = region(0, 0, 0, 128, 64);
            let expected = slide.read(&good).unwrap();
            let error = match slide.read(&bad) {
                Err(error) => error,
                // OpenSlide paints over data that merely end early; the native reader does not.
                Ok(_) if format.name == "openslide" && damage.end - damage.start < length => continue,
                Ok(_) => panic!("{}: {damage:?}", format.name),
            };
            assert!(matches!(error, Error::BadFile { .. }), "{error}");
            if format.name == "tiff" {
                let tile = format!("level 0, tile (column {column}, row {row})");
                assert!(error.to_string().contains(&tile), "{error}");
            }
            assert!(slide.read(&good).unwrap() == expected, "{}: after the error", format.name);
            assert!(slide.read(&bad).is_err(), "{}: again", format.name);
            std::thread::scope(|scope| {
                scope.spawn(|| (0..10).for_each(|_| assert!(slide.read(&bad).is_err())));
                scope.spawn(|| (0..10).for_each(|_| assert!(slide.read(&good).unwrap() == expected)));
            });
        }
    }
}

/// Thousands of sound patches may lie below one tile of a coarse level.
#[test]
fn below_a_corrupt_coarse_tile_the_finer_level_is_looked_at() {
    let mut slab = Slab::new();
    let params = TissueParams { mpp: 1.0, ..TissueParams::default() };
    let overview = |slab: &Slab| Overview::read(&slab.open().unwrap(), Mpp(0.5), &params).unwrap();
    let whole = overview(&slab);
    assert_eq!((whole.image.dimensions(), &whole.damage), ((100, 75), &None));
    let spoil = |slab: &mut Slab, directory: usize, tile: usize| {
        let table = |slab: &Slab, tag: u16| slab.u32(slab.entry(directory, tag) + 8) + 4 * tile;
        let [start, length] = [TILE_OFFSETS, TILE_LENGTHS].map(|tag| slab.u32(table(slab, tag)));
        slab.bytes[start..start + length].fill(0);
    };
    spoil(&mut slab, 1, 0);
    let mended = overview(&slab);
    assert_eq!((mended.damage, mended.unreadable.share()), (None, 0.0));
    let differences = mended.image.iter().zip(whole.image.iter()).map(|(a, b)| u64::from(a.abs_diff(*b)));
    let mean = differences.sum::<u64>() as f64 / whole.image.len() as f64;
    assert!(mean < 4.0, "{mean}");
    // One of the four finer tiles below it is damaged as well: no more than that one is lost.
    spoil(&mut slab, 0, 5);
    let lost = overview(&slab);
    assert!(lost.damage.unwrap().contains("level 0, tile (column 1, row 1)"));
    let share = 64.0 * 64.0 / (200.0 * 150.0);
    assert!((lost.unreadable.share() - share).abs() < 0.01, "{}", lost.unreadable.share());
}

#[test]
fn a_tile_of_length_zero_is_white() {
    let mut slab = Slab::new();
    let lengths = slab.u32(slab.entry(0, TILE_LENGTHS) + 8);
    slab.put(lengths + 4 * 6, 0);
    let path = slab.save();
    for format in crate::sample::tiff_readers() {
        let slide = Slide::open_as(&path, format.name).unwrap();
        let background = match slide.read(&region(0, 128, 64, 64, 64)) {
            // OpenSlide before 4.0 knows such tiles from some vendors only.
            Err(_) if format.name == "openslide" => continue,
            background => background.unwrap(),
        };
        assert!(background.iter().all(|value| *value == 255), "{}", format.name);
        let tissue = slide.read(&region(0, 64, 64, 64, 64)).unwrap();
        assert!(tissue.iter().any(|value| *value < 200), "{}", format.name);
    }
}

/// Aperio's encoder left out single tiles of reduced levels, where there is tissue. They are made from the finer level, as
/// OpenSlide does it; where that has nothing either it is background.
#[test]
fn a_missing_tile_of_a_reduced_aperio_level_is_made_from_the_finer_one() {
    let folder = tempfile::tempdir().unwrap();
    let [path, missing] = ["whole.svs", "missing.svs"].map(|name| folder.path().join(name));
    let spec = PyramidSpec { tile: 48, levels: vec![1, 2], quality: 95, ..aperio() };
    write_pyramid(&path, &tissue(204, 150, 5), &spec).unwrap();
    let mut layout = Layout::new(std::fs::read(&path).unwrap());
    let lengths = [0, 1].map(|directory| layout.values(layout.entry(directory, TILE_LENGTHS).unwrap()));
    // Of 3 across: the first, and the last, which the level's edge cuts; of the finer level what lies below the last.
    for length in [lengths[1][0], lengths[1][5], lengths[0][14], lengths[0][19]] {
        layout.put(length, 0);
    }
    std::fs::write(&missing, &layout.bytes).unwrap();
    let [whole, slide] = [&path, &missing].map(|path| Slide::open_as(path, "tiff").unwrap());
    let first = region(1, 0, 0, 48, 48);
    let mean = |a: &RgbImage, b: &RgbImage| {
        let differences = a.iter().zip(b.iter()).map(|(a, b)| u64::from(a.abs_diff(*b)));
        differences.sum::<u64>() as f64 / a.len() as f64
    };
    let (stored, made) = (whole.read(&first).unwrap(), slide.read(&first).unwrap());
    assert!(mean(&stored, &made) < 3.0, "JPEG 95 of the mean and mean of JPEG 95: {}", mean(&stored, &made));
    let last = slide.read(&region(1, 196, 100, 4, 25)).unwrap();
    assert!(last.iter().all(|value| *value == 255), "no level has anything there");
    assert!(slide.read(&region(0, 0, 0, 204, 150)).is_ok() && slide.read(&region(1, 0, 0, 102, 75)).is_ok());
    #[cfg(feature = "openslide")]
    {
        let theirs = Slide::open_as(&missing, "openslide").unwrap().read(&region(1, 8, 8, 40, 40)).unwrap();
        let ours = slide.read(&region(1, 8, 8, 40, 40)).unwrap();
        assert!(mean(&theirs, &ours) < 6.0, "OpenSlide reduces by a filter of its own: {}", mean(&theirs, &ours));
    }
}
