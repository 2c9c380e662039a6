//! The pretraining loop: batches in, an encoder file out.
//!
//! | file of the run folder | what it is |
//! |---|---|
//! | `checkpoint.safetensors` | everything needed to continue, the last one only |
//! | `metrics.jsonl` | one line per report, no clock in it: the same run writes the same bytes |
//! | `encoder.safetensors` | the teacher's encoder, at the end |

use super::dino::{Settings, StepReport, Trainer};
use super::metrics::{Metrics, report_every, reports};
use super::source::BatchSource;
use super::watch::CollapseWatch;
use super::{CHECKPOINT, METRICS};
use crate::data::CropBatch;
use crate::model::{Encoder, EncoderConfig};
use anyhow::{Result, ensure};
use burn::tensor::Device;
use serde::Serialize;
use std::path::Path;

/// The result.
pub const ENCODER: &str = "encoder.safetensors";

/// Who is told what happens: a progress bar, a log.
pub trait Observer {
    /// After every step.
    fn step(&mut self, report: &StepReport);
    /// Something looks wrong, but the run goes on.
    fn warning(&mut self, message: &str);
    /// Every `pretrain.knn_every` epochs and at the end: k-NN accuracy of the teacher's encoder, where labels exist.
    ///
    /// # Errors
    /// Whatever stops the evaluation stops the run.
    fn evaluate(&mut self, epoch: usize, encoder: &Encoder) -> Result<Option<f64>> {
        let _ = (epoch, encoder);
        Ok(None)
    }
}

#[derive(Serialize)]
struct Evaluation {
    step: usize,
    epoch: usize,
    knn: f64,
}

/// Trains, or with `resume` continues from the folder's checkpoint if there is one, and returns the teacher's encoder.
///
/// # Errors
/// Settings that contradict each other, a checkpoint of another configuration, a batch that cannot be made, a loss that
/// is not finite, a folder that cannot be written to.
pub fn pretrain(
    settings: &Settings,
    source: &dyn BatchSource<Batch = CropBatch>,
    folder: &Path,
    resume: bool,
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<Encoder> {
    let per_epoch = source.steps_per_epoch();
    let mut trainer = Trainer::new(settings, per_epoch, device)?;
    let steps = trainer.schedule().steps();
    let path = folder.join(CHECKPOINT);
    let mut step = if resume && path.exists() { trainer.resume(&path)? } else { 0 };
    let mut metrics = Metrics::open(&folder.join(METRICS), step)?;
    let report_every = report_every(steps);
    let mut watch = CollapseWatch::new(settings.head.out, steps, report_every);
    // What it saw before an interruption, and has spoken about.
    for report in reports::<StepReport>(&folder.join(METRICS))? {
        watch.observe(&report);
    }
    let pretrain = &settings.pretrain;

    while step < steps {
        let epoch = step / per_epoch;
        for batch in source.epoch(epoch, step % per_epoch) {
            let batch = batch?;
            let report = trainer.step(&batch, step)?;
            step += 1;
            if report.step % report_every == 0 {
                metrics.write(&report)?;
                if let Some(warning) = watch.observe(&report) {
                    observer.warning(&warning);
                }
            }
            observer.step(&report);
            let in_epoch = step % per_epoch != 0;
            if in_epoch && pretrain.checkpoint_every > 0 && step % pretrain.checkpoint_every == 0 {
                metrics.sync()?;
                trainer.save(&path, step)?;
            }
        }
        ensure!(
            step == (epoch + 1) * per_epoch,
            "epoch {epoch} ended after {} of {per_epoch} batches",
            step % per_epoch
        );

        let due = pretrain.knn_every > 0 && (epoch + 1).is_multiple_of(pretrain.knn_every);
        if (due || step == steps)
            && pretrain.knn_every > 0
            && let Some(knn) = observer.evaluate(epoch, &encoder(&trainer, step))?
        {
            metrics.write(&Evaluation { step: step - 1, epoch, knn })?;
        }
        if pretrain.checkpoint_every == 0 || step % pretrain.checkpoint_every == 0 || step == steps {
            metrics.sync()?;
            trainer.save(&path, step)?;
        }
    }

    let encoder = encoder(&trainer, step);
    encoder.save(&folder.join(ENCODER))?;
    Ok(encoder)
}

/// The teacher's encoder after `steps` steps, with where it comes from.
fn encoder(trainer: &Trainer, steps: usize) -> Encoder {
    let settings = trainer.settings();
    let config = EncoderConfig {
        model: settings.model.clone(),
        mean: settings.crops.mean,
        std: settings.crops.std,
        origin: serde_json::json!({
            "method": if settings.gen_dino.is_some() { "gen_dino" } else { "dino" },
            "version": env!("CARGO_PKG_VERSION"),
            "steps": steps,
            "settings": settings,
        }),
    };
    Encoder::new(trainer.teacher.backbone.clone(), config, &trainer.center.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Targets, Variant};
    use crate::train::dino::mixed;
    use crate::train::dino::tests::{batch, tiny};

    struct Made<'a>(&'a Settings, usize);

    impl BatchSource for Made<'_> {
        type Batch = CropBatch;
        fn steps_per_epoch(&self) -> usize {
            self.1
        }
        fn epoch(&self, epoch: usize, first: usize) -> Box<dyn Iterator<Item = Result<CropBatch>> + '_> {
            Box::new((first..self.1).map(move |i| Ok(batch(self.0, (epoch * self.1 + i) as u64))))
        }
    }

    /// Notes the losses, and stops the run after some steps as an interruption would.
    #[derive(Default)]
    struct Notes {
        losses: Vec<f64>,
        stop_after: Option<usize>,
        evaluated: Vec<usize>,
        warnings: Vec<String>,
    }

    impl Observer for Notes {
        fn step(&mut self, report: &StepReport) {
            self.losses.push(report.loss);
            if Some(report.step + 1) == self.stop_after {
                std::panic::resume_unwind(Box::new("interrupted"));
            }
        }
        fn warning(&mut self, message: &str) {
            self.warnings.push(message.to_owned());
        }
        fn evaluate(&mut self, epoch: usize, _: &Encoder) -> Result<Option<f64>> {
            self.evaluated.push(epoch);
            Ok(Some(0.5))
        }
    }

    fn run(settings: &Settings, folder: &Path, resume: bool, notes: &mut Notes) -> Result<Encoder> {
        pretrain(settings, &Made(settings, 2), folder, resume, &Device::flex(), notes)
    }

    fn bytes(folder: &Path, name: &str) -> Vec<u8> {
        std::fs::read(folder.join(name)).unwrap()
    }

    /// Six steps, checkpoints after 2 and 4; interrupted after 5, so that step 5 is done twice.
    #[test]
    fn a_resumed_run_equals_an_uninterrupted_one_bit_by_bit() {
        for settings in [tiny(), mixed::settings(Variant::Full, Targets::Four)] {
            equal_in_one_piece_and_in_two(settings);
        }
    }

    fn equal_in_one_piece_and_in_two(mut settings: Settings) {
        settings.pretrain.knn_every = 2;
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut expected = Notes::default();
        let encoder = run(&settings, whole.path(), false, &mut expected).unwrap();
        assert_eq!((expected.losses.len(), &expected.evaluated[..]), (6, &[1, 2][..]));

        let mut first = Notes { stop_after: Some(5), ..Notes::default() };
        let stopped =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&settings, parts.path(), false, &mut first)));
        assert!(stopped.is_err());
        let mut second = Notes::default();
        let resumed = run(&settings, parts.path(), true, &mut second).unwrap();
        assert_eq!(first.losses, expected.losses[..5]);
        assert_eq!(second.losses, expected.losses[4..]);
        assert_eq!(resumed.hash, encoder.hash);
        for name in [CHECKPOINT, METRICS, ENCODER] {
            assert!(bytes(whole.path(), name) == bytes(parts.path(), name), "{name} differs");
        }
    }

    /// At a temperature of 100 the teacher's answers are uniform whatever it learns: the watch says so after three windows
    /// of 20 steps, in one piece and in three, once before its warning and once after it.
    #[test]
    fn the_watch_goes_on_in_a_resumed_run() {
        let mut settings = tiny();
        settings.pretrain.epochs = 40;
        settings.pretrain.teacher_temp = 100.0;
        settings.pretrain.warmup_teacher_temp = 100.0;
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut expected = Notes::default();
        run(&settings, whole.path(), false, &mut expected).unwrap();
        assert!(expected.warnings[0].starts_with("step 59:"), "{:?}", expected.warnings);

        let mut told = Vec::new();
        for stop_after in [Some(45), Some(65), None] {
            let mut notes = Notes { stop_after, ..Notes::default() };
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                run(&settings, parts.path(), true, &mut notes).unwrap();
            }));
            assert_eq!(ended.is_ok(), stop_after.is_none());
            told.extend(notes.warnings);
        }
        assert_eq!(told, expected.warnings);
    }

    #[test]
    fn a_checkpoint_in_the_middle_of_an_epoch_resumes_there() {
        let mut settings = tiny();
        settings.pretrain.checkpoint_every = 3;
        let folder = tempfile::tempdir().unwrap();
        let mut first = Notes { stop_after: Some(4), ..Notes::default() };
        let _ =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&settings, folder.path(), false, &mut first)));
        let mut second = Notes::default();
        run(&settings, folder.path(), true, &mut second).unwrap();
        assert_eq!(second.losses.len(), 3);
        assert_eq!(second.losses[0], first.losses[3]);
    }

    #[test]
    fn a_checkpoint_of_another_configuration_is_refused_by_the_key() {
        let settings = tiny();
        let folder = tempfile::tempdir().unwrap();
        run(&settings, folder.path(), false, &mut Notes::default()).unwrap();
        let mut other = settings.clone();
        other.pretrain.lr *= 2.0;
        let message = format!("{:#}", run(&other, folder.path(), true, &mut Notes::default()).unwrap_err());
        assert!(message.contains("pretrain.lr = 0.05") && message.contains("0.1"), "{message}");
        let mut free = settings.clone();
        free.pretrain.knn_every = 1;
        run(&free, folder.path(), true, &mut Notes::default()).unwrap();
        let shorter =
            pretrain(&settings, &Made(&settings, 3), folder.path(), true, &Device::flex(), &mut Notes::default());
        assert!(format!("{:#}", shorter.unwrap_err()).contains("2 steps an epoch"));
    }

    #[test]
    fn the_encoder_file_is_enough_to_embed() {
        let settings = tiny();
        let folder = tempfile::tempdir().unwrap();
        let encoder = run(&settings, folder.path(), false, &mut Notes::default()).unwrap();
        let loaded = Encoder::load(&folder.path().join(ENCODER), &Device::flex()).unwrap();
        assert_eq!((&loaded.config, &loaded.hash), (&encoder.config, &encoder.hash));
        assert_eq!(loaded.config.origin["settings"]["seed"], 3);
        let images = batch(&settings, 1).globals;
        let count = images.len() / (3 * 16 * 16);
        let features = loaded.embed(images.clone(), count, 16, 16).unwrap();
        assert_eq!(features.len(), count * 16);
        assert_eq!(features, encoder.embed(images, count, 16, 16).unwrap());
        assert!(loaded.embed(vec![0.0; 27], 1, 3, 3).is_err());
    }

    #[test]
    fn metrics_hold_a_line_a_step_and_the_evaluations() {
        let settings = tiny();
        let folder = tempfile::tempdir().unwrap();
        run(&settings, folder.path(), false, &mut Notes::default()).unwrap();
        let text = String::from_utf8(bytes(folder.path(), METRICS)).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 7);
        assert_eq!(lines[3]["step"], 3);
        assert!(lines[3]["loss"].as_f64().unwrap() > 0.0);
        assert_eq!((lines[6]["step"].as_u64(), lines[6]["knn"].as_f64()), (Some(5), Some(0.5)));
    }
}
