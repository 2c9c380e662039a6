//! Regions that people draw and edit: polygons in level-0 pixels, and masks given as files.
//!
//! QuPath, TRIDENT and most annotation tools store regions as GeoJSON. They are read here ([`Regions::read`]), filled
//! into a mask on the pixels of a tissue mask ([`Regions::mask`]), and a tissue mask is turned into polygons that
//! QuPath opens ([`Regions::trace`], [`Regions::write`]), so that a user may edit what the program found and give it
//! back. A mask may also be an image ([`read_mask`] takes either). In the flow this stands beside [`TissueMask`]:
//! before the grid.
//!
//! What is inside:
//! - An annotation covers the union of its polygons. A point is inside a polygon if its outline winds around it
//!   (nonzero rule, whichever way it runs) and no hole does: an outline that crosses itself encloses all that it goes
//!   around.
//! - A mask pixel is inside if its centre is. A centre on an outline belongs to what lies right of or below the
//!   outline, so regions that share a border share no pixel.
//! - The regions of a file are the union of its annotations less those that are exclusions. A file of nothing but
//!   exclusions means everything else, which [`read_mask`] narrows to the tissue; a file without annotations means nothing.
//! - An annotation is an exclusion if its class (its name does not matter) ends with `*`, by which QuPath marks what it
//!   ignores (`Ignore*`, `Artefact*`), or is one of `ignore`, `exclude`, `excluded`, `exclusion`, `artifact`,
//!   `artifacts`, `artefact` or `artefacts` in any case. `Region*` is none: QuPath offers it to outline what is to be
//!   worked on.

mod geojson;
mod image;
mod raster;
mod squares;
mod trace;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::geometry::{Point, Size};
use crate::mask::Mask;
use crate::mask_file;
use crate::tissue::TissueMask;

/// Classes, in lower case, that are exclusions without a `*`.
const EXCLUSIONS: [&str; 8] =
    ["ignore", "exclude", "excluded", "exclusion", "artifact", "artifacts", "artefact", "artefacts"];

/// QuPath's class for an outline of what is to be worked on.
const REGION: &str = "region*";

/// Class of the tissue that the program found.
pub const TISSUE: &str = "Tissue";

/// Colour of [`TISSUE`], that of its outline in pictures ([`GridColours`](crate::thumbnail::GridColours)).
const TISSUE_COLOR: [u8; 3] = [0, 170, 60];

/// Corners of a closed outline in level-0 pixels, (x, y); the first is not repeated at the end.
pub type Ring = Vec<[f64; 2]>;

/// An area with holes, in level-0 pixels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Polygon {
    /// Its outline.
    pub exterior: Ring,
    /// Outlines of what is cut out of it.
    pub holes: Vec<Ring>,
}

impl Polygon {
    /// Area in level-0 pixels, where no outline crosses itself or another.
    pub fn area(&self) -> f64 {
        let area = |ring: &Ring| signed_area(ring).abs();
        area(&self.exterior) - self.holes.iter().map(area).sum::<f64>()
    }
}

/// Area within a ring by the shoelace formula: positive if it runs from x towards y, which is counter-clockwise where y
/// points up (RFC 7946) and clockwise on the screen, where y points down.
fn signed_area(ring: &[[f64; 2]]) -> f64 {
    let Some(&last) = ring.last() else { return 0.0 };
    let before = std::iter::once(&last).chain(ring);
    before.zip(ring).map(|(a, b)| a[0] * b[1] - b[0] * a[1]).sum::<f64>() / 2.0
}

/// One thing that was drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Annotation {
    /// Its class, where it has one.
    pub class: Option<String>,
    /// RGB colour of the class, where the file gives one.
    pub color: Option<[u8; 3]>,
    /// What it covers.
    pub polygons: Vec<Polygon>,
}

impl Annotation {
    /// Whether it is taken away from the others; see the rule in the [module's description](self).
    pub fn is_exclusion(&self) -> bool {
        let class = self.class.as_deref().unwrap_or_default().trim().to_lowercase();
        (class.ends_with('*') && class != REGION) || EXCLUSIONS.contains(&class.as_str())
    }

    /// Area in level-0 pixels, where no outline crosses another.
    pub fn area(&self) -> f64 {
        self.polygons.iter().map(Polygon::area).sum()
    }

    /// Whether any of it may lie on a slide of that size, by the outlines' bounding boxes.
    fn touches(&self, slide: Size) -> bool {
        let (width, height) = (f64::from(slide.width), f64::from(slide.height));
        let reaches = |ring: &Ring, axis: usize, extent: f64| {
            ring.iter().any(|point| point[axis] > 0.0) && ring.iter().any(|point| point[axis] < extent)
        };
        self.polygons.iter().any(|p| reaches(&p.exterior, 0, width) && reaches(&p.exterior, 1, height))
    }
}

/// Something that a program found and measured: QuPath shows it as a detection, coloured by any of its measurements.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Detection {
    /// What it covers.
    pub polygon: Polygon,
    /// Its class, where it has one.
    pub class: Option<String>,
    /// RGB colour of the class.
    pub color: Option<[u8; 3]>,
    /// Names and values.
    pub measurements: Vec<(String, f64)>,
}

/// Writes detections as GeoJSON for QuPath, as [`Regions::write`] writes annotations. They are no regions to work on: reading
/// such a file passes them over.
///
/// # Errors
/// [`Error::Io`] if it cannot be written; [`Error::Usage`] for coordinates or measurements that are no numbers.
pub fn write_detections(path: &Path, detections: &[Detection]) -> Result<()> {
    geojson::write_detections(path, detections)
}

/// A feature of a file that is no area and was passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// Which: `feature 3`, counted from 1.
    pub feature: String,
    /// Why.
    pub reason: String,
}

/// What was drawn on one slide.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Regions {
    /// The areas, in the order of the file.
    pub annotations: Vec<Annotation>,
    /// What was passed over.
    pub ignored: Vec<Ignored>,
}

impl Regions {
    /// Reads GeoJSON: a feature collection, one feature, a bare geometry, or a list of features (QuPath before 0.4).
    ///
    /// Polygons, multi-polygons and collections of them are areas; a third coordinate is dropped, an open ring closed.
    /// Points, lines, features without a geometry, and QuPath's detections, cells, tiles and missing cores are passed
    /// over and listed in [`ignored`](Self::ignored). Children of a QuPath hierarchy are annotations like their
    /// parents.
    ///
    /// # Errors
    /// [`Error::BadFile`] that names the feature (or the line) for JSON or coordinates that are none and rings of fewer
    /// than 3 points; [`Error::Limit`] above 256 MiB; [`Error::Unsupported`] for a file with features and no area among
    /// them, which would otherwise mean an empty slide.
    pub fn read(path: &Path) -> Result<Self> {
        geojson::read(path)
    }

    /// Writes GeoJSON as QuPath reads it: a collection of annotations, one feature a line, coordinates rounded to 1/100
    /// level-0 pixel. The same regions give the same bytes, ids included. What was passed over is not written.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written; [`Error::Usage`] for coordinates that are no numbers.
    pub fn write(&self, path: &Path) -> Result<()> {
        geojson::write(path, &self.annotations)
    }

    /// The tissue of a mask as annotations of class [`TISSUE`], one for each piece, in the order of their topmost
    /// pixels.
    ///
    /// A piece is a set of pixels that are joined by their sides: touching corners join nothing. Its outline follows
    /// the sides of the pixels exactly, so that [`mask`](Self::mask) gives the same pixels again, and is one valid
    /// polygon: no ring touches itself, the exterior's signed area (shoelace formula, y as it is) is positive and that
    /// of holes negative, as RFC 7946 asks.
    pub fn trace(mask: &TissueMask) -> Self {
        let annotation =
            |polygon| Annotation { class: Some(TISSUE.to_owned()), color: Some(TISSUE_COLOR), polygons: vec![polygon] };
        Self { annotations: trace::polygons(mask).into_iter().map(annotation).collect(), ignored: Vec::new() }
    }

    /// Patches with their upper left corners at `origins` and sides of `side` level-0 pixels as annotations of one class: what
    /// they cover together, one annotation for each piece. Corners are whole numbers, so patches of a grid whose step
    /// was rounded still meet (within 1 pixel).
    pub fn of_squares(origins: &[Point], side: f64, class: &str, color: [u8; 3]) -> Self {
        let annotation =
            |polygon| Annotation { class: Some(class.to_owned()), color: Some(color), polygons: vec![polygon] };
        Self { annotations: squares::union(origins, side).into_iter().map(annotation).collect(), ignored: Vec::new() }
    }

    /// What is inside, on a mask of `size` pixels over a slide of `slide` level-0 pixels; see the rules in the
    /// [module's description](self). What lies outside the slide is cut off.
    ///
    /// # Errors
    /// [`Error::Usage`] for a size of 0.
    pub fn mask(&self, size: Size, slide: Size) -> Result<TissueMask> {
        let (excluded, included): (Vec<_>, Vec<_>) = self.annotations.iter().partition(|a| a.is_exclusion());
        let mut data = vec![self.only_excludes(); size.width as usize * size.height as usize];
        for (annotations, inside) in [(included, true), (excluded, false)] {
            for polygon in annotations.into_iter().flat_map(|a| &a.polygons) {
                raster::fill(polygon, size, slide, &mut data, inside);
            }
        }
        TissueMask::from_pixels(size, slide, data)
    }

    /// Whether there are annotations, and each of them is an exclusion.
    fn only_excludes(&self) -> bool {
        !self.annotations.is_empty() && self.annotations.iter().all(Annotation::is_exclusion)
    }

    /// Number of annotations that lie wholly outside a slide of that size: most likely drawn on another slide, or in
    /// the pixels of another level.
    pub fn outside(&self, slide: Size) -> usize {
        self.annotations.iter().filter(|annotation| !annotation.touches(slide)).count()
    }
}

/// The file with the regions of slide `id` in `folder`: `<id>.geojson`, `<id>.json`, `<id>.png`, or `<id>_mask` as PNG or
/// TIFF. `None` if there is none. (`<id>.tiff` is not looked for: it may be the slide itself.)
///
/// # Errors
/// [`Error::Usage`] if there are several: which one is meant cannot be told.
pub fn for_slide(folder: &Path, id: &str) -> Result<Option<PathBuf>> {
    let endings = [".geojson", ".json", ".png", "_mask.png", "_mask.tiff", "_mask.tif"];
    mask_file::find(folder, endings.map(|ending| format!("{id}{ending}")))
}

/// What a user gave for a slide.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// What is inside.
    pub mask: TissueMask,
    /// How many annotations lie wholly outside the slide; see [`Regions::outside`].
    pub outside: usize,
    /// What is no area and was passed over.
    pub ignored: Vec<Ignored>,
}

/// Reads what a user gave for a slide of `slide` level-0 pixels as a mask of the size of `found`, the tissue that was found on
/// it: GeoJSON (as [`Regions::mask`] fills it) or a PNG or TIFF image of the whole slide at any scale. The content decides,
/// not the extension. Exclusions alone are taken away from `found`; anything else stands in its place.
///
/// In an image what is not black is inside; a transparent pixel is outside. Its shape must be the slide's: one side may
/// differ by 1 pixel or 0.5 % from what the other asks for. A mask pixel is inside if at least half of the image's
/// pixels on it are.
///
/// # Errors
/// Those of [`Regions::read`]; for images [`Error::Unsupported`] if the shape is not the slide's (with the
/// sizes), if it is compressed with losses, which moves borders, a TIFF of other than 8 bits, or of a kind that is not read; and [`Error::BadFile`]
/// for a damaged one.
pub fn read_mask(path: &Path, found: &Mask, slide: Size) -> Result<Drawn> {
    let size = found.size();
    let mut head = Vec::new();
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    file.take(64).read_to_end(&mut head).map_err(|e| Error::io(path, e))?;
    match geojson::detect(&head) {
        true => {
            let regions = Regions::read(path)?;
            let drawn = regions.mask(size, slide)?;
            let mask = if regions.only_excludes() { drawn.and(found)?.into() } else { drawn };
            Ok(Drawn { mask, outside: regions.outside(slide), ignored: regions.ignored })
        }
        false => Ok(Drawn { mask: image::read(path, size, slide)?, outside: 0, ignored: vec![] }),
    }
}

#[cfg(test)]
mod tests;
