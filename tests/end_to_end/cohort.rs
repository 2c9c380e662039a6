//! Twelve small slides of two kinds of tissue, their csv, and an experiment that runs on them in seconds.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use slide_io::pyramid::{PyramidSpec, write_pyramid};
use slide_io::{Mpp, Rgb, RgbImage};

use crate::program::{Ended, gensis};

/// Slides of [`Cohort::draw`], half of each class, two of each patient.
pub const SLIDES: usize = 12;
/// Side of a slide, px.
const SIDE: u32 = 800;
/// µm/px of every other slide; the others have 0.5, the grid's own.
const FINER: f64 = 0.46;

/// A folder with `slides/` and `labels.csv`.
pub struct Cohort {
    pub root: PathBuf,
}

impl Cohort {
    /// Draws the slides `s00` to `s11` into `root`.
    pub fn draw(root: &Path) -> Self {
        let cohort = Self { root: root.to_owned() };
        fs::create_dir_all(cohort.slides()).unwrap();
        let mut csv = String::from("slide_id,case_id,label\n");
        for number in 0..SLIDES {
            let name = id(number);
            let mpp = if number % 4 < 2 { 0.5 } else { FINER };
            write_slide(
                &cohort.slides().join(format!("{name}.tiff")),
                &section(number as u64, number % 2 == 1),
                Some(mpp),
            );
            csv += &format!("{name},{},{}\n", case(number), class(number));
        }
        cohort.write_labels(&csv);
        cohort.write_experiment();
        cohort
    }

    /// A copy in another folder.
    pub fn copy(&self, root: &Path) -> Self {
        crate::folder::copy(&self.root, root);
        let cohort = Self { root: root.to_owned() };
        cohort.write_experiment();
        cohort
    }

    pub fn slides(&self) -> PathBuf {
        self.root.join("slides")
    }

    pub fn slide(&self, name: &str) -> PathBuf {
        self.slides().join(name)
    }

    pub fn labels(&self) -> PathBuf {
        self.root.join("labels.csv")
    }

    pub fn write_labels(&self, csv: &str) {
        fs::write(self.labels(), csv).unwrap();
    }

    /// Adds rows to the csv.
    pub fn label_too(&self, rows: &str) {
        let csv = fs::read_to_string(self.labels()).unwrap();
        self.write_labels(&(csv + rows));
    }

    /// The file with an experiment on these slides.
    pub fn experiment(&self) -> PathBuf {
        self.root.join("experiment.toml")
    }

    fn write_experiment(&self) {
        let data = format!("[data]\nslides = {:?}\nlabels = {:?}\n", self.slides(), self.labels());
        fs::write(self.experiment(), data + EXPERIMENT).unwrap();
    }

    /// `gensis run` of that experiment.
    pub fn run(&self, out: &Path, more: &[&str]) -> Ended {
        gensis(self.command(out, more))
    }

    /// The arguments of [`Self::run`].
    pub fn command(&self, out: &Path, more: &[&str]) -> Vec<String> {
        let (experiment, out) = (self.experiment(), out.to_str().unwrap().to_owned());
        let arguments = ["run".to_owned(), experiment.to_str().unwrap().to_owned(), "--out".to_owned(), out];
        arguments.into_iter().chain(more.iter().map(|argument| argument.to_string())).collect()
    }
}

/// Settings small enough for a test; two epochs, so that the schedules move.
pub const EXPERIMENT: &str = r#"
[grid]
size = 128
stride = 128

[model]
arch = "custom"
dim = 32
depth = 2
heads = 2
patch = 8
image_size = 32

[head]
hidden = 32
bottleneck = 16
out = 32

[crops]
global_size = 32
local_size = 16
local_count = 2

[pretrain]
epochs = 2
batch = 8
warmup_epochs = 1
checkpoint_every = 7
knn_every = 1

[embed]
batch = 8
resize = 32
crop = 32

[evaluate.knn]
k = [3]

[evaluate.slide]
folds = 3
validation = 0.5
epochs = 3
hidden = 16
attention = 8
bootstrap = 50
"#;

/// The folder of everything cut with [`EXPERIMENT`].
pub const JOB: &str = "20x_128px_0px_overlap";

pub fn id(number: usize) -> String {
    format!("s{number:02}")
}

/// Slides 0 and 2 are of one patient, 1 and 3 of another, and so on: a patient has one class.
pub fn case(number: usize) -> String {
    format!("p{}", number / 4 * 2 + number % 2)
}

pub fn class(number: usize) -> &'static str {
    ["dots", "stripes"][number % 2]
}

/// The cohort and one finished run of it, made once for all tests that only look at it.
pub struct Reference {
    pub cohort: Cohort,
    pub run: PathBuf,
    pub ended: Ended,
    /// Keeps a second process of these tests out of the folder.
    _lock: File,
}

pub static REFERENCE: LazyLock<Reference> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock = File::create(root.join("end_to_end.lock")).unwrap();
    lock.lock().unwrap();
    let root = root.join("end_to_end");
    if root.exists() {
        fs::remove_dir_all(&root).unwrap();
    }
    let cohort = Cohort::draw(&root.join("cohort"));
    let run = root.join("run");
    let ended = cohort.run(&run, &["--threads", "2"]);
    Reference { cohort, run, ended, _lock: lock }
});

/// A pink section on glass: purple dots, or purple stripes.
pub fn section(seed: u64, stripes: bool) -> RgbImage {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut image = RgbImage::from_pixel(SIDE, SIDE, Rgb([244, 243, 245]));
    let (left, top) = (rng.random_range(40..140), rng.random_range(40..140));
    let (width, height) = (rng.random_range(500..620), rng.random_range(500..620));
    for y in top..top + height {
        for x in left..left + width {
            let purple = stripes && (x + 2 * y) % 23 < 8;
            image.put_pixel(x, y, stain(&mut rng, purple));
        }
    }
    let dots = if stripes { 0 } else { 900 };
    for _ in 0..dots {
        let (x, y) = (rng.random_range(left..left + width - 9), rng.random_range(top..top + height - 9));
        for (dx, dy) in (0..81)
            .map(|i| (i % 9, i / 9))
            .filter(|&(dx, dy): &(u32, u32)| dx.abs_diff(4).pow(2) + dy.abs_diff(4).pow(2) <= 16)
        {
            image.put_pixel(x + dx, y + dy, stain(&mut rng, true));
        }
    }
    image
}

fn stain(rng: &mut ChaCha8Rng, purple: bool) -> Rgb<u8> {
    let [r, g, b] = if purple { [110, 60, 150] } else { [225, 150, 190] };
    let mut grain = || rng.random_range(0..24u8);
    Rgb([r + grain(), g + grain(), b + grain()])
}

/// Writes a true pyramid, with its scale where there is one.
pub fn write_slide(path: &Path, image: &RgbImage, mpp: Option<f64>) {
    let spec = PyramidSpec { tile: 128, quality: 80, levels: vec![1, 4], mpp: mpp.map(Mpp), ..PyramidSpec::default() };
    write_pyramid(path, image, &spec).unwrap();
}
