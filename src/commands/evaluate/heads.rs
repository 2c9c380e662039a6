//! The trained slide-level heads in a run folder: what heatmaps are drawn with, and what scores slides without a label.
//!
//! `heads/<encoder>/<head>_seed<s>_fold<k>.safetensors`, with what it says of its test slides beside it (`.json`), and
//! `heads/index.json`, which says whose they are and which slides each of them has seen. The index is written last: heads without
//! it are those of an evaluation that was stopped, which the next one with the same settings (`heads/evaluation`) takes up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use evaluation::mil::{FoldScores, HeadKind, SlideScore, StoredHead, TrainedFold};
use evaluation::split::Fold;
use serde::{Deserialize, Serialize};
use serde_json::json;
use slide_io::atomic_file;

use crate::commands::Run;
use crate::commands::digest;
use crate::run_dir::{read_record, remove_folder};

/// The folder of the heads in a run folder.
const FOLDER: &str = "heads";
/// What says whose they are, below the run folder.
pub(super) const INDEX: &str = "heads/index.json";

/// Which heads a run folder holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::commands) struct HeadIndex {
    /// [`evaluation_digest`] of the evaluation that trained them.
    pub evaluation: String,
    /// Class names by class index.
    pub classes: Vec<String>,
    /// Those of each encoder.
    pub encoders: Vec<EncoderHeads>,
}

/// The heads on the features of one encoder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::commands) struct EncoderHeads {
    /// The encoder's name.
    pub name: String,
    /// Hash of its weights; empty for features made elsewhere.
    pub hash: String,
    /// Folder of `<slide>.h5`, below the run folder or absolute.
    pub features: PathBuf,
    /// What the folds divide: slides, or patients with several.
    pub subjects: Vec<KeptSubject>,
    /// The folds, as places in `subjects`.
    pub folds: Vec<Fold>,
    /// The kinds of heads, in the order of the configuration.
    pub heads: Vec<HeadKind>,
    /// Seeds of the trainings.
    pub seeds: Vec<u64>,
    /// Heads that could not be trained.
    #[serde(default)]
    pub untrained: Vec<HeadPlace>,
}

/// A slide, or a patient.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::commands) struct KeptSubject {
    /// The slide or the patient.
    pub id: String,
    /// Class, where known.
    pub label: Option<u32>,
    /// Its slides, in the order of the bag.
    pub slides: Vec<String>,
}

impl EncoderHeads {
    /// The heads of a kind and seed that there are, fold by fold.
    pub fn places(&self, kind: HeadKind, seed: u64) -> impl Iterator<Item = HeadPlace> {
        let all = (0..self.folds.len()).map(move |fold| HeadPlace { kind, fold, seed });
        all.filter(|place| !self.untrained.contains(place))
    }

    /// The subjects that are tested, as places in `subjects`, each with the first fold that does and has all its heads: in turn
    /// one of every class, in the order of the cohort.
    pub fn tested(&self) -> Vec<(usize, usize)> {
        let mut by_class: BTreeMap<Option<u32>, Vec<(usize, usize)>> = BTreeMap::new();
        for (place, subject) in self.subjects.iter().enumerate() {
            let whole = |number: usize| self.untrained.iter().all(|head| head.fold != number);
            let tests = |(number, fold): (usize, &Fold)| whole(number) && fold.test.contains(&place);
            if let Some(fold) = self.folds.iter().enumerate().position(tests) {
                by_class.entry(subject.label).or_default().push((place, fold));
            }
        }
        let longest = by_class.values().map(Vec::len).max().unwrap_or(0);
        (0..longest).flat_map(|turn| by_class.values().filter_map(move |class| class.get(turn).copied())).collect()
    }
}

/// One head among those of an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::commands) struct HeadPlace {
    pub kind: HeadKind,
    pub fold: usize,
    pub seed: u64,
}

/// Known by which slide-level heads and what was made of them belong together: the SHA-256 of what they depend on in the
/// header of their evaluation. Other benchmarks leave them as they are.
pub(in crate::commands) fn evaluation_digest(header: &serde_json::Value) -> String {
    let parts = ["format", "seed", "items", "foreign", "untrained", "allow_missing", "splits", "classes"]
        .map(|key| &header[key]);
    digest::of_text(&crate::run_dir::as_stored(&json!([parts, header["settings"]["slide"]])).to_string())
}

/// What says which evaluation the heads are of while there is no index, below the run folder: its digest.
const BEGUN: &str = "heads/evaluation";

/// Removes all heads, and what was drawn with them, but for those of the evaluation with this digest.
pub(super) fn remove_heads(run: &Run, evaluation: &str) -> Result<()> {
    if std::fs::read_to_string(run.dir.root().join(BEGUN)).is_ok_and(|begun| begun == evaluation) {
        return Ok(());
    }
    crate::commands::heatmap::remove_all(run)?;
    remove_folder(&run.dir.root().join(FOLDER))
}

/// From now on heads of the evaluation with this digest are kept.
pub(super) fn begin(run: &Run, evaluation: &str) -> Result<()> {
    remove_heads(run, evaluation)?;
    Ok(atomic_file::write(&run.dir.file(BEGUN)?, evaluation.as_bytes())?)
}

/// What a head says of its test slides, as it is kept.
#[derive(Serialize, Deserialize)]
struct KeptScores {
    evaluation: String,
    encoder_hash: String,
    /// Of [`Keeper::folds`].
    fold: String,
    /// Id, group, class, and the bits of the probabilities: a decimal number may come back with another last bit.
    slides: Vec<(String, String, Option<u32>, Vec<u32>)>,
}

/// Keeps the heads of one encoder as they are trained.
pub(super) struct Keeper<'a> {
    pub run: &'a Run,
    /// Whether the heads themselves are kept, not only what they say.
    pub weights: bool,
    /// Digest of this evaluation.
    pub evaluation: &'a str,
    pub encoder: &'a str,
    /// Hash of its weights; empty for features made elsewhere.
    pub hash: &'a str,
    /// Of each fold: the digest of who trains, chooses and is tested. Which slides can be used shows when they are read.
    pub folds: &'a [String],
}

impl Keeper<'_> {
    /// Writes the head of a fold, then what it says: that counts.
    pub fn keep(&self, trained: &TrainedFold) -> evaluation::Result<()> {
        let place = HeadPlace { kind: trained.head, fold: trained.fold, seed: trained.seed };
        let header = json!({
            "evaluation": self.evaluation,
            "encoder": self.encoder,
            "encoder_hash": self.hash,
            "fold": place.fold,
            "seed": place.seed,
            "settings": self.run.experiment.evaluate.slide.mil(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        let path = path(self.run.dir.root(), self.encoder, place);
        if self.weights {
            (trained.save)(&path, &header)?;
        }
        let bits = |slide: &SlideScore| slide.probabilities.iter().map(|p| p.to_bits()).collect();
        let slide = |slide: &SlideScore| (slide.id.clone(), slide.group.clone(), slide.label, bits(slide));
        let scores = KeptScores {
            evaluation: self.evaluation.into(),
            encoder_hash: self.hash.into(),
            fold: self.folds[trained.fold].clone(),
            slides: trained.scores.iter().map(slide).collect(),
        };
        let path = path.with_extension("json");
        let text = serde_json::to_vec(&scores).map_err(|error| evaluation::Error::io(&path, error.into()))?;
        Ok(atomic_file::write(&path, &text)?)
    }

    /// What the head of a fold said, where an evaluation that was stopped had trained it.
    pub fn known(&self, place: HeadPlace) -> Option<FoldScores> {
        let path = path(self.run.dir.root(), self.encoder, place);
        let kept: KeptScores = serde_json::from_slice(&std::fs::read(path.with_extension("json")).ok()?).ok()?;
        let whole = !self.weights || path.exists();
        let slide = |(id, group, label, bits): (String, String, Option<u32>, Vec<u32>)| {
            let probabilities = bits.into_iter().map(f32::from_bits).collect();
            SlideScore { id, group, label, probabilities, attention: vec![] }
        };
        let HeadPlace { kind: head, fold, seed } = place;
        let scores = || kept.slides.into_iter().map(slide).collect();
        let same =
            kept.evaluation == self.evaluation && kept.encoder_hash == self.hash && kept.fold == self.folds[fold];
        (whole && same).then(|| FoldScores { head, fold, seed, scores: scores() })
    }

    /// Reads a head that was kept.
    pub fn head(&self, place: HeadPlace, device: &Device) -> evaluation::Result<StoredHead> {
        StoredHead::load(&path(self.run.dir.root(), self.encoder, place), device)
    }
}

/// The file of a head.
fn path(root: &Path, encoder: &str, HeadPlace { kind, fold, seed }: HeadPlace) -> PathBuf {
    root.join(FOLDER).join(folder_name(encoder)).join(format!("{}_seed{seed}_fold{fold}.safetensors", kind.name()))
}

/// An encoder's name as the name of a folder. Features made elsewhere may be called by their whole path.
pub(in crate::commands) fn folder_name(encoder: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = encoder.chars().map(plain).collect();
    match name == encoder && !name.starts_with('.') {
        true => name,
        false => format!("{}-{}", name.trim_start_matches('.'), &digest::of_text(encoder)[..8]),
    }
}

impl HeadIndex {
    /// Writes the index: from now on the heads count.
    pub fn write(&self, run: &Run) -> Result<()> {
        let path = run.dir.file(INDEX)?;
        Ok(atomic_file::write(&path, &serde_json::to_vec(self)?)?)
    }

    /// The index of the run in `root`.
    ///
    /// # Errors
    /// No heads, or heads of another evaluation than the one whose results lie there.
    pub fn read(root: &Path) -> Result<Self> {
        let header = read_record(root, "evaluate").map(|record| record.header).unwrap_or_default();
        Self::of_evaluation(root, &header)
    }

    /// As [`read`](Self::read), of the evaluation with this header.
    pub fn of_evaluation(root: &Path, header: &serde_json::Value) -> Result<Self> {
        let path = root.join(INDEX);
        let missing = || {
            format!(
                "{} holds no trained heads: run `gensis evaluate slide` with evaluate.slide.keep_heads",
                root.display()
            )
        };
        let text = std::fs::read(&path).with_context(missing)?;
        let index: Self =
            serde_json::from_slice(&text).with_context(|| format!("{} is damaged: evaluate again", path.display()))?;
        ensure!(
            evaluation_digest(header) == index.evaluation,
            "the heads in {} are not those of its last evaluation: evaluate again",
            root.display()
        );
        Ok(index)
    }

    /// Reads a head of `encoder` onto `device`.
    ///
    /// # Errors
    /// A file that is missing, damaged, or of another evaluation, encoder, fold or seed than its name says.
    pub fn head(&self, root: &Path, encoder: &EncoderHeads, place: HeadPlace, device: &Device) -> Result<StoredHead> {
        let path = path(root, &encoder.name, place);
        let head = StoredHead::load(&path, device)?;
        let header = &head.header;
        let same = head.kind == place.kind
            && header["evaluation"] == self.evaluation.as_str()
            && header["encoder"] == encoder.name.as_str()
            && header["encoder_hash"] == encoder.hash.as_str()
            && header["fold"] == json!(place.fold)
            && header["seed"] == json!(place.seed)
            && head.shape.classes == self.classes.len();
        ensure!(same, "{} is not the head that heads/index.json names: evaluate again", path.display());
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_told_apart_and_stay_inside() {
        assert_eq!(folder_name("gen_dino"), "gen_dino");
        let [a, b] = ["/data/features_uni", "_data_features_uni"].map(folder_name);
        assert!(a != b && a.starts_with("_data_features_uni-"), "{a} {b}");
        assert!(!folder_name("../x").contains('/') && !folder_name("..").starts_with('.'));
    }

    #[test]
    fn tested_subjects_are_taken_in_turn_of_every_class_with_their_fold() {
        let subject = |(place, label): (usize, u32)| KeptSubject {
            id: format!("s{place}"),
            label: Some(label),
            slides: vec![format!("s{place}")],
        };
        let fold = |test: &[usize]| Fold { train: vec![], validation: vec![], test: test.to_vec() };
        let heads = EncoderHeads {
            name: "dino".into(),
            hash: "ab".into(),
            features: "features".into(),
            subjects: [0, 0, 0, 1, 1].into_iter().enumerate().map(subject).collect(),
            folds: vec![fold(&[0, 3]), fold(&[2, 4])],
            heads: vec![HeadKind::Abmil],
            seeds: vec![0],
            untrained: vec![],
        };
        assert_eq!(heads.tested(), [(0, 0), (3, 0), (2, 1), (4, 1)], "subject 1 is tested in no fold");
        let lost = HeadPlace { kind: HeadKind::Abmil, fold: 0, seed: 0 };
        let heads = EncoderHeads { untrained: vec![lost], ..heads };
        assert_eq!(heads.tested(), [(2, 1), (4, 1)], "fold 0 has no head");
        assert_eq!(heads.places(HeadKind::Abmil, 0).map(|place| place.fold).collect::<Vec<_>>(), [1]);
    }
}
