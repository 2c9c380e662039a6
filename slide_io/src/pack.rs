//! Packed patches: the patches of a slide as JPEG in one tar file, for training that reads them many times and at random.
//!
//! ```text
//! <root>/20x_256px_0px_overlap/packed/<slide>.tar    <slide>_<x>_<y>.jpg, readable by tar, WebDataset and DALI
//! <root>/20x_256px_0px_overlap/packed/<slide>.json   where each lies in it; written last, so that it vouches for the tar
//! ```
//!
//! Where a patch is exactly one stored JPEG tile of the slide, its bytes are copied and nothing is lost; any other patch
//! is resampled and encoded once. [`PackedPatches`] reads them back as a [`PatchSource`], any of them in one read of the
//! file and one decoding of a JPEG of its size.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::archive::{ArchiveWriter, OpenArchives, Place};
use crate::atomic_file;
use crate::error::{Error, Result};
use crate::geometry::{Mpp, Point};
use crate::grid::GridSpec;
use crate::h5::job_folder;
use crate::jpeg::{self, ColorModel};
use crate::patch::{Footprint, Patch, PatchKey, PatchSource, ends, read_patch};
use crate::slide::Slide;
use crate::walk::Walk;

/// Patches read and encoded at a time.
const CHUNK: usize = 256;

/// How patches are packed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PackSpec {
    /// Whether `tile` packs the patches, and training reads the packed ones.
    pub enabled: bool,
    /// JPEG quality of patches that are no stored tile, 1 to 100.
    pub quality: u8,
}

impl Default for PackSpec {
    fn default() -> Self {
        // 90 is above what scanners store (30 to 80), so the second compression adds little to the first.
        Self { enabled: false, quality: 90 }
    }
}

impl PackSpec {
    /// Checks the values on their own.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the value that makes no sense.
    pub fn check(&self) -> Result<()> {
        match self.quality {
            1..=100 => Ok(()),
            quality => Err(Error::Usage(format!("pack.quality is {quality}: JPEG's goes from 1 to 100"))),
        }
    }
}

/// What lies where in a tar file of patches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Index {
    /// The caller's header: what the patches depend on.
    pub header: Value,
    /// Bytes of the tar file.
    pub bytes: u64,
    /// Patches that are stored tiles of the slide.
    pub copied: usize,
    /// The patches, in the order of the grid.
    pub patches: Vec<Packed>,
    /// Patches that could not be read, and why.
    pub unreadable: Vec<(Point, String)>,
}

/// One packed patch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Packed {
    /// Top left corner in level-0 pixels.
    pub origin: Point,
    /// Position of its JPEG in the tar file.
    pub offset: u64,
    /// Bytes of its JPEG.
    pub length: u32,
}

/// `<root>/<job folder>/packed/<slide>.tar`.
pub fn path(root: &Path, spec: &GridSpec, slide: &str) -> PathBuf {
    root.join(job_folder(spec)).join("packed").join(format!("{slide}.tar"))
}

/// The index of a tar file: `None` where there is none, where it was made with another header, or of another tar file.
pub fn current_index(tar: &Path, header: &Value) -> Option<Index> {
    let index: Index = serde_json::from_slice(&std::fs::read(index_path(tar)).ok()?).ok()?;
    // JSON may move the last bit of a number: the header must have gone through it, as the stored one has.
    let header: Value = serde_json::from_str(&header.to_string()).ok()?;
    (index.header == header && tar.metadata().ok()?.len() == index.bytes).then_some(index)
}

fn index_path(tar: &Path) -> PathBuf {
    tar.with_extension("json")
}

/// Packs the patches of `spec` at `origins` of the slide called `name`, of `native` µm/px, into `tar`. A patch that
/// cannot be read is left out and listed in the index.
///
/// # Errors
/// [`Error::Io`] if it cannot be written, or the slide not be read for another reason than damage.
pub fn write(
    tar: &Path,
    (name, slide, native): (&str, &Slide, Mpp),
    (spec, origins): (&GridSpec, &[Point]),
    quality: u8,
    header: &Value,
) -> Result<Index> {
    let walk = Walk::new(slide, native, spec, origins);
    let mut index = Index { header: header.clone(), bytes: 0, copied: 0, patches: Vec::new(), unreadable: Vec::new() };
    let mut places = Vec::new();
    let io = |error| Error::io(tar, error);
    // An index of the old file must not outlive it.
    match std::fs::remove_file(index_path(tar)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    atomic_file::replace(tar, |temporary| {
        let mut archive = ArchiveWriter::new(BufWriter::new(File::create(temporary).map_err(io)?));
        for chunk in walk.order().chunks(CHUNK) {
            let encoded: Vec<_> =
                chunk.par_iter().map(|&patch| encode(slide, native, spec, origins[patch], quality)).collect();
            for (&patch, encoded) in chunk.iter().zip(encoded) {
                let origin = origins[patch];
                match encoded {
                    Ok((bytes, copied)) => {
                        let member = format!("{name}_{}_{}.jpg", origin.x, origin.y);
                        let Place { offset, length } = archive.append(&member, &bytes).map_err(io)?;
                        index.copied += usize::from(copied);
                        places.push((patch, Packed { origin, offset, length }));
                    }
                    // The disk may answer tomorrow; only damage is there to stay.
                    Err(error @ Error::Io { .. }) => return Err(error),
                    Err(error) => index.unreadable.push((origin, error.to_string())),
                }
                walk.done(slide, patch);
            }
        }
        archive.finish().map_err(io)
    })?;
    places.sort_unstable_by_key(|(patch, _)| *patch);
    index.unreadable.sort_by_key(|(origin, _)| (origin.y, origin.x));
    index.patches = places.into_iter().map(|(_, place)| place).collect();
    index.bytes = tar.metadata().map_err(io)?.len();
    let text = serde_json::to_vec(&index).map_err(|error| io(error.into()))?;
    atomic_file::write(&index_path(tar), &text)?;
    Ok(index)
}

/// The JPEG of a patch, and whether it is a stored tile.
fn encode(slide: &Slide, native: Mpp, spec: &GridSpec, origin: Point, quality: u8) -> Result<(Vec<u8>, bool)> {
    let failed =
        |error: jpeg::JpegError| Error::bad(slide.path(), format!("patch at ({}, {}): {error}", origin.x, origin.y));
    if let Some(stored) = stored_tile(slide, native, spec, origin)? {
        // Only what can be decoded is packed, and a tile of another size than the directory says is damaged.
        if jpeg::decode(&stored).map_err(failed)?.dimensions() == (spec.size, spec.size) {
            return Ok((stored, true));
        }
    }
    let patch = read_patch(slide, native, origin, spec)?;
    Ok((jpeg::encode(&patch, quality, ColorModel::YCbCr).map_err(failed)?, false))
}

/// The stored JPEG tile that is this very patch, if there is one.
fn stored_tile(slide: &Slide, native: Mpp, spec: &GridSpec, origin: Point) -> Result<Option<Vec<u8>>> {
    let resolution = slide.resolution_for(spec.ratio(native));
    let (level, tile) = (&slide.resolutions()[resolution], slide.tile(resolution));
    let footprint = Footprint::new(level, origin, spec.ratio(native), spec.size);
    let Some((x, y)) = footprint.copied_from() else { return Ok(None) };
    let whole = |start: i64, side: u32, extent: u32| {
        let inside = start >= 0 && start + i64::from(side) <= i64::from(extent);
        (side == spec.size && inside && start % i64::from(side) == 0).then_some((start / i64::from(side)) as u32)
    };
    match (whole(x, tile.width, level.size.width), whole(y, tile.height, level.size.height)) {
        (Some(column), Some(row)) => slide.stored_jpeg(resolution, column, row),
        _ => Ok(None),
    }
}

/// The packed patches of one slide.
#[derive(Clone, Debug)]
pub struct PackedSlide {
    /// The slide's id.
    pub id: String,
    /// The tar file.
    pub tar: PathBuf,
    /// Class index, where known.
    pub label: Option<u32>,
    /// Where the patches lie.
    pub patches: Vec<Packed>,
}

/// The packed patches of a cohort, slide after slide. Any order of reading is as good.
pub struct PackedPatches {
    slides: Vec<PackedSlide>,
    classes: Vec<String>,
    /// Number of patches up to and including each slide.
    ends: Vec<usize>,
    open: OpenArchives,
}

impl PackedPatches {
    /// The patches of `slides`; `classes` names their labels.
    ///
    /// # Errors
    /// [`Error::Usage`] for a label without a class.
    pub fn new(slides: Vec<PackedSlide>, classes: Vec<String>) -> Result<Self> {
        if let Some(slide) = slides.iter().find(|slide| slide.label.is_some_and(|l| l as usize >= classes.len())) {
            return Err(Error::Usage(format!("slide {}: its label has no class name", slide.id)));
        }
        let ends = ends(slides.iter().map(|slide| slide.patches.len()));
        Ok(Self { slides, classes, ends, open: OpenArchives::default() })
    }

    fn locate(&self, index: usize) -> (usize, &PackedSlide, Packed) {
        let number = self.ends.partition_point(|&end| end <= index);
        let slide = &self.slides[number];
        (number, slide, slide.patches[index + slide.patches.len() - self.ends[number]])
    }
}

impl PatchSource for PackedPatches {
    fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn key(&self, index: usize) -> PatchKey {
        let (_, slide, packed) = self.locate(index);
        PatchKey { item: slide.id.clone(), origin: Some(packed.origin) }
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.locate(index).1.label
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn slide_ends(&self) -> &[usize] {
        &self.ends
    }

    fn prefers_few_slides(&self) -> bool {
        false
    }

    fn read(&self, index: usize) -> Result<Patch> {
        let (number, slide, packed) = self.locate(index);
        let Packed { origin: Point { x, y }, offset, length } = packed;
        let stream = self.open.read(number, &slide.tar, Place { offset, length })?;
        let image =
            jpeg::decode(&stream).map_err(|error| Error::bad(&slide.tar, format!("patch at ({x}, {y}): {error}")))?;
        Ok(Patch { key: self.key(index), image, label: slide.label })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use serde_json::json;

    use super::*;
    use crate::pyramid::{PyramidSpec, write_pyramid};
    use crate::{Grid, RgbImage, TissueMask};

    /// A slide of 300 x 200 px in JPEG tiles of 64 px of this colour model, and its grid at `mpp`; the slide has 0.5.
    fn slide(folder: &Path, color: ColorModel, mpp: f64) -> (Slide, Grid) {
        let path = folder.join("slide.tiff");
        let image = RgbImage::from_fn(300, 200, |x, y| image::Rgb([(x * 5) as u8, (x + y * 3) as u8, (y * 7) as u8]));
        let spec = PyramidSpec { tile: 64, levels: vec![1], mpp: Some(Mpp(0.5)), color, ..PyramidSpec::default() };
        write_pyramid(&path, &image, &spec).unwrap();
        let slide = Slide::open(&path).unwrap();
        let spec = GridSpec { mpp: Mpp(mpp), size: 64, stride: 64, min_tissue: 0.0 };
        let grid = Grid::new(slide.size(), Mpp(0.5), &spec, &TissueMask::full(slide.size())).unwrap();
        (slide, grid)
    }

    fn packed(tar: &Path, name: &str, slide: &Slide, grid: &Grid) -> (Index, PackedPatches) {
        let index = write(tar, (name, slide, Mpp(0.5)), (&grid.spec, &grid.origins), 95, &json!({"a": 0.1})).unwrap();
        assert_eq!(current_index(tar, &json!({"a": 0.1})).as_ref(), Some(&index));
        let slide =
            PackedSlide { id: name.into(), tar: tar.to_owned(), label: Some(1), patches: index.patches.clone() };
        (index, PackedPatches::new(vec![slide], vec!["a".into(), "b".into()]).unwrap())
    }

    #[test]
    fn a_stored_tile_is_copied_and_reads_as_the_slide_does() {
        for color in [ColorModel::YCbCr, ColorModel::Rgb] {
            let folder = tempfile::tempdir().unwrap();
            let (slide, grid) = slide(folder.path(), color, 0.5);
            let (index, patches) = packed(&folder.path().join("p/s.tar"), "s", &slide, &grid);
            assert_eq!((index.copied, index.patches.len(), patches.len()), (12, 12, 12));
            for (number, &origin) in grid.origins.iter().enumerate() {
                let patch = patches.read(number).unwrap();
                assert_eq!(patch.key, PatchKey { item: "s".into(), origin: Some(origin) });
                assert_eq!(patch.label, Some(1));
                let direct = read_patch(&slide, Mpp(0.5), origin, &grid.spec).unwrap();
                assert_eq!(patch.image, direct, "{color:?} at {origin:?}: not a bit is lost");
            }
        }
    }

    #[test]
    fn other_patches_are_encoded_once() {
        let folder = tempfile::tempdir().unwrap();
        let (slide, grid) = slide(folder.path(), ColorModel::Rgb, 0.61);
        let (index, patches) = packed(&folder.path().join("s.tar"), "s", &slide, &grid);
        assert_eq!((index.copied, index.patches.len()), (0, grid.origins.len()));
        for (number, &origin) in grid.origins.iter().enumerate() {
            let direct = read_patch(&slide, Mpp(0.5), origin, &grid.spec).unwrap();
            let encoded = jpeg::decode(&jpeg::encode(&direct, 95, ColorModel::YCbCr).unwrap()).unwrap();
            assert_eq!(patches.read(number).unwrap().image, encoded);
        }
    }

    #[test]
    fn the_file_is_a_tar_of_jpegs_and_the_index_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let (slide, grid) = slide(folder.path(), ColorModel::YCbCr, 0.5);
        // Members of 98 to 103 bytes among them: a tar header holds names of 100.
        let around = (91..94).map(|length| "n".repeat(length));
        for name in around.chain(["s".to_owned(), "a slide with a long name ".repeat(8)]) {
            let tar = folder.path().join("packed.tar");
            let (index, _) = packed(&tar, &name, &slide, &grid);
            let mut archive = tar::Archive::new(File::open(&tar).unwrap());
            let mut found = Vec::new();
            for entry in archive.entries().unwrap() {
                let mut entry = entry.unwrap();
                let place = (entry.raw_file_position(), entry.size());
                let member = entry.path().unwrap().to_string_lossy().into_owned();
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                assert_eq!(jpeg::decode(&bytes).unwrap().dimensions(), (64, 64));
                found.push((member, place));
            }
            found.sort();
            let mut expected: Vec<_> = index
                .patches
                .iter()
                .map(|p| (format!("{name}_{}_{}.jpg", p.origin.x, p.origin.y), (p.offset, u64::from(p.length))))
                .collect();
            expected.sort();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_pack_of_other_settings_or_cut_short_is_not_current() {
        let folder = tempfile::tempdir().unwrap();
        let (slide, grid) = slide(folder.path(), ColorModel::YCbCr, 0.5);
        let tar = folder.path().join("s.tar");
        let (_, patches) = packed(&tar, "s", &slide, &grid);
        assert_eq!(current_index(&tar, &json!({"a": 0.2})), None);
        let bytes = std::fs::read(&tar).unwrap();
        // The same patches give the same file.
        packed(&tar, "s", &slide, &grid);
        assert!(std::fs::read(&tar).unwrap() == bytes);
        std::fs::write(&tar, &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(current_index(&tar, &json!({"a": 0.1})), None);
        let error = patches.read(11).unwrap_err().to_string();
        assert!(error.contains("s.tar"), "{error}");
    }

    #[test]
    fn a_patch_that_cannot_be_read_is_left_out_and_listed() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, grid) = slide(folder.path(), ColorModel::YCbCr, 0.5);
        let path = whole.path().to_owned();
        drop(whole);
        let mut bytes = std::fs::read(&path).unwrap();
        let starts: Vec<usize> = (0..bytes.len() - 1).filter(|&i| bytes[i..i + 2] == [0xff, 0xda]).collect();
        bytes[starts[1] + 20..starts[1] + 22].copy_from_slice(&[0xff, 0xd9]);
        std::fs::write(&path, bytes).unwrap();
        let damaged = Slide::open(&path).unwrap();
        let (index, patches) = packed(&folder.path().join("s.tar"), "s", &damaged, &grid);
        assert_eq!((index.patches.len(), patches.len()), (11, 11));
        assert_eq!(index.unreadable[0].0, Point::new(64, 0));
        assert_eq!(patches.key(1).origin, Some(Point::new(128, 0)));
    }
}
