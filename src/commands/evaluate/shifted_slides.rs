//! `gensis evaluate robustness` on slides: test slides as another laboratory or scanner would show them, asked of the heads
//! that were trained on the slides as they are.
//!
//! Rows are those of `robustness.rs`, with the metrics `<head>_accuracy`, `<head>_macro_auc` and `cosine`. Every slide is asked
//! of a head that has not seen it. Whether a slide is, say, brighter or darker is drawn once for the whole slide.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use evaluation::bag::{Bag, merge};
use evaluation::metric::{Metric, Predictions};
use evaluation::mil::StoredHead;
use evaluation::table::ResultRow;
use rand::seq::index;
use serde_json::Value;
use slide_io::{Cohort, PatchSource, Point, SlidePatches, SlideRecord};

use super::heads::{EncoderHeads, HeadIndex, HeadPlace};
use super::probed::embedded;
use super::robustness::{mean_cosine, means};
use super::slides::failure;
use super::{Own, Scores, bootstrap, data_name};
use crate::commands::Run;
use crate::commands::sources;
use crate::config::Robustness;
use crate::data::shift::{SEVERITIES, Shift, Shifted};
use crate::device;
use crate::model::Encoder;
use crate::model::random::keyed;

/// What is scored of every head.
const METRICS: [Metric; 2] = [Metric::Accuracy, Metric::MacroAuc];

/// Refuses settings that ask for nothing.
pub(super) fn check(settings: &Robustness) -> Result<()> {
    ensure!(
        settings.tissue,
        "nothing is asked for: set evaluate.robustness.tissue=true for changes of the test slides"
    );
    Ok(())
}

/// Rows of every encoder of this run whose heads were kept by the evaluation with the header `header`.
pub(super) fn shifted_slides(run: &Run, cohort: &Cohort, own: &Own, header: &Value) -> Result<Scores> {
    let mut scores = Scores::default();
    if cohort.slides.iter().all(|slide| slide.label.is_none()) {
        return Ok(scores);
    }
    let index = HeadIndex::of_evaluation(run.dir.root(), header)?;
    let device = device::open(run.device)?;
    let mut refused = None;
    for trained in &own.encoders {
        let heads = index.encoders.iter().find(|heads| heads.name == trained.name && heads.hash == trained.hash);
        // An encoder without heads has its reason among the failures of the slides.
        let Some(heads) = heads else { continue };
        let most = match run.experiment.evaluate.robustness.slides {
            0 => usize::MAX,
            most => most,
        };
        let subjects = heads.tested().into_iter().take(most).collect();
        let score = || -> Result<()> {
            let encoder = trained.load(&device)?;
            Asked::open(run, cohort, &index, heads, subjects, &encoder, &device)?.score(&mut scores)
        };
        if let Err(error) = score() {
            scores.failures.push(failure(&format!("{}, shifted slides", trained.name), format!("{error:#}")));
            refused.get_or_insert(error);
        }
    }
    match refused {
        Some(error) if scores.rows.is_empty() => Err(error),
        _ => Ok(scores),
    }
}

/// The slides that are asked about, and the heads of one encoder.
struct Asked<'a> {
    run: &'a Run,
    cohort: &'a Cohort,
    index: &'a HeadIndex,
    heads: &'a EncoderHeads,
    encoder: &'a Encoder,
    /// Subjects with the fold whose heads are asked.
    subjects: Vec<(usize, usize)>,
    /// Some of their patches.
    patches: Arc<SlidePatches>,
    /// All of them, in the order in which they are read.
    order: Vec<usize>,
    /// Heads by their place.
    loaded: Vec<(HeadPlace, StoredHead)>,
}

impl<'a> Asked<'a> {
    fn open(
        run: &'a Run,
        cohort: &'a Cohort,
        index: &'a HeadIndex,
        heads: &'a EncoderHeads,
        subjects: Vec<(usize, usize)>,
        encoder: &'a Encoder,
        device: &Device,
    ) -> Result<Self> {
        let of_subjects = subjects.iter().flat_map(|(subject, _)| &heads.subjects[*subject].slides);
        let record = |id: &String| cohort.slides.iter().find(|slide| slide.id == *id);
        let slides: Vec<&SlideRecord> = of_subjects.filter_map(record).collect();
        let (seed, most) = (run.experiment.seed, run.experiment.evaluate.robustness.patches);
        let thin = |id: &str, origins: Vec<Point>| thinned(seed, id, origins, most);
        let patches = Arc::new(sources::some_patches(run, &slides, &cohort.classes, thin)?);
        let order = |slide| patches.reading_order(slide).unwrap_or_else(|_| patches.range(slide).collect());
        let order = (0..patches.slides().len()).flat_map(order).collect();
        let mut loaded = Vec::new();
        for &kind in &heads.heads {
            for &seed in &heads.seeds {
                for place in heads.places(kind, seed) {
                    loaded.push((place, index.head(run.dir.root(), heads, place, device)?));
                }
            }
        }
        Ok(Self { run, cohort, index, heads, encoder, subjects, patches, order, loaded })
    }

    /// Rows of the slides as they are and with every shift at every severity.
    fn score(&self, scores: &mut Scores) -> Result<()> {
        let clean = self.embed(self.patches.clone(), "clean@0", scores)?;
        scores.rows.extend(self.rows("clean@0", &clean)?);
        let mut all = Vec::new();
        for &shift in &self.run.experiment.evaluate.robustness.shifts {
            let mut of_shift = Vec::new();
            for severity in 1..=SEVERITIES {
                let head = format!("{}@{severity}", shift.name());
                let shifted = self.embed(self.shifted(shift, severity), &head, scores)?;
                if shifted.is_empty() {
                    continue;
                }
                of_shift.extend(self.rows(&head, &shifted)?);
                let both = || shifted.iter().filter_map(|(index, row)| Some((row, clean.get(index)?)));
                let values = |rows: Vec<&Vec<f32>>| rows.into_iter().flatten().copied().collect::<Vec<f32>>();
                let (after, before) =
                    (values(both().map(|pair| pair.0).collect()), values(both().map(|pair| pair.1).collect()));
                let cosine = mean_cosine(&after, &before, self.encoder.dim());
                let base = self.base(&head, self.run.experiment.seed, self.subjects.len());
                of_shift.push(ResultRow { metric: "cosine".into(), value: Some(cosine), ..base });
            }
            scores.rows.extend(of_shift.iter().cloned());
            scores.rows.extend(self.means(&format!("{}@mean", shift.name()), &of_shift));
            all.extend(of_shift);
        }
        scores.rows.extend(self.means("all@mean", &all));
        Ok(())
    }

    /// The shift comes before the stain is normalised, as it would from another laboratory.
    fn shifted(&self, shift: Shift, severity: usize) -> Arc<dyn PatchSource> {
        let (run, view) = (self.run, self.encoder.view.map_or(self.run.experiment.embed.resize, |view| view.resize));
        Arc::new(Shifted { source: self.patches.clone(), shift, severity, view, seed: run.experiment.seed })
    }

    /// Embeddings by patch, of those that can be read.
    fn embed(
        &self,
        source: Arc<dyn PatchSource>,
        head: &str,
        scores: &mut Scores,
    ) -> Result<BTreeMap<usize, Vec<f32>>> {
        let run = self.run;
        let source = match sources::normalized(run, source.clone())? {
            Some(normalized) => normalized,
            None => source,
        };
        let title = format!("{}, {head}", self.heads.name);
        let (settings, order) = (&run.experiment.embed, self.order.clone());
        let found = embedded(run, self.encoder, 1, source, order, settings, &title, &mut scores.failures)?;
        let rows = found.values.chunks_exact(self.encoder.dim()).map(<[f32]>::to_vec);
        Ok(found.indices.into_iter().zip(rows).collect())
    }

    /// A row without figures.
    fn base(&self, head: &str, seed: u64, n: usize) -> ResultRow {
        ResultRow {
            task: "robustness".into(),
            data: data_name(self.run),
            encoder: self.heads.name.clone(),
            head: head.into(),
            seed: Some(seed),
            n: n as u64,
            ..ResultRow::default()
        }
    }

    /// What the heads say of slides with these embeddings.
    fn rows(&self, head: &str, embedded: &BTreeMap<usize, Vec<f32>>) -> Result<Vec<ResultRow>> {
        let mut rows = Vec::new();
        let bags: Vec<(usize, Bag)> = self
            .subjects
            .iter()
            .filter_map(|&(subject, fold)| Some(self.bag(subject, embedded).transpose()?.map(|bag| (fold, bag))))
            .collect::<Result<_>>()?;
        for &kind in &self.heads.heads {
            for &seed in &self.heads.seeds {
                let (mut labels, mut probabilities, mut groups) = (Vec::new(), Vec::new(), Vec::new());
                for (fold, bag) in &bags {
                    let place = HeadPlace { kind, fold: *fold, seed };
                    let trained = self.loaded.iter().find(|(known, _)| *known == place);
                    let (_, trained) = trained.context("every fold has a head")?;
                    labels.push(bag.label.context("a tested slide has a label")?);
                    groups.push(bag.group.clone());
                    probabilities.extend(trained.probabilities(bag.clone())?);
                }
                let predictions = Predictions::new(labels, probabilities, self.index.classes.len())?;
                let base = self.base(head, seed, bags.len());
                let intervals = bootstrap(self.run).intervals(&predictions, Some(&groups), &METRICS)?;
                rows.extend(METRICS.into_iter().zip(intervals).map(|(metric, interval)| {
                    let name = format!("{}_{}", kind.name(), metric.name());
                    ResultRow { metric: name, ..base.with(metric, interval) }
                }));
            }
        }
        Ok(rows)
    }

    /// The patches of a subject; none where none could be read.
    fn bag(&self, subject: usize, embedded: &BTreeMap<usize, Vec<f32>>) -> Result<Option<Bag>> {
        let subject = &self.heads.subjects[subject];
        let record = self.cohort.slides.iter().find(|slide| subject.slides.contains(&slide.id));
        let patient = record.and_then(|slide| slide.group.clone()).unwrap_or_else(|| subject.id.clone());
        let of_slide = |id: &String| -> Option<Bag> {
            let slide = self.patches.slides().iter().position(|slide| slide.id == *id)?;
            let there: Vec<usize> = self.patches.range(slide).filter(|index| embedded.contains_key(index)).collect();
            let start = self.patches.range(slide).start;
            Some(Bag {
                id: subject.id.clone(),
                dim: self.encoder.dim(),
                features: there.iter().flat_map(|index| &embedded[index]).copied().collect(),
                coords: there.iter().map(|index| self.patches.slides()[slide].origins[index - start]).collect(),
                label: subject.label,
                group: patient.clone(),
            })
            .filter(|bag| bag.patches() > 0)
        };
        Ok(merge(subject.slides.iter().filter_map(of_slide).collect())?)
    }

    /// Means over rows, for each seed.
    fn means(&self, head: &str, rows: &[ResultRow]) -> Vec<ResultRow> {
        let mut seeds: Vec<u64> = rows.iter().filter_map(|row| row.seed).collect();
        seeds.sort_unstable();
        seeds.dedup();
        let of_seed = |seed| -> Vec<ResultRow> {
            let same: Vec<ResultRow> = rows.iter().filter(|row| row.seed == Some(seed)).cloned().collect();
            means(&self.base(head, seed, self.subjects.len()), &same)
        };
        seeds.into_iter().flat_map(of_seed).collect()
    }
}

/// At most `most` of a slide's positions, drawn by its id and in their order; 0 takes all.
fn thinned(seed: u64, slide: &str, origins: Vec<Point>, most: usize) -> Vec<Point> {
    if most == 0 || origins.len() <= most {
        return origins;
    }
    let mut rng = keyed(seed, &format!("shifted patches of {slide}"), &[]);
    let mut drawn = index::sample(&mut rng, origins.len(), most).into_vec();
    drawn.sort_unstable();
    drawn.into_iter().map(|index| origins[index]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_part_of_the_patches_keeps_their_order() {
        let origins: Vec<Point> = (0..100).map(|x| Point::new(x, 0)).collect();
        let drawn = thinned(7, "a", origins.clone(), 10);
        assert!(drawn.len() == 10 && drawn.windows(2).all(|pair| pair[0].x < pair[1].x));
        assert_eq!(drawn, thinned(7, "a", origins.clone(), 10));
        assert_ne!(drawn, thinned(7, "b", origins.clone(), 10));
        assert_eq!(thinned(7, "a", origins.clone(), 0), origins);
    }
}
