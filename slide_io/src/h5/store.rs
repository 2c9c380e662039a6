//! The HDF5 side of coordinates and features files.
//!
//! libhdf5 is not thread-safe; the `hdf5` crate holds one lock around every call and keeps the library's error print-outs
//! off stderr. Object times are off, because a modification time would make two equal files differ.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hdf5::types::{FixedAscii, FixedUnicode, TypeDescriptor, VarLenAscii, VarLenUnicode};
use hdf5::{Dataset, File, H5Type, Location};
use serde_json::Value;

use super::{Coordinates, Features, FeaturesShape, Geometry, LabelFractions};
use crate::atomic_file;
use crate::error::{Error, Result};
use crate::geometry::{Level, Mpp, Point, Size};

mod attention;

pub(super) use attention::{read_attention, write_attention};

/// Root attribute with the header.
const HEADER: &str = "gensis";

/// Dataset with the shares of the classes of a label mask.
const FRACTIONS: &str = "label_fractions";

type H5<T> = hdf5::Result<T>;

/// Writes coordinates, and features where given.
pub(super) fn write(path: &Path, coordinates: &Coordinates, features: Option<&Features>, header: &Value) -> Result<()> {
    if let Some(features) = features {
        let (rows, values) = (coordinates.origins.len(), features.values.len());
        if rows.checked_mul(features.dim) != Some(values) {
            let what = format!("{values} values are not {rows} features of width {}", features.dim);
            return Err(Error::Usage(format!("{}: {what}", path.display())));
        }
    }
    if let Some(LabelFractions { labels, values }) = &coordinates.labels
        && values.len() != coordinates.origins.len() * labels.len()
    {
        return Err(Error::Usage(format!("{}: {} shares are not a row a patch", path.display(), values.len())));
    }
    // HDF5 names neither the file nor the cause in a way that helps; the path does.
    atomic_file::replace(path, |temporary| {
        let folder = path.parent().unwrap_or(Path::new("."));
        fill(temporary, folder, coordinates, features, header).map_err(|e| Error::io(path, std::io::Error::other(e)))
    })
}

fn fill(
    temporary: &Path,
    folder: &Path,
    coordinates: &Coordinates,
    features: Option<&Features>,
    header: &Value,
) -> H5<()> {
    let file = File::create(temporary)?;
    {
        let folder = job_relative(folder);
        corners(&file, coordinates, &folder)?;
        if let Some(fractions) = &coordinates.labels {
            let values = dataset(&file, FRACTIONS, &fractions.values, fractions.labels.len())?;
            list(&values, "labels", &fractions.labels)?;
        }
        if let Some(features) = features {
            let values = dataset(&file, "features", &features.values, features.dim)?;
            text(&values, "name", &coordinates.name)?;
            text(&values, "savetodir", &folder)?;
            text(&values, "encoder", &features.encoder)?;
        }
        text(&file, HEADER, &header.to_string())?;
    }
    file.flush()?;
    file.close()
}

/// The dataset `coords` with its attributes.
fn corners(file: &File, coordinates: &Coordinates, folder: &str) -> H5<()> {
    let corners: Vec<i64> = coordinates.origins.iter().flat_map(|p| [p.x, p.y]).collect();
    let coords = dataset(file, "coords", &corners, 2)?;
    text(&coords, "name", &coordinates.name)?;
    text(&coords, "savetodir", folder)?;
    match &coordinates.geometry {
        Some(geometry) => describe(&coords, geometry, folder),
        None => Ok(()),
    }
}

/// The last two folders, `20x_256px_0px_overlap/patches`: the attribute tools expect, yet the same bytes in any run folder.
fn job_relative(folder: &Path) -> String {
    let names: Vec<_> = folder.iter().map(|name| name.to_string_lossy()).collect();
    names[names.len().saturating_sub(2)..].join("/")
}

/// Writes rows of `width` values. Empty ones are written as well: (0, `width`).
fn dataset<T: H5Type>(file: &File, name: &str, values: &[T], width: usize) -> H5<Dataset> {
    let rows = values.len().checked_div(width).unwrap_or(0);
    let dataset = file.new_dataset::<T>().obj_track_times(false).shape((rows, width)).create(name)?;
    if !values.is_empty() {
        dataset.write_raw(values)?;
    }
    Ok(dataset)
}

/// The attributes of TRIDENT, then of CLAM, then our own exact ones.
fn describe(coords: &Dataset, geometry: &Geometry, folder: &str) -> H5<()> {
    number(coords, "patch_size", i64::from(geometry.size))?;
    number(coords, "patch_size_level0", geometry.side_level0.round() as i64)?;
    number(coords, "overlap", i64::from(geometry.size) - i64::from(geometry.stride))?;
    if let Some(size) = geometry.slide {
        number(coords, "level0_width", i64::from(size.width))?;
        number(coords, "level0_height", i64::from(size.height))?;
    }
    if let Some(mpp) = geometry.mpp {
        let target = geometry.spec(mpp).mpp;
        magnification(coords, "level0_magnification", mpp)?;
        magnification(coords, "target_magnification", target)?;
        number(coords, "level0_mpp", mpp.0)?;
        number(coords, "target_mpp", target.0)?;
    }
    number(coords, "min_tissue", geometry.min_tissue)?;
    number(coords, "patch_level", geometry.level as i64)?;
    text(coords, "save_path", folder)?;
    if let Some(level) = geometry.level_shape {
        let dims = [i64::from(level.size.width), i64::from(level.size.height)];
        list(coords, "downsample", &[level.downsample; 2])?;
        list(coords, "level_dim", &dims)?;
        list(coords, "downsampled_level_dim", &dims)?;
    }
    Ok(())
}

/// 10 / (µm/px): an integer where it is one, as TRIDENT writes it, a float otherwise, as TRIDENT also writes it.
fn magnification(coords: &Dataset, name: &str, mpp: Mpp) -> H5<()> {
    let value = 10.0 / mpp.0;
    if (value - value.round()).abs() < 1e-9 {
        number(coords, name, value.round() as i64)
    } else {
        number(coords, name, value)
    }
}

fn number<T: H5Type>(at: &Location, name: &str, value: T) -> H5<()> {
    at.new_attr::<T>().create(name)?.write_scalar(&value)
}

fn list<T: H5Type>(at: &Location, name: &str, values: &[T]) -> H5<()> {
    at.new_attr::<T>().shape(values.len()).create(name)?.write_raw(values)
}

fn text(at: &Location, name: &str, value: &str) -> H5<()> {
    let value = VarLenUnicode::from_str(value).map_err(|e| hdf5::Error::from(format!("attribute {name}: {e}")))?;
    number(at, name, value)
}

pub(super) fn read_coordinates(path: &Path) -> Result<Coordinates> {
    let file = open(path)?;
    coordinates(&file, path).map_err(|what| Error::bad(path, what))
}

pub(super) fn read_features(path: &Path) -> Result<Features> {
    let file = open(path)?;
    features(&file, path).map_err(|what| Error::bad(path, what))
}

pub(super) fn features_shape(path: &Path) -> Result<FeaturesShape> {
    let file = open(path)?;
    let bad = |what: String| Error::bad(path, what);
    let dataset = file.dataset("features").map_err(|_| bad("it holds no dataset `features`".into()))?;
    let (patches, dim) = rows(&dataset, "features").map_err(bad)?;
    Ok(FeaturesShape { patches, dim, encoder: string(&dataset, "encoder").unwrap_or_default() })
}

pub(super) fn read_header(path: &Path) -> Result<Option<Value>> {
    let text = header_text(path)?;
    let parse = |text: String| serde_json::from_str(&text).map_err(|e| Error::bad(path, format!("its header: {e}")));
    text.map(parse).transpose()
}

/// The header as it was written: floats are compared as text, not after a round trip.
pub(super) fn header_text(path: &Path) -> Result<Option<String>> {
    if !path.exists() {
        return Ok(None);
    }
    let file = open(path)?;
    Ok(attribute(&file, HEADER).and_then(|value| match value {
        Attribute::Text(text) => Some(text),
        Attribute::Numbers(_) => None,
    }))
}

/// How often, and how long each time, a file that is locked is waited for.
const LOCK_TRIES: usize = 10;
const LOCK_WAIT: Duration = Duration::from_millis(50);

fn open(path: &Path) -> Result<File> {
    // libhdf5's own messages do not tell a missing file from a damaged one.
    std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let is_locked = |e: &hdf5::Error| e.to_string().contains("unable to lock file");
    let mut opened = File::open(path);
    // Who has just written it may not have let go yet.
    for _ in 0..LOCK_TRIES {
        if !opened.as_ref().is_err_and(is_locked) {
            break;
        }
        std::thread::sleep(LOCK_WAIT);
        opened = File::open(path);
    }
    opened.map_err(|e| match e.to_string() {
        _ if is_locked(&e) => Error::io(
            path,
            std::io::Error::other(
                "another program has locked it, or its file system has no locks: wait, or set HDF5_USE_FILE_LOCKING=FALSE",
            ),
        ),
        other => Error::bad(path, format!("no readable HDF5: {other}")),
    })
}

/// What is wrong with a file, in words.
type Said<T> = std::result::Result<T, String>;

fn coordinates(file: &File, path: &Path) -> Said<Coordinates> {
    let coords = file.dataset("coords").map_err(|_| "it holds no dataset `coords`")?;
    let values: Vec<i64> = match rows(&coords, "coords")? {
        (_, 2) => coords.read_raw().map_err(|e| format!("`coords`: {e}"))?,
        (n, width) => return Err(format!("`coords` is {n} x {width}, not N x 2")),
    };
    let origins = values.chunks_exact(2).map(|xy| Point::new(xy[0], xy[1])).collect();
    let stem = || PathBuf::from(path).file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let name = string(&coords, "name").unwrap_or_else(|| stem().trim_end_matches("_patches").to_owned());
    let labels = label_fractions(file, values.len() / 2)?;
    Ok(Coordinates { name, origins, geometry: geometry(&coords)?, labels })
}

fn label_fractions(file: &File, patches: usize) -> Said<Option<LabelFractions>> {
    let Ok(dataset) = file.dataset(FRACTIONS) else { return Ok(None) };
    let labels = numbers(&dataset, "labels").unwrap_or_default();
    if rows(&dataset, FRACTIONS)? != (patches, labels.len()) {
        return Err(format!("`{FRACTIONS}` does not have a row a patch and a column a label"));
    }
    let values = dataset.read_raw().map_err(|e| format!("`{FRACTIONS}`: {e}"))?;
    Ok(Some(LabelFractions { labels: labels.into_iter().map(|label| label as u8).collect(), values }))
}

fn features(file: &File, path: &Path) -> Said<Features> {
    let coordinates = coordinates(file, path)?;
    let dataset = file.dataset("features").map_err(|_| "it holds no dataset `features`")?;
    let (n, dim) = rows(&dataset, "features")?;
    if n != coordinates.origins.len() {
        return Err(format!("it holds {n} features for {} coordinates", coordinates.origins.len()));
    }
    let values = dataset.read_raw().map_err(|e| format!("`features`: {e}"))?;
    Ok(Features { encoder: string(&dataset, "encoder").unwrap_or_default(), dim, values, coordinates })
}

/// More bytes than this for every byte of the file: features and coordinates compress by ten or so, and a dataset that claims
/// what was never written would be allocated. Small ones may.
const MAX_INFLATION: u64 = 256;
const ALWAYS_READ: u64 = 64 << 20;

/// Rows and columns of a dataset that is about to be read.
fn rows(dataset: &Dataset, name: &str) -> Said<(usize, usize)> {
    let (rows, width) = match dataset.shape()[..] {
        [rows, width] => (rows, width),
        // As some feature extractors write a slide: a batch of one.
        [1, rows, width] => (rows, width),
        ref shape => return Err(format!("`{name}` has the shape {shape:?}, not that of a table (rows, columns)")),
    };
    // Eight bytes a number, the most that is read.
    let claimed = [rows, width, 8].iter().fold(1_u64, |bytes, &factor| bytes.saturating_mul(factor as u64));
    let stored = dataset.file().map_err(|e| format!("`{name}`: {e}"))?.size();
    if claimed > ALWAYS_READ.max(stored.saturating_mul(MAX_INFLATION)) {
        return Err(format!("`{name}` claims {rows} x {width} numbers in a file of {stored} bytes"));
    }
    Ok((rows, width))
}

/// What the attributes say of the patches: ours first, then TRIDENT's, then CLAM's.
fn geometry(coords: &Dataset) -> Said<Option<Geometry>> {
    let get = |name: &str| numbers(coords, name).and_then(|v| v.first().copied()).filter(|v| v.is_finite());
    let positive = |name: &str| get(name).filter(|&v| v > 0.0);
    let Some(size) = positive("patch_size") else { return Ok(None) };
    let scale = |mpp: &str, magnification: &str| positive(mpp).or_else(|| positive(magnification).map(|m| 10.0 / m));
    let (native, target) = (scale("level0_mpp", "level0_magnification"), scale("target_mpp", "target_magnification"));
    let exact = positive("level0_mpp").zip(positive("target_mpp")).map(|(native, target)| size * target / native);
    let pair = |name: &str| numbers(coords, name).filter(|v| v.len() == 2 && v[0] > 0.0 && v[1] > 0.0);
    let shape = pair("level_dim").zip(pair("downsample")).map(|(dim, downsample)| Level {
        size: Size::new(dim[0] as u32, dim[1] as u32),
        downsample: (downsample[0] + downsample[1]) / 2.0,
    });
    // CLAM: `patch_size` pixels of `patch_level`.
    let side = exact
        .or_else(|| positive("patch_size_level0"))
        .or_else(|| native.zip(target).map(|(native, target)| size * target / native))
        .or_else(|| shape.map(|level| size * level.downsample))
        .or_else(|| (get("patch_level") == Some(0.0)).then_some(size));
    let Some(side_level0) = side else {
        return Err("`coords` does not say how large a patch is in level-0 pixels".into());
    };
    let stride = (size - get("overlap").unwrap_or(0.0)).max(1.0);
    let slide = positive("level0_width").zip(positive("level0_height"));
    Ok(Some(Geometry {
        slide: slide.map(|(w, h)| Size::new(w as u32, h as u32)),
        mpp: native.map(Mpp),
        size: size as u32,
        stride: stride as u32,
        side_level0,
        min_tissue: get("min_tissue").unwrap_or(0.0),
        level: get("patch_level").unwrap_or(0.0) as usize,
        level_shape: shape,
    }))
}

enum Attribute {
    Numbers(Vec<f64>),
    Text(String),
}

/// An attribute of whatever numeric or text type the writer chose; `None` if it is missing or something else.
fn attribute(at: &Location, name: &str) -> Option<Attribute> {
    let attribute = at.attr(name).ok()?;
    let text = |text: &str| Some(Attribute::Text(text.to_owned()));
    match attribute.dtype().ok()?.to_descriptor().ok()? {
        TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) | TypeDescriptor::Float(_) => {
            attribute.read_raw::<f64>().ok().map(Attribute::Numbers)
        }
        TypeDescriptor::VarLenUnicode => text(attribute.read_raw::<VarLenUnicode>().ok()?.first()?),
        TypeDescriptor::VarLenAscii => text(attribute.read_raw::<VarLenAscii>().ok()?.first()?),
        TypeDescriptor::FixedAscii(_) => text(attribute.read_raw::<FixedAscii<512>>().ok()?.first()?),
        TypeDescriptor::FixedUnicode(_) => text(attribute.read_raw::<FixedUnicode<512>>().ok()?.first()?),
        _ => None,
    }
}

/// Numbers, also where they are written as text; `None` for TRIDENT's `'None'`.
fn numbers(at: &Location, name: &str) -> Option<Vec<f64>> {
    match attribute(at, name)? {
        Attribute::Numbers(values) => Some(values),
        Attribute::Text(text) => text.trim().parse().ok().map(|v| vec![v]),
    }
}

fn string(at: &Location, name: &str) -> Option<String> {
    match attribute(at, name)? {
        Attribute::Text(text) if text != "None" => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
