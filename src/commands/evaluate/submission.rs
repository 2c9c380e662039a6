//! Predictions in the format of a challenge: `results/submission_<encoder>_<head>.csv`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use burn::tensor::Device;
use evaluation::bag::Bag;
use evaluation::mil::{FoldScores, HeadKind, StoredHead};
use slide_io::manifest::Split;
use slide_io::{Cohort, SlideRecord, atomic_file, h5};

use super::has_features;
use super::heads::{HeadPlace, Keeper, folder_name};
use super::slides::{Stored, failure};
use super::subjects::Subject;
use super::usable::fault;
use crate::config::{SlideLevel, Submission};
use crate::run_dir::Failure;

/// What the file's name begins with.
pub(super) const NAME: &str = "submission_";

/// Refuses columns that are not those of the classes, before anything is trained.
pub(super) fn check(asked: &Submission, classes: &[String]) -> Result<()> {
    ensure!(
        asked.slide.is_empty() || asked.scores.is_empty() || asked.scores.len() == classes.len(),
        "evaluate.slide.submission.scores names {} columns, but there are {} classes ({})",
        asked.scores.len(),
        classes.len(),
        classes.join(", ")
    );
    Ok(())
}

/// One encoder's trained and tested heads.
pub(super) struct Entrant<'a> {
    pub cohort: &'a Cohort,
    pub subjects: &'a [Subject],
    pub predicted: &'a [FoldScores],
    /// Kinds of heads that could be trained.
    pub heads: &'a [HeadKind],
    pub keeper: &'a Keeper<'a>,
    pub stored: &'a Stored,
}

impl Entrant<'_> {
    /// Writes a table for every head; nothing where none is asked for. A slide with a label has the probabilities of the heads
    /// that tested it, their mean over the seeds; one without a label the mean over all folds and seeds. Slides whose features
    /// cannot be used are returned.
    pub fn write(&self, device: &Device) -> Result<Vec<Failure>> {
        let asked = &self.settings().submission;
        if asked.slide.is_empty() {
            return Ok(vec![]);
        }
        let classes = &self.cohort.classes;
        let (unlabelled, failures) = self.unlabelled();
        for &head in self.heads {
            let mut rows = self.tested(head);
            rows.extend(self.untested(head, &unlabelled, device)?);
            let mut table = csv::Writer::from_writer(Vec::new());
            table.write_record([&asked.slide, &asked.label].into_iter().chain(&asked.scores))?;
            for (slide, probabilities) in &rows {
                let best =
                    (0..probabilities.len()).reduce(|a, b| if probabilities[b] > probabilities[a] { b } else { a });
                let class = best.map_or("", |class| classes[class].as_str());
                let scores = probabilities.iter().take(asked.scores.len()).map(|p| format!("{p:.6}"));
                table.write_record([slide.clone(), class.to_owned()].into_iter().chain(scores))?;
            }
            let name = format!("results/{NAME}{}_{}.csv", folder_name(self.keeper.encoder), head.name());
            atomic_file::write(&self.keeper.run.dir.file(&name)?, &table.into_inner()?)?;
        }
        Ok(failures)
    }

    fn settings(&self) -> &SlideLevel {
        &self.keeper.run.experiment.evaluate.slide
    }

    /// Slides without a label that have features, of the test part where there is a split; and those whose features cannot
    /// be used.
    fn unlabelled(&self) -> (Vec<(&SlideRecord, PathBuf)>, Vec<Failure>) {
        let run = self.keeper.run;
        let Stored { name, dim, hash, folder, .. } = self.stored;
        let split = self.cohort.slides.iter().any(|slide| slide.split.is_some());
        let asked = |slide: &&SlideRecord| slide.label.is_none() && (!split || slide.split == Some(Split::Test));
        let (mut slides, mut failures) = (Vec::new(), Vec::new());
        for slide in self.cohort.slides.iter().filter(asked) {
            let file = run.dir.root().join(folder).join(format!("{}.h5", slide.id));
            let there = if hash.is_empty() { file.is_file() } else { has_features(run, slide, name, hash) };
            match there.then(|| fault(&file, *dim)) {
                Some(None) => slides.push((slide, file)),
                Some(Some(reason)) => failures.push(failure(&slide.id, reason)),
                None => failures.push(failure(&slide.id, format!("without features of {name}: not in the submission"))),
            }
        }
        (slides, failures)
    }

    /// Test slides, those of a patient each with the patient's probabilities: means over seeds, and over folds where a slide is
    /// tested in several.
    fn tested(&self, head: HeadKind) -> BTreeMap<String, Vec<f32>> {
        let slides_of: BTreeMap<&str, &[String]> =
            self.subjects.iter().map(|subject| (subject.id.as_str(), subject.slides.as_slice())).collect();
        let mut rows: BTreeMap<String, (Vec<f32>, f32)> = BTreeMap::new();
        for score in self.predicted.iter().filter(|fold| fold.head == head).flat_map(|fold| &fold.scores) {
            for slide in slides_of.get(score.id.as_str()).copied().unwrap_or_default() {
                let (sum, times) = rows.entry(slide.clone()).or_insert((vec![0.0; score.probabilities.len()], 0.0));
                sum.iter_mut().zip(&score.probabilities).for_each(|(sum, p)| *sum += p);
                *times += 1.0;
            }
        }
        let mean = |(sum, times): (Vec<f32>, f32)| sum.into_iter().map(|p| p / times).collect();
        rows.into_iter().map(|(slide, all)| (slide, mean(all))).collect()
    }

    fn untested(
        &self,
        kind: HeadKind,
        slides: &[(&SlideRecord, PathBuf)],
        device: &Device,
    ) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut rows = BTreeMap::new();
        if slides.is_empty() {
            return Ok(rows);
        }
        let mut heads: Vec<StoredHead> = Vec::new();
        for FoldScores { fold, seed, .. } in self.predicted.iter().filter(|trained| trained.head == kind) {
            heads.push(self.keeper.head(HeadPlace { kind, fold: *fold, seed: *seed }, device)?);
        }
        for (slide, file) in slides {
            let bag = Bag::of(&slide.id, h5::read_features(file)?);
            let mut mean = vec![0.0; self.cohort.classes.len()];
            for head in &heads {
                let probabilities = head.probabilities(bag.clone())?;
                mean.iter_mut().zip(probabilities).for_each(|(mean, p)| *mean += p / heads.len() as f32);
            }
            rows.insert(slide.id.clone(), mean);
        }
        Ok(rows)
    }
}
