//! Who lives in the tissue: nuclei, goblet cells and small vessels, each an ellipse in µm that overlaps no other.

use std::f32::consts::{FRAC_PI_2, TAU};

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

use super::Class;
use super::anatomy::{Anatomy, Compartment, Patient};
use super::noise::Noise;

/// What an ellipse stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A capillary with red cells.
    Vessel,
    /// The mucin of a goblet cell.
    Goblet,
    /// Small, round, dark.
    Lymphocyte,
    /// The same nucleus at one end of a violet cell body.
    Plasma,
    /// Thin and long, along the fibres.
    Fibroblast,
    /// Small and regular, at the base of a benign gland.
    Enterocyte,
    /// Long and dark, on end, in several rows: adenoma.
    Pencil,
    /// Large, of every shape, with a nucleolus: carcinoma.
    Pleomorphic,
    /// A dividing nucleus: a dark bar or two, without a membrane.
    Mitosis,
    /// Fragments of dead nuclei in a lumen.
    Debris,
}

/// An ellipse with half axes `long` and `short`, in µm.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// What it stands for.
    pub kind: Kind,
    /// Centre.
    pub x: f32,
    /// Centre.
    pub y: f32,
    /// Half axis along `angle`.
    pub long: f32,
    /// Half axis across it.
    pub short: f32,
    /// Direction of the long axis.
    pub angle: f32,
    /// Darkness, about 1.
    pub tone: f32,
}

impl Cell {
    /// Whether it is a living nucleus.
    pub fn is_nucleus(&self) -> bool {
        !matches!(self.kind, Kind::Vessel | Kind::Goblet | Kind::Debris)
    }

    /// Area, µm².
    pub fn area(&self) -> f32 {
        std::f32::consts::PI * self.long * self.short
    }

    /// Half width in the direction of an angle.
    fn radius(&self, angle: f32) -> f32 {
        let (sin, cos) = (angle - self.angle).sin_cos();
        1.0 / (cos / self.long).hypot(sin / self.short)
    }

    fn clear_of(&self, other: &Cell) -> bool {
        let (dx, dy) = (other.x - self.x, other.y - self.y);
        let distance = dx.hypot(dy);
        let angle = dy.atan2(dx);
        // A section is thick: nuclei overlap a little.
        distance > 0.88 * (self.radius(angle) + other.radius(angle))
    }
}

/// Settles the tissue. The cells come in the order in which they are to be drawn.
pub fn settle(anatomy: &Anatomy, patient: &Patient, rng: &mut impl Rng) -> Vec<Cell> {
    let (w, h) = anatomy.size();
    let mut places: Vec<(f32, f32)> =
        (0..w * h).map(|i| ((i % w) as f32, (i / w) as f32)).filter(|&(x, y)| anatomy.tissue(x, y) > 2.0).collect();
    places.shuffle(rng);
    let mut crowd = Crowd::new(w, h);
    let follicles = Noise::new(rng.random());
    for guild in [vessel, goblet, nucleus] {
        for &(x, y) in &places {
            let (x, y) = (x + rng.random::<f32>(), y + rng.random::<f32>());
            if let Some(cell) = guild(&Habitat { anatomy, patient, follicles, x, y }, rng) {
                crowd.admit(cell);
            }
        }
    }
    crowd.cells
}

/// A place to live.
struct Habitat<'a> {
    anatomy: &'a Anatomy,
    patient: &'a Patient,
    follicles: Noise,
    x: f32,
    y: f32,
}

impl Habitat<'_> {
    fn compartment(&self) -> Compartment {
        self.anatomy.compartment(self.x, self.y)
    }

    /// Distance from the base of the epithelium, µm.
    fn above_base(&self) -> f32 {
        self.anatomy.gland(self.x, self.y)
    }

    /// Distance from the lumen, µm.
    fn below_lumen(&self) -> f32 {
        -self.anatomy.lumen(self.x, self.y)
    }

    fn cell(&self, kind: Kind, long: f32, short: f32, angle: f32, tone: f32) -> Option<Cell> {
        Some(Cell { kind, x: self.x, y: self.y, long, short, angle, tone })
    }
}

fn vessel(at: &Habitat, rng: &mut dyn Rng) -> Option<Cell> {
    let per_square_micron = match at.compartment() {
        Compartment::LaminaPropria => 2.2e-4,
        Compartment::Submucosa => 1.2e-4,
        Compartment::Desmoplasia => 1.0e-4,
        _ => return None,
    };
    if !rng.random_bool(per_square_micron) || at.above_base() > -9.0 {
        return None;
    }
    let short = rng.random_range(3.5..6.5);
    at.cell(Kind::Vessel, short * rng.random_range(1.0..2.6), short, at.anatomy.flow(at.x, at.y), 1.0)
}

fn goblet(at: &Habitat, rng: &mut dyn Rng) -> Option<Cell> {
    let Compartment::Epithelium(class) = at.compartment() else { return None };
    let frequency = match class {
        Class::Benign => 0.35 * at.patient.goblets,
        Class::Adenoma => 0.0015,
        Class::Carcinoma => return None,
    };
    if at.above_base() < 10.0 || at.below_lumen() < 4.5 || !rng.random_bool(f64::from(frequency)) {
        return None;
    }
    let short = rng.random_range(4.6..6.4) * at.patient.build;
    at.cell(
        Kind::Goblet,
        short * rng.random_range(1.25..1.8),
        short,
        at.anatomy.inward(at.x, at.y),
        rng.random_range(0.7..1.3),
    )
}

fn nucleus(at: &Habitat, rng: &mut dyn Rng) -> Option<Cell> {
    let compartment = at.compartment();
    match compartment {
        Compartment::Epithelium(Class::Benign) => enterocyte(at, rng),
        Compartment::Epithelium(Class::Adenoma) => pencil(at, rng),
        Compartment::Epithelium(Class::Carcinoma) => pleomorphic(at, rng),
        Compartment::Glass => debris(at, rng),
        _ => stromal(at, compartment, rng),
    }
}

fn enterocyte(at: &Habitat, rng: &mut dyn Rng) -> Option<Cell> {
    let base = at.above_base();
    let visitor = rng.random_bool(0.0008);
    if visitor {
        return at.cell(Kind::Lymphocyte, 2.7, 2.6, 0.0, 1.0);
    }
    if !(2.8..5.2).contains(&base) {
        return None;
    }
    // Pressed flat by a goblet above it, or upright between two.
    let lean = if rng.random_bool(0.6) { FRAC_PI_2 } else { 0.0 };
    let angle = at.anatomy.inward(at.x, at.y) + lean + rng.random_range(-0.25..0.25);
    let short = at.patient.nuclei * rng.random_range(2.1..2.6);
    at.cell(Kind::Enterocyte, short * rng.random_range(1.15..1.6), short, angle, rng.random_range(0.75..1.1))
}

fn pencil(at: &Habitat, rng: &mut dyn Rng) -> Option<Cell> {
    let (base, lumen) = (at.above_base(), at.below_lumen());
    let height = base / (base + lumen);
    if base < 5.0 || height > 0.74 || !rng.random_bool(0.5) {
        return None;
    }
    let angle = at.anatomy.inward(at.x, at.y) + rng.random_range(-0.16..0.16);
    let short = at.patient.nuclei * rng.random_range(1.9..2.6);
    at.cell(Kind::Pencil, short * rng.random_range(2.3..3.4), short, angle, rng.random_range(0.9..1.2))
}

fn pleomorphic(at: &Habitat, rng: &mut dyn Rng) -> Option<Cell> {
    if at.above_base() < 4.0 || at.below_lumen() < 4.0 || !rng.random_bool(0.2) {
        return None;
    }
    let angle = rng.random_range(0.0..TAU);
    if rng.random_bool(0.015) {
        return at.cell(Kind::Mitosis, rng.random_range(4.0..5.5), rng.random_range(2.0..3.0), angle, 1.25);
    }
    let long = at.patient.nuclei * (4.0 + 4.5 * rng.random::<f32>().powi(2));
    at.cell(Kind::Pleomorphic, long, long * rng.random_range(0.6..0.95), angle, rng.random_range(0.8..1.15))
}

fn debris(at: &Habitat, rng: &mut dyn Rng) -> Option<Cell> {
    let necrotic = at.anatomy.lining(at.x, at.y) == Class::Carcinoma && at.below_lumen() < -2.0;
    if !necrotic || !rng.random_bool(0.02) {
        return None;
    }
    let radius = rng.random_range(0.8..1.9);
    at.cell(
        Kind::Debris,
        radius * rng.random_range(1.0..1.6),
        radius,
        rng.random_range(0.0..TAU),
        rng.random_range(0.5..1.1),
    )
}

fn stromal(at: &Habitat, compartment: Compartment, rng: &mut dyn Rng) -> Option<Cell> {
    let from_gland = -at.above_base();
    if from_gland < 3.2 {
        return None;
    }
    let crowded =
        (0.55 + 1.3 * at.follicles.fractal(at.x / 110.0, at.y / 110.0, 2)).max(0.05) * at.patient.inflammation;
    let (lymphocytes, fibroblasts) = match compartment {
        Compartment::LaminaPropria => (0.016 * crowded, 0.0012),
        Compartment::Submucosa => (0.0006 * crowded, 0.0013),
        _ => (0.0012 * crowded, 0.0036),
    };
    if rng.random_bool(f64::from(lymphocytes)) {
        let short = at.patient.nuclei * rng.random_range(2.2..2.9);
        let angle = rng.random_range(0.0..TAU);
        return if rng.random_bool(0.4) {
            at.cell(Kind::Plasma, 2.0 * short, 1.45 * short, angle, rng.random_range(0.8..1.1))
        } else {
            at.cell(Kind::Lymphocyte, short * rng.random_range(1.0..1.25), short, angle, rng.random_range(0.8..1.15))
        };
    }
    // Glands lie in a sheath of fibroblasts.
    let sheath = if from_gland < 5.0 { 0.012 } else { 0.0 };
    if rng.random_bool(fibroblasts + sheath) {
        let plump = if compartment == Compartment::Desmoplasia { 1.5 } else { 1.0 };
        let short = plump * rng.random_range(0.8..1.6);
        let angle = at.anatomy.flow(at.x, at.y) + rng.random_range(-0.2..0.2);
        return at.cell(Kind::Fibroblast, rng.random_range(3.0..7.5), short, angle, rng.random_range(0.5..1.0));
    }
    None
}

/// Cells sorted into squares, so that only neighbours are asked for room.
struct Crowd {
    columns: usize,
    squares: Vec<Vec<u32>>,
    cells: Vec<Cell>,
}

impl Crowd {
    /// Side of a square, µm; at least twice the largest half axis.
    const SQUARE: f32 = 18.0;

    fn new(width: usize, height: usize) -> Self {
        let columns = (width as f32 / Self::SQUARE) as usize + 2;
        let rows = (height as f32 / Self::SQUARE) as usize + 2;
        Self { columns, squares: vec![Vec::new(); columns * rows], cells: Vec::new() }
    }

    fn admit(&mut self, cell: Cell) {
        let (cx, cy) = ((cell.x / Self::SQUARE) as usize, (cell.y / Self::SQUARE) as usize);
        let rows = self.squares.len() / self.columns;
        for row in cy.saturating_sub(1)..(cy + 2).min(rows) {
            for column in cx.saturating_sub(1)..(cx + 2).min(self.columns) {
                let neighbours = &self.squares[row * self.columns + column];
                if neighbours.iter().any(|&i| !cell.clear_of(&self.cells[i as usize])) {
                    return;
                }
            }
        }
        self.squares[cy * self.columns + cx].push(self.cells.len() as u32);
        self.cells.push(cell);
    }
}
