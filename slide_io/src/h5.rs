//! Coordinates and features files: HDF5 in the job-folder layout of TRIDENT, with CLAM's attributes beside TRIDENT's.
//!
//! ```text
//! <root>/20x_256px_0px_overlap/patches/<slide>_patches.h5        coords (N, 2) int64, level-0 x and y
//! <root>/20x_256px_0px_overlap/features_<encoder>/<slide>.h5     features (N, D) float32, and coords
//! ```
//!
//! | attribute of `coords` | meaning | read by |
//! |---|---|---|
//! | `patch_size` | side of a patch, px at the target scale | both |
//! | `patch_size_level0` | the same in level-0 px, rounded | TRIDENT |
//! | `level0_magnification`, `target_magnification` | 10 / (µm/px), not rounded, so that their ratio is exact | TRIDENT |
//! | `overlap`, `name`, `savetodir`, `level0_width`, `level0_height` | | TRIDENT |
//! | `patch_level`, `downsample`, `level_dim`, `downsampled_level_dim`, `save_path` | the level the patches are read from | CLAM |
//! | `level0_mpp`, `target_mpp`, `min_tissue` | the exact scales, µm/px, and the smallest share of tissue | gensis |
//!
//! A coordinates file of a slide with a label mask also holds `label_fractions` (N, classes) float32, the share of every
//! class in each patch; its attribute `labels` lists the classes' values.
//!
//! What a slide-level head attends to is kept under CLAM's names ([`AttentionScores`]): `attention_scores` (N, 1) float32 beside
//! `coords`, and `attention_scores_by_class` (N, classes) where a head looks at each class apart.
//!
//! The root attribute `gensis` is a JSON header chosen by the caller: a stage is done only if [`is_current`] finds exactly
//! that header. A file is written beside its place and renamed when it is complete, and the same input gives the same bytes.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::geometry::{Level, Mpp, Point, Size};
use crate::grid::{Grid, GridSpec};
use crate::patch::coarsest_level;

#[cfg(feature = "hdf5")]
mod store;

/// Where the patches of one slide are.
#[derive(Clone, Debug, PartialEq)]
pub struct Coordinates {
    /// The slide's id.
    pub name: String,
    /// Top left corners in level-0 pixels.
    pub origins: Vec<Point>,
    /// What a patch is; `None` where the file does not say (features files of CLAM).
    pub geometry: Option<Geometry>,
    /// What a label mask says of the patches, where there is one.
    pub labels: Option<LabelFractions>,
}

/// The share of every class of a label mask in each patch.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelFractions {
    /// Values of the mask's pixels, one for each column.
    pub labels: Vec<u8>,
    /// `origins.len() x labels.len()` shares, row-major, 0 to 1.
    pub values: Vec<f32>,
}

/// Scale and size of the patches of one slide.
#[derive(Clone, Debug, PartialEq)]
pub struct Geometry {
    /// Level-0 pixels of the slide, where known.
    pub slide: Option<Size>,
    /// µm/px of level 0 where known. In a file of TRIDENT this is nominal: 0.25 for every 40x slide.
    pub mpp: Option<Mpp>,
    /// Side of a patch, px at its own scale.
    pub size: u32,
    /// Distance between patches, px at their own scale; `size` where the file does not say.
    pub stride: u32,
    /// Side of a patch in level-0 pixels, exact.
    pub side_level0: f64,
    /// Smallest share of tissue; 0 where the file does not say.
    pub min_tissue: f64,
    /// Index of the level the patches are best read from.
    pub level: usize,
    /// That level, where known.
    pub level_shape: Option<Level>,
}

impl Coordinates {
    /// The coordinates of a grid on slide `name`, which has these `levels` and `mpp` µm/px at level 0.
    pub fn new(name: impl Into<String>, levels: &[Level], mpp: Mpp, grid: &Grid) -> Self {
        let level = coarsest_level(levels, grid.spec.ratio(mpp));
        let geometry = Geometry {
            slide: levels.first().map(|level| level.size),
            mpp: Some(mpp),
            size: grid.spec.size,
            stride: grid.spec.step(),
            side_level0: grid.side_level0,
            min_tissue: grid.spec.min_tissue,
            level,
            level_shape: levels.get(level).copied(),
        };
        Self { name: name.into(), origins: grid.origins.clone(), geometry: Some(geometry), labels: None }
    }
}

impl Geometry {
    /// How to read these patches from a slide whose level 0 truly has `mpp` µm/px: the footprint in the file counts.
    pub fn spec(&self, mpp: Mpp) -> GridSpec {
        // The grid's own scale again: without the last bits that the way over pixels has changed.
        let target = (mpp.0 * self.side_level0 / f64::from(self.size) * 1e12).round() / 1e12;
        GridSpec { mpp: Mpp(target), size: self.size, stride: self.stride, min_tissue: self.min_tissue }
    }
}

/// Features of the patches of one slide.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Name of the encoder; empty where the file does not say.
    pub encoder: String,
    /// Width of a feature.
    pub dim: usize,
    /// `origins.len() x dim` values, row-major, in the order of the coordinates.
    pub values: Vec<f32>,
    /// Where the patches are.
    pub coordinates: Coordinates,
}

/// What a slide-level head attends to.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionScores {
    /// Where the patches are.
    pub coordinates: Coordinates,
    /// One weight per patch.
    pub scores: Vec<f32>,
    /// Those of every class, where the head tells classes apart.
    pub by_class: Option<ClassScores>,
}

/// Attention of every class.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassScores {
    /// Names of the columns.
    pub classes: Vec<String>,
    /// `origins.len() x classes.len()` weights, row-major.
    pub values: Vec<f32>,
}

/// The folder of everything cut in this way: `20x_256px_0px_overlap`, TRIDENT's name. 10 µm/px are 1x.
pub fn job_folder(spec: &GridSpec) -> String {
    let overlap = i64::from(spec.size) - i64::from(spec.step());
    format!("{}x_{}px_{overlap}px_overlap", general(10.0 / spec.mpp.0), spec.size)
}

/// `<root>/<job folder>/patches/<slide>_patches.h5`.
pub fn coordinates_path(root: &Path, spec: &GridSpec, slide: &str) -> PathBuf {
    root.join(job_folder(spec)).join("patches").join(format!("{slide}_patches.h5"))
}

/// `<root>/<job folder>/features_<encoder>/<slide>.h5`.
pub fn features_path(root: &Path, spec: &GridSpec, encoder: &str, slide: &str) -> PathBuf {
    root.join(job_folder(spec)).join(format!("features_{encoder}")).join(format!("{slide}.h5"))
}

/// Writes a coordinates file, folders included. It replaces an older one only when it is complete.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) if it cannot be written; then nothing is left of it.
pub fn write_coordinates(path: &Path, coordinates: &Coordinates, header: &Value) -> Result<()> {
    #[cfg(feature = "hdf5")]
    return store::write(path, coordinates, None, header);
    #[cfg(not(feature = "hdf5"))]
    return missing(path, (coordinates, header));
}

/// Reads a coordinates file of this program, of TRIDENT or of CLAM.
///
/// # Errors
/// [`Error::BadFile`](crate::Error::BadFile) if it is damaged or holds no coordinates.
pub fn read_coordinates(path: &Path) -> Result<Coordinates> {
    #[cfg(feature = "hdf5")]
    return store::read_coordinates(path);
    #[cfg(not(feature = "hdf5"))]
    return missing(path, ());
}

/// Writes a features file, folders included. It replaces an older one only when it is complete.
///
/// # Errors
/// [`Error::Usage`](crate::Error::Usage) if the values do not fit the coordinates;
/// [`Error::Io`](crate::Error::Io) if it cannot be written; then nothing is left of it.
pub fn write_features(path: &Path, features: &Features, header: &Value) -> Result<()> {
    #[cfg(feature = "hdf5")]
    return store::write(path, &features.coordinates, Some(features), header);
    #[cfg(not(feature = "hdf5"))]
    return missing(path, (features, header));
}

/// Reads a features file of this program, of TRIDENT or of CLAM.
///
/// # Errors
/// [`Error::BadFile`](crate::Error::BadFile) if it is damaged or holds no features.
pub fn read_features(path: &Path) -> Result<Features> {
    #[cfg(feature = "hdf5")]
    return store::read_features(path);
    #[cfg(not(feature = "hdf5"))]
    return missing(path, ());
}

/// Writes a file of attention scores, folders included. It replaces an older one only when it is complete.
///
/// # Errors
/// [`Error::Usage`](crate::Error::Usage) if there is not a weight per patch (and class);
/// [`Error::Io`](crate::Error::Io) if it cannot be written; then nothing is left of it.
pub fn write_attention(path: &Path, attention: &AttentionScores, header: &Value) -> Result<()> {
    #[cfg(feature = "hdf5")]
    return store::write_attention(path, attention, header);
    #[cfg(not(feature = "hdf5"))]
    return missing(path, (attention, header));
}

/// Reads a file of attention scores of this program or of CLAM.
///
/// # Errors
/// [`Error::BadFile`](crate::Error::BadFile) if it is damaged or holds no attention scores.
pub fn read_attention(path: &Path) -> Result<AttentionScores> {
    #[cfg(feature = "hdf5")]
    return store::read_attention(path);
    #[cfg(not(feature = "hdf5"))]
    return missing(path, ());
}

/// What a features file holds, without reading the features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeaturesShape {
    /// Number of patches.
    pub patches: usize,
    /// Width of a feature.
    pub dim: usize,
    /// Name of the encoder; empty where the file does not say.
    pub encoder: String,
}

/// The shape of a features file of this program, of TRIDENT or of CLAM.
///
/// # Errors
/// [`Error::BadFile`](crate::Error::BadFile) if it is damaged or holds no features.
pub fn features_shape(path: &Path) -> Result<FeaturesShape> {
    #[cfg(feature = "hdf5")]
    return store::features_shape(path);
    #[cfg(not(feature = "hdf5"))]
    return missing(path, ());
}

/// The header of a file; `None` if there is no such file, or another program wrote it.
///
/// # Errors
/// [`Error::BadFile`](crate::Error::BadFile) if the file is damaged.
pub fn read_header(path: &Path) -> Result<Option<Value>> {
    #[cfg(feature = "hdf5")]
    return store::read_header(path);
    #[cfg(not(feature = "hdf5"))]
    return missing(path, ());
}

/// Whether `path` holds a complete file with exactly this header. A damaged file counts as none: it is written anew.
///
/// # Errors
/// A file that is there and cannot be opened, since it is locked or not ours to read; without the cargo feature `hdf5`, any.
pub fn is_current(path: &Path, header: &Value) -> Result<bool> {
    #[cfg(feature = "hdf5")]
    return match store::header_text(path) {
        Ok(text) => Ok(text.as_deref() == Some(header.to_string().as_str())),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error @ Error::Io { .. }) => Err(error),
        Err(_) => Ok(false),
    };
    #[cfg(not(feature = "hdf5"))]
    return missing(path, header);
}

#[cfg(not(feature = "hdf5"))]
fn missing<T, A>(path: &Path, _unused: A) -> Result<T> {
    Err(Error::unsupported(path, "this build cannot read or write HDF5: build it with the cargo feature hdf5"))
}

/// C's `%g`: six significant digits, no trailing zeros.
fn general(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let exponent = format!("{value:.5e}");
    let exponent: i32 = exponent.rsplit('e').next().and_then(|e| e.parse().ok()).unwrap_or(0);
    let trim = |digits: String| match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits,
    };
    if (-4..6).contains(&exponent) {
        return trim(format!("{value:.*}", (5 - exponent) as usize));
    }
    let text = format!("{value:.5e}");
    let mantissa = text.split('e').next().unwrap_or_default().to_owned();
    format!("{}e{}{:02}", trim(mantissa), if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magnifications_are_written_as_c_writes_them() {
        // python3 -c "print('%g' % x)"
        for (value, expected) in [
            (20.0, "20"),
            (1.25, "1.25"),
            (10.0 / 0.4863, "20.5634"),
            (40.0, "40"),
            (0.1, "0.1"),
            (1234567.0, "1.23457e+06"),
            (0.00001234, "1.234e-05"),
            (999999.5, "1e+06"),
            (100000.0, "100000"),
        ] {
            assert_eq!(general(value), expected);
        }
    }

    #[test]
    fn paths_are_those_of_trident() {
        let spec = GridSpec { stride: 192, ..GridSpec::default() };
        assert_eq!(job_folder(&spec), "20x_256px_64px_overlap");
        let root = Path::new("run");
        assert_eq!(coordinates_path(root, &spec, "s1"), Path::new("run/20x_256px_64px_overlap/patches/s1_patches.h5"));
        let features = features_path(root, &spec, "dino", "s1");
        assert_eq!(features, Path::new("run/20x_256px_64px_overlap/features_dino/s1.h5"));
    }
}
