//! A cohort to try everything on: whole slides of colon mucosa, drawn from nothing.
//!
//! The demonstration needs slides that anybody may have and that ask the real questions: pyramids of JPEG tiles at
//! scales that differ from file to file, laboratories that stain differently, patients with more than one slide, and
//! classes that differ in the build of glands and nuclei, in a part of each slide only. So this draws them:
//!
//! [`DemoSpec`] -> plan of patients and slides -> [`Anatomy`](anatomy::Anatomy) (the map, in µm) ->
//! [`settle`](cells::settle) (its cells) -> [`paint`](painter::paint) (its pixels) -> one pyramid for each slide, and
//! `labels.csv` in CLAM's columns.
//!
//! Every slide depends on the seed and its own number alone, so the files are the same from any number of threads.

pub mod anatomy;
pub mod cells;
pub mod field;
pub mod noise;
pub mod painter;
pub mod stain;

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use slide_io::pyramid::{PyramidSpec, write_pyramid};
use slide_io::{Mpp, RgbImage};

use anatomy::{Anatomy, Patient};
use cells::Cell;
use stain::Stain;

/// What a slide shows; the label of the cohort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Regular glands only.
    Benign,
    /// A part of the glands is an adenoma.
    Adenoma,
    /// A part of the section is a carcinoma.
    Carcinoma,
}

impl Class {
    /// All classes, from harmless to bad.
    pub const ALL: [Class; 3] = [Class::Benign, Class::Adenoma, Class::Carcinoma];

    /// The label in the csv.
    pub fn name(self) -> &'static str {
        match self {
            Class::Benign => "benign",
            Class::Adenoma => "adenoma",
            Class::Carcinoma => "carcinoma",
        }
    }
}

/// The cohort to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct DemoSpec {
    /// Number of slides, at least one for each class.
    pub slides: usize,
    /// Side of a slide in µm, of which each slide differs by up to a tenth.
    pub side_um: usize,
    /// Same seed, same files.
    pub seed: u64,
}

impl Default for DemoSpec {
    fn default() -> Self {
        // Eight slides a class leave two in each of four test folds; 860 µm are about 1700 px and 35 patches of 112 µm.
        Self { slides: 24, side_um: 860, seed: 0 }
    }
}

/// Draws the cohort into `dir`: `slides/<slide_id>.tiff` (some `.svs`), and last of all `labels.csv` with the columns
/// `slide_id,case_id,label`. Files are complete or absent. Calls `on_slide` with its number as each slide is done.
///
/// # Errors
/// Fewer slides than classes, sections too small to hold glands, a folder with slides of another cohort, or a file that
/// cannot be written.
pub fn paint_cohort(dir: &Path, spec: &DemoSpec, on_slide: impl Fn(usize) + Sync) -> Result<()> {
    ensure!(spec.slides >= Class::ALL.len(), "a demo cohort needs at least {} slides", Class::ALL.len());
    ensure!((200..=5000).contains(&spec.side_um), "the side of a demo slide is 200 to 5000 µm, not {}", spec.side_um);
    let slides = dir.join("slides");
    fs::create_dir_all(&slides).with_context(|| format!("cannot make {}", slides.display()))?;
    let plans = plan(spec);
    refuse_others(&slides, &plans)?;
    plans.par_iter().enumerate().try_for_each(|(number, plan)| {
        plan.write(&slides)?;
        on_slide(number);
        Ok::<_, anyhow::Error>(())
    })?;
    write_labels(&dir.join("labels.csv"), &plans)
}

/// One slide of the cohort, before it is drawn.
#[derive(Clone, Debug)]
struct SlidePlan {
    id: String,
    case: String,
    class: Class,
    patient: Patient,
    side_um: usize,
    mpp: Mpp,
    scanner: Scanner,
    seed: u64,
    number: u64,
}

/// Who is said to have made the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scanner {
    /// A plain TIFF with resolution tags.
    Generic,
    /// An SVS with Aperio's description.
    Aperio,
}

/// What random numbers are for. Each purpose and slide draws from a stream of its own, so that, for one, the stain of a
/// slide cannot depend on its class.
#[derive(Clone, Copy)]
enum Purpose {
    Plan,
    Patient,
    Tissue,
    Stain,
    Pixels,
}

fn stream(seed: u64, purpose: Purpose, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((purpose as u64) << 32 | number);
    rng
}

/// Deals classes, patients and scanners.
fn plan(spec: &DemoSpec) -> Vec<SlidePlan> {
    let mut rng = stream(spec.seed, Purpose::Plan, 0);
    // In each class the first four slides are of two patients, every other slide of its own.
    let classes = Class::ALL.len();
    let mut deals: Vec<(Class, usize)> = (0..spec.slides)
        .map(|i| {
            let nth = i / classes;
            let nth_patient = if nth < 4 { nth / 2 } else { nth - 2 };
            (Class::ALL[i % classes], nth_patient * classes + i % classes)
        })
        .collect();
    deals.shuffle(&mut rng);
    let deal = |(number, (class, patient)): (usize, (Class, usize))| {
        let mut rng = stream(spec.seed, Purpose::Plan, 1 + number as u64);
        SlidePlan {
            id: format!("demo_{:02}", number + 1),
            case: format!("case_{:02}", patient + 1),
            class,
            patient: Patient::draw(&mut stream(spec.seed, Purpose::Patient, patient as u64)),
            side_um: (spec.side_um as f32 * rng.random_range(0.9..1.1)) as usize,
            mpp: Mpp((rng.random_range(0.45..0.55f64) * 1e4).round() / 1e4),
            scanner: if number % 5 == 4 { Scanner::Aperio } else { Scanner::Generic },
            seed: spec.seed,
            number: number as u64,
        }
    };
    deals.into_iter().enumerate().map(deal).collect()
}

impl SlidePlan {
    fn stream(&self, purpose: Purpose) -> ChaCha8Rng {
        stream(self.seed, purpose, self.number)
    }

    /// The map of the section and its cells.
    fn tissue(&self) -> (Anatomy, Vec<Cell>) {
        let mut rng = self.stream(Purpose::Tissue);
        let height = (self.side_um as f32 * rng.random_range(0.85..1.0)) as usize;
        let diseased = rng.random_range(0.25..0.5);
        let diseased = if self.class == Class::Benign { 0.0 } else { diseased };
        let anatomy = Anatomy::grow(self.side_um, height, &self.patient, self.class, diseased, &mut rng);
        let cells = cells::settle(&anatomy, &self.patient, &mut rng);
        (anatomy, cells)
    }

    fn stain(&self) -> Stain {
        Stain::of_a_laboratory(&mut self.stream(Purpose::Stain))
    }

    /// The slide at level 0.
    fn paint(&self) -> RgbImage {
        let (anatomy, cells) = self.tissue();
        painter::paint(&anatomy, &cells, &self.stain(), self.mpp.0 as f32, &mut self.stream(Purpose::Pixels))
    }

    /// Tiles, quality and levels as the scanner at hand writes them, with the true scale.
    fn pyramid(&self, level0: &RgbImage) -> PyramidSpec {
        let spec = PyramidSpec { quality: 80, levels: vec![1, 4, 16], mpp: Some(self.mpp), ..PyramidSpec::default() };
        match self.scanner {
            Scanner::Generic => spec,
            Scanner::Aperio => {
                let ((w, h), tile, mpp) = (level0.dimensions(), 240, self.mpp.0);
                let layout = format!("{w}x{h} [0,0 {w}x{h}] ({tile}x{tile}) JPEG Q={}", spec.quality);
                let description = format!("Aperio Image Library v11.2.1\r\n{layout}|AppMag = 20|MPP = {mpp}");
                PyramidSpec { tile, description: Some(description), ..spec }
            }
        }
    }

    fn file_name(&self) -> String {
        let extension = match self.scanner {
            Scanner::Generic => "tiff",
            Scanner::Aperio => "svs",
        };
        format!("{}.{extension}", self.id)
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let image = self.paint();
        let path = folder.join(self.file_name());
        write_pyramid(&path, &image, &self.pyramid(&image)).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Slides that are not of this cohort would be taken for it later.
fn refuse_others(slides: &Path, plans: &[SlidePlan]) -> Result<()> {
    let own: HashSet<String> = plans.iter().map(SlidePlan::file_name).collect();
    for entry in fs::read_dir(slides).with_context(|| format!("cannot list {}", slides.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // Hidden files are what an interrupted run left.
        let other = !name.starts_with('.') && !own.contains(&name);
        ensure!(!other, "{} holds {name}, which is not of this cohort; give another folder", slides.display());
    }
    Ok(())
}

fn write_labels(path: &Path, plans: &[SlidePlan]) -> Result<()> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["slide_id", "case_id", "label"])?;
    for plan in plans {
        table.write_record([plan.id.as_str(), plan.case.as_str(), plan.class.name()])?;
    }
    let text = table.into_inner().context("labels.csv")?;
    Ok(slide_io::atomic_file::write(path, &text)?)
}

#[cfg(test)]
mod tests;
