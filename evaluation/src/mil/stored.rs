//! A head from its file, whatever its kind: whoever draws heatmaps or scores new slides needs no type parameter.

use std::path::Path;

use burn::tensor::Device;
use serde_json::Value;

use super::head::{aggregator_of, probabilities};
use super::{
    Aggregator, ClamMb, ClamSb, Dsmil, GatedAbmil, HeadKind, HeadShape, MaxPool, MeanPool, TrainedHead, TransMil,
};
use crate::bag::Bag;
use crate::device::host;
use crate::error::{Error, Result};

/// A head of any kind on a device.
pub struct StoredHead {
    /// Which head.
    pub kind: HeadKind,
    /// Its sizes.
    pub shape: HeadShape,
    /// What it was saved with.
    pub header: Value,
    head: Box<dyn Scoring>,
    device: Device,
}

/// What a head looks at on one slide.
#[derive(Clone, Debug, PartialEq)]
pub struct SlideAttention {
    /// Probability per class.
    pub probabilities: Vec<f32>,
    /// Weight per patch, in the order of the bag and summing to 1: one row for all classes, or one for each.
    pub weights: Vec<Vec<f32>>,
}

impl StoredHead {
    /// Reads a head written by [`TrainedHead::save`].
    ///
    /// # Errors
    /// A file that is damaged, lacks a weight or is no head.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let name = aggregator_of(path)?;
        let kind = HeadKind::ALL.into_iter().find(|kind| kind.name() == name);
        let kind = kind.ok_or_else(|| Error::bad(path, format!("a head of the unknown kind {name:?}")))?;
        match kind {
            HeadKind::Mean => Self::of::<MeanPool>(kind, path, device),
            HeadKind::Max => Self::of::<MaxPool>(kind, path, device),
            HeadKind::Abmil => Self::of::<GatedAbmil>(kind, path, device),
            HeadKind::ClamSb => Self::of::<ClamSb>(kind, path, device),
            HeadKind::ClamMb => Self::of::<ClamMb>(kind, path, device),
            HeadKind::Dsmil => Self::of::<Dsmil>(kind, path, device),
            HeadKind::Transmil => Self::of::<TransMil>(kind, path, device),
        }
    }

    fn of<A: Aggregator + 'static>(kind: HeadKind, path: &Path, device: &Device) -> Result<Self> {
        let device = device.clone().inner();
        let (head, header) = TrainedHead::<A>::load(path, &device)?;
        Ok(Self { kind, shape: head.shape.clone(), header, head: Box::new(head), device })
    }

    /// The probability of every class of a slide, from all its patches.
    ///
    /// # Errors
    /// A bag of another width, without patches or with numbers that are not finite.
    pub fn probabilities(&self, bag: Bag) -> Result<Vec<f32>> {
        self.head.probabilities(bag, &self.device)
    }

    /// The attention to every patch of a slide.
    ///
    /// # Errors
    /// As [`probabilities`](Self::probabilities); a head that pools without attention.
    pub fn attention(&self, bag: Bag) -> Result<SlideAttention> {
        let none = || {
            let name = self.kind.name();
            Error::usage(format!("the head {name} pools without attention: there is nothing to show"))
        };
        self.head.attention(bag, &self.device)?.ok_or_else(none)
    }
}

/// What every [`TrainedHead`] can do.
trait Scoring {
    fn probabilities(&self, bag: Bag, device: &Device) -> Result<Vec<f32>>;
    fn attention(&self, bag: Bag, device: &Device) -> Result<Option<SlideAttention>>;
}

impl<A: Aggregator> Scoring for TrainedHead<A> {
    fn probabilities(&self, mut bag: Bag, device: &Device) -> Result<Vec<f32>> {
        let output = self.model.forward(self.patches(&mut bag, device)?, None);
        probabilities(output.logits, &bag.id)
    }

    fn attention(&self, mut bag: Bag, device: &Device) -> Result<Option<SlideAttention>> {
        let Some(attended) = self.model.attend(self.patches(&mut bag, device)?) else { return Ok(None) };
        let [_, patches] = attended.attention.dims();
        let weights = host(attended.attention)?.chunks_exact(patches).map(<[f32]>::to_vec).collect();
        Ok(Some(SlideAttention { probabilities: probabilities(attended.logits, &bag.id)?, weights }))
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn bag(patches: usize) -> Bag {
        let features = (0..patches * 4).map(|i| ((i * 37 % 11) as f32 - 5.0) / 5.0).collect();
        Bag { id: "s".into(), dim: 4, features, coords: vec![], label: None, group: "s".into() }
    }

    /// A head that was never trained, in a file.
    fn save<A: Aggregator>(path: &Path) {
        let shape = HeadShape { dim: 4, classes: 3, hidden: 8, attention: 5, dropout: 0.0 };
        let model = A::init(&shape, &mut ChaCha8Rng::seed_from_u64(1), &Device::flex());
        let head = TrainedHead { model, shape, standard: None, best_epoch: 0, history: vec![] };
        head.save(path, &serde_json::json!({ "fold": 2 })).unwrap();
    }

    #[test]
    fn every_kind_is_read_back_by_its_file_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head.safetensors");
        let saves: [fn(&Path); HeadKind::ALL.len()] = [
            save::<MeanPool>,
            save::<MaxPool>,
            save::<GatedAbmil>,
            save::<ClamSb>,
            save::<ClamMb>,
            save::<Dsmil>,
            save::<TransMil>,
        ];
        for (kind, save) in HeadKind::ALL.into_iter().zip(saves) {
            save(&path);
            let once = std::fs::read(&path).unwrap();
            save(&path);
            assert_eq!(once, std::fs::read(&path).unwrap(), "{kind:?}: equal heads make equal files");
            let head = StoredHead::load(&path, &Device::flex()).unwrap();
            assert_eq!((head.kind, &head.header["fold"]), (kind, &serde_json::json!(2)));
            let probabilities = head.probabilities(bag(6)).unwrap();
            assert_eq!(probabilities.len(), 3);
            let attention = head.attention(bag(6));
            if !kind.has_attention() {
                assert!(attention.unwrap_err().to_string().contains("pools without attention"));
                continue;
            }
            let attention = attention.unwrap();
            assert_eq!(attention.probabilities, probabilities, "{kind:?}");
            let rows = if matches!(kind, HeadKind::ClamMb | HeadKind::Dsmil) { 3 } else { 1 };
            assert_eq!(attention.weights.len(), rows, "{kind:?}");
            for row in &attention.weights {
                assert!(row.len() == 6 && (row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{kind:?}: {row:?}");
            }
            let error = head.probabilities(Bag { dim: 2, ..bag(6) }).unwrap_err().to_string();
            assert!(error.contains("the head takes 4"), "{error}");
        }
    }

    #[test]
    fn what_is_no_head_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head.safetensors");
        save::<GatedAbmil>(&path);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(5).position(|five| five == b"abmil").unwrap();
        bytes[at..at + 5].copy_from_slice(b"magic");
        std::fs::write(&path, &bytes).unwrap();
        let error = StoredHead::load(&path, &Device::flex()).err().unwrap().to_string();
        assert!(error.contains("unknown kind \"magic\""), "{error}");
        assert!(StoredHead::load(&folder.path().join("none"), &Device::flex()).is_err());
    }
}
