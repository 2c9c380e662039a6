//! `gensis evaluate video`: the first frame's mask carried through every video by an encoder's patch tokens, the masks
//! written and scored; or masks that another program made, only scored.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use evaluation::bootstrap::Interval;
use evaluation::table::{ResultRow, ResultTable};
use evaluation::video::score::{Statistics, score_sequence};
use evaluation::video::{Davis, FrameFeatures, LabelMap, ObjectScores, Propagator, Sequence, SoftMask, frame};
use rayon::prelude::*;
use serde_json::json;
use slide_io::folder::read_image;

use super::bootstrap;
use super::own_images::{Benchmark, Found, Judged, Place, fingerprint, finish, forget, name_of, row};
use crate::cli::{EvaluateArgs, Task};
use crate::commands::output::say;
use crate::commands::progress::Progress;
use crate::commands::sources::FORMAT;
use crate::commands::{Outcome, Run, embed};
use crate::config::presets::IMAGENET_STD;
use crate::data::normalize::Normalize;
use crate::device;
use crate::model::Encoder;
use crate::run_dir::{Failure, StageRecord, as_stored};

/// Normalisation of DINO's `eval_video_segmentation.py`: the first deviation is not the usual 0.229.
const SCRIPTS_STD: [f32; 3] = [0.228, 0.224, 0.225];
/// The figures of every object and sequence, beside the result table.
pub(super) const DETAILS: &str = "results/video_objects.csv";
/// Memory for the attention of frames that are encoded side by side.
const ATTENTION_BYTES: usize = 8 << 30;

/// Scores masks that are there already.
pub(crate) fn masks(args: &EvaluateArgs) -> Result<Outcome> {
    ensure!(args.task == Task::Video, "--masks is for `gensis evaluate video`");
    let folder = args.masks.clone().unwrap_or_default();
    let experiment = Run::experiment(&args.stage, &[])?;
    let videos = experiment.evaluate.video.folder.clone();
    ensure!(
        !videos.as_os_str().is_empty(),
        "masks are scored against annotations: add --set evaluate.video.folder=FOLDER in DAVIS's layout"
    );
    let davis = Davis::open(&videos)?;
    let fingerprints = [fingerprint(&videos)?, fingerprint(&folder)?];
    let run = Run::open(experiment, &args.stage.out, args.stage.update, &args.stage.compute)?;
    let carried = run.dir.record(Benchmark::Video.stage()).is_some_and(|record| record.header.get("masks").is_none());
    ensure!(!carried, "{} holds scores of its own encoders' masks: give another --out", args.stage.out.display());
    forget(&run, Benchmark::Video)?;
    let mut found = Found::default();
    let mut scores = Vec::new();
    for name in davis.sequences() {
        let sequence = davis.sequence(name, false);
        match sequence.and_then(|sequence| score_sequence(&sequence, &folder.join(name))) {
            Ok(objects) => scores.extend(objects),
            Err(error) => found.failures.push(failure(name.clone(), &error.into())),
        }
    }
    ensure!(!scores.is_empty(), "no sequence could be scored: {}", reasons(&found.failures));
    found.rows = rows(&run, &name_of(&videos), &name_of(&folder), "masks", &scores)?;
    found.objects.push((name_of(&folder), scores));
    say!("{}", ResultTable::new(&found.rows)?.markdown()?)?;
    let header = json!({ "stage": "video", "format": FORMAT, "masks": fingerprints, "bootstrap": bootstrap(&run) });
    finish(&run, Benchmark::Video, header, found)?;
    run.close()
}

fn reasons(failures: &[Failure]) -> String {
    failures.iter().map(|failure| format!("{}: {}", failure.item, failure.reason)).collect::<Vec<_>>().join("; ")
}

/// Carries labels through all videos of a place with an encoder, and scores them.
pub(super) fn video(run: &Run, judged: &Judged, place: &Place, found: &mut Found) -> Result<()> {
    let davis = Davis::open(&place.folder)?;
    let Judged { name: encoder, encoder: network } = judged;
    let sequences: Vec<_> = davis.sequences().iter().map(|name| (name, davis.sequence(name, true))).collect();
    let frames = sequences.iter().filter_map(|(_, sequence)| sequence.as_ref().ok());
    let progress = Progress::new("video", frames.map(|sequence| sequence.frames.len() as u64).sum(), "frames");
    let (mut scores, mut carried, mut seconds) = (Vec::new(), 0, 0.0);
    for (name, sequence) in sequences {
        let masks = run.dir.root().join("video").join(encoder).join(name);
        let scored = sequence.map_err(anyhow::Error::from).and_then(|sequence| {
            let started = Instant::now();
            carried += carry(run, (encoder, network), &sequence, &masks, &progress)?;
            seconds += started.elapsed().as_secs_f64();
            Ok(score_sequence(&sequence, &masks)?)
        });
        match scored {
            Ok(objects) => scores.extend(objects),
            Err(error) => found.failures.push(failure(format!("{encoder}, {name}"), &error)),
        }
    }
    let rate = f64::from(carried) / seconds.max(1e-9);
    progress.finish(&format!("{encoder}, {carried} frames carried, {rate:.2} frames/s"));
    found.rows.extend(rows(run, &place.name, encoder, "label propagation", &scores)?);
    found.objects.push((encoder.clone(), scores));
    Ok(())
}

/// Writes the masks of a sequence, and says how many frames it took; none where they are there already.
fn carry(
    run: &Run,
    (name, encoder): (&str, &Encoder),
    sequence: &Sequence,
    masks: &Path,
    progress: &Progress,
) -> Result<u32> {
    let record = format!("video/{name}/{}", sequence.name);
    let settings = &run.experiment.evaluate.video;
    let resize = settings.resize;
    let sizes = |frames: &[evaluation::video::dataset::Frame]| -> Vec<_> {
        frames.iter().map(|f| json!([f.id, f.path.metadata().map_or(0, |metadata| metadata.len())])).collect()
    };
    let header = json!({
        "stage": "video",
        "format": FORMAT,
        "encoder": encoder.hash,
        "resize": resize,
        "propagation": settings.propagation(),
        "frames": sizes(&sequence.frames),
        "first": sizes(&sequence.masks[..1]),
    });
    let there = || sequence.frames.iter().all(|frame| masks.join(format!("{}.png", frame.id)).exists());
    if run.dir.record(&record).is_some_and(|found| found.header == as_stored(&header)) && there() {
        progress.advance(sequence.frames.len() as u64);
        return Ok(0);
    }
    run.dir.forget(&record)?;
    let first = LabelMap::read(&sequence.masks[0].path)?;
    // A mask of two values has its one object at 255.
    let first = if first.is_binary() { first.map(|label| u8::from(label != 0)) } else { first };
    let side_by_side = side_by_side(run, encoder, sequence, resize)?;
    let mut propagator: Option<Propagator> = None;
    for group in sequence.frames.chunks(side_by_side) {
        let features = group.par_iter().map(|frame| tokens(encoder, &frame.path, resize));
        for (frame, features) in group.iter().zip(features.collect::<Result<Vec<_>>>()?) {
            let path = masks.join(format!("{}.png", frame.id));
            match &mut propagator {
                None => {
                    let soft = SoftMask::from_labels(&first, features.rows, features.columns)?;
                    let device = device::open(run.device)?;
                    propagator = Some(Propagator::new(settings.propagation(), features, soft, &device)?);
                    first.write(&path)?;
                }
                Some(propagator) => {
                    let mask = propagator.advance(features)?;
                    mask.labels(encoder.config.model.patch, first.width(), first.height()).write(&path)?;
                }
            }
            progress.advance(1);
        }
    }
    run.dir.finish(&record, &StageRecord { header, failures: vec![], summary: json!(null) })?;
    Ok(sequence.frames.len() as u32)
}

/// Frames whose attention fits into memory at the same time.
fn side_by_side(run: &Run, encoder: &Encoder, sequence: &Sequence, resize: u32) -> Result<usize> {
    let (width, height) = frame::seen_size(read_image(&sequence.frames[0].path)?.dimensions(), resize);
    let model = &encoder.config.model;
    let tokens = width as usize / model.patch * (height as usize / model.patch) + 1;
    // Scores, their softmax and what it is made of.
    let bytes = tokens * tokens * model.heads * 3 * size_of::<f32>();
    Ok(embed::workers(run).min(ATTENTION_BYTES / bytes.max(1)).max(1))
}

/// Patch tokens of a frame.
fn tokens(encoder: &Encoder, path: &Path, resize: u32) -> Result<FrameFeatures> {
    let image = read_image(path)?;
    let (width, height) = frame::seen_size(image.dimensions(), resize);
    let patch = encoder.config.model.patch as u32;
    // Whole patches, also of 14 px.
    let (width, height) = (width / patch * patch, height / patch * patch);
    ensure!(
        width > 0 && height > 0,
        "{}: {} x {} px at evaluate.video.resize = {resize} hold no patch of {patch} px",
        path.display(),
        image.width(),
        image.height()
    );
    let seen = frame::resized(&image, (width, height));
    let std = if encoder.config.std == IMAGENET_STD { SCRIPTS_STD } else { encoder.config.std };
    let pixels = Normalize::new(encoder.config.mean, std).images(&[&seen]);
    let tokens = encoder.tokens(pixels, height as usize, width as usize)?;
    Ok(FrameFeatures {
        rows: tokens.rows,
        columns: tokens.columns,
        dim: encoder.config.model.dim,
        values: tokens.patches,
    })
}

fn failure(item: String, error: &anyhow::Error) -> Failure {
    Failure { stage: "video".into(), item, reason: format!("{error:#}") }
}

/// The figures of all objects, with intervals over sequences: the objects of one are not independent.
fn rows(run: &Run, data: &str, encoder: &str, head: &str, scores: &[ObjectScores]) -> Result<Vec<ResultRow>> {
    if scores.is_empty() {
        return Ok(vec![]);
    }
    let of = |measure: fn(&ObjectScores) -> &Vec<f64>| -> Vec<Statistics> {
        scores.iter().map(|object| Statistics::of(measure(object))).collect()
    };
    let (j, f) = (of(|object| &object.j), of(|object| &object.f));
    let sequences: Vec<String> = scores.iter().map(|object| object.sequence.clone()).collect();
    let base = row("video", data.to_owned(), encoder, head, scores.len());
    let each = |of: fn(&Statistics) -> f64, statistics: &[Statistics]| statistics.iter().map(of).collect::<Vec<f64>>();
    let both: Vec<f64> = each(|s| s.mean, &j).iter().zip(each(|s| s.mean, &f)).map(|(j, f)| (j + f) / 2.0).collect();
    let figures = [
        ("j_and_f_mean", both),
        ("j_mean", each(|s| s.mean, &j)),
        ("j_recall", each(|s| s.recall, &j)),
        ("j_decay", each(|s| s.decay, &j)),
        ("f_mean", each(|s| s.mean, &f)),
        ("f_recall", each(|s| s.recall, &f)),
        ("f_decay", each(|s| s.decay, &f)),
    ];
    let figure = |(metric, values): (&str, Vec<f64>)| {
        let Interval { value, low, high, .. } = bootstrap(run).mean(&values, Some(&sequences))?;
        Ok(ResultRow { metric: metric.into(), value, low, high, ..base.clone() })
    };
    figures.into_iter().map(figure).collect()
}
