//! The last part of `gensis tile`, where asked for: the patches of every slide packed for training.

use anyhow::Result;
use slide_io::{Error, Point, Slide, SlideRecord, h5, pack};

use super::Run;
use super::guarded;
use super::progress::Progress;
use super::sources::{coordinates_path, grid_spec, is_readable, pack_header, pack_path};
use crate::run_dir::Failure;

/// Packs the patches of every slide that has some, slide after slide on all threads; returns those that cannot be read.
pub(super) fn pack_slides(run: &Run, slides: &[SlideRecord]) -> Result<Vec<Failure>> {
    let progress = Progress::new("pack", slides.len() as u64, "slides");
    let mut failures = Vec::new();
    let (mut patches, mut copied) = (0, 0);
    // One that cannot be read is listed by `tile`, and keeps its pack.
    let cut = |slide: &&SlideRecord| coordinates_path(run, &slide.id).exists() && is_readable(run, slide);
    for slide in slides.iter().filter(cut) {
        // What stops one slide must not end the cohort; a full disk stops them all.
        let packed = match guarded(|| Ok(pack_slide(run, slide))) {
            Ok(Err(error @ Error::Io { .. })) => return Err(error.into()),
            Ok(packed) => packed.map_err(|error| error.to_string()),
            Err(panic) => Err(panic),
        };
        let index = match packed {
            Ok(index) => index,
            Err(reason) => {
                progress.line(&format!("pack: {}: {reason}", slide.id));
                failures.push(Failure { stage: "tile".into(), item: slide.id.clone(), reason });
                continue;
            }
        };
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
fn pack_slide(run: &Run, record: &SlideRecord) -> slide_io::Result<pack::Index> {
    let header = pack_header(run, record);
    let tar = pack_path(run, &record.id);
    if let Some(index) = pack::current_index(&tar, &header) {
        return Ok(index);
    }
    let coordinates = h5::read_coordinates(&coordinates_path(run, &record.id))?;
    let geometry = coordinates.geometry.and_then(|geometry| Some((geometry.mpp?, geometry)));
    let (mpp, geometry) = geometry.ok_or_else(|| Error::NoScale { path: record.path.clone() })?;
    let slide = Slide::open(&record.path)?;
    pack::write(
        &tar,
        (&record.id, &slide, mpp),
        (&grid_spec(run, &geometry, mpp), &coordinates.origins),
        run.experiment.pack.quality,
        &header,
    )
}
