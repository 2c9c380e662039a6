use std::collections::BTreeMap;
use std::fs;

use hdf5::types::{FloatSize, IntSize};
use serde_json::json;

use super::super::{coordinates_path, features_path, is_current, job_folder, write_coordinates, write_features};
use super::*;
use crate::grid::{Grid, GridSpec};
use crate::tissue::TissueMask;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/h5");

/// A PANDA-like slide: 0.4863 µm/px and a level of downsample 4.0005.
fn sample() -> Coordinates {
    let coordinates = sample_at(Mpp(0.4863));
    assert!(coordinates.origins.len() > 50);
    coordinates
}

fn sample_at(mpp: Mpp) -> Coordinates {
    let slide = Size::new(3000, 2000);
    let levels = [Level { size: slide, downsample: 1.0 }, Level { size: Size::new(749, 499), downsample: 4.0005 }];
    let spec = GridSpec { stride: 192, ..GridSpec::default() };
    let grid = Grid::new(slide, mpp, &spec, &TissueMask::full(slide)).unwrap();
    Coordinates::new("slide é 1", &levels, mpp, &grid)
}

fn sample_features() -> Features {
    let coordinates = sample();
    let values = (0..coordinates.origins.len() * 5).map(|i| (i as f32 * 0.37).sin()).collect();
    Features { encoder: "dino".into(), dim: 5, values, coordinates }
}

fn header() -> Value {
    json!({"version": "0.1.0", "mpp": 0.1 + 0.2, "counts": {"kept": 3}})
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn coordinates_come_back_as_they_went() {
    let root = tempfile::tempdir().unwrap();
    let coordinates = sample();
    let spec = coordinates.geometry.as_ref().unwrap().spec(Mpp(0.4863));
    assert!((spec.mpp.0 - 0.5).abs() < 1e-12);
    let path = coordinates_path(root.path(), &spec, "s1");
    write_coordinates(&path, &coordinates, &header()).unwrap();
    assert_eq!(read_coordinates(&path).unwrap(), coordinates);
    assert_eq!(read_header(&path).unwrap(), Some(header()));
    assert!(is_current(&path, &header()).unwrap());
    assert!(!is_current(&path, &json!({"version": "0.1.1"})).unwrap());
    assert_eq!(names(path.parent().unwrap()), ["s1_patches.h5"]);
}

#[test]
fn a_slide_without_patches_is_a_file_too() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("empty_patches.h5");
    let coordinates = Coordinates { origins: vec![], ..sample() };
    write_coordinates(&path, &coordinates, &header()).unwrap();
    assert_eq!(read_coordinates(&path).unwrap(), coordinates);
    let features = Features { encoder: "dino".into(), dim: 384, values: vec![], coordinates };
    let path = root.path().join("empty.h5");
    write_features(&path, &features, &header()).unwrap();
    let read = read_features(&path).unwrap();
    assert_eq!((read.coordinates, read.values.len()), (features.coordinates, 0));
}

#[test]
fn shares_of_a_label_mask_lie_beside_the_coordinates() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("s1_patches.h5");
    let mut coordinates = sample();
    let values = (0..coordinates.origins.len()).flat_map(|i| [1.0 - i as f32 * 1e-3, 0.0, i as f32 * 1e-3]).collect();
    coordinates.labels = Some(LabelFractions { labels: vec![0, 1, 5], values });
    write_coordinates(&path, &coordinates, &header()).unwrap();
    assert_eq!(read_coordinates(&path).unwrap(), coordinates);
    let empty = LabelFractions { labels: vec![0, 1], values: vec![] };
    let none = Coordinates { origins: vec![], labels: Some(empty.clone()), ..sample() };
    write_coordinates(&path, &none, &header()).unwrap();
    assert_eq!(read_coordinates(&path).unwrap(), none);
    let short = Coordinates { labels: Some(empty), ..sample() };
    assert!(matches!(write_coordinates(&path, &short, &header()), Err(Error::Usage(_))));
}

#[test]
fn features_come_back_as_they_went() {
    let root = tempfile::tempdir().unwrap();
    let features = sample_features();
    let path = features_path(root.path(), &GridSpec::default(), "dino", "s1");
    assert!(path.to_string_lossy().contains(&job_folder(&GridSpec::default())));
    write_features(&path, &features, &header()).unwrap();
    assert_eq!(read_features(&path).unwrap(), features);
    assert_eq!(read_coordinates(&path).unwrap(), features.coordinates);
    let short = Features { values: vec![0.0; 7], ..features };
    assert!(write_features(&path, &short, &header()).unwrap_err().to_string().contains("7 values"));
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|run| root.path().join(run).join("features_dino").join("s.h5"));
    // Not at the same second: a modification time in the file would show.
    for (i, path) in paths.iter().enumerate() {
        std::thread::sleep(std::time::Duration::from_millis(1100 * i as u64));
        let path_in_job = path;
        write_features(path_in_job, &sample_features(), &header()).unwrap();
    }
    let again = root.path().join("a").join("features_dino").join("t.h5");
    write_features(&again, &sample_features(), &header()).unwrap();
    assert_eq!(fs::read(&paths[0]).unwrap(), fs::read(again).unwrap());
    // In another run folder only the folder's name differs, which has the same length here.
    let (a, b) = (fs::read(&paths[0]).unwrap(), fs::read(&paths[1]).unwrap());
    let differing: Vec<_> = a.iter().zip(&b).filter(|(x, y)| x != y).collect();
    assert_eq!(a.len(), b.len());
    assert!(differing.iter().all(|&(x, y)| (*x, *y) == (b'a', b'b')), "{differing:?}");
}

#[test]
fn a_failed_write_leaves_nothing_and_keeps_the_old_file() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("s_patches.h5");
    write_coordinates(&path, &sample(), &header()).unwrap();
    let before = fs::read(&path).unwrap();
    // A NUL cannot be stored in a text attribute, and is met after the file was begun.
    let broken = Coordinates { name: "a\0b".into(), ..sample() };
    let error = write_coordinates(&path, &broken, &header()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(names(root.path()), ["s_patches.h5"]);
    // A partial file of a killed run is replaced.
    fs::write(root.path().join(".gensis-s_patches.h5"), b"half a file").unwrap();
    write_coordinates(&path, &sample(), &header()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(names(root.path()), ["s_patches.h5"]);
    // A folder that is a file.
    assert!(matches!(write_coordinates(&path.join("x.h5"), &sample(), &header()), Err(Error::Io { .. })));
}

#[test]
fn damaged_files_are_told_from_missing_ones() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("s_patches.h5");
    assert!(matches!(read_coordinates(&path), Err(Error::Io { .. })));
    assert_eq!(read_header(&path).unwrap(), None);
    assert!(!is_current(&path, &header()).unwrap());
    write_features(&path, &sample_features(), &header()).unwrap();
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, whole.len() / 2] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(read_features(&path), Err(Error::BadFile { .. })), "cut to {length}");
        assert!(!is_current(&path, &header()).unwrap());
    }
    let other = File::create(root.path().join("other.h5")).unwrap();
    other.close().unwrap();
    let error = read_coordinates(&root.path().join("other.h5")).unwrap_err().to_string();
    assert!(error.contains("no dataset `coords`"), "{error}");
}

/// Such a file takes no room on the disk, and would take all memory.
#[test]
fn numbers_that_nobody_wrote_are_not_made_room_for() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("s.h5");
    let file = File::create(&path).unwrap();
    for (name, width) in [("features", 384), ("coords", 2)] {
        file.new_dataset::<f32>().chunk((64, width)).shape((1 << 40, width)).create(name).unwrap();
    }
    file.close().unwrap();
    for error in [read_features(&path).err(), read_coordinates(&path).err(), features_shape(&path).err()] {
        let text = error.unwrap().to_string();
        assert!(text.contains("claims 1099511627776 x"), "{text}");
    }
}

/// Some feature extractors write a slide as a batch of one.
#[test]
fn a_batch_of_one_slide_is_that_slide() {
    let root = tempfile::tempdir().unwrap();
    let path = |batch: usize| root.path().join(format!("{batch}.h5"));
    for batch in [1, 2] {
        let file = File::create(path(batch)).unwrap();
        let features: Vec<f32> = (0..batch * 12).map(|i| i as f32).collect();
        file.new_dataset::<f32>().shape((batch, 3, 4)).create("features").unwrap().write_raw(&features).unwrap();
        file.new_dataset::<i64>().shape((3, 2)).create("coords").unwrap().write_raw(&[0i64; 6]).unwrap();
        file.close().unwrap();
    }
    let read = read_features(&path(1)).unwrap();
    assert_eq!((read.dim, read.values), (4, (0..12).map(|i| i as f32).collect()));
    let error = features_shape(&path(2)).unwrap_err().to_string();
    assert!(error.contains("`features` has the shape [2, 3, 4]"), "{error}");
}

#[test]
fn files_of_trident_are_read() {
    let read = read_coordinates(&Path::new(GOLDEN).join("trident_patches.h5")).unwrap();
    assert_eq!(read.name, "TCGA-XX");
    assert_eq!(read.origins, [Point::new(0, 512), Point::new(512, 512), Point::new(70_000, 1_024)]);
    let geometry = read.geometry.unwrap();
    assert_eq!((geometry.mpp, geometry.side_level0), (Some(Mpp(0.25)), 512.0));
    assert_eq!((geometry.size, geometry.stride, geometry.slide), (256, 256, Some(Size::new(80_000, 60_000))));
    // The slide truly has 0.2527 µm/px: its patches cover 512 px of that, 0.5054 µm/px.
    assert!((geometry.spec(Mpp(0.2527)).mpp.0 - 0.5054).abs() < 1e-12);
    // Batch mode writes floats, and 'None' for what it does not know; no patches.
    let read = read_coordinates(&Path::new(GOLDEN).join("trident_batch_empty_patches.h5")).unwrap();
    assert_eq!((read.origins.len(), read.name.as_str()), (0, "trident_batch_empty"));
    let geometry = read.geometry.unwrap();
    assert_eq!((geometry.size, geometry.stride, geometry.side_level0), (256, 224, 512.0));
    let shape = features_shape(&Path::new(GOLDEN).join("trident_features.h5")).unwrap();
    assert_eq!(shape, FeaturesShape { patches: 3, dim: 2, encoder: "uni_v1".into() });
    let read = read_features(&Path::new(GOLDEN).join("trident_features.h5")).unwrap();
    assert_eq!((read.encoder.as_str(), read.dim, read.values), ("uni_v1", 2, vec![0.0, 0.5, 1.0, 1.5, 2.0, 2.5]));
}

#[test]
fn files_of_clam_are_read() {
    let read = read_coordinates(&Path::new(GOLDEN).join("clam_patches.h5")).unwrap();
    assert_eq!(read.origins, [Point::new(100, 200), Point::new(1124, 200)]);
    let geometry = read.geometry.unwrap();
    assert_eq!((geometry.mpp, geometry.level, geometry.side_level0), (None, 1, 1024.0));
    assert!((geometry.spec(Mpp(0.25)).mpp.0 - 1.0).abs() < 1e-12);
    let shape = features_shape(&Path::new(GOLDEN).join("clam_features.h5")).unwrap();
    assert_eq!(shape, FeaturesShape { patches: 2, dim: 3, encoder: String::new() });
    let read = read_features(&Path::new(GOLDEN).join("clam_features.h5")).unwrap();
    assert_eq!((read.dim, read.values, read.coordinates.geometry), (3, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], None));
    assert_eq!(read.coordinates.origins, [Point::new(100, 200), Point::new(1124, 200)]);
    assert_eq!(read.coordinates.name, "clam_features");
}

#[test]
fn many_threads_write_at_once() {
    let root = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for i in 0..4 {
            let path = root.path().join(format!("{i}.h5"));
            scope.spawn(move || {
                let features = sample_features();
                write_features(&path, &features, &header()).unwrap();
                assert_eq!(read_features(&path).unwrap(), features);
            });
        }
    });
    assert_eq!(names(root.path()).len(), 4);
}

/// h5py makes these of Python's int, float and str.
const INTEGER: TypeDescriptor = TypeDescriptor::Integer(IntSize::U8);
const FLOAT: TypeDescriptor = TypeDescriptor::Float(FloatSize::U8);
const TEXT: TypeDescriptor = TypeDescriptor::VarLenUnicode;

/// An attribute's name, type and shape; a scalar has none.
type Kind = (&'static str, TypeDescriptor, &'static [usize]);

/// Attributes of `coords` as TRIDENT's source writes them, of `features`, and of `coords` as CLAM's does.
const TRIDENT: [Kind; 9] = [
    ("patch_size", INTEGER, &[]),
    ("patch_size_level0", INTEGER, &[]),
    ("level0_magnification", INTEGER, &[]),
    ("target_magnification", INTEGER, &[]),
    ("overlap", INTEGER, &[]),
    ("name", TEXT, &[]),
    ("savetodir", TEXT, &[]),
    ("level0_width", INTEGER, &[]),
    ("level0_height", INTEGER, &[]),
];
const TRIDENT_FEATURES: [Kind; 3] = [("name", TEXT, &[]), ("savetodir", TEXT, &[]), ("encoder", TEXT, &[])];
const CLAM: [Kind; 7] = [
    ("patch_size", INTEGER, &[]),
    ("patch_level", INTEGER, &[]),
    ("downsample", FLOAT, &[2]),
    ("downsampled_level_dim", INTEGER, &[2]),
    ("level_dim", INTEGER, &[2]),
    ("name", TEXT, &[]),
    ("save_path", TEXT, &[]),
];
/// What gensis adds: the exact scales, and how patches were chosen.
const OURS: [Kind; 3] = [("level0_mpp", FLOAT, &[]), ("target_mpp", FLOAT, &[]), ("min_tissue", FLOAT, &[])];

type Kinds = BTreeMap<String, (TypeDescriptor, Vec<usize>)>;

fn listed(kinds: &[Kind]) -> Kinds {
    kinds.iter().map(|(name, kind, shape)| ((*name).to_owned(), (kind.clone(), shape.to_vec()))).collect()
}

/// What is stored, without our reader, which takes any type for any other.
fn stored(at: &Location) -> Kinds {
    let kind = |name: String| {
        let attribute = at.attr(&name).unwrap();
        (name, (attribute.dtype().unwrap().to_descriptor().unwrap(), attribute.shape()))
    };
    at.attr_names().unwrap().into_iter().map(kind).collect()
}

#[test]
fn attributes_have_the_names_and_types_of_trident_and_clam() {
    let golden = |file: &str, dataset: &str| {
        let file = File::open(Path::new(GOLDEN).join(file)).unwrap();
        stored(&file.dataset(dataset).unwrap())
    };
    assert_eq!(golden("trident_patches.h5", "coords"), listed(&TRIDENT));
    assert_eq!(golden("trident_features.h5", "features"), listed(&TRIDENT_FEATURES));
    assert_eq!(golden("clam_patches.h5", "coords"), listed(&CLAM));

    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("s.h5");
    // 40x: a whole magnification.
    let coordinates = sample_at(Mpp(0.25));
    let values = vec![0.0; coordinates.origins.len()];
    write_features(&path, &Features { encoder: "dino".into(), dim: 1, values, coordinates }, &header()).unwrap();
    let file = File::open(&path).unwrap();
    let [coords, features] = ["coords", "features"].map(|name| file.dataset(name).unwrap());
    assert_eq!(stored(&coords), listed(&[&TRIDENT[..], &CLAM, &OURS].concat()));
    assert_eq!(stored(&features), listed(&TRIDENT_FEATURES));
    assert_eq!(stored(&file), listed(&[(HEADER, TEXT, &[])]));
    let values = [&coords, &features].map(|dataset| dataset.dtype().unwrap().to_descriptor().unwrap());
    assert_eq!(values, [INTEGER, TypeDescriptor::Float(FloatSize::U4)]);

    // 20.56x, as TRIDENT in batch mode writes it: a float.
    let path = root.path().join("s_patches.h5");
    write_coordinates(&path, &sample(), &header()).unwrap();
    let found = stored(&File::open(&path).unwrap().dataset("coords").unwrap());
    assert_eq!(found["level0_magnification"], (FLOAT, vec![]));
    assert_eq!(found["target_magnification"], (INTEGER, vec![]));
}
