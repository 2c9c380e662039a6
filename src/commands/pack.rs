//! The last part of `gensis tile`, where asked for: the patches of every slide packed for training.

use anyhow::{Context, Result};
use slide_io::{Point, Slide, SlideRecord, h5, pack};

use super::Run;
use super::progress::Progress;
use super::sources::{coordinates_path, pack_header};
use crate::run_dir::Failure;

/// Packs the patches of every slide that has some, slide after slide on all threads; returns those that cannot be read.
pub(super) fn pack_slides(run: &Run, slides: &[SlideRecord]) -> Result<Vec<Failure>> {
    let progress = Progress::new("pack", slides.len() as u64, "slides");
    let mut failures = Vec::new();
    let (mut patches, mut copied) = (0, 0);
    for slide in slides.iter().filter(|slide| coordinates_path(run, &slide.id).exists()) {
        let index = pack_slide(run, slide).with_context(|| format!("cannot pack the patches of {}", slide.id))?;
        patches += index.patches.len();
        copied += index.copied;
        failures.extend(index.unreadable.into_iter().map(|(Point { x, y }, reason)| {
            progress.line(&format!("pack: {}: {reason}", slide.id));
            Failure { stage: "tile".into(), item: format!("{} (x {x}, y {y})", slide.id), reason }
        }));
        progress.advance(1);
    }
    progress.finish(&format!("{patches} patches, {copied} of them stored tiles of their slides"));
    Ok(failures)
}

/// The packed patches of one slide, packed now unless they are current.
fn pack_slide(run: &Run, record: &SlideRecord) -> Result<pack::Index> {
    let (grid, header) = (&run.experiment.grid, pack_header(run, record));
    let tar = pack::path(run.dir.root(), grid, &record.id);
    if let Some(index) = pack::current_index(&tar, &header) {
        return Ok(index);
    }
    let coordinates = h5::read_coordinates(&coordinates_path(run, &record.id))?;
    let mpp = coordinates.geometry.and_then(|geometry| geometry.mpp).context("its coordinates lack the µm/px")?;
    let slide = Slide::open(&record.path)?;
    Ok(pack::write(
        &tar,
        (&record.id, &slide, mpp),
        (grid, &coordinates.origins),
        run.experiment.pack.quality,
        &header,
    )?)
}
