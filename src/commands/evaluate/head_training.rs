//! The slide-level heads of one encoder: trained, kept, taken up after a kill, and told where they have hardly learnt.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use evaluation::mil::{CrossValidated, CrossValidation, FoldScores, HeadKind, TrainedFold};

use super::heads::{HeadPlace, Keeper};
use super::slides::failure;
use crate::commands::progress::Progress;
use crate::run_dir::Failure;

/// Share of the loss of guessing above which a head has hardly been trained.
const HARDLY_TRAINED: f64 = 0.8;

/// Trains every head on every fold with every seed, but for those that an evaluation that was stopped has trained, while `read`
/// counts the slides that are read, in every epoch anew. A head that cannot be trained is listed, and is an error only where it is
/// so with all of them.
pub(super) fn train(
    validation: &CrossValidation,
    wanted: &[HeadKind],
    classes: usize,
    keeper: &Keeper,
    read: &AtomicU64,
    failures: &mut Vec<Failure>,
) -> Result<(Vec<HeadKind>, Vec<FoldScores>)> {
    let (folds, seeds, encoder) =
        (validation.folds.len() - validation.left_out.len(), validation.seeds.len(), keeper.encoder);
    let progress = Progress::new("evaluate", (folds * seeds * wanted.len()) as u64, "folds");
    let start = Instant::now();
    let (mut heads, mut predicted, mut refused) = (Vec::new(), Vec::new(), None);
    for &kind in wanted {
        let dealt = || (0..validation.folds.len()).filter(|fold| !validation.left_out.contains(fold));
        let places = validation.seeds.iter().flat_map(|&seed| dealt().map(move |fold| (seed, fold)));
        let earlier: Vec<FoldScores> =
            places.clone().filter_map(|(seed, fold)| keeper.known(HeadPlace { kind, fold, seed })).collect();
        let known: Vec<(u64, usize)> = earlier.iter().map(|scores| (scores.seed, scores.fold)).collect();
        progress.advance(known.len() as u64);
        let losses = Mutex::new(Vec::new());
        let trained = CrossValidation { known: &known, ..*validation }.scores(kind, |trained| {
            progress.advance(1);
            losses.lock().unwrap_or_else(PoisonError::into_inner).extend(loss_and_steps(trained, validation));
            keeper.keep(trained)
        });
        match trained {
            Ok(CrossValidated { mut folds, refused }) => {
                folds.extend(earlier);
                let place = |scores: &FoldScores| places.clone().position(|place| place == (scores.seed, scores.fold));
                folds.sort_by_key(place);
                predicted.extend(folds);
                heads.push(kind);
                let losses = losses.into_inner().unwrap_or_else(PoisonError::into_inner);
                warn_if_hardly_trained(encoder, kind, classes, &losses);
                let reasons = refused.into_iter().map(|error| error.to_string());
                failures.extend(reasons.map(|reason| failure(&format!("{encoder}, {}", kind.name()), reason)));
            }
            Err(error) => {
                failures.push(failure(&format!("{encoder}, {}", kind.name()), error.to_string()));
                refused.get_or_insert(error);
            }
        }
    }
    if let (true, Some(error)) = (heads.is_empty(), refused) {
        return Err(error.into());
    }
    let names: Vec<&str> = heads.iter().map(|head| head.name()).collect();
    let rate = read.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    progress.finish(&format!("{encoder}, {folds} folds x {seeds} seeds of {}, {rate:.0} slides/s", names.join(", ")));
    Ok((heads, predicted))
}

/// The lowest training loss of all epochs, and the steps of all.
fn loss_and_steps(trained: &TrainedFold, validation: &CrossValidation) -> Option<(f64, usize)> {
    let loss = trained.history.iter().map(|record| record.train_loss).min_by(f64::total_cmp)?;
    let bags = validation.folds[trained.fold].train.len();
    Some((loss, trained.history.len() * bags.div_ceil(validation.config.accumulate.max(1))))
}

/// Says so where heads know the slides they were trained on hardly better than by guessing: of a small cohort the settings for a
/// large one make few steps, and the encoder gets the blame. Other losses than a cross-entropy have no such measure.
fn warn_if_hardly_trained(encoder: &str, kind: HeadKind, classes: usize, losses: &[(f64, usize)]) {
    let (mut losses, mut steps): (Vec<f64>, Vec<usize>) = losses.iter().copied().unzip();
    let by_cross_entropy = match kind {
        HeadKind::Mean | HeadKind::Max | HeadKind::Abmil | HeadKind::Transmil => true,
        HeadKind::ClamSb | HeadKind::ClamMb | HeadKind::Dsmil => false,
    };
    if losses.is_empty() || !by_cross_entropy {
        return;
    }
    losses.sort_by(f64::total_cmp);
    steps.sort_unstable();
    let (loss, steps, guessing) = (losses[losses.len() / 2], steps[steps.len() / 2], (classes as f64).ln());
    if loss > HARDLY_TRAINED * guessing {
        eprintln!(
            "evaluate: warning: {encoder}, {}: after {steps} steps the loss on the training slides is still {loss:.2} (guessing: \
             {guessing:.2}), so that the head has hardly learnt: try a lower evaluate.slide.accumulate, a higher evaluate.slide.lr or more \
             evaluate.slide.epochs (evaluate.slide.patience ends them early)",
            kind.name()
        );
    }
}
