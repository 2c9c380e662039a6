//! Cohorts that are nothing but features, as another tool leaves them: slide-level evaluation in a second.

use std::fs;
use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use slide_io::h5::{self, Coordinates, Features, Geometry};
use slide_io::{Mpp, Point, Size};

use crate::program::{Ended, gensis};

/// Width of a feature.
pub const DIM: usize = 6;
/// Side of a patch, level-0 px.
pub const SIDE: i64 = 512;

/// A folder with `features_uni/<slide>.h5` and `labels.csv`.
pub struct FeatureCohort {
    pub root: PathBuf,
}

impl FeatureCohort {
    /// Features of slides with these names and classes: a class shows in one number of a third of the patches.
    pub fn write(root: &Path, slides: &[(String, u32)], csv: &str) -> Self {
        let cohort = Self { root: root.to_owned() };
        for (number, (name, class)) in slides.iter().enumerate() {
            cohort.features(name, &values(number as u64, *class));
        }
        fs::write(cohort.labels(), csv).unwrap();
        cohort
    }

    pub fn folder(&self) -> PathBuf {
        self.root.join("features_uni")
    }

    pub fn labels(&self) -> PathBuf {
        self.root.join("labels.csv")
    }

    /// Writes one slide's features, patches in rows of four.
    pub fn features(&self, slide: &str, values: &[f32]) {
        let patches = values.len() / DIM;
        let origin = |patch: usize| Point::new(patch as i64 % 4 * SIDE, patch as i64 / 4 * SIDE);
        let geometry = Geometry {
            slide: Some(Size::new(4 * SIDE as u32, 6 * SIDE as u32)),
            mpp: Some(Mpp(0.25)),
            size: 256,
            stride: 256,
            side_level0: SIDE as f64,
            min_tissue: 0.5,
            level: 0,
            level_shape: None,
        };
        let origins = (0..patches).map(origin).collect();
        let coordinates = Coordinates { name: slide.into(), origins, geometry: Some(geometry), labels: None };
        let features = Features { encoder: "uni".into(), dim: DIM, values: values.to_vec(), coordinates };
        h5::write_features(&self.folder().join(format!("{slide}.h5")), &features, &serde_json::Value::Null).unwrap();
    }

    /// `gensis evaluate slide` on them, with small heads.
    pub fn evaluate(&self, out: &Path, more: &[&str]) -> Ended {
        gensis(self.command(out, more))
    }

    /// The arguments of [`Self::evaluate`].
    pub fn command(&self, out: &Path, more: &[&str]) -> Vec<String> {
        let folder = self.folder();
        let slides = format!("{}/*.h5", folder.display());
        let features = format!("evaluate.slide.features=[{folder:?}]");
        let (labels, out) = (self.labels(), out.to_str().unwrap());
        let mut line =
            vec!["evaluate", "slide", "--slides", &slides, "--labels", labels.to_str().unwrap(), "--out", out];
        let small = ["evaluate.slide.hidden=8", "evaluate.slide.attention=4", "evaluate.slide.epochs=12"];
        let quick = ["evaluate.slide.lr=0.02", "evaluate.slide.accumulate=1", "evaluate.slide.bootstrap=50"];
        let settings = [&features].into_iter().map(String::as_str).chain(small).chain(quick);
        settings.for_each(|setting| line.extend(["--set", setting]));
        line.extend(more);
        line.into_iter().map(str::to_owned).collect()
    }
}

/// Patches of a slide.
pub fn values(seed: u64, class: u32) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let patches = rng.random_range(12..20);
    let telling = |patch: usize, column: usize| patch.is_multiple_of(3) && column == class as usize % DIM;
    (0..patches * DIM)
        .map(|i| rng.random_range(-0.3..0.3f32) + if telling(i / DIM, i % DIM) { 3.0 } else { 0.0 })
        .collect()
}
