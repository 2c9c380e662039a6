//! Which heads show a slide, and what they attend to on it. No head shows a slide it was trained on where another has not
//! seen it: otherwise a heatmap tells what was memorised.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use evaluation::bag::{Bag, merge};
use evaluation::mil::{HeadKind, StoredHead};
use slide_io::h5::{self, Coordinates, Features};

use crate::commands::evaluate::heads::{EncoderHeads, HeadIndex, HeadPlace, KeptSubject};

/// What was asked for; what is left out is chosen.
#[derive(Default)]
pub(super) struct Choice<'a> {
    pub encoder: Option<&'a str>,
    pub head: Option<HeadKind>,
    pub class: Option<&'a str>,
    pub seed: Option<u64>,
}

/// The heads of one kind on one encoder's features.
pub(super) struct Atlas {
    root: PathBuf,
    index: HeadIndex,
    pub encoder: EncoderHeads,
    pub kind: HeadKind,
    /// The class asked for.
    class: Option<usize>,
    heads: Vec<(HeadPlace, StoredHead)>,
}

/// What a slide is to the folds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// Tested in this fold: its heads have not seen it.
    Tested(usize),
    /// In the training or validation part of a given split.
    Seen,
    /// In no part.
    Outside,
}

/// The attention to the patches of a slide.
pub(super) struct SlideMap {
    pub slide: String,
    pub label: Option<u32>,
    pub coordinates: Coordinates,
    /// Of every class, the mean over the heads.
    pub probabilities: Vec<f32>,
    /// One row for all classes or one for each, the mean over the heads.
    pub weights: Vec<Vec<f32>>,
    /// The row that is shown.
    pub shown: usize,
    pub relation: Relation,
    /// Heads behind the mean.
    pub heads: usize,
}

impl SlideMap {
    /// The class of the largest probability.
    pub fn predicted(&self) -> usize {
        largest(&self.probabilities)
    }
}

fn largest(values: &[f32]) -> usize {
    (0..values.len()).reduce(|best, at| if values[at] > values[best] { at } else { best }).unwrap_or(0)
}

impl Atlas {
    /// Loads the heads that `choice` asks for.
    ///
    /// # Errors
    /// An encoder, head, class or seed that the evaluation does not have; a head without attention; heads that are missing
    /// or damaged.
    pub fn open(root: &Path, index: HeadIndex, choice: &Choice, device: &Device) -> Result<Self> {
        let names: Vec<&str> = index.encoders.iter().map(|heads| heads.name.as_str()).collect();
        let encoder = match choice.encoder {
            None => index.encoders.first(),
            Some(name) => index.encoders.iter().find(|heads| heads.name == name),
        };
        let encoder = encoder.with_context(|| {
            format!(
                "no heads were kept for the encoder {:?}; there are {}",
                choice.encoder.unwrap_or(""),
                names.join(", ")
            )
        })?;
        let trained: Vec<&str> = encoder.heads.iter().map(|head| head.name()).collect();
        let kind = match choice.head {
            Some(kind) => kind,
            None => *encoder.heads.iter().find(|head| head.has_attention()).with_context(|| {
                format!("none of the heads of this evaluation ({}) has attention to show", trained.join(", "))
            })?,
        };
        let name = kind.name();
        let with = HeadKind::ALL.into_iter().filter(|kind| kind.has_attention()).map(HeadKind::name);
        ensure!(
            kind.has_attention(),
            "{name} pools without attention: there is nothing to show. Heads with attention are {}",
            with.collect::<Vec<_>>().join(", ")
        );
        ensure!(
            encoder.heads.contains(&kind),
            "{name} was not trained: evaluate.slide.aggregators had {}",
            trained.join(", ")
        );
        let class = choice.class.map(|class| {
            let place = index.classes.iter().position(|known| known == class);
            place.with_context(|| format!("--class {class}: the classes are {}", index.classes.join(", ")))
        });
        let class = class.transpose()?;
        if let Some(seed) = choice.seed.filter(|seed| !encoder.seeds.contains(seed)) {
            bail!("--seed {seed}: the seeds of the evaluation are {:?}", encoder.seeds);
        }
        let seeds = encoder.seeds.iter().copied().filter(|seed| choice.seed.is_none_or(|chosen| chosen == *seed));
        let mut heads = Vec::new();
        for seed in seeds {
            for place in encoder.places(kind, seed) {
                heads.push((place, index.head(root, encoder, place, device)?));
            }
        }
        Ok(Self { root: root.to_owned(), encoder: encoder.clone(), index, kind, class, heads })
    }

    /// Digest of the evaluation that trained the heads.
    pub fn evaluation(&self) -> &str {
        &self.index.evaluation
    }

    /// Class names by class index.
    pub fn classes(&self) -> &[String] {
        &self.index.classes
    }

    /// The attention to a slide, given by its id or by a features file.
    ///
    /// # Errors
    /// A slide without features, features of another encoder or of another width, another file of a slide of the evaluation, and
    /// numbers that are not finite.
    pub fn map(&self, slide: &str) -> Result<SlideMap> {
        let slide = self.known_by(slide);
        if let Some(known) = self.namesake(slide) {
            bail!(
                "{slide} has the name of a slide of the evaluation, whose features are in {}: give its id, {known}, or another name \
                 to a slide that is another",
                self.file(known).display()
            );
        }
        let place = self.encoder.subjects.iter().position(|subject| subject.slides.iter().any(|id| id == slide));
        let subject = place.map(|place| &self.encoder.subjects[place]);
        let relation = place.map_or(Relation::Outside, |place| self.relation(place));
        let file = self.file(slide);
        let features = self.features(&file)?;
        // A patient's slides are one bag, as the head was trained: the attention to one of them is a part of it.
        let (bag, before) = match subject {
            Some(subject) if subject.slides.len() > 1 => self.patient(subject, slide)?,
            _ => (Bag::of(slide, features.clone()), 0),
        };
        let patches = features.coordinates.origins.len();
        let used: Vec<&StoredHead> =
            self.heads.iter().filter(|(place, _)| uses(relation, place.fold)).map(|(_, head)| head).collect();
        let mut sum: Option<(Vec<f32>, Vec<Vec<f32>>)> = None;
        for head in &used {
            let attention = head.attention(bag.clone())?;
            let (probabilities, weights) = sum.get_or_insert_with(|| {
                (vec![0.0; attention.probabilities.len()], vec![vec![0.0; patches]; attention.weights.len()])
            });
            add(probabilities, &attention.probabilities, used.len());
            for (mean, weights) in weights.iter_mut().zip(&attention.weights) {
                add(mean, &weights[before..before + patches], used.len());
            }
        }
        let (probabilities, weights) = sum.context("no head was trained on the fold that tests it")?;
        let shown = if weights.len() == 1 { 0 } else { self.class.unwrap_or(largest(&probabilities)) };
        let slide = match Path::new(slide).extension().is_some_and(|extension| extension == "h5") && subject.is_none() {
            true => Path::new(slide).file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            false => slide.to_owned(),
        };
        let label = subject.and_then(|subject| subject.label);
        let coordinates = features.coordinates;
        Ok(SlideMap { slide, label, coordinates, probabilities, weights, shown, relation, heads: used.len() })
    }

    fn relation(&self, subject: usize) -> Relation {
        let tested = self.encoder.folds.iter().position(|fold| fold.test.contains(&subject));
        let seen =
            self.encoder.folds.iter().any(|fold| fold.train.contains(&subject) || fold.validation.contains(&subject));
        match (tested, seen) {
            (Some(fold), _) => Relation::Tested(fold),
            (None, true) => Relation::Seen,
            (None, false) => Relation::Outside,
        }
    }

    /// In words, which heads a map is of.
    pub fn told(&self, map: &SlideMap) -> String {
        let folds = self.encoder.folds.len();
        let (mean, have, were) = match map.heads {
            1 => ("one head".to_owned(), "has", "was"),
            heads => (format!("mean of {heads} heads"), "have", "were"),
        };
        match map.relation {
            Relation::Tested(_) if folds == 1 => format!("{mean}, which {have} not seen the slide (test part)"),
            Relation::Tested(fold) => format!("{mean} of fold {fold}, which {have} not seen the slide"),
            Relation::Seen => format!("{mean} that {were} trained or chosen on the slide: no evidence"),
            Relation::Outside => format!("{mean} of all folds; the slide is in none of their parts"),
        }
    }

    /// The id of a slide whose own features file is given, or what is given.
    fn known_by<'a>(&'a self, slide: &'a str) -> &'a str {
        let Ok(given) = Path::new(slide).canonicalize() else { return slide };
        let mut ids = self.encoder.subjects.iter().flat_map(|subject| &subject.slides);
        ids.find(|id| self.file(id).canonicalize().is_ok_and(|file| file == given)).map_or(slide, String::as_str)
    }

    /// The slide of the evaluation that a features file of somewhere else is called after.
    fn namesake(&self, slide: &str) -> Option<&str> {
        let stem = Path::new(slide.strip_suffix(".h5")?).file_name()?.to_str()?;
        let mut ids = self.encoder.subjects.iter().flat_map(|subject| &subject.slides);
        ids.find(|id| *id == stem).map(String::as_str)
    }

    /// What made the features that the heads were trained on, by the first of their files that tells.
    fn made_by(&self) -> Option<String> {
        let slides = self.encoder.subjects.iter().flat_map(|subject| &subject.slides);
        let named = |slide: &String| h5::features_shape(&self.file(slide)).ok().map(|shape| shape.encoder);
        slides.filter_map(named).next()
    }

    fn file(&self, slide: &str) -> PathBuf {
        match slide.ends_with(".h5") {
            true => PathBuf::from(slide),
            // Joining an absolute folder gives that folder.
            false => self.root.join(&self.encoder.features).join(format!("{slide}.h5")),
        }
    }

    /// Features of this encoder.
    fn features(&self, file: &Path) -> Result<Features> {
        ensure!(
            file.exists(),
            "there are no features of {} in {}: give the id of a slide that was embedded, or a features file (*.h5)",
            self.encoder.name,
            file.display()
        );
        if !self.encoder.hash.is_empty()
            && let Some(header) = h5::read_header(file)?
        {
            let ours = header["encoder"] == self.encoder.hash.as_str();
            ensure!(ours, "{} holds features of other weights than the heads were trained on", file.display());
        }
        let features = h5::read_features(file)?;
        if file.starts_with(self.root.join(&self.encoder.features)) {
            return Ok(features);
        }
        let theirs = h5::features_shape(file)?.encoder;
        match self.made_by().filter(|ours| !ours.is_empty() && !theirs.is_empty() && *ours != theirs) {
            Some(ours) => {
                bail!("{} holds features of {theirs}, the heads were trained on those of {ours}", file.display())
            }
            None => Ok(features),
        }
    }

    /// The bag of a patient, and where the patches of `slide` begin in it.
    fn patient(&self, subject: &KeptSubject, slide: &str) -> Result<(Bag, usize)> {
        let (mut bags, mut before, mut found) = (Vec::new(), 0, false);
        for id in &subject.slides {
            let bag = Bag::of(&subject.id, self.features(&self.file(id))?);
            found |= id == slide;
            before += if found { 0 } else { bag.patches() };
            bags.push(bag);
        }
        Ok((merge(bags)?.context("a patient has slides")?, before))
    }
}

/// Whether a head of `fold` shows a slide.
fn uses(relation: Relation, fold: usize) -> bool {
    match relation {
        Relation::Tested(tested) => fold == tested,
        Relation::Seen | Relation::Outside => true,
    }
}

/// Adds the share of one of `n` to a mean.
fn add(mean: &mut [f32], values: &[f32], n: usize) {
    mean.iter_mut().zip(values).for_each(|(mean, value)| *mean += value / n as f32);
}

/// At most `most` slides that are tested in a fold, in turn those of a subject of each class.
pub(super) fn tested_slides(heads: &EncoderHeads, most: usize) -> Vec<String> {
    let slides = heads.tested().into_iter().flat_map(|(subject, _)| &heads.subjects[subject].slides);
    slides.take(most).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use evaluation::split::Fold;

    #[test]
    fn the_slides_of_a_run_are_tested_ones_of_every_class() {
        let subject = |number: usize| KeptSubject {
            id: format!("s{number}"),
            label: Some(u32::from(number >= 4)),
            slides: vec![format!("s{number}")],
        };
        let heads = EncoderHeads {
            name: "dino".into(),
            hash: "ab".into(),
            features: "features".into(),
            subjects: (0..6).map(subject).collect(),
            folds: vec![Fold { train: vec![0], validation: vec![], test: vec![1, 2, 3, 4, 5] }],
            heads: vec![HeadKind::Abmil],
            seeds: vec![0],
            untrained: vec![],
        };
        assert_eq!(tested_slides(&heads, 4), ["s1", "s4", "s2", "s5"]);
        assert_eq!(tested_slides(&heads, 99).len(), 5);
    }

    #[test]
    fn a_tested_slide_is_shown_by_its_own_fold_only() {
        assert!(uses(Relation::Tested(1), 1) && !uses(Relation::Tested(1), 0));
        assert!(uses(Relation::Outside, 0) && uses(Relation::Outside, 3));
    }
}
