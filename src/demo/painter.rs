//! From the map of a section to its pixels: ground, fibres, cells, then the microscope.

use image::{Rgb, RgbImage};
use rand::{Rng, RngExt};

use super::Class;
use super::anatomy::{Anatomy, Compartment};
use super::cells::{Cell, Kind};
use super::noise::{Noise, lerp, ramp};
use super::stain::{Ink, Stain};

/// Paints a section at `mpp` µm/px.
pub fn paint(anatomy: &Anatomy, cells: &[Cell], stain: &Stain, mpp: f32, rng: &mut impl Rng) -> RgbImage {
    let mut canvas = Canvas::new(anatomy, mpp);
    canvas.ground(anatomy, rng);
    canvas.fibres(anatomy, rng);
    for cell in cells {
        canvas.cell(cell, rng);
    }
    canvas.dust(rng);
    canvas.photograph(stain, rng)
}

/// Dye on glass.
struct Canvas {
    width: usize,
    height: usize,
    mpp: f32,
    inks: Vec<Ink>,
    grain: Noise,
}

impl Canvas {
    fn new(anatomy: &Anatomy, mpp: f32) -> Self {
        let (w, h) = anatomy.size();
        let (width, height) = ((w as f32 / mpp) as usize, (h as f32 / mpp) as usize);
        Self { width, height, mpp, inks: vec![Ink::default(); width * height], grain: Noise::new(0) }
    }

    /// Lays the ground of every compartment.
    fn ground(&mut self, anatomy: &Anatomy, rng: &mut impl Rng) {
        let ground = Ground { anatomy, fine: Noise::new(rng.random()), coarse: Noise::new(rng.random()) };
        self.grain = Noise::new(rng.random());
        for py in 0..self.height {
            for px in 0..self.width {
                let (x, y) = (px as f32 * self.mpp, py as f32 * self.mpp);
                self.inks[py * self.width + px] = ground.ink(x, y);
            }
        }
    }

    /// Draws collagen as single strands that follow the flow of the stroma.
    fn fibres(&mut self, anatomy: &Anatomy, rng: &mut impl Rng) {
        let (w, h) = anatomy.size();
        for _ in 0..w * h / 30 {
            let (x, y) = (rng.random_range(0.0..w as f32), rng.random_range(0.0..h as f32));
            let (share, length, strength) = match anatomy.compartment(x, y) {
                Compartment::LaminaPropria => (0.30, 10.0..35.0, 0.05..0.14),
                Compartment::Submucosa => (0.75, 30.0..110.0, 0.03..0.13),
                Compartment::Desmoplasia => (0.60, 20.0..70.0, 0.03..0.15),
                _ => continue,
            };
            if rng.random_bool(share) {
                let strand = Ink::new(0.01, rng.random_range(strength));
                self.strand(anatomy, (x, y), rng.random_range(length), rng.random_range(0.5..1.3), strand);
            }
        }
    }

    /// One strand of a given length and half width in µm.
    fn strand(&mut self, anatomy: &Anatomy, start: (f32, f32), length: f32, half_width: f32, ink: Ink) {
        const STEP: f32 = 0.5;
        let (mut x, mut y) = start;
        let mut angle = anatomy.flow(x, y);
        let mut walked = 0.0;
        while walked < length && anatomy.gland(x, y) < -1.0 && anatomy.tissue(x, y) > 0.5 {
            // The flow has no sign: turn to whichever end of it is ahead.
            angle += 0.15 * (2.0 * (anatomy.flow(x, y) - angle)).sin();
            let taper = ramp(0.0, 6.0, walked.min(length - walked));
            self.dab(x, y, half_width, ink.times(taper * STEP / half_width));
            x += STEP * angle.cos();
            y += STEP * angle.sin();
            walked += STEP;
        }
    }

    /// Adds a soft spot of ink.
    fn dab(&mut self, x: f32, y: f32, radius: f32, ink: Ink) {
        self.over(x, y, 1.5 * radius, |dx, dy, under| {
            let strength = 0.6 * (1.0 - ramp(0.3 * radius, 1.5 * radius, dx.hypot(dy)));
            Ink {
                haematoxylin: under.haematoxylin + strength * ink.haematoxylin,
                eosin: under.eosin + strength * ink.eosin,
                blood: under.blood + strength * ink.blood,
            }
        });
    }

    /// Runs `paint(dx, dy, ink below)` over the square around a place, in µm.
    fn over(&mut self, x: f32, y: f32, radius: f32, paint: impl Fn(f32, f32, Ink) -> Ink) {
        let first = |centre: f32| ((centre - radius) / self.mpp).ceil().max(0.0) as usize;
        let last = |centre: f32, limit: usize| {
            (((centre + radius) / self.mpp).floor().max(-1.0) as isize + 1).clamp(0, limit as isize) as usize
        };
        for py in first(y)..last(y, self.height) {
            for px in first(x)..last(x, self.width) {
                let ink = &mut self.inks[py * self.width + px];
                *ink = paint(px as f32 * self.mpp - x, py as f32 * self.mpp - y, *ink);
            }
        }
    }

    fn cell(&mut self, cell: &Cell, rng: &mut impl Rng) {
        let portrait = Portrait::of(cell, self.grain, rng);
        self.over(cell.x, cell.y, cell.long * 1.3 + 1.0, |dx, dy, under| portrait.ink(dx, dy, under));
    }

    /// A few specks on the coverslip.
    fn dust(&mut self, rng: &mut impl Rng) {
        let (w, h) = (self.width as f32 * self.mpp, self.height as f32 * self.mpp);
        for _ in 0..rng.random_range(2..9) {
            let (x, y) = (rng.random_range(0.0..w), rng.random_range(0.0..h));
            let radius = rng.random_range(0.8..3.0f32);
            self.dab(x, y, radius, Ink { haematoxylin: 0.25, eosin: 0.05, blood: 0.2 });
        }
    }

    /// The light through the section: uneven thickness, blur of the lens, shading and noise of the camera.
    fn photograph(mut self, stain: &Stain, rng: &mut impl Rng) -> RgbImage {
        self.blur(rng.random_range(0.12..0.24));
        let thickness = Noise::new(rng.random());
        let camera = Noise::new(rng.random());
        let (lean_x, lean_y) = (rng.random_range(-0.012..0.012), rng.random_range(-0.012..0.012));
        RgbImage::from_fn(self.width as u32, self.height as u32, |px, py| {
            let (x, y) = (px as f32 * self.mpp, py as f32 * self.mpp);
            let depth = 1.0 + 0.14 * thickness.at(x / 180.0, y / 180.0);
            let light = stain.light(self.inks[py as usize * self.width + px as usize].times(depth));
            let shade =
                1.0 + lean_x * (px as f32 / self.width as f32 - 0.5) + lean_y * (py as f32 / self.height as f32 - 0.5);
            let mut channel = 0;
            Rgb(light.map(|v| {
                channel += 1;
                let noise = 4.0 * (camera.cell(px as i32, (py * 3 + channel) as i32) - 0.5);
                (v * shade + noise).round().clamp(0.0, 255.0) as u8
            }))
        })
    }

    /// Mixes each pixel with its four neighbours, in rows and then in columns; `spread` goes to either side.
    fn blur(&mut self, spread: f32) {
        let mix = |a: Ink, b: Ink, c: Ink| a.under(c, 0.5).under(b, 1.0 - 2.0 * spread);
        let (w, h) = (self.width, self.height);
        for row in self.inks.chunks_exact_mut(w) {
            let mut left = row[0];
            for x in 0..w {
                let here = row[x];
                row[x] = mix(left, here, row[(x + 1).min(w - 1)]);
                left = here;
            }
        }
        let mut above = self.inks[..w].to_vec();
        for y in 0..h {
            for (x, above) in above.iter_mut().enumerate() {
                let here = self.inks[y * w + x];
                let below = self.inks[(y + 1).min(h - 1) * w + x];
                self.inks[y * w + x] = mix(*above, here, below);
                *above = here;
            }
        }
    }
}

/// The ground of the compartments.
struct Ground<'a> {
    anatomy: &'a Anatomy,
    fine: Noise,
    coarse: Noise,
}

impl Ground<'_> {
    fn ink(&self, x: f32, y: f32) -> Ink {
        let edge =
            self.anatomy.tissue(x, y) + 0.8 * self.fine.at(x / 2.5, y / 2.5) + 3.0 * self.fine.at(x / 11.0, y / 11.0);
        if edge < -1.0 {
            return Ink::default();
        }
        let gland = self.anatomy.gland(x, y) + 0.5 * self.fine.at(x / 3.0 + 9.0, y / 3.0);
        let mut ink = Ink::default();
        if gland < 1.0 {
            ink = self.stroma(x, y, gland);
        }
        if gland > -1.0 {
            ink = ink.under(self.gland(x, y, gland), ramp(-0.6, 0.6, gland));
        }
        Ink::default().under(ink, ramp(-0.7, 0.7, edge))
    }

    fn stroma(&self, x: f32, y: f32, gland: f32) -> Ink {
        let mottle = self.coarse.fractal(x / 24.0, y / 24.0, 3);
        let crumb = self.fine.fractal(x / 7.0, y / 7.0, 3);
        let compartment = self.anatomy.stroma(x, y);
        let (base, loose) = match compartment {
            Compartment::Submucosa => (Ink::new(0.04, 0.27 + 0.10 * mottle), -0.15),
            Compartment::Desmoplasia => (Ink::new(0.09, 0.18 + 0.07 * mottle), 0.0),
            _ => (Ink::new(0.09, 0.22 + 0.09 * mottle), 0.16),
        };
        // Gaps where the section has torn: between fibres, and around carcinoma that has shrunk from its stroma.
        let mut gap = ramp(0.28, 0.62, crumb + loose + 0.35 * mottle);
        if compartment == Compartment::Desmoplasia {
            let shrunk = ramp(0.15, 0.4, self.coarse.at(x / 60.0 + 50.0, y / 60.0));
            gap = gap.max(shrunk * ramp(-5.0, -3.5, gland) * ramp(-0.3, -1.0, gland));
        }
        let sheath = 0.10 * ramp(-2.2, -0.8, gland) * (1.0 - gap);
        let rough = self.fine.at(x / 1.7, y / 1.7 + 77.0);
        let mut ink = base.times(1.0 + 0.45 * crumb + 0.18 * rough).under(Ink::new(0.01, 0.03), 0.9 * gap);
        ink.eosin += sheath;
        ink
    }

    fn gland(&self, x: f32, y: f32, gland: f32) -> Ink {
        let class = self.anatomy.lining(x, y);
        let lumen = self.anatomy.lumen(x, y) + 0.6 * self.fine.at(x / 2.0, y / 2.0 + 31.0);
        let crumb = self.fine.fractal(x / 5.0, y / 5.0, 3);
        let mottle = self.coarse.at(x / 35.0, y / 35.0);
        let height = gland.max(0.0) / (gland.max(0.0) - lumen.min(-0.01));
        let cytoplasm = match class {
            Class::Benign => Ink::new(0.20 - 0.04 * height, 0.24),
            Class::Adenoma => Ink::new(0.32 - 0.14 * height, 0.27),
            Class::Carcinoma => Ink::new(0.19 + 0.05 * mottle, 0.28 + 0.06 * mottle),
        };
        let border = 0.10 * ramp(-2.6, -1.0, lumen);
        let mut lining = cytoplasm.times(1.0 + 0.5 * crumb);
        lining.eosin += border;
        lining.under(self.content(x, y, class, lumen), ramp(-0.6, 0.6, lumen))
    }

    /// What floats in a lumen: nothing, a veil of mucin, or the dirty necrosis of carcinoma.
    fn content(&self, x: f32, y: f32, class: Class, lumen: f32) -> Ink {
        let cloud = self.coarse.fractal(x / 16.0, y / 16.0, 3);
        let veil = ramp(0.0, 0.5, cloud) * ramp(1.0, 4.0, lumen);
        match class {
            Class::Carcinoma => Ink::new(0.05, 0.22).times(ramp(-0.25, 0.2, cloud) * ramp(0.5, 2.5, lumen)),
            _ => Ink::new(0.07, 0.05).times(veil),
        }
    }
}

/// How one cell looks.
struct Portrait {
    cell: Cell,
    grain: Noise,
    cos: f32,
    sin: f32,
    /// Moves the noise, so that no two cells are alike.
    shift: f32,
    /// Nucleoli in units of the ellipse.
    nucleoli: [(f32, f32); 2],
}

impl Portrait {
    fn of(cell: &Cell, grain: Noise, rng: &mut impl Rng) -> Self {
        let (sin, cos) = cell.angle.sin_cos();
        let mut spot = || (rng.random_range(-0.45..0.45), rng.random_range(-0.45..0.45));
        let nucleoli = [spot(), spot()];
        Self { cell: *cell, grain, cos, sin, shift: rng.random_range(0.0..1000.0), nucleoli }
    }

    fn ink(&self, dx: f32, dy: f32, under: Ink) -> Ink {
        let Cell { kind, long, short, tone, .. } = self.cell;
        let (a, b) = ((dx * self.cos + dy * self.sin) / long, (dy * self.cos - dx * self.sin) / short);
        let bumps = match kind {
            Kind::Pleomorphic => 0.22,
            Kind::Mitosis | Kind::Debris => 0.4,
            Kind::Vessel => 0.15,
            _ => 0.10,
        };
        let radius = a.hypot(b);
        let (ux, uy) = (a / radius.max(1e-3), b / radius.max(1e-3));
        let radius = radius * (1.0 + bumps * self.grain.at(1.3 * ux + self.shift, 1.3 * uy - self.shift));
        // Distance inside the border in µm, along the short axis where borders are steepest.
        let inside = (1.0 - radius) * short;
        if inside < -1.0 {
            return under;
        }
        let cover = ramp(-0.6, 0.7, inside);
        let grain = self.grain.fractal(dx / 1.8 + self.shift, dy / 1.8, 2);
        match kind {
            Kind::Vessel => {
                let cells = self.grain.at(dx / 3.2 + self.shift, dy / 3.2);
                let blood = Ink { haematoxylin: 0.0, eosin: 0.06, blood: 0.10 + 0.40 * ramp(-0.35, 0.15, cells) };
                let wall = Ink::new(0.15, 0.30);
                under.under(blood.under(wall, 1.0 - ramp(0.4, 1.4, inside)), cover)
            }
            Kind::Goblet => {
                let mucin = Ink::new(0.12 * tone + 0.03 * grain, 0.055);
                let wall = Ink::new(0.24, 0.22);
                under.under(mucin.under(wall, 1.0 - ramp(0.0, 1.3, inside)), 0.95 * cover)
            }
            Kind::Pleomorphic => {
                let rim = 1.0 - ramp(0.3, 1.6, inside);
                let speck = |&(u, v): &(f32, f32)| 1.0 - ramp(0.7, 1.3, ((a - u) * long).hypot((b - v) * short));
                let nucleolus = self.nucleoli.iter().map(speck).fold(0.0, f32::max);
                let chromatin = tone * (0.46 + 0.20 * rim + 0.28 * grain + 0.35 * nucleolus);
                under.under(Ink::new(chromatin, 0.16 + 0.1 * nucleolus), 0.92 * cover)
            }
            Kind::Plasma => {
                let body = under.under(Ink::new(0.24, 0.30), 0.6 * cover);
                let nucleus = 0.62 * short - ((a - 0.4) * long).hypot(b * short);
                body.under(Ink::new(tone * (0.62 + 0.3 * grain), 0.18), 0.93 * ramp(-0.6, 0.7, nucleus))
            }
            Kind::Mitosis => under.under(Ink::new(tone * (0.85 + 0.1 * grain), 0.15), cover),
            Kind::Fibroblast => under.under(Ink::new(tone * (0.52 + 0.2 * grain), 0.24), 0.85 * cover),
            Kind::Debris => under.under(Ink::new(tone * 0.6, 0.2), 0.8 * cover),
            Kind::Lymphocyte | Kind::Enterocyte | Kind::Pencil => {
                let rim = 1.0 - ramp(0.2, 1.4, inside);
                let chromatin = tone * (0.58 + 0.10 * rim + 0.28 * grain);
                let overlap = lerp(0.0, 0.15, ramp(0.3, 0.8, under.haematoxylin));
                under.under(Ink::new(chromatin + overlap, 0.18), 0.93 * cover)
            }
        }
    }
}
