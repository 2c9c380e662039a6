//! `gensis heatmap`: what the slide-level heads attend to, from stored features in seconds. A stage of `run` as well.

mod atlas;
mod drawing;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use evaluation::heatmap::Scale;
use evaluation::mil::HeadKind;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slide_io::h5;

use super::evaluate::heads::{HeadIndex, folder_name};
use super::output::say;
use super::progress::Progress;
use super::sources::ENCODER_NAME;
use super::{Outcome, Run, sources};
use crate::cli::HeatmapArgs;
use crate::config::Experiment;
use crate::device;
use crate::run_dir::{self, Failure, RunDir, StageRecord, remove, remove_folder};
use atlas::{Atlas, Choice};
use drawing::Canvas;
pub(super) use drawing::reading;

/// The folder of the heatmaps in a run folder, and the name of the stage.
pub(super) const FOLDER: &str = "heatmap";

/// A heatmap that was drawn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Drawn {
    pub slide: String,
    pub encoder: String,
    pub head: String,
    /// Class of the slide, empty where unknown.
    pub label: String,
    pub predicted: String,
    /// Of the predicted class.
    pub probability: f32,
    /// The class whose attention is shown; empty where all classes share one.
    pub shown: String,
    /// Which heads, and whether they have seen the slide.
    pub heads: String,
    /// The picture, below the run folder.
    pub picture: String,
    /// What its colours show.
    pub scale: Scale,
}

pub(super) fn heatmap(args: &HeatmapArgs) -> Result<Outcome> {
    RunDir::experiment(&args.run)?;
    let experiment = Experiment::load(Some(&args.run.join("experiment.toml")), &args.settings)?;
    let index = HeadIndex::read(&args.run)?;
    warn_of_earlier_encoder(&args.run, &index);
    let differing = RunDir::experiment(&args.run)?.differences(&experiment)?;
    let other = differing.iter().find(|line| !line.starts_with("heatmap."));
    ensure!(
        other.is_none(),
        "heatmaps take the settings of [heatmap] only, not {}",
        other.cloned().unwrap_or_default()
    );
    if args.slides.is_empty() {
        let heads = &experiment.evaluate.slide;
        ensure!(
            heads.aggregators.iter().any(|head| head.has_attention()),
            "the heads of {} ({}) have no attention to draw: score with abmil, clam_sb, clam_mb, dsmil or transmil too",
            args.run.display(),
            heads.aggregators.iter().map(|head| head.name()).collect::<Vec<_>>().join(", ")
        );
        let run = Run::open(experiment, &args.run, true, &args.compute)?;
        let (result, outcome) = (stage(&run), run.close());
        return result.and(outcome);
    }
    let _lock = run_dir::lock(&args.run)?;
    super::start_threads(args.compute.threads)?;
    let choice = Choice {
        encoder: args.encoder.as_deref(),
        head: args.aggregator.as_deref().map(named).transpose()?,
        class: args.class.as_deref(),
        seed: args.seed,
    };
    // What the heads of one seed, or one class, show lies beside what the stage draws.
    let class = args.class.as_deref().map(|class| format!("_{}", folder_name(class)));
    let seed = args.seed.map(|seed| format!("_seed{seed}"));
    let ending = class.unwrap_or_default() + &seed.unwrap_or_default();
    let atlas = Atlas::open(&args.run, index, &choice, &device::open(args.compute.device)?)?;
    let mut table = csv::Writer::from_writer(Vec::new());
    let mut failures = 0;
    for slide in &args.slides {
        match draw(&args.run, &experiment, &atlas, slide, &ending) {
            Ok(drawn) => {
                if args.class.is_some() && drawn.shown.is_empty() {
                    eprintln!(
                        "heatmap: {slide}: {} has one attention for all classes: --class changes nothing",
                        drawn.head
                    );
                }
                table.serialize(drawn)?;
            }
            Err(error) => {
                eprintln!("heatmap: {slide}: {error:#}");
                failures += 1;
            }
        }
    }
    say!("{}", String::from_utf8_lossy(&table.into_inner()?))?;
    ensure!(failures < args.slides.len(), "no heatmap could be drawn");
    Ok(Outcome::of(failures))
}

/// Says where the run's encoder has been trained anew since its heads were.
fn warn_of_earlier_encoder(run: &Path, index: &HeadIndex) {
    let trained =
        run_dir::read_record(run, "pretrain").and_then(|record| Some(record.summary["encoder"].as_str()?.to_owned()));
    let heads = index.encoders.iter().find(|heads| heads.name == ENCODER_NAME);
    if let (Some(trained), Some(heads)) = (trained, heads)
        && heads.hash != trained
    {
        eprintln!(
            "heatmap: warning: the encoder has been trained anew since the heads were: `gensis embed` and `gensis evaluate` bring \
             them up to date"
        );
    }
}

fn named(name: &str) -> Result<HeadKind> {
    let known = HeadKind::ALL.map(HeadKind::name);
    let kind = HeadKind::ALL.into_iter().find(|kind| kind.name() == name);
    kind.ok_or_else(|| anyhow::anyhow!("--aggregator {name}: known are {}", known.join(", ")))
}

/// Draws some tested slides of every class for each encoder, with the first head that has attention.
pub(super) fn stage(run: &Run) -> Result<()> {
    let settings = &run.experiment.heatmap;
    let heads = &run.experiment.evaluate.slide;
    if settings.slides == 0 || !heads.keep_heads || !heads.aggregators.iter().any(|head| head.has_attention()) {
        return remove_own(run, None);
    }
    // Image folders and cohorts without labels have no heads.
    let Ok(index) = HeadIndex::read(run.dir.root()) else { return remove_all(run) };
    let header = json!({
        "stage": FOLDER,
        "format": sources::FORMAT,
        "evaluation": index.evaluation,
        "settings": settings,
    });
    if run.dir.current(FOLDER, &header).is_some_and(|record| is_there(run.dir.root(), record.summary)) {
        eprintln!("heatmap: up to date");
        return Ok(());
    }
    remove_own(run, Some(&index.evaluation))?;
    let device = device::open(run.device)?;
    let chosen: Vec<_> = index.encoders.iter().map(|heads| atlas::tested_slides(heads, settings.slides)).collect();
    let progress = Progress::new("heatmap", chosen.iter().map(|slides| slides.len() as u64).sum(), "slides");
    let (mut drawn, mut failures) = (Vec::new(), Vec::new());
    for (heads, slides) in index.encoders.iter().zip(&chosen) {
        let choice = Choice { encoder: Some(&heads.name), ..Choice::default() };
        // Its heads with attention may have failed, which is listed; the other encoders have theirs.
        let atlas = match Atlas::open(run.dir.root(), index.clone(), &choice, &device) {
            Ok(atlas) => atlas,
            Err(error) => {
                failures.push(Failure { stage: FOLDER.into(), item: heads.name.clone(), reason: format!("{error:#}") });
                continue;
            }
        };
        for slide in slides {
            match draw(run.dir.root(), &run.experiment, &atlas, slide, "") {
                Ok(one) => drawn.push(one),
                Err(error) => {
                    let reason = format!("{}: {error:#}", heads.name);
                    failures.push(Failure { stage: FOLDER.into(), item: slide.clone(), reason });
                }
            }
            progress.advance(1);
        }
    }
    progress.finish(&format!("{} pictures in {}", drawn.len(), run.dir.root().join(FOLDER).display()));
    run.dir.finish(FOLDER, &StageRecord { header, failures, summary: json!(drawn) })
}

/// Whether what the stage drew lies there as it was drawn: nobody has removed it, or drawn over it by hand on another scale.
fn is_there(root: &Path, summary: Value) -> bool {
    let (found, recorded) = (drawn(root), serde_json::from_value::<Vec<Drawn>>(summary).unwrap_or_default());
    recorded.iter().all(|one| {
        let same = |other: &Drawn| other.picture == one.picture && other.scale == one.scale;
        found.iter().any(same) && root.join(&one.picture).exists()
    })
}

/// Every heatmap in a run folder, by slide, encoder and head.
pub(super) fn drawn(root: &Path) -> Vec<Drawn> {
    let below = |folder: &Path| -> Vec<PathBuf> {
        folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let heads = below(&root.join(FOLDER)).into_iter().flat_map(|encoder| below(&encoder));
    let scores = heads.flat_map(|head| below(&head)).filter(|path| path.extension().is_some_and(|kind| kind == "h5"));
    let read = |path: PathBuf| {
        let header = h5::read_header(&path).ok().flatten()?;
        serde_json::from_value(header["drawn"].clone()).ok()
    };
    let mut drawn: Vec<Drawn> = scores.filter_map(read).collect();
    drawn.sort_by(|a, b| (&a.slide, &a.encoder, &a.head).cmp(&(&b.slide, &b.encoder, &b.head)));
    drawn
}

/// Removes every heatmap of a run.
pub(super) fn remove_all(run: &Run) -> Result<()> {
    run.dir.forget(FOLDER)?;
    remove_folder(&run.dir.root().join(FOLDER))
}

/// Removes what the stage drew, and with it what was drawn by hand of heads other than those of `evaluation`.
fn remove_own(run: &Run, evaluation: Option<&str>) -> Result<()> {
    let Some(record) = run.dir.record(FOLDER) else { return Ok(()) };
    if evaluation.is_some_and(|evaluation| record.header["evaluation"] != evaluation) {
        return remove_all(run);
    }
    run.dir.forget(FOLDER)?;
    let drawn: Vec<Drawn> = serde_json::from_value(record.summary).unwrap_or_default();
    let files =
        drawn.iter().flat_map(|one| ["png", "h5", "geojson"].map(|kind| Path::new(&one.picture).with_extension(kind)));
    files.into_iter().try_for_each(|file| remove(&run.dir.root().join(file)))
}

/// Draws one slide, and writes its picture, scores and outlines, with `ending` behind its name.
fn draw(root: &Path, experiment: &Experiment, atlas: &Atlas, slide: &str, ending: &str) -> Result<Drawn> {
    let map = atlas.map(slide)?;
    let folder = format!("{FOLDER}/{}/{}", folder_name(&atlas.encoder.name), atlas.kind.name());
    let picture = format!("{folder}/{}{ending}.png", map.slide);
    let class = |index: u32| atlas.classes().get(index as usize).cloned().unwrap_or_default();
    let drawn = Drawn {
        slide: map.slide.clone(),
        encoder: atlas.encoder.name.clone(),
        head: atlas.kind.name().into(),
        label: map.label.map(class).unwrap_or_default(),
        predicted: class(map.predicted() as u32),
        probability: map.probabilities[map.predicted()],
        shown: if map.weights.len() > 1 { class(map.shown as u32) } else { String::new() },
        heads: atlas.told(&map),
        picture,
        scale: experiment.heatmap.scale,
    };
    Canvas { root, settings: &experiment.heatmap }.write(&map, atlas, &drawn)?;
    Ok(drawn)
}
