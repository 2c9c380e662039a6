//! Fitting a head on the training part of one fold. The test part is not an argument: nothing here can look at it.

use burn::optim::decay::WeightDecayConfig;
use burn::optim::{AdamConfig, GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::head::TrainedHead;
use super::layers::cross_entropy;
use super::{Aggregator, MilConfig};
use crate::bag::{Bag, BagSource};
use crate::device::{host, matrix};
use crate::error::{Error, Result};
use crate::seed::{Purpose, stream};
use crate::standard::{Estimate, Standard};

/// One epoch of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Counted from 0.
    pub epoch: usize,
    /// Learning rate.
    pub lr: f64,
    /// Mean loss of the training bags as they were seen: before their step, with dropout.
    pub train_loss: f64,
    /// Mean loss of the validation bags after the epoch, where there are any.
    pub validation_loss: Option<f64>,
}

/// Trains a head on the slides `train` of `source` and returns the weights of the epoch with the lowest loss on
/// `validation` (of the last epoch where that is empty). Bags come one by one in an order drawn anew each epoch; every
/// `accumulate` of them make one Adam step on the mean of their losses. On the validation part the loss is the cross-entropy of
/// the bag's scores, whatever else a head is trained on.
pub fn train_fold<A: Aggregator>(
    source: &dyn BagSource,
    train: &[usize],
    validation: &[usize],
    config: &MilConfig,
    device: &Device,
    seed: u64,
) -> Result<TrainedHead<A>> {
    config.check()?;
    let shape = config.shape(source.dim(), source.classes());
    A::check(&shape)?;
    if train.is_empty() {
        return Err(Error::usage("no slide to train on"));
    }
    let weights = class_weights(source, train, validation, config.balanced)?;
    let device = device.clone().autodiff();
    let mut model = A::init(&shape, &mut stream(seed, Purpose::Weights, 0, 0), &device);
    let standard = config.standardize.then(|| standard(source, train)).transpose()?;
    let mut optimiser = optimiser(config);
    let mut history: Vec<EpochRecord> = Vec::with_capacity(config.epochs);
    let mut best: Option<(f64, usize, A)> = None;

    for epoch in 0..config.epochs {
        let lr = config.lr_at(epoch);
        let mut order = train.to_vec();
        order.shuffle(&mut stream(seed, Purpose::Order, epoch as u64, 0));
        let mut losses = LossSum::default();
        for bags in order.chunks(config.accumulate) {
            let mut step = Accumulation::new();
            for &index in bags {
                let mut rng = stream(seed, Purpose::Bag, epoch as u64, index as u64);
                let (bag, label) = labelled_bag(source, index, standard.as_ref())?;
                let patches = sample_patches(&bag, config.max_patches, &mut rng, &device);
                let loss = model.loss(patches, label, &mut rng);
                losses.add(step.add(&model, loss, weights[label], bags.len()), weights[label]);
            }
            model = optimiser.step(lr, model, step.gradients());
        }
        let train_loss = losses.mean()?;
        let evaluated = model.valid();
        let held_out = Scored { source, indices: validation, standard: standard.as_ref(), weights: &weights };
        let validation_loss = validation_loss(&evaluated, &held_out, &device.clone().inner())?;
        history.push(EpochRecord { epoch, lr, train_loss, validation_loss });
        let watched = validation_loss.unwrap_or(train_loss);
        if !train_loss.is_finite() || !watched.is_finite() {
            return Err(Error::Training(format!(
                "the loss of the slide-level head is not finite after epoch {epoch} (training {train_loss}, validation \
                 {validation_loss:?}); try a lower learning rate than {}",
                config.lr
            )));
        }
        let improved = best.as_ref().is_none_or(|(lowest, ..)| validation_loss.is_none_or(|loss| loss < *lowest));
        if improved {
            best = Some((watched, epoch, evaluated));
        }
        let best_epoch = best.as_ref().map_or(epoch, |(_, epoch, _)| *epoch);
        if config.patience > 0 && epoch - best_epoch >= config.patience {
            break;
        }
    }
    let (_, best_epoch, model) = best.ok_or_else(|| Error::usage("a head trains for at least one epoch"))?;
    Ok(TrainedHead { model, shape, standard, best_epoch, history })
}

/// Adam as `torch.optim.Adam(betas=..., eps=1e-8, weight_decay=...)`: burn's Adam adds the decay to the gradient
/// too, before the moments, and differs only in its default epsilon.
pub(super) fn optimiser(config: &MilConfig) -> ModuleOptimizer {
    AdamConfig::new()
        .with_beta_1(config.betas[0] as f32)
        .with_beta_2(config.betas[1] as f32)
        .with_epsilon(1e-8)
        .with_weight_decay(Some(WeightDecayConfig::new(config.weight_decay as f32)))
        .init()
}

/// The gradients of several bags, summed into those of their mean loss.
pub(super) struct Accumulation<A>(GradientsAccumulator<A>);

impl<A: Aggregator> Accumulation<A> {
    pub(super) fn new() -> Self {
        Self(GradientsAccumulator::new())
    }

    /// Adds the gradient of the loss of one of `bags` bags and returns it weighted.
    pub(super) fn add(&mut self, model: &A, loss: Tensor<1>, weight: f64, bags: usize) -> Tensor<1> {
        let loss = loss.mul_scalar(weight);
        let gradients = loss.clone().div_scalar(bags as f64).backward();
        self.0.accumulate(model, GradientsParams::from_grads(gradients, model));
        loss.inner()
    }

    pub(super) fn gradients(mut self) -> GradientsParams {
        self.0.grads()
    }
}

/// A weighted mean of losses that stays on the device until it is asked for.
#[derive(Default)]
struct LossSum {
    sum: Option<Tensor<1>>,
    weight: f64,
}

impl LossSum {
    fn add(&mut self, weighted_loss: Tensor<1>, weight: f64) {
        self.weight += weight;
        self.sum = Some(match self.sum.take() {
            Some(sum) => sum + weighted_loss,
            None => weighted_loss,
        });
    }

    fn mean(self) -> Result<f64> {
        let Some(sum) = self.sum else { return Ok(f64::NAN) };
        Ok(f64::from(host(sum)?[0]) / self.weight)
    }
}

/// Slides whose loss is asked for.
struct Scored<'a> {
    source: &'a dyn BagSource,
    indices: &'a [usize],
    standard: Option<&'a Standard>,
    weights: &'a [f64],
}

fn validation_loss<A: Aggregator>(model: &A, slides: &Scored, device: &Device) -> Result<Option<f64>> {
    let Scored { source, indices, standard, weights } = *slides;
    if indices.is_empty() {
        return Ok(None);
    }
    let mut losses = LossSum::default();
    for &index in indices {
        let (bag, label) = labelled_bag(source, index, standard)?;
        let logits = model.forward(patches_of(&bag, device), None).logits;
        losses.add(cross_entropy(logits, label).mul_scalar(weights[label]), weights[label]);
    }
    losses.mean().map(Some)
}

/// The scale of the patches of the slides `indices`; reads each once, one bag at a time.
fn standard(source: &dyn BagSource, indices: &[usize]) -> Result<Standard> {
    let mut estimate = Estimate::new(source.dim());
    for &index in indices {
        estimate.add(&labelled_bag(source, index, None)?.0.features);
    }
    Ok(estimate.standard())
}

fn labelled_bag(source: &dyn BagSource, index: usize, standard: Option<&Standard>) -> Result<(Bag, usize)> {
    let mut bag = source.load(index)?;
    bag.check()?;
    if bag.dim != source.dim() {
        return Err(Error::usage(format!(
            "slide {} has {} numbers per patch, the cohort {}; embed it again with the same encoder",
            bag.id,
            bag.dim,
            source.dim()
        )));
    }
    let label = source.label(index).ok_or_else(|| Error::usage(format!("slide {} has no label", bag.id)))?;
    if let Some(standard) = standard {
        standard.apply(&mut bag.features);
    }
    Ok((bag, label as usize))
}

/// All patches of a bag on `device`.
pub(super) fn patches_of(bag: &Bag, device: &Device) -> Tensor<2> {
    matrix(bag.features.clone(), bag.patches(), device)
}

/// At most `most` patches of a bag (0: all), drawn without replacement.
fn sample_patches(bag: &Bag, most: usize, rng: &mut ChaCha8Rng, device: &Device) -> Tensor<2> {
    if most == 0 || bag.patches() <= most {
        return patches_of(bag, device);
    }
    let mut drawn = rand::seq::index::sample(rng, bag.patches(), most).into_vec();
    drawn.sort_unstable();
    let rows: Vec<f32> =
        drawn.iter().flat_map(|&row| &bag.features[row * bag.dim..(row + 1) * bag.dim]).copied().collect();
    matrix(rows, most, device)
}

/// Weight of the loss per class: 1, or slides / (classes × slides of the class) as scikit-learn's "balanced".
fn class_weights(source: &dyn BagSource, train: &[usize], validation: &[usize], balanced: bool) -> Result<Vec<f64>> {
    let classes = source.classes();
    for &index in train.iter().chain(validation) {
        match source.label(index) {
            Some(label) if (label as usize) < classes => {}
            other => {
                return Err(Error::usage(format!("slide number {index} has label {other:?}, not one of {classes}")));
            }
        }
    }
    if !balanced {
        return Ok(vec![1.0; classes]);
    }
    let mut counts = vec![0.0; classes];
    train.iter().filter_map(|&index| source.label(index)).for_each(|label| counts[label as usize] += 1.0);
    let present = counts.iter().filter(|&&count| count > 0.0).count() as f64;
    let weight = |count: f64| if count > 0.0 { train.len() as f64 / (present * count) } else { 1.0 };
    Ok(counts.into_iter().map(weight).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bag::BagsInMemory;

    fn bag(label: u32, patches: usize) -> Bag {
        let features = (0..patches * 2).map(|i| i as f32).collect();
        Bag { id: "s".into(), dim: 2, features, coords: vec![], label: Some(label), group: "s".into() }
    }

    #[test]
    fn balanced_weights_as_scikit_learn() {
        let source = BagsInMemory::new(vec![bag(0, 1), bag(0, 1), bag(0, 1), bag(2, 1)], 3).unwrap();
        let all = [0, 1, 2, 3];
        assert_eq!(class_weights(&source, &all, &[], true).unwrap(), [4.0 / 6.0, 1.0, 2.0]);
        assert_eq!(class_weights(&source, &all, &[], false).unwrap(), [1.0; 3]);
    }

    #[cfg(feature = "flex")]
    #[test]
    fn sampled_patches_are_whole_distinct_rows() {
        use rand::SeedableRng;

        let device = Device::flex();
        let sample = |most, seed| -> Vec<f32> {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            sample_patches(&bag(0, 20), most, &mut rng, &device).to_data().try_into_vec().unwrap()
        };
        let rows = sample(5, 1);
        assert_eq!(rows.len(), 10);
        assert!(rows.chunks(2).all(|row| row[0] % 2.0 == 0.0 && row[1] == row[0] + 1.0));
        assert!(rows.chunks(2).map(|row| row[0]).is_sorted_by(|a, b| a < b));
        assert_eq!(rows, sample(5, 1));
        assert_ne!(rows, sample(5, 2));
        assert_eq!(sample(0, 1), bag(0, 20).features);
        assert_eq!(sample(20, 1), bag(0, 20).features);
    }
}
