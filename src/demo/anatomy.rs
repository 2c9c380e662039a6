//! The lie of the tissue: where it ends, where it is diseased, where its glands are and how they are built.
//!
//! | | glands | epithelium | stroma |
//! |---|---|---|---|
//! | benign | round, regular, apart | one layer, goblet cells, small lumen | lamina propria, many lymphocytes |
//! | adenoma | elongated, back to back | tall, stratified, slit lumen | little |
//! | carcinoma | fused, angular, cribriform or solid | no order | desmoplastic: pale, streaming |

use std::f32::consts::{FRAC_PI_2, TAU};

use rand::{Rng, RngExt};

use super::Class;
use super::field::Field;
use super::noise::{Noise, lerp, ramp};

/// What differs between patients: it is the same on all slides of one.
#[derive(Clone, Debug)]
pub struct Patient {
    /// Size of everything, about 1.
    pub build: f32,
    /// How much of the epithelium of benign glands is goblet cells, 0-1.
    pub goblets: f32,
    /// Lymphocytes and plasma cells of the lamina propria, about 1.
    pub inflammation: f32,
    /// How solid a carcinoma grows: 0 glandular, 1 sheets.
    pub solidity: f32,
    /// Size of the nuclei, about 1.
    pub nuclei: f32,
}

impl Patient {
    /// Draws a patient.
    pub fn draw(rng: &mut impl Rng) -> Self {
        Self {
            build: rng.random_range(0.9..1.1),
            goblets: rng.random_range(0.55..1.0),
            inflammation: rng.random_range(0.6..1.4),
            solidity: rng.random_range(0.0..1.0),
            nuclei: rng.random_range(0.93..1.07),
        }
    }
}

/// What a place in the tissue is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compartment {
    /// Bare glass, also inside lumens and clefts.
    Glass,
    /// Loose stroma between benign glands and adenomas.
    LaminaPropria,
    /// Fibrous stroma without glands.
    Submucosa,
    /// The stroma a carcinoma makes around itself.
    Desmoplasia,
    /// The lining of glands, of its class.
    Epithelium(Class),
}

/// An ellipse that a gland grows from, in µm.
#[derive(Clone, Copy, Debug)]
struct Seedling {
    x: f32,
    y: f32,
    long: f32,
    short: f32,
    angle: f32,
    class: Class,
}

impl Seedling {
    /// Distance from the centre in units of the ellipse: 1 on its border.
    fn reach(&self, x: f32, y: f32) -> f32 {
        let (sin, cos) = self.angle.sin_cos();
        let (dx, dy) = (x - self.x, y - self.y);
        ((dx * cos + dy * sin) / self.long).hypot((dy * cos - dx * sin) / self.short)
    }

    /// Whether both have room; `room` 1 lets them touch.
    fn clear_of(&self, other: &Seedling, room: f32) -> bool {
        // Along the line of centres, the radii are (distance / reach).
        let distance = (self.x - other.x).hypot(self.y - other.y);
        let radii = distance / self.reach(other.x, other.y) + distance / other.reach(self.x, self.y);
        distance > room * radii
    }
}

/// What of a gland the lining needs to know.
#[derive(Clone, Copy, Debug)]
struct Gland {
    class: Class,
    /// Distance of its innermost point from its border, µm.
    depth: f32,
    /// How thick its lining is, µm.
    lining: f32,
}

/// No gland owns this place.
const NOBODY: u16 = u16::MAX;

/// The map of one section, in µm.
pub struct Anatomy {
    class: Class,
    tissue: Field,
    disease: Field,
    fibrous: Field,
    gland: Field,
    lumen: Field,
    bundles: Field,
    owner: Vec<u16>,
    glands: Vec<Gland>,
}

impl Anatomy {
    /// Grows a section of `width` x `height` µm, a share `diseased` of it of the given class.
    pub fn grow(
        width: usize,
        height: usize,
        patient: &Patient,
        class: Class,
        diseased: f32,
        rng: &mut impl Rng,
    ) -> Self {
        let tissue = outline(width, height, rng);
        let disease = zone(&tissue, 340.0, diseased, rng);
        let fibrous = zone(&tissue, 200.0, rng.random_range(0.04..0.16), rng);
        let seedlings = scatter(&tissue, &disease, &fibrous, patient, class, rng);
        let mut owner = territories(&tissue, &seedlings, rng);
        let mut glands: Vec<Gland> =
            seedlings.iter().map(|s| Gland { class: s.class, depth: 0.0, lining: lining(s, patient, rng) }).collect();
        if class == Class::Carcinoma {
            invade(&tissue, &disease, patient, &mut owner, rng, glands.len() as u16);
            glands.push(Gland { class, depth: 0.0, lining: f32::INFINITY });
        }
        let inside: Vec<bool> = owner.iter().map(|&o| o != NOBODY).collect();
        let gland = Field::signed_distance(width, height, &inside);
        for (&o, &depth) in owner.iter().zip(gland.values()) {
            if let Some(g) = glands.get_mut(o as usize) {
                g.depth = g.depth.max(depth);
            }
        }
        let lumen = lumens(&gland, &owner, &glands, patient, rng);
        let noise = Noise::new(rng.random());
        let bundles = Field::new(width, height, |x, y| 3.0 * noise.fractal(x / 190.0, y / 190.0, 3));
        Self { class, tissue, disease, fibrous, gland, lumen, bundles, owner, glands }
    }

    /// Width and height in µm.
    pub fn size(&self) -> (usize, usize) {
        self.tissue.size()
    }

    /// Distance to the edge of the tissue in µm, positive in the tissue.
    pub fn tissue(&self, x: f32, y: f32) -> f32 {
        self.tissue.at(x, y)
    }

    /// Distance to the border of the glands in µm, positive inside them (lumens included).
    pub fn gland(&self, x: f32, y: f32) -> f32 {
        self.gland.at(x, y)
    }

    /// Distance to the border of the lumens in µm, positive inside them.
    pub fn lumen(&self, x: f32, y: f32) -> f32 {
        self.lumen.at(x, y)
    }

    /// The angle from the base of the epithelium towards its lumen.
    pub fn inward(&self, x: f32, y: f32) -> f32 {
        self.gland.uphill(x, y)
    }

    /// The angle along which fibres and spindle cells lie: in bundles, and around glands.
    pub fn flow(&self, x: f32, y: f32) -> f32 {
        let bundle = self.bundles.at(x, y);
        let around = self.gland.uphill(x, y) + FRAC_PI_2;
        let near = ramp(-28.0, -3.0, self.gland.at(x, y));
        // An axis has no sign: twice the angle has one direction for both.
        let mean = |part: fn(f32) -> f32| lerp(part(2.0 * bundle), part(2.0 * around), near);
        mean(f32::sin).atan2(mean(f32::cos)) / 2.0
    }

    /// The class of the nearest square micron of gland, benign where there is none.
    pub fn lining(&self, x: f32, y: f32) -> Class {
        let (w, h) = self.size();
        let i = (y.max(0.0) as usize).min(h - 1) * w + (x.max(0.0) as usize).min(w - 1);
        self.glands.get(self.owner[i] as usize).map_or(Class::Benign, |g| g.class)
    }

    /// What a place is made of.
    pub fn compartment(&self, x: f32, y: f32) -> Compartment {
        if self.tissue(x, y) <= 0.0 || self.lumen(x, y) > 0.0 {
            Compartment::Glass
        } else if self.gland(x, y) > 0.0 {
            Compartment::Epithelium(self.lining(x, y))
        } else {
            self.stroma(x, y)
        }
    }

    /// Which stroma is, or would be, at a place.
    pub fn stroma(&self, x: f32, y: f32) -> Compartment {
        if self.class == Class::Carcinoma && self.disease.at(x, y) > 0.0 {
            Compartment::Desmoplasia
        } else if self.fibrous.at(x, y) > 0.0 {
            Compartment::Submucosa
        } else {
            Compartment::LaminaPropria
        }
    }
}

/// One or two fragments with a ragged outline and clefts.
fn outline(width: usize, height: usize, rng: &mut impl Rng) -> Field {
    let (w, h) = (width as f32, height as f32);
    let two = rng.random_bool(0.4);
    let tilt = rng.random_range(-0.5..0.5f32) + if rng.random_bool(0.5) { FRAC_PI_2 } else { 0.0 };
    let (sin, cos) = tilt.sin_cos();
    // (offset across, half length, half width), in units of half the section
    let fragments: &[(f32, f32, f32)] =
        if two { &[(-0.46, 0.88, 0.42), (0.48, 0.80, 0.39)] } else { &[(0.0, 0.88, 0.76)] };
    let noise = Noise::new(rng.random());
    let cleft = Noise::new(rng.random());
    let inside: Vec<bool> = (0..width * height)
        .map(|i| {
            let (x, y) = ((i % width) as f32, (i / width) as f32);
            let (u, v) = (2.0 * x / w - 1.0, 2.0 * y / h - 1.0);
            let (along, across) = (u * cos + v * sin, v * cos - u * sin);
            let body = fragments
                .iter()
                .map(|&(offset, long, wide)| 1.0 - (along / long).hypot((across - offset) / wide))
                .fold(f32::NEG_INFINITY, f32::max);
            let ragged = 0.34 * noise.fractal(x / 240.0, y / 240.0, 6);
            let margin = x.min(y).min(w - x).min(h - y);
            let split =
                cleft.fractal(x / 240.0, y / 240.0, 3).abs() < 0.012 && cleft.at(x / 130.0 + 40.0, y / 130.0) > 0.35;
            body + ragged > 0.0 && margin > 12.0 && !split
        })
        .collect();
    Field::signed_distance(width, height, &inside)
}

/// A field that is positive on a share of the tissue, in patches of about `grain` µm.
fn zone(tissue: &Field, grain: f32, share: f32, rng: &mut impl Rng) -> Field {
    let (w, h) = tissue.size();
    let noise = Noise::new(rng.random());
    let side: f32 = rng.random_range(0.0..TAU);
    let (sin, cos) = side.sin_cos();
    let score = Field::new(w, h, |x, y| {
        let lean = (x / w as f32 - 0.5) * cos + (y / h as f32 - 0.5) * sin;
        noise.fractal(x / grain, y / grain, 3) + 1.2 * lean
    });
    let threshold = score.quantile_above(share, |i| tissue.values()[i] > 0.0);
    Field::new(w, h, |x, y| score.at(x, y) - threshold)
}

/// Throws glands at the tissue and keeps those that find room.
fn scatter(
    tissue: &Field,
    disease: &Field,
    fibrous: &Field,
    patient: &Patient,
    class: Class,
    rng: &mut impl Rng,
) -> Vec<Seedling> {
    let (w, h) = tissue.size();
    let lie = Noise::new(rng.random());
    let mut kept: Vec<Seedling> = Vec::new();
    for _ in 0..w * h / 25 {
        let (x, y) = (rng.random_range(0.0..w as f32), rng.random_range(0.0..h as f32));
        let diseased = disease.at(x, y) > 0.0;
        let angle = 2.5 * lie.at(x / 300.0, y / 300.0) + rng.random_range(-0.25..0.25);
        let seedling = if diseased && class == Class::Adenoma {
            let short = patient.build * rng.random_range(26.0..40.0);
            Seedling { x, y, long: short * rng.random_range(1.7..3.4), short, angle, class }
        } else {
            let short = patient.build * rng.random_range(29.0..44.0);
            let long = short * (1.0 + 0.9 * rng.random::<f32>().powi(2));
            Seedling { x, y, long, short, angle, class: Class::Benign }
        };
        let invaded = diseased && class == Class::Carcinoma;
        if invaded || fibrous.at(x, y) > 0.0 || tissue.at(x, y) < 0.75 * seedling.short {
            continue;
        }
        let room = |other: &Seedling| match (seedling.class, other.class) {
            (Class::Adenoma, Class::Adenoma) => 0.88,
            _ => 1.02,
        };
        if kept.iter().all(|other| seedling.clear_of(other, room(other))) {
            kept.push(seedling);
        }
    }
    kept
}

/// Lets each gland grow to its border, and no closer to a neighbour than the septum between them.
fn territories(tissue: &Field, seedlings: &[Seedling], rng: &mut impl Rng) -> Vec<u16> {
    let (w, h) = tissue.size();
    let (wobble_x, wobble_y) = (Noise::new(rng.random()), Noise::new(rng.random()));
    let warp = |noise: Noise, strength: f32| {
        Field::new(w, h, move |x, y| strength * (noise.at(x / 70.0, y / 70.0) + 0.35 * noise.at(x / 22.0, y / 22.0)))
    };
    let (warp_x, warp_y) = (warp(wobble_x, 9.0), warp(wobble_y, 9.0));
    let mut nearest = vec![(f32::INFINITY, f32::INFINITY, NOBODY); w * h];
    for (id, s) in seedlings.iter().enumerate() {
        let radius = 1.5 * s.long + 12.0;
        let range = |centre: f32, limit: usize| {
            (centre - radius).max(0.0) as usize..((centre + radius).max(0.0) as usize).min(limit)
        };
        for y in range(s.y, h) {
            for x in range(s.x, w) {
                let i = y * w + x;
                let reach = s.reach(x as f32 + warp_x.values()[i], y as f32 + warp_y.values()[i]);
                let (first, second, owner) = &mut nearest[i];
                if reach < *first {
                    (*first, *second, *owner) = (reach, *first, id as u16);
                } else if reach < *second {
                    *second = reach;
                }
            }
        }
    }
    let owned = |(i, &(first, second, owner)): (usize, &(f32, f32, u16))| {
        let seedling = seedlings.get(owner as usize)?;
        let septum = if seedling.class == Class::Adenoma { 5.0 } else { 12.0 };
        let apart = (second - first) * seedling.short > septum;
        (first < 1.0 && apart && tissue.values()[i] > 5.0).then_some(owner)
    };
    nearest.iter().enumerate().map(|claim| owned(claim).unwrap_or(NOBODY)).collect()
}

/// Fills the diseased zone with the irregular masses of a carcinoma, all owned by `id`.
fn invade(tissue: &Field, disease: &Field, patient: &Patient, owner: &mut [u16], rng: &mut impl Rng, id: u16) {
    let (w, h) = tissue.size();
    let noise = Noise::new(rng.random());
    let benign: Vec<bool> = owner.iter().map(|&o| o != NOBODY).collect();
    let room = Field::signed_distance(w, h, &benign);
    let growth = Field::new(w, h, |x, y| noise.fractal(x / 75.0, y / 75.0, 3));
    let share = 0.55 + 0.2 * patient.solidity;
    let threshold = growth.quantile_above(share, |i| tissue.values()[i] > 0.0 && disease.values()[i] > 0.0);
    for (i, o) in owner.iter_mut().enumerate() {
        let free = room.values()[i] < -8.0 && tissue.values()[i] > 4.0 && disease.values()[i] > 0.02;
        if free && growth.values()[i] > threshold {
            *o = id;
        }
    }
}

/// Thickness of the lining of a gland, µm.
fn lining(s: &Seedling, patient: &Patient, rng: &mut impl Rng) -> f32 {
    match s.class {
        Class::Benign => patient.build * rng.random_range(25.0..33.0),
        Class::Adenoma => patient.build * rng.random_range(24.0..34.0),
        Class::Carcinoma => f32::INFINITY,
    }
}

/// Where the glands are open: in their middle, or, in a carcinoma, in round holes punched anywhere.
fn lumens(gland: &Field, owner: &[u16], glands: &[Gland], patient: &Patient, rng: &mut impl Rng) -> Field {
    let (w, h) = gland.size();
    let noise = Noise::new(rng.random());
    let holes = Noise::new(rng.random());
    let frequency = 0.9 - 0.4 * patient.solidity;
    let open = |i: usize| {
        let Some(g) = glands.get(owner[i] as usize) else { return false };
        let (x, y) = ((i % w) as f32, (i / w) as f32);
        let depth = gland.values()[i];
        match g.class {
            Class::Carcinoma => depth > 9.0 && punched(&holes, &noise, frequency, x, y),
            // A lining never fills its gland: the apices leave at least a pore.
            Class::Benign => depth + 4.0 * noise.at(x / 8.0, y / 8.0) > g.lining.min(0.8 * g.depth),
            Class::Adenoma => depth + 3.0 * noise.at(x / 14.0, y / 14.0) > g.lining.min(0.84 * g.depth),
        }
    };
    let open: Vec<bool> = (0..w * h).map(open).collect();
    Field::signed_distance(w, h, &open)
}

/// Whether a place lies in one of the holes of a cribriform gland: one hole, or none, in each square of 38 µm.
fn punched(holes: &Noise, noise: &Noise, frequency: f32, x: f32, y: f32) -> bool {
    const SPACING: f32 = 38.0;
    let (cx, cy) = ((x / SPACING).floor() as i32, (y / SPACING).floor() as i32);
    let blur = 5.0 * noise.at(x / 16.0, y / 16.0);
    (cy - 1..=cy + 1).any(|j| {
        (cx - 1..=cx + 1).any(|i| {
            let pick = |k: i32| holes.cell(4 * i + k, j);
            let (hx, hy) = ((i as f32 + pick(0)) * SPACING, (j as f32 + pick(1)) * SPACING);
            let radius = 3.0 + 13.0 * pick(2) * pick(2) + 2.0;
            pick(3) < frequency && (x - hx).hypot(y - hy) + blur < radius
        })
    })
}
