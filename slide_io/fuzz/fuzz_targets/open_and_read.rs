//! Any bytes as a TIFF: open it natively and read some of every level, its associated images and its properties.
//!
//! An error is fine. A panic, more memory than the limits of the run allow, or no end is a finding.

#![no_main]

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use slide_io::patch::read_patch;
use slide_io::thumbnail::thumbnail;
use slide_io::{GridSpec, Mpp, Point, Region, Size, Slide};

/// A file in memory, written anew for every input.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("slide_io-fuzz-{}.tif", std::process::id()))
});

fuzz_target!(|bytes: &[u8]| -> Corpus {
    if !matches!(bytes, [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..]) {
        return Corpus::Reject;
    }
    File::create(&*FILE).and_then(|mut file| file.write_all(bytes)).expect("the file in memory is written");
    let Ok(slide) = Slide::open_as(&*FILE, "tiff") else { return Corpus::Keep };
    for (level, found) in slide.levels().iter().enumerate() {
        let Size { width, height } = found.size;
        let at = |column: u32, row: u32| {
            Point::new((f64::from(column) * found.downsample) as i64, (f64::from(row) * found.downsample) as i64)
        };
        // The top left corner, the middle, and beyond the bottom right.
        for (column, row) in [(0, 0), (width / 2, height / 2), (width.saturating_sub(20), height.saturating_sub(20))] {
            let _ = slide.read(&Region { level, origin: at(column, row), size: Size::new(70, 50) });
        }
    }
    // Halved while it is decoded, and resampled; then the whole at once, where it is small.
    for mpp in [1.5, 4.0] {
        let spec = GridSpec { mpp: Mpp(mpp), size: 32, stride: 32, min_tissue: 0.0 };
        let _ = read_patch(&slide, Mpp(0.5), Point::new(5, 3), &spec);
    }
    let Size { width, height } = slide.size();
    if u64::from(width) * u64::from(height) < 1 << 22 {
        let _ = thumbnail(&slide, 16);
    }
    slide.associated_names().iter().for_each(|name| drop(slide.read_associated(name)));
    assert!(!slide.properties().is_empty() && slide.mpp().is_none_or(|mpp| mpp.0 > 0.0));
    Corpus::Keep
});
