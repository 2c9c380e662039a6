//! Training as a whole, on a task with a known answer: a bag of class c holds a few patches marked in dimension c among
//! many that say nothing.

use std::collections::BTreeSet;
use std::sync::Mutex;

use burn::tensor::Device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::bag::{Bag, BagSource, BagsInMemory};
use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::split::{Fold, Strata};

const DIM: usize = 8;
const MARKED: usize = 3;

fn bags(n: usize) -> Vec<Bag> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let bag = |index: usize| {
        let patches = rng.random_range(20..50usize);
        let mut features: Vec<f32> = (0..patches * DIM).map(|_| rng.random_range(-0.5..0.5)).collect();
        (0..MARKED).for_each(|patch| features[patch * DIM + index % 3] += 2.0);
        let id = format!("slide {index}");
        Bag { group: id.clone(), id, dim: DIM, features, coords: vec![], label: Some((index % 3) as u32) }
    };
    (0..n).map(bag).collect()
}

fn cohort(n: usize) -> BagsInMemory {
    BagsInMemory::new(bags(n), 3).unwrap()
}

fn folds_of(source: &dyn BagSource, folds: usize) -> Vec<Fold> {
    let labels: Vec<u32> = (0..source.len()).map(|i| source.label(i).unwrap()).collect();
    let groups: Vec<String> = (0..source.len()).map(|i| source.group(i).to_owned()).collect();
    Strata::new(&labels, &groups).unwrap().k_fold(folds, 0.25, 0).unwrap()
}

fn small() -> MilConfig {
    MilConfig { epochs: 25, lr: 5e-3, hidden: 12, attention: 6, accumulate: 4, max_patches: 12, ..MilConfig::default() }
}

fn cross_validate(
    source: &dyn BagSource,
    config: &MilConfig,
    seeds: &[u64],
    workers: usize,
) -> Result<Vec<FoldPrediction<GatedAbmil>>> {
    let folds = folds_of(source, 3);
    let device = &Device::flex();
    let (left_out, known, keep_attention) = (&[][..], &[][..], true);
    let validation =
        CrossValidation { source, folds: &folds, config, seeds, device, workers, left_out, known, keep_attention };
    validation.run(|_| Ok(())).map(|validated| validated.folds)
}

#[test]
fn the_marked_patches_are_found() {
    let source = cohort(36);
    let config = MilConfig { epochs: 40, lr: 1e-2, ..small() };
    let result = cross_validate(&source, &config, &[0], 1).unwrap();
    let scores: Vec<&SlideScore> = result.iter().flat_map(|fold| &fold.scores).collect();
    assert_eq!(scores.iter().map(|slide| &slide.id).collect::<BTreeSet<_>>().len(), 36, "each slide is tested once");
    let (predictions, groups) = score_all(scores.iter().copied(), 3).unwrap();
    assert_eq!(groups[0], scores[0].group);
    let accuracy = predictions.value(Metric::Accuracy).unwrap();
    assert!(accuracy > 0.9, "{accuracy}");
    // How much more attention the marked patches get than they would if all had the same.
    let gains = scores.iter().map(|slide| {
        assert!((slide.attention.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        slide.attention[..MARKED].iter().sum::<f32>() * slide.attention.len() as f32 / MARKED as f32
    });
    let gain = gains.sum::<f32>() / scores.len() as f32;
    assert!(gain > 2.0, "{gain}");
}

/// Every head learns the task, has attention that sums to 1, and repeats bit for bit with more workers.
#[test]
fn every_head_learns() {
    let source = cohort(36);
    let folds = folds_of(&source, 3);
    let config = MilConfig { epochs: 40, lr: 5e-3, hidden: 16, max_patches: 0, ..small() };
    let device = Device::flex();
    for kind in HeadKind::ALL {
        let validation = |workers, config| CrossValidation {
            source: &source,
            folds: &folds,
            config,
            seeds: &[0],
            device: &device,
            workers,
            left_out: &[],
            known: &[],
            keep_attention: true,
        };
        let result = validation(3, &config).scores(kind, |_| Ok(())).unwrap().folds;
        let scores: Vec<&SlideScore> = result.iter().flat_map(|fold| &fold.scores).collect();
        for slide in &scores {
            let sum: f32 = slide.attention.iter().sum();
            assert!((sum - 1.0).abs() < 1e-5 && slide.attention.iter().all(|&a| a >= 0.0), "{kind:?}: {sum}");
        }
        let (predictions, _) = score_all(scores.iter().copied(), 3).unwrap();
        let accuracy = predictions.value(Metric::Accuracy).unwrap();
        assert!(accuracy > 0.8, "{kind:?}: {accuracy}");
        let short = MilConfig { epochs: 2, ..config.clone() };
        let run = |workers| validation(workers, &short).scores(kind, |_| Ok(())).unwrap().folds;
        assert_eq!(run(1), run(3));
    }
}

#[test]
fn heads_have_names_and_sizes_they_cannot_have() {
    for kind in HeadKind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        assert!(kind.check(&MilConfig::default()).is_ok());
    }
    let config = MilConfig { hidden: 12, ..small() };
    assert!(HeadKind::Abmil.check(&config).is_ok());
    let error = HeadKind::Transmil.check(&config).unwrap_err().to_string();
    assert!(error.contains("hidden is a multiple of 8, not 12"), "{error}");
    let train = train_fold::<TransMil>(&cohort(6), &[0, 1], &[], &config, &Device::flex(), 0);
    assert!(train.unwrap_err().to_string().contains("multiple of 8"));
}

#[test]
fn a_seed_gives_one_result_with_any_number_of_workers() {
    let source = cohort(18);
    let config = MilConfig { epochs: 4, ..small() };
    let run = |seeds: &[u64], workers| -> Vec<_> {
        let result = cross_validate(&source, &config, seeds, workers).unwrap();
        result.into_iter().map(|fold| (fold.seed, fold.fold, fold.head.history, fold.scores)).collect()
    };
    let once = run(&[3, 4], 1);
    assert_eq!(once.iter().map(|f| (f.0, f.1)).collect::<Vec<_>>(), [(3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2)]);
    assert_eq!(once, run(&[3, 4], 3));
    assert_ne!(once[0].3, once[3].3, "the seed changes the head");
}

/// A cohort that remembers which bags were read, and cannot read some.
struct Watched {
    cohort: BagsInMemory,
    unreadable: Option<usize>,
    /// Whose features make every loss infinite.
    spoilt: Option<usize>,
    read: Mutex<BTreeSet<usize>>,
}

impl Watched {
    fn new(cohort: BagsInMemory, unreadable: Option<usize>) -> Self {
        Self { cohort, unreadable, spoilt: None, read: Mutex::default() }
    }
}

impl BagSource for Watched {
    fn len(&self) -> usize {
        self.cohort.len()
    }

    fn dim(&self) -> usize {
        self.cohort.dim()
    }

    fn classes(&self) -> usize {
        self.cohort.classes()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.cohort.label(index)
    }

    fn group(&self, index: usize) -> &str {
        self.cohort.group(index)
    }

    fn load(&self, index: usize) -> Result<Bag> {
        self.read.lock().unwrap().insert(index);
        match self.unreadable == Some(index) {
            true => Err(Error::bad(format!("slide-{index}.h5"), "truncated")),
            false if self.spoilt == Some(index) => {
                let mut bag = self.cohort.load(index)?;
                bag.features.iter_mut().for_each(|value| *value = f32::MAX);
                Ok(bag)
            }
            false => self.cohort.load(index),
        }
    }
}

#[test]
fn training_never_reads_a_test_slide() {
    let source = Watched::new(cohort(18), None);
    let fold = &folds_of(&source, 3)[0];
    let config = MilConfig { epochs: 2, ..small() };
    train_fold::<GatedAbmil>(&source, &fold.train, &fold.validation, &config, &Device::flex(), 0).unwrap();
    let read = source.read.into_inner().unwrap();
    assert_eq!(read, fold.train.iter().chain(&fold.validation).copied().collect());
}

#[test]
fn the_kept_weights_are_those_of_the_lowest_validation_loss() {
    let source = cohort(24);
    let fold = &folds_of(&source, 3)[0];
    // A rate so high that the loss goes up and down.
    let config = MilConfig { lr: 0.1, patience: 4, epochs: 60, ..small() };
    let device = Device::flex();
    let head = train_fold::<GatedAbmil>(&source, &fold.train, &fold.validation, &config, &device, 1).unwrap();
    let losses: Vec<f64> = head.history.iter().map(|epoch| epoch.validation_loss.unwrap()).collect();
    let lowest = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(losses[head.best_epoch], lowest);
    assert_eq!(losses.len(), (head.best_epoch + config.patience + 1).min(60), "stopped after {} epochs", losses.len());
    assert!(losses.len() < 60, "patience ends the training early");
    let scores = head.predict(&source, &fold.validation, &device).unwrap();
    let loss = |slide: &SlideScore| -f64::from(slide.probabilities[slide.label.unwrap() as usize]).ln();
    let again = scores.iter().map(loss).sum::<f64>() / scores.len() as f64;
    // The probabilities are float32, and their logarithm is taken again.
    assert!((again - lowest).abs() < 1e-4 * (1.0 + lowest), "{again} {lowest}");
}

#[test]
fn without_a_validation_part_the_last_epoch_is_kept() {
    let source = cohort(9);
    let config = MilConfig { epochs: 3, patience: 1, ..small() };
    let head = train_fold::<GatedAbmil>(&source, &[0, 1, 2, 3, 4], &[], &config, &Device::flex(), 0).unwrap();
    assert_eq!((head.best_epoch, head.history.len()), (2, 3));
    assert_eq!(head.history[2].validation_loss, None);
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_says_where() {
    let config = MilConfig { lr: 1e30, ..small() };
    let error = cross_validate(&cohort(18), &config, &[5], 1).unwrap_err();
    assert!(matches!(error, Error::Training(_)));
    let text = error.to_string();
    assert!(text.contains("fold 0, seed 5") && text.contains("not finite") && text.contains("learning rate"), "{text}");
}

#[test]
fn a_training_that_fails_costs_itself_alone() {
    let mut source = Watched::new(cohort(18), None);
    source.spoilt = Some(0);
    let fold = |train: std::ops::Range<usize>| Fold { train: train.collect(), validation: vec![], test: vec![16, 17] };
    let folds = [fold(0..8), fold(8..16), fold(4..12)];
    let config = MilConfig { epochs: 2, standardize: false, ..small() };
    let validation = CrossValidation {
        source: &source,
        folds: &folds,
        config: &config,
        seeds: &[0, 1],
        device: &Device::flex(),
        workers: 2,
        left_out: &[2],
        known: &[],
        keep_attention: false,
    };
    let known = CrossValidation { known: &[(0, 1), (1, 0)], ..validation };
    let CrossValidated { folds, refused } = known.run::<GatedAbmil>(|_| Ok(())).unwrap();
    assert_eq!(
        folds.iter().map(|done| (done.seed, done.fold)).collect::<Vec<_>>(),
        [(1, 1)],
        "what is known is not repeated"
    );
    assert_eq!(refused.len(), 1);
    let CrossValidated { folds, refused } = validation.run::<GatedAbmil>(|_| Ok(())).unwrap();
    assert_eq!(folds.iter().map(|done| (done.seed, done.fold)).collect::<Vec<_>>(), [(0, 1), (1, 1)]);
    assert!(folds.iter().flat_map(|done| &done.scores).all(|slide| slide.attention.is_empty()));
    let reasons: Vec<String> = refused.iter().map(Error::to_string).collect();
    assert!(reasons.len() == 2 && reasons[1].contains("fold 0, seed 1"), "{reasons:?}");
}

#[test]
fn a_bag_that_cannot_be_read_is_an_error_with_its_path() {
    let source = Watched::new(cohort(18), Some(4));
    for workers in [1, 3] {
        let error = cross_validate(&source, &small(), &[0, 1], workers).unwrap_err();
        assert!(error.to_string().contains("slide-4.h5"), "{error}");
    }
}

#[test]
fn a_head_comes_back_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("head.safetensors");
    let source = cohort(9);
    let device = Device::flex();
    let all: Vec<usize> = (0..9).collect();
    let config = MilConfig { epochs: 2, ..small() };
    let head = train_fold::<GatedAbmil>(&source, &all[..6], &all[6..], &config, &device, 0).unwrap();
    let header = serde_json::json!({"encoder": "sha256:ab"});
    for _ in 0..2 {
        head.save(&path, &header).unwrap();
    }
    let (loaded, loaded_header) = TrainedHead::<GatedAbmil>::load(&path, &device).unwrap();
    assert_eq!(loaded_header, header);
    assert_eq!((&loaded.shape, loaded.best_epoch), (&head.shape, head.best_epoch));
    assert_eq!(loaded.history.len(), head.history.len());
    for (ours, theirs) in loaded.history.iter().zip(&head.history) {
        // serde_json reads a float64 to within its last bit.
        assert!((ours.train_loss - theirs.train_loss).abs() < 1e-14 * theirs.train_loss);
    }
    let scores = |head: &TrainedHead<GatedAbmil>| head.predict(&source, &all, &device).unwrap();
    assert_eq!(scores(&loaded), scores(&head));

    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 4, 40, bytes.len() - 10] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = TrainedHead::<GatedAbmil>::load(&path, &device).unwrap_err();
        assert!(matches!(error, Error::File(slide_io::Error::BadFile { .. })), "{length}: {error}");
    }
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let source = cohort(6);
    let device = Device::flex();
    let train = |source: &dyn BagSource, train: &[usize], config: &MilConfig| {
        train_fold::<GatedAbmil>(source, train, &[], config, &device, 0).map(|_| ()).map_err(|e| e.to_string())
    };
    assert!(train(&source, &[], &small()).unwrap_err().contains("no slide to train on"));
    assert!(train(&source, &[0], &MilConfig { epochs: 0, ..small() }).unwrap_err().contains("epochs"));
    let mut unlabelled = bags(6);
    unlabelled[2].label = None;
    let unlabelled = BagsInMemory::new(unlabelled, 3).unwrap();
    assert!(train(&unlabelled, &[0, 2], &small()).unwrap_err().contains("label None"));
}
