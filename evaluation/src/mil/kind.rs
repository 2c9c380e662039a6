//! The heads to choose from, by name: the closed choice that a configuration makes.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Aggregator, ClamMb, ClamSb, CrossValidated, CrossValidation, Dsmil, EpochRecord, FoldPrediction, GatedAbmil,
    MaxPool, MeanPool, MilConfig, SlideScore, TransMil,
};
use crate::error::Result;

/// A head by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    /// [`MeanPool`].
    Mean,
    /// [`MaxPool`].
    Max,
    /// [`GatedAbmil`].
    Abmil,
    /// [`ClamSb`].
    ClamSb,
    /// [`ClamMb`].
    ClamMb,
    /// [`Dsmil`].
    Dsmil,
    /// [`TransMil`].
    Transmil,
}

/// The test part of one fold as one head sees it, without the head.
#[derive(Clone, Debug, PartialEq)]
pub struct FoldScores {
    /// Which head.
    pub head: HeadKind,
    /// Index of the fold.
    pub fold: usize,
    /// Seed of the training.
    pub seed: u64,
    /// Scores of the test slides.
    pub scores: Vec<SlideScore>,
}

/// A head that has just been trained and tested, before it is dropped.
pub struct TrainedFold<'a> {
    /// Which head.
    pub head: HeadKind,
    /// Index of the fold.
    pub fold: usize,
    /// Seed of the training.
    pub seed: u64,
    /// Scores of the test slides.
    pub scores: &'a [SlideScore],
    /// Losses of every epoch that ran.
    pub history: &'a [EpochRecord],
    /// [`TrainedHead::save`](super::TrainedHead::save): writes it to a file with a header.
    pub save: &'a dyn Fn(&Path, &Value) -> Result<()>,
}

impl HeadKind {
    /// All of them, the simplest first.
    pub const ALL: [Self; 7] =
        [Self::Mean, Self::Max, Self::Abmil, Self::ClamSb, Self::ClamMb, Self::Dsmil, Self::Transmil];

    /// Its name in tables, files and configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => MeanPool::NAME,
            Self::Max => MaxPool::NAME,
            Self::Abmil => GatedAbmil::NAME,
            Self::ClamSb => ClamSb::NAME,
            Self::ClamMb => ClamMb::NAME,
            Self::Dsmil => Dsmil::NAME,
            Self::Transmil => TransMil::NAME,
        }
    }

    /// Whether it weighs patches by attention, so that there is something to draw. The weights of mean pooling are all alike,
    /// those of max pooling count hidden units.
    pub fn has_attention(self) -> bool {
        match self {
            Self::Mean | Self::Max => false,
            Self::Abmil | Self::ClamSb | Self::ClamMb | Self::Dsmil | Self::Transmil => true,
        }
    }

    /// An error for settings this head cannot train with.
    pub fn check(self, config: &MilConfig) -> Result<()> {
        config.check()?;
        let shape = config.shape(1, 1);
        match self {
            Self::Mean => MeanPool::check(&shape),
            Self::Max => MaxPool::check(&shape),
            Self::Abmil => GatedAbmil::check(&shape),
            Self::ClamSb => ClamSb::check(&shape),
            Self::ClamMb => ClamMb::check(&shape),
            Self::Dsmil => Dsmil::check(&shape),
            Self::Transmil => TransMil::check(&shape),
        }
    }
}

impl CrossValidation<'_> {
    /// [`run`](Self::run) with the head of this kind. `done` is handed each fold's head as it finishes.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn scores(
        &self,
        kind: HeadKind,
        done: impl Fn(&TrainedFold) -> Result<()> + Sync,
    ) -> Result<CrossValidated<FoldScores>> {
        match kind {
            HeadKind::Mean => self.scores_of::<MeanPool>(kind, done),
            HeadKind::Max => self.scores_of::<MaxPool>(kind, done),
            HeadKind::Abmil => self.scores_of::<GatedAbmil>(kind, done),
            HeadKind::ClamSb => self.scores_of::<ClamSb>(kind, done),
            HeadKind::ClamMb => self.scores_of::<ClamMb>(kind, done),
            HeadKind::Dsmil => self.scores_of::<Dsmil>(kind, done),
            HeadKind::Transmil => self.scores_of::<TransMil>(kind, done),
        }
    }

    fn scores_of<A: Aggregator>(
        &self,
        head: HeadKind,
        done: impl Fn(&TrainedFold) -> Result<()> + Sync,
    ) -> Result<CrossValidated<FoldScores>> {
        let CrossValidated { folds, refused } =
            self.run::<A>(|FoldPrediction { fold, seed, head: trained, scores }| {
                let save = |path: &Path, header: &Value| trained.save(path, header);
                done(&TrainedFold { head, fold: *fold, seed: *seed, scores, history: &trained.history, save: &save })
            })?;
        let kept = |FoldPrediction { fold, seed, scores, .. }| FoldScores { head, fold, seed, scores };
        Ok(CrossValidated { folds: folds.into_iter().map(kept).collect(), refused })
    }
}
