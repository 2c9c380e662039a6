//! Multiple-instance learning: one label per slide, many patches, and a head that learns which patches matter.
//!
//! An [`Aggregator`] turns a bag of embeddings into class scores and one attention weight per patch; [`HeadKind`] names those
//! there are. [`train_fold`]
//! fits one on the training part and keeps the epoch with the lowest validation loss; [`CrossValidation`] does so for
//! every fold and seed and scores the test part, which nothing else has seen. Dropout, patch sampling and initial
//! weights come from this crate's own seeded streams and not from the device's generator, so that a run repeats bit
//! for bit, with one worker or several.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

mod abmil;
mod clam;
mod cross_validation;
mod dsmil;
mod gate;
#[cfg(all(test, feature = "flex"))]
mod golden;
mod head;
mod kind;
mod layers;
mod nystrom;
mod pool;
mod stored;
#[cfg(all(test, feature = "flex"))]
mod tests;
mod training;
mod transmil;

pub use abmil::GatedAbmil;
pub use clam::{ClamMb, ClamSb};
pub use cross_validation::{CrossValidated, CrossValidation, FoldPrediction};
pub use dsmil::Dsmil;
pub use head::{SlideScore, TrainedHead, score_all};
pub use kind::{FoldScores, HeadKind, TrainedFold};
pub use pool::{MaxPool, MeanPool};
pub use stored::{SlideAttention, StoredHead};
pub use training::{EpochRecord, train_fold};
pub use transmil::TransMil;

/// Sizes of a head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadShape {
    /// Numbers per patch.
    pub dim: usize,
    /// Classes.
    pub classes: usize,
    /// Width of the hidden layer.
    pub hidden: usize,
    /// Width of the gated attention, in the heads that have one.
    pub attention: usize,
    /// Share of the hidden units dropped in training.
    pub dropout: f64,
}

/// What a head says about one bag.
#[derive(Clone, Debug)]
pub struct BagOutput {
    /// Unnormalised class scores, `[1, classes]`.
    pub logits: Tensor<2>,
    /// Weight of each patch, `[patches]`, summing to 1.
    pub attention: Tensor<1>,
}

/// What a head looks at in one bag, class by class where it tells them apart.
#[derive(Clone, Debug)]
pub struct BagAttention {
    /// Unnormalised class scores, `[1, classes]`.
    pub logits: Tensor<2>,
    /// Weight of each patch, rows summing to 1: `[1, patches]` where all classes share one attention, otherwise
    /// `[classes, patches]`.
    pub attention: Tensor<2>,
}

/// A head that pools a bag of patch embeddings into class scores.
pub trait Aggregator: Module {
    /// Its name in tables and files.
    const NAME: &'static str;

    /// An error for sizes this head cannot have.
    fn check(_shape: &HeadShape) -> crate::Result<()> {
        Ok(())
    }

    /// A new head with weights drawn from `rng`.
    fn init(shape: &HeadShape, rng: &mut ChaCha8Rng, device: &Device) -> Self;

    /// Scores a bag `[patches, dim]`. With `dropout` the head trains and draws its masks from that generator.
    fn forward(&self, bag: Tensor<2>, dropout: Option<&mut ChaCha8Rng>) -> BagOutput;

    /// The attention to the patches of a bag `[patches, dim]`, without dropout; `None` for a head that pools without attention.
    fn attend(&self, _bag: Tensor<2>) -> Option<BagAttention> {
        None
    }

    /// What training lowers for a bag of class `label`, `[1]`: the cross-entropy of its scores, unless a head has more to learn
    /// from.
    fn loss(&self, bag: Tensor<2>, label: usize, dropout: &mut ChaCha8Rng) -> Tensor<1> {
        layers::cross_entropy(self.forward(bag, Some(dropout)).logits, label)
    }
}

/// How a head is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MilConfig {
    /// Passes over the bags.
    pub epochs: usize,
    /// Epochs without a lower validation loss before training stops; 0 never stops early.
    pub patience: usize,
    /// Learning rate of Adam at the start; it falls along a cosine, once per epoch, towards [`Self::final_lr`].
    pub lr: f64,
    /// Where the cosine ends.
    pub final_lr: f64,
    /// Decay rates of Adam's moments.
    pub betas: [f64; 2],
    /// Weight decay of Adam, added to the gradient as `torch.optim.Adam` does (not AdamW's).
    pub weight_decay: f64,
    /// Width of the hidden layer.
    pub hidden: usize,
    /// Width of the gated attention.
    pub attention: usize,
    /// Dropout after the hidden layer.
    pub dropout: f64,
    /// Puts every feature on mean 0 and deviation 1 over the training patches ([`standard`](crate::standard)).
    pub standardize: bool,
    /// Bags whose mean loss makes one step.
    pub accumulate: usize,
    /// Largest number of patches of a bag seen in training, drawn anew each epoch; 0 takes all.
    pub max_patches: usize,
    /// Weighs the loss of a class by the inverse of its number of training slides.
    pub balanced: bool,
}

impl Default for MilConfig {
    fn default() -> Self {
        // SI-MIL and PromptMIL's training of gated ABMIL heads: Adam 2e-4 with β (.5, .9), wd 1e-2, cosine to 5e-6, 40
        // epochs, 8 bags a step. Gen-SIS leaves the head's training unsaid.
        Self {
            epochs: 40,
            patience: 10,
            lr: 2e-4,
            final_lr: 5e-6,
            betas: [0.5, 0.9],
            weight_decay: 1e-2,
            hidden: 384,
            attention: 256,
            dropout: 0.25,
            standardize: true,
            accumulate: 8,
            max_patches: 0,
            balanced: false,
        }
    }
}

impl MilConfig {
    /// An error for values that cannot train.
    pub fn check(&self) -> crate::Result<()> {
        let refuse = |what: String| Err(crate::Error::usage(what));
        for (name, value) in [
            ("epochs", self.epochs),
            ("hidden", self.hidden),
            ("attention", self.attention),
            ("accumulate", self.accumulate),
        ] {
            if value == 0 {
                return refuse(format!("{name} is at least 1"));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return refuse(format!("dropout lies in 0..1, not {}", self.dropout));
        }
        if !self.betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
            return refuse(format!("betas lie in 0..1, not {:?}", self.betas));
        }
        for (name, value) in [("lr", self.lr), ("final_lr", self.final_lr), ("weight_decay", self.weight_decay)] {
            if !(value >= 0.0 && value.is_finite()) {
                return refuse(format!("{name} is a number from 0 on, not {value}"));
            }
        }
        Ok(())
    }

    /// Learning rate of `epoch`: the closed form of `CosineAnnealingLR(T_max = epochs)`.
    pub fn lr_at(&self, epoch: usize) -> f64 {
        let end = self.final_lr.min(self.lr);
        let turn = std::f64::consts::PI * epoch as f64 / self.epochs as f64;
        end + (self.lr - end) * (1.0 + turn.cos()) / 2.0
    }

    fn shape(&self, dim: usize, classes: usize) -> HeadShape {
        HeadShape { dim, classes, hidden: self.hidden, attention: self.attention, dropout: self.dropout }
    }
}

#[cfg(test)]
mod config_tests {
    use super::*;

    #[test]
    fn the_learning_rate_falls_along_a_cosine() {
        let config = MilConfig { epochs: 40, lr: 2e-4, final_lr: 5e-6, ..MilConfig::default() };
        assert!((config.lr_at(0) - 2e-4).abs() < 1e-18);
        assert!((config.lr_at(20) - 1.025e-4).abs() < 1e-12);
        assert!((config.lr_at(40) - 5e-6).abs() < 1e-18);
        let low = MilConfig { lr: 1e-6, ..config };
        assert!((0..40).all(|epoch| (low.lr_at(epoch) - 1e-6).abs() < 1e-18));
    }

    #[test]
    fn values_that_cannot_train_are_refused() {
        assert!(MilConfig::default().check().is_ok());
        for broken in [
            MilConfig { epochs: 0, ..MilConfig::default() },
            MilConfig { accumulate: 0, ..MilConfig::default() },
            MilConfig { dropout: 1.0, ..MilConfig::default() },
            MilConfig { lr: f64::NAN, ..MilConfig::default() },
            MilConfig { weight_decay: -1.0, ..MilConfig::default() },
        ] {
            assert!(broken.check().is_err());
        }
    }
}
