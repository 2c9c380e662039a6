//! A fixed corpus of damaged files: every field of every directory, every pointer and the tiles of every kind of TIFF,
//! each changed on its own. The fuzzer (`slide_io/fuzz`) goes on from here at random.
//!
//! A damaged file may open or be refused, and its regions may be read or not. It must not panic, not take more memory than
//! the test has (its address space is bounded), and not take long; and a tile that was overwritten must be an error that
//! names it, or pixels, but not a blank.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use slide_io::patch::read_patch;
use slide_io::pyramid::{PyramidSpec, write_pyramid};
use slide_io::{Error, GridSpec, Mpp, Point, RgbImage, Slide};

use crate::breadth;
use crate::layout::{Layout, Number};
use crate::sample::{Random, aperio, name, panda, region, tissue};

/// Set in the process that has the bounded memory.
const BOUNDED: &str = "SLIDE_IO_BOUNDED";
/// Address space of that process, kB: the program, its threads, and what the documented limits of the reader add up to.
const ADDRESS_SPACE: u64 = 3 << 20;
/// Far more than any file takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the test of that name alone, in a process whose address space is bounded: an allocation that trusts the file
/// aborts it. Returns whether this is that process.
fn within_bounded_memory(test: &str) -> bool {
    if std::env::var_os(BOUNDED).is_some() {
        return true;
    }
    let script = format!("ulimit -v {ADDRESS_SPACE} && exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).env(BOUNDED, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = said.lines().filter(|line| line.starts_with("mutation: ")).collect();
    eprintln!("{}", lines.join("\n"));
    assert!(output.status.success(), "{}\n{said}\n{}", output.status, String::from_utf8_lossy(&output.stdout));
    assert!(!lines.is_empty(), "the test ran: {said}");
    false
}

/// One file of every kind.
fn seeds(folder: &Path) -> Vec<(String, Layout)> {
    let mut paths = breadth::files();
    for (file, spec) in [("written_panda.tiff", panda()), ("written_aperio.svs", aperio())] {
        let path = folder.join(file);
        write_pyramid(&path, &tissue(100, 70, 5), &PyramidSpec { tile: 48, levels: vec![1, 2], ..spec }).unwrap();
        paths.push(path);
    }
    paths.iter().map(|path| (name(path), Layout::new(std::fs::read(path).unwrap()))).collect()
}

/// A file whose contents change. Written over, not made anew: emptying a file makes some file systems wait for the disk.
struct Scratch {
    path: PathBuf,
    file: std::fs::File,
}

impl Scratch {
    fn new(folder: &Path, name: &str) -> Self {
        let path = folder.join(name);
        Self { file: std::fs::File::create(&path).unwrap(), path }
    }

    /// Opens `bytes` natively.
    fn open(&self, bytes: &[u8]) -> slide_io::Result<Slide> {
        use std::os::unix::fs::FileExt;
        self.file.write_all_at(bytes, 0).unwrap();
        self.file.set_len(bytes.len() as u64).unwrap();
        Slide::open_as(&self.path, "tiff")
    }

    /// Opens `bytes` and reads some of everything; whether they opened.
    fn try_out(&self, bytes: &[u8], what: impl Fn() -> String) -> bool {
        let begun = Instant::now();
        let opened = self.open(bytes);
        if let Ok(slide) = &opened {
            for level in 0..slide.levels().len() {
                let _ = slide.read(&region(level, 20, 10, 50, 40));
            }
            // Halved while it is decoded, and resampled.
            for mpp in [1.5, 4.0] {
                let spec = GridSpec { mpp: Mpp(mpp), size: 16, stride: 16, min_tissue: 0.0 };
                let _ = read_patch(slide, Mpp(0.5), Point::new(5, 3), &spec);
            }
            slide.associated_names().iter().for_each(|name| drop(slide.read_associated(name)));
        }
        assert!(begun.elapsed() < PATIENCE, "{}: {:?}", what(), begun.elapsed());
        opened.is_ok()
    }
}

/// What a number is changed to: nothing, one, its neighbours, the end of the file, much too much, the largest.
fn changes(number: Number, value: u64, length: u64) -> Vec<u64> {
    let largest = u64::MAX >> (64 - 8 * number.bytes);
    let mut all = vec![0, 1, value ^ 1, value.wrapping_add(1), length - 1, length, 1 << 16, 1 << 31, largest];
    all.retain(|changed| *changed <= largest && *changed != value);
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn every_field_of_every_directory() {
    if !within_bounded_memory("mutation::every_field_of_every_directory") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let seeds = seeds(folder.path());
    let half = seeds.len().div_ceil(2);
    let counts: Vec<(usize, usize)> = std::thread::scope(|scope| {
        let threads = seeds.chunks(half).enumerate().map(|(thread, seeds)| {
            let scratch = Scratch::new(folder.path(), &format!("{thread}.tif"));
            scope.spawn(move || seeds.iter().map(|(name, seed)| change_directories(&scratch, name, seed)).collect())
        });
        let threads: Vec<std::thread::ScopedJoinHandle<Vec<(usize, usize)>>> = threads.collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let (tried, opened) = counts.into_iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    eprintln!("mutation: {tried} files with one field changed, {opened} of them still open");
    assert!(tried > 10_000 && opened > tried / 10 && opened < tried * 9 / 10, "{opened} of {tried}");
}

/// Changes every field in turn; the numbers of files tried and opened.
fn change_directories(scratch: &Scratch, name: &str, seed: &Layout) -> (usize, usize) {
    assert!(scratch.open(&seed.bytes).is_ok(), "{name}");
    let (entries, nexts) = seed.directories();
    let fields = entries.iter().flat_map(|entry| seed.fields(*entry));
    let tables = entries.iter().flat_map(|entry| seed.values(*entry).into_iter().take(2));
    let (mut tried, mut opened) = (0, 0);
    for number in fields.chain(tables).chain(nexts).chain([seed.first()]) {
        let value = seed.get(number);
        let mut changed = seed.clone();
        for other in changes(number, value, seed.bytes.len() as u64) {
            changed.put(number, other);
            tried += 1;
            let what = || format!("{name}: {number:?} from {value} to {other}");
            opened += usize::from(scratch.try_out(&changed.bytes, what));
        }
    }
    (tried, opened)
}

#[test]
fn every_header_byte() {
    if !within_bounded_memory("mutation::every_header_byte") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let scratch = Scratch::new(folder.path(), "file.tif");
    let mut random = Random(8);
    let (mut tried, mut opened) = (0, 0);
    for (name, seed) in seeds(folder.path()) {
        let (entries, _) = seed.directories();
        // Headers and directories, several bytes at a time.
        let places: Vec<usize> = (0..16).chain(entries.iter().flat_map(|entry| entry.at..entry.at + 12)).collect();
        for _ in 0..60 {
            let mut changed = seed.bytes.clone();
            for _ in 0..random.range(1, 5) {
                let at = places[random.range(0, places.len() as i64) as usize];
                changed[at] = match random.range(0, 4) {
                    0 => 0,
                    1 => 255,
                    2 => changed[at] ^ (1 << random.range(0, 8)),
                    _ => random.next() as u8,
                };
            }
            tried += 1;
            opened += usize::from(scratch.try_out(&changed, || format!("{name}: {tried}")));
        }
    }
    eprintln!("mutation: {tried} files with some bytes of their directories changed, {opened} of them still open");
    assert!((tried / 10..tried * 9 / 10).contains(&opened), "{opened} of {tried}");
}

fn is_blank(image: &RgbImage) -> bool {
    image.iter().all(|value| *value == 0) || image.iter().all(|value| *value == 255)
}

/// Damages a tile of every kind in every way, and reads it alone.
#[test]
fn every_kind_of_tile() {
    if !within_bounded_memory("mutation::every_kind_of_tile") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let scratch = Scratch::new(folder.path(), "file.tif");
    let mut random = Random(9);
    let (mut tried, mut refused) = (0, 0);
    for (name, seed) in seeds(folder.path()) {
        let (offset, length) = seed.chunks()[0];
        let (start, bytes) = (seed.get(offset) as usize, seed.get(length) as usize);
        let end = start + bytes;
        // Bytes that are pixels cannot be told from damaged ones.
        let is_raw = name.contains("raw");
        let (mut files, mut must_fail) = (Vec::new(), Vec::new());
        for fill in [0, 255] {
            for damaged in [start..end, start..start + bytes / 2, start + bytes / 2..end, start..start + 8] {
                let mut changed = seed.clone();
                changed.bytes[damaged.clone()].fill(fill);
                must_fail.push(damaged.len() == bytes && !is_raw);
                files.push(changed);
            }
        }
        for shorter in [1, 2, bytes / 2, bytes - 1] {
            let mut changed = seed.clone();
            changed.put(length, shorter as u64);
            // A byte or so may be padding; half of the data is not.
            must_fail.push(shorter <= bytes / 2);
            files.push(changed);
        }
        for _ in 0..30 {
            let mut changed = seed.clone();
            for _ in 0..random.range(1, 10) {
                changed.bytes[random.range(start as i64, end as i64) as usize] = random.next() as u8;
            }
            must_fail.push(false);
            files.push(changed);
        }
        for (number, (file, must_fail)) in files.into_iter().zip(must_fail).enumerate() {
            let slide = scratch.open(&file.bytes).unwrap();
            let begun = Instant::now();
            let tile = slide.read(&region(0, 0, 0, 20, 16));
            assert!(begun.elapsed() < PATIENCE, "{name}, {number}");
            tried += 1;
            match tile {
                Ok(pixels) if is_raw || (!must_fail && !is_blank(&pixels)) => {}
                Ok(_) => panic!("{name}, {number}: damage was read as pixels"),
                Err(error) => {
                    let text = error.to_string();
                    assert!(matches!(error, Error::BadFile { .. }), "{name}, {number}: {text}");
                    assert!(text.contains("level 0, tile (column 0, row 0): "), "{name}, {number}: {text}");
                    refused += 1;
                }
            }
        }
    }
    eprintln!("mutation: {tried} damaged tiles, {refused} of them refused, none read as blank");
    assert!(refused > tried / 3, "{refused} of {tried}");
}

#[test]
fn mutated_jpeg_2000_tiles_of_a_real_slide() {
    let files = crate::sample::real_files();
    let Some(slide) = files.iter().find(|path| name(path).contains("j2k33003")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let scratch = Scratch::new(folder.path(), "slide.svs");
    let whole = std::fs::read(slide).unwrap();
    let mut random = Random(12);
    for number in 0..100 {
        let mut bytes = whole.clone();
        // A byte in every few tiles.
        for _ in 0..60 {
            let at = random.range(8, whole.len() as i64) as usize;
            bytes[at] = random.next() as u8;
        }
        scratch.try_out(&bytes, || number.to_string());
    }
}
