//! `gensis tile`: for every slide its tissue, its grid at an exact µm/px, a coordinates file, and a picture of both.

mod sheet;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use slide_io::jpeg::ColorModel;
use slide_io::label_mask::LabelMask;
use slide_io::quality::{self, Artefacts, DropCounts};
use slide_io::regions::{self, Ignored, Regions};
use slide_io::thumbnail::{GridColours, draw_grid, thumbnail};
use slide_io::{
    DropReason, Error, Grid, GridSpec, Mpp, Overview, Point, RgbImage, Size, Slide, SlideRecord, TissueMask,
    atomic_file, h5,
};

use super::progress::Progress;
use super::sources::{
    self, Input, coordinates_header, coordinates_path, given_coordinates, label_mask, pack_path, roi,
};
use super::{Run, digest, guarded, pack};
use crate::run_dir::{Failure, StageRecord, as_stored, remove};

/// What the cohort table says about a slide.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct TiledSlide {
    pub id: String,
    pub label: Option<String>,
    pub split: Option<String>,
    pub format: String,
    pub width: u32,
    pub height: u32,
    pub levels: usize,
    pub mpp: Option<f64>,
    pub tissue_share: Option<f64>,
    pub candidates: Option<usize>,
    pub kept: Option<usize>,
    /// Positions that gave no patch, by reason.
    pub dropped_background: usize,
    pub dropped_pen: usize,
    pub dropped_fold: usize,
    pub dropped_unreadable: usize,
    pub dropped_blur: usize,
    /// What is wrong with a slide that was cut all the same.
    pub problem: Option<String>,
    pub failure: Option<String>,
}

impl TiledSlide {
    /// The columns of the reasons, in their order.
    fn dropped_mut(&mut self) -> [&mut usize; DropReason::ALL.len()] {
        [
            &mut self.dropped_background,
            &mut self.dropped_pen,
            &mut self.dropped_fold,
            &mut self.dropped_unreadable,
            &mut self.dropped_blur,
        ]
    }

    /// Positions that gave no patch, by reason; those that occur.
    pub fn dropped(&self) -> DropCounts {
        let counts =
            [self.dropped_background, self.dropped_pen, self.dropped_fold, self.dropped_unreadable, self.dropped_blur];
        DropReason::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }
}

/// Side of the pictures, px.
const PICTURE_SIDE: u32 = 1024;

/// Cuts every slide of the cohort. Slides whose coordinates are current are only looked up.
pub(super) fn tile(run: &Run) -> Result<()> {
    let Input::Slides(cohort) = Input::open(&run.experiment.data)? else {
        eprintln!("tile: image folders need no tiling");
        return Ok(());
    };
    let before = run.dir.record("tile").map(|record| record.summary);
    run.dir.forget("tile")?;
    let progress = Progress::new("tile", cohort.slides.len() as u64, "slides");
    let reused = Mutex::new(0usize);
    let rows: Vec<Result<TiledSlide>> = cohort
        .slides
        .par_iter()
        .map(|slide| {
            let (row, was_current) = tile_slide(run, slide)?;
            if let Some(reason) = row.failure.as_ref().or(row.problem.as_ref()) {
                progress.line(&format!("tile: {}: {reason}", row.id));
            }
            if was_current {
                *reused.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) += 1;
            }
            progress.advance(1);
            Ok(row)
        })
        .collect();
    let rows = rows.into_iter().collect::<Result<Vec<_>>>()?;
    let unpacked = if run.experiment.pack.enabled { pack::pack_slides(run, &cohort.slides)? } else { vec![] };

    let failed = |row: &TiledSlide| {
        row.failure.clone().or(row.problem.clone()).map(|reason| Failure {
            stage: "tile".into(),
            item: row.id.clone(),
            reason,
        })
    };
    let problems = sources::missing(run, &cohort, "tile");
    let failures: Vec<Failure> = rows.iter().filter_map(failed).chain(problems).chain(unpacked).collect();
    let patches: usize = rows.iter().filter_map(|row| row.kept).sum();
    let reused = reused.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    progress.finish(&format!(
        "{patches} patches of {} on {} of {} slides ({reused} up to date), {} problem(s)",
        run.experiment.grid.mpp,
        rows.iter().filter(|row| row.kept.is_some_and(|kept| kept > 0)).count(),
        rows.len(),
        failures.len()
    ));
    let mut dropped = DropCounts::new();
    rows.iter().flat_map(TiledSlide::dropped).for_each(|(reason, count)| *dropped.entry(reason).or_default() += count);
    if !dropped.is_empty() {
        eprintln!("tile: {}", quality::describe(&dropped));
    }
    let (size, step) = (run.experiment.grid.size, run.experiment.grid.step());
    if step > size && run.experiment.data.coordinates.as_os_str().is_empty() {
        eprintln!("tile: warning: patches of {size} px every {step} px leave gaps of {} px between them", step - size);
    }
    let wanted = run.experiment.grid.mpp.0;
    let coarse: Vec<&TiledSlide> = rows.iter().filter(|row| row.mpp.is_some_and(|mpp| mpp > 1.05 * wanted)).collect();
    if let [first, ..] = coarse[..] {
        let mpp = Mpp(first.mpp.unwrap_or_default());
        eprintln!(
            "tile: warning: {} slides hold no detail at {}: their patches are enlarged ({} has {mpp})",
            coarse.len(),
            run.experiment.grid.mpp,
            first.id
        );
    }
    write_cohort_table(&run.dir.file("cohort.csv")?, &rows)?;
    let summary = serde_json::to_value(&rows)?;
    if reused < rows.len() || before != Some(as_stored(&summary)) || !sheet::is_there(run, rows.len()) {
        sheet::write(run, &rows)?;
    }
    let header = json!({
        "grid": run.experiment.grid.resolved(),
        "tissue": run.experiment.tissue,
        "quality": run.experiment.quality,
        "data": run.experiment.data,
    });
    run.dir.finish("tile", &StageRecord { header, failures, summary })
}

/// One slide; the flag says that nothing had to be done. A slide that cannot be cut is a row with its reason; an error
/// is something that would fail for every slide, such as a full disk.
fn tile_slide(run: &Run, record: &SlideRecord) -> Result<(TiledSlide, bool)> {
    let mut row = TiledSlide {
        id: record.id.clone(),
        label: record.label_name.clone(),
        split: record.split.map(|split| format!("{split:?}").to_lowercase()),
        ..TiledSlide::default()
    };
    let path = coordinates_path(run, &record.id);
    let header = coordinates_header(run, record);
    if h5::is_current(&path, &header)?
        && let Some(recorded) = recorded_row(run, &record.id)?
    {
        return Ok((TiledSlide { label: row.label, split: row.split, ..recorded }, true));
    }
    let cut = match guarded(|| cut(run, record, &mut row)) {
        Ok(cut) => cut,
        Err(error) => {
            // What other settings made must not be taken for this slide's. A file that is not there at all may be back
            // tomorrow, and what was made of it is then still right.
            if sources::is_readable(run, record) || !sources::is_current_but_for_content(&path, &header) {
                remove_outputs(run, &record.id)?;
            }
            row.failure = Some(error);
            return Ok((row, false));
        }
    };
    // The coordinates vouch for all that is written before them.
    remove_outputs(run, &record.id)?;
    if let Some(contours) = cut.contours {
        write_contours(run, &record.id, &contours)?;
    }
    write_dropped(&run.dir.root().join(dropped_path(run, &record.id)), &cut.dropped)?;
    let [thumbnail, grid_picture] = picture_paths(run, &record.id)?;
    write_jpeg(&thumbnail, &cut.picture)?;
    write_jpeg(&grid_picture, &cut.grid_picture)?;
    if cut.coordinates.origins.is_empty() {
        row.failure = Some(cut.why_empty);
    }
    let stored = serde_json::to_vec_pretty(&row)?;
    atomic_file::write(&row_path(run, &record.id)?, &stored)?;
    let written = h5::write_coordinates(&path, &cut.coordinates, &header);
    written.with_context(|| format!("cannot write the coordinates of {}", record.id))?;
    // As the next run will read it: JSON may move the last bit of a number.
    Ok((serde_json::from_slice(&stored)?, false))
}

/// Removes what `tile` wrote for a slide, coordinates first, but for contours, which somebody may have edited (see
/// [`write_contours`]).
fn remove_outputs(run: &Run, slide: &str) -> Result<()> {
    let [thumbnail, grid_picture] = picture_paths(run, slide)?;
    let tar = pack_path(run, slide);
    let dropped = run.dir.root().join(dropped_path(run, slide));
    let index = tar.with_extension("json");
    for path in [coordinates_path(run, slide), row_path(run, slide)?, dropped, thumbnail, grid_picture, index, tar] {
        remove(&path)?;
    }
    Ok(())
}

/// Writes the outlines of the tissue, but never over those that somebody edited: `stages/tile/<slide>.contours` has the hash of
/// what was written last, and while a file is replaced that of the file before it too: either lies there after a kill.
fn write_contours(run: &Run, slide: &str, contours: &Regions) -> Result<()> {
    let path = run.dir.file(&format!("contours_geojson/{slide}.geojson"))?;
    let written = run.dir.file(&format!("stages/tile/{slide}.contours"))?;
    let fresh = path.with_extension("geojson.new");
    contours.write(&fresh)?;
    let made = digest::sha256(&fresh)?;
    let known = std::fs::read_to_string(&written).unwrap_or_default();
    let current = digest::sha256(&path).ok();
    if current.as_ref().is_some_and(|current| *current != made && known.lines().all(|line| line != current)) {
        eprintln!("tile: {slide}: {} was edited and is left as it is; remove it to have it made anew", path.display());
        return remove(&fresh);
    }
    let both: Vec<&str> = std::iter::once(&made[..]).chain(current.as_deref()).collect();
    atomic_file::write(&written, both.join("\n").as_bytes())?;
    std::fs::rename(&fresh, &path)?;
    Ok(atomic_file::write(&written, made.as_bytes())?)
}

/// The picture of the slide, and that with its grid.
fn picture_paths(run: &Run, slide: &str) -> Result<[PathBuf; 2]> {
    let job = h5::job_folder(&run.experiment.grid);
    Ok([run.dir.file(&format!("thumbnails/{slide}.jpg"))?, run.dir.file(&format!("{job}/visualization/{slide}.jpg"))?])
}

/// What one slide leaves.
struct Cut {
    coordinates: h5::Coordinates,
    /// Outlines of the tissue that was found.
    contours: Option<Regions>,
    /// Positions that gave no patch for another reason than background, and what is wrong there, where it is known.
    dropped: Vec<(Point, DropReason, String)>,
    picture: RgbImage,
    grid_picture: RgbImage,
    why_empty: String,
}

/// Scales that differ by no more than this share are not worth a word.
const SAME_SCALE: f64 = 0.1;
static CONTRADICTED: std::sync::Once = std::sync::Once::new();

fn cut(run: &Run, record: &SlideRecord, row: &mut TiledSlide) -> Result<Cut, Error> {
    let slide = Slide::open(&record.path)?;
    row.format = slide.format();
    (row.width, row.height, row.levels) = (slide.size().width, slide.size().height, slide.levels().len());
    let mpp = record.mpp.or(slide.mpp());
    row.mpp = mpp.map(|mpp| mpp.0);
    let mpp = mpp.ok_or_else(|| Error::NoScale { path: record.path.clone() })?;
    let experiment = &run.experiment;
    let overview = Overview::read(&slide, mpp, &experiment.tissue)?;
    let found = TissueMask::from_rgb(&overview.image, slide.size(), mpp, &experiment.tissue)?;
    let artefacts = Artefacts::find(&overview, slide.size(), mpp, &found, &experiment.quality)?;
    let roi = roi(&experiment.data, record)?;
    let mut problems = Vec::new();
    let mask = match &roi {
        None => found,
        Some(path) => {
            let drawn = regions::read_mask(path, &found, slide.size())?;
            if drawn.outside > 0 {
                problems.push(format!(
                    "{} annotation(s) of {} lie wholly outside the slide: positions are pixels of level 0",
                    drawn.outside,
                    path.display()
                ));
            }
            if let [Ignored { feature, reason }, more @ ..] = &drawn.ignored[..] {
                let more = if more.is_empty() { String::new() } else { format!(", and {} more", more.len()) };
                eprintln!("tile: {}: {}: {feature} is passed over: {reason}{more}", record.id, path.display());
            }
            if experiment.data.roi_within_tissue { drawn.mask.and(&found)?.into() } else { drawn.mask }
        }
    };
    let (grid, damage) = match given_coordinates(&experiment.data, record)? {
        Some(path) => (given_grid(&path, slide.size(), mpp, &experiment.grid)?, BTreeMap::new()),
        None => {
            let mut grid = Grid::new(slide.size(), mpp, &experiment.grid, &mask)?;
            let damage = quality::sort_out(&mut grid, &slide, mpp, &mask, &artefacts, &experiment.quality)?;
            (grid, damage)
        }
    };
    (row.tissue_share, row.candidates, row.kept) = (Some(mask.share()), Some(grid.candidates), Some(grid.kept()));
    let counts = grid.drop_counts();
    for (column, reason) in row.dropped_mut().into_iter().zip(DropReason::ALL) {
        *column = counts.get(&reason).copied().unwrap_or(0);
    }
    if row.dropped_unreadable > 0 {
        let why = overview.damage.as_ref().or(damage.values().next()).map_or("a damaged tile", String::as_str);
        let table = dropped_path(run, &record.id);
        problems.push(format!(
            "{} position(s) cannot be read and are left out (in {}): {why}",
            row.dropped_unreadable,
            table.display()
        ));
    }
    if let (Some(given), Some(stated)) = (record.mpp, slide.mpp())
        && (given.0 / stated.0 - 1.0).abs() > SAME_SCALE
        && given.0 == experiment.data.mpp
    {
        // Of the first such slide: where it is meant it is meant for all.
        CONTRADICTED.call_once(|| {
            eprintln!(
                "tile: {}: its file says {stated}, and data.mpp (--mpp) {given}, which is believed for every slide: where only some files \
                 say nothing, give these in a column `mpp` of data.labels",
                record.id
            );
        });
    }
    if let Some(ratio) = slide.mpp_x_over_y() {
        problems.push(format!(
            "its pixels are not square, {ratio:.3} times as wide as high: patches are cut by the mean of both scales"
        ));
    }
    row.problem = (!problems.is_empty()).then(|| problems.join("; "));
    let why = |origin: &Point, reason: DropReason| match (damage.get(origin), reason) {
        (Some(error), _) => error.clone(),
        (None, DropReason::Unreadable) => overview.damage.clone().unwrap_or_default(),
        _ => String::new(),
    };
    let mut coordinates = h5::Coordinates::new(&record.id, slide.levels(), mpp, &grid);
    if let Some(path) = label_mask(&experiment.data, record)? {
        let labels = LabelMask::open(&path, slide.size(), &experiment.data.mask_labels)?;
        let values = labels.all_fractions(&grid.origins, grid.side_level0)?.concat();
        coordinates.labels = Some(h5::LabelFractions { labels: labels.labels().to_vec(), values });
    }
    let picture = thumbnail(&slide, PICTURE_SIDE)?;
    let mut grid_picture = picture.clone();
    draw_grid(&mut grid_picture, slide.size(), Some(&mask), &grid, &GridColours::default());
    Ok(Cut {
        coordinates,
        // What somebody drew is not drawn once more.
        contours: roi.is_none().then(|| Regions::trace(&mask)),
        dropped: grid
            .dropped
            .iter()
            .filter(|(_, reason)| *reason != DropReason::Background)
            .map(|(origin, reason)| (*origin, *reason, why(origin, *reason)))
            .collect(),
        picture,
        grid_picture,
        why_empty: match roi {
            Some(path) if mask.share() == 0.0 => {
                format!("no patch: {} covers nothing of the slide; its positions are pixels of level 0", path.display())
            }
            _ => why_empty(&mask, &grid, mpp),
        },
    })
}

/// How far the footprint of given coordinates may be from the experiment's, relative: nominal magnifications (20x for
/// 0.4863 µm/px) pass, another magnification or patch size does not.
const FOOTPRINT_TOLERANCE: f64 = 0.05;

/// The squares of a coordinates file, each of them kept.
fn given_grid(path: &Path, slide: Size, mpp: Mpp, spec: &GridSpec) -> Result<Grid, Error> {
    let coordinates = h5::read_coordinates(path)?;
    let wrong = |what: String| Err(Error::Usage(format!("{}: {what}", path.display())));
    let Some(geometry) = coordinates.geometry else {
        return wrong(
            "it does not say how large its patches are (patch_size and patch_level, or magnifications)".into(),
        );
    };
    let side = geometry.side_level0;
    let expected = spec.side_level0(mpp);
    if (side / expected - 1.0).abs() > FOOTPRINT_TOLERANCE {
        let fitting = mpp.0 * side / f64::from(spec.size);
        return wrong(format!(
            "its squares are {side:.0} px of level 0, and {} px at {} are {expected:.0}: set grid.mpp = {fitting:.4}, or another \
             grid.size",
            spec.size, spec.mpp
        ));
    }
    let (width, height) = (i64::from(slide.width), i64::from(slide.height));
    let beside = |point: &&Point| point.x < 0 || point.y < 0 || point.x >= width || point.y >= height;
    if let Some(Point { x, y }) = coordinates.origins.iter().find(beside) {
        return wrong(format!(
            "x {x}, y {y} is no pixel of the slide, which has {width} x {height}: is it another slide's?"
        ));
    }
    let candidates = coordinates.origins.len();
    let spec = GridSpec { mpp: Mpp(mpp.0 * side / f64::from(spec.size)), ..spec.clone() };
    Ok(Grid { spec, origins: coordinates.origins, candidates, dropped: vec![], side_level0: side })
}

/// Why a slide gave no patch, with what to do about it.
fn why_empty(mask: &TissueMask, grid: &Grid, native: Mpp) -> String {
    match (mask.empty_reason(), grid.candidates) {
        (Some(reason), _) => format!("no patch: {reason}"),
        (None, 0) => format!(
            "no patch: the slide is smaller than one patch of {} px at {} ({:.0} px at its own {native})",
            grid.spec.size, grid.spec.mpp, grid.side_level0
        ),
        (None, candidates) if grid.drop_counts().keys().all(|reason| *reason == DropReason::Background) => format!(
            "no patch: none of {candidates} positions has {:.0} % tissue (the slide has {:.1} %); lower grid.min_tissue",
            100.0 * grid.spec.min_tissue,
            100.0 * mask.share()
        ),
        (None, _) => format!("no patch: {}; see [quality]", quality::describe(&grid.drop_counts())),
    }
}

/// The table of a slide's positions that gave no patch, in the run folder: `<job folder>/dropped/<slide>.csv`.
fn dropped_path(run: &Run, slide: &str) -> PathBuf {
    Path::new(&h5::job_folder(&run.experiment.grid)).join("dropped").join(format!("{slide}.csv"))
}

/// Writes x and y (level-0 px), the reason of every dropped position but background, and what is wrong with its tile where it
/// cannot be read; nothing where there is none.
fn write_dropped(path: &Path, dropped: &[(Point, DropReason, String)]) -> Result<()> {
    if dropped.is_empty() {
        return remove(path);
    }
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["x", "y", "reason", "error"])?;
    for (Point { x, y }, reason, error) in dropped {
        table.write_record([&x.to_string(), &y.to_string(), &reason.to_string(), error])?;
    }
    Ok(atomic_file::write(path, &table.into_inner()?)?)
}

fn row_path(run: &Run, slide: &str) -> Result<PathBuf> {
    run.dir.file(&format!("stages/tile/{slide}.json"))
}

/// The row written with a slide's coordinates.
fn recorded_row(run: &Run, slide: &str) -> Result<Option<TiledSlide>> {
    let Ok(text) = std::fs::read_to_string(row_path(run, slide)?) else { return Ok(None) };
    Ok(serde_json::from_str(&text).ok())
}

fn write_jpeg(path: &Path, picture: &RgbImage) -> Result<()> {
    Ok(atomic_file::write(path, &slide_io::jpeg::encode(picture, 85, ColorModel::YCbCr)?)?)
}

fn write_cohort_table(path: &Path, rows: &[TiledSlide]) -> Result<()> {
    let mut table = csv::Writer::from_writer(Vec::new());
    for row in rows {
        table.serialize(row)?;
    }
    Ok(atomic_file::write(path, &table.into_inner()?)?)
}
