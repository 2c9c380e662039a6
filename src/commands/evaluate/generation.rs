//! `gensis evaluate fid`: how near the bank's images are to the real ones, by features of encoders of the run (first of all the
//! one that conditions the diffusion model) and by Inception's, and whether they show what they were asked for.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use evaluation::fid::{
    Features, Gaussian, KernelSubsets, Reference, ReferenceHeader, frechet_distance, kernel_distance, precision_recall,
};
use evaluation::standard::Standard;
use evaluation::table::ResultRow;
use image::RgbImage;
use rand::seq::index::sample;
use rayon::prelude::*;
use serde_json::{Value, json};
use slide_io::PatchSource;

use super::heads::folder_name;
use super::slides::failure;
use super::{Scores, data_name};
use crate::commands::augment::{self, models};
use crate::commands::encoders::{Trained, ready_encoders};
use crate::commands::sources::{self, ENCODER_NAME, Input};
use crate::commands::{Run, digest, embed, latents, training, unreadable};
use crate::config::Condition;
use crate::data::ReadFailure;
use crate::data::loader::read;
use crate::device;
use crate::model::Encoder;
use crate::model::inception::{self, Inception};
use crate::model::random::keyed;
use crate::run_dir::Failure;
use crate::sample::bank::{Kind, SyntheticBank};
use crate::sample::reconstructions::Reconstructions;

/// Images judged, at most: FID's own number.
const JUDGED: usize = 50_000;
/// Neighbours of precision and recall (Kynkäänniemi et al. 2019).
const NEIGHBOURS: usize = 3;
/// Images a generated one has to find its source among.
const LINEUP: usize = 100;

/// Figures of the reconstructed, the generated and the interpolated images of a run, by one network after the other. No
/// diffusion model in the latents of an autoencoder comes nearer to the real images than what that autoencoder makes of them.
pub(super) fn generation(run: &Run, input: &Input) -> Result<Scores> {
    let models = models(run, input)?;
    let device = device::open(run.device)?;
    let settings = &run.experiment.evaluate.fid;
    let trained = ready_encoders(run, input)?;
    let named = |name: &String| -> Result<&Trained> {
        let names = || trained.iter().map(|trained| trained.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = trained.iter().find(|trained| trained.name == *name);
        found.with_context(|| format!("evaluate.fid.encoders: there is no {name} among {}", names()))
    };
    let (source, _) = training::patches(run, "evaluate", Input::open(&run.experiment.data)?)?;
    let kind = augment::shown_bank(run).context("Gen-DINO as it is configured here needs no bank")?;
    let bank = Arc::new(augment::open(run, input, &models, kind, source.clone())?);
    let encoders = settings.encoders.iter().map(named).collect::<Result<Vec<_>>>()?;
    let reconstructions = match augment::reconstructions(run, input, source.clone()) {
        Ok(reconstructions) => Some(Arc::new(reconstructions)),
        Err(error) => {
            eprintln!("evaluate: reconstructions are left out: {error:#}");
            None
        }
    };
    let images = Images { source, bank, reconstructions };
    let mut scores = Scores::default();
    let mut references = Vec::new();
    for path in &settings.references {
        match Reference::load(path) {
            Ok(reference) => references.push(Given { path, reference, used: false, unfit: vec![] }),
            Err(error) => scores.failures.push(failure(&path.display().to_string(), error.to_string())),
        }
    }
    for encoder in encoders {
        let judged = encoder.load(&device).and_then(|network| {
            let judge = Judge::Encoder(encoder.name.clone(), Box::new(network));
            judge.rows(run, &images, &mut references, &mut scores.failures)
        });
        match judged {
            Ok(rows) => scores.rows.extend(rows),
            Err(error) => scores.failures.push(encoder.unloadable("evaluate", error)?),
        }
    }
    if !settings.inception.as_os_str().is_empty() {
        let judged = Inception::load(&settings.inception, &device)
            .and_then(|network| Judge::Inception(network).rows(run, &images, &mut references, &mut scores.failures));
        match judged {
            Ok(rows) => scores.rows.extend(rows),
            Err(error) => {
                let reason = format!("no distances by Inception: {error:#}");
                scores.failures.push(failure(&settings.inception.display().to_string(), reason));
            }
        }
    }
    let unused = references.iter().filter(|given| !given.used);
    let reason = |given: &Given| format!("of none of evaluate.fid's networks: {}", given.unfit.join("; "));
    scores.failures.extend(unused.map(|given| failure(&given.path.display().to_string(), reason(given))));
    Ok(scores)
}

/// The images that are judged.
struct Images {
    source: Arc<dyn PatchSource>,
    bank: Arc<SyntheticBank>,
    reconstructions: Option<Arc<Reconstructions>>,
}

/// Stored statistics that the experiment gives.
struct Given<'a> {
    path: &'a Path,
    reference: Reference,
    /// Whether some network had a use for them.
    used: bool,
    /// Why others had none.
    unfit: Vec<String>,
}

/// What turns images into the features that are compared.
enum Judge {
    /// An encoder of the run, under its name.
    Encoder(String, Box<Encoder>),
    /// The network of the published FID.
    Inception(Inception),
}

impl Judge {
    fn name(&self) -> &str {
        match self {
            Self::Encoder(name, _) => name,
            Self::Inception(_) => "inception",
        }
    }

    fn hash(&self) -> &str {
        match self {
            Self::Encoder(_, encoder) => &encoder.hash,
            Self::Inception(inception) => &inception.hash,
        }
    }

    /// What is done to an image before the network.
    fn preprocessing(&self, run: &Run) -> String {
        match self {
            Self::Encoder(_, encoder) => {
                let view = encoder.view.map(|view| json!({ "resize": view.resize, "crop": view.crop }));
                sources::with_stain(run, view.unwrap_or_else(|| sources::embed_header(&run.experiment.embed)))
                    .to_string()
            }
            Self::Inception(_) => {
                let stain = sources::with_stain(run, json!({}));
                let stain = stain.get("stain").map_or(String::new(), |stain| format!(", stain {stain}"));
                format!("299 px, bilinear without antialiasing{stain}")
            }
        }
    }

    /// Distances of everything that was made of the images, and to those stored statistics that are of this network.
    fn rows(
        &self,
        run: &Run,
        images: &Images,
        references: &mut [Given],
        failures: &mut Vec<Failure>,
    ) -> Result<Vec<ResultRow>> {
        let mut fitting: Vec<&Reference> = vec![];
        for Given { reference, used, unfit, .. } in references {
            match reference.require(&self.preprocessing(run), self.hash()) {
                Ok(()) => {
                    *used = true;
                    fitting.push(reference);
                }
                Err(error) => unfit.push(format!("{}: {error}", self.name())),
            }
        }
        let Images { source, bank, reconstructions } = images;
        let real = self.embedded(run, source.clone(), thinned((0..source.len()).collect()), failures)?;
        self.save_reference(run, &real)?;
        // As they condition the diffusion model: a large common part says nothing about which image is meant.
        let by_condition = (self.name() == ENCODER_NAME).then_some(run.experiment.diffusion.condition);
        let standard = (by_condition == Some(Condition::Standardized)).then(|| Standard::of(&real.values, real.dim));
        let asked = |embedded: &Embedded| {
            let mut embedded = embedded.clone();
            standard.iter().for_each(|standard| standard.apply(&mut embedded.values));
            embedded
        };
        let mut rows = vec![];
        let mut add = |head: &str, made: &Embedded, sources: &[usize]| -> Result<()> {
            if made.rows.len() < 2 {
                return Ok(());
            }
            let base = ResultRow {
                task: "fid".into(),
                data: data_name(run),
                encoder: self.name().into(),
                head: head.into(),
                seed: Some(run.experiment.seed),
                n: made.rows.len() as u64,
                ..ResultRow::default()
            };
            rows.extend(distances(&base, &real, made, run.experiment.seed)?);
            for Reference { header, gaussian } in &fitting {
                let data = format!("{}, {}", header.data, header.split);
                let distance = frechet_distance(gaussian, &Gaussian::of(made.features()?)?)?;
                let (metric, value) = ("frechet_distance".into(), Some(distance));
                rows.push(ResultRow { data, metric, value, ..base.clone() });
            }
            rows.push(found(&base, sources, &asked(&real), &asked(made), run.experiment.seed));
            Ok(())
        };
        if let Some(reconstructions) = reconstructions {
            let mut all = reconstructions.images();
            all.retain(|at| real.rows.binary_search(at).is_ok());
            let all = thinned(all);
            let made = self.embedded(run, reconstructions.clone(), all, failures)?;
            add("reconstructed", &made, &made.rows)?;
        }
        for kind in [Kind::Generative, Kind::Interpolated] {
            // Of images whose source is at hand: otherwise few of a large set could find theirs.
            let judged = |&at: &usize| {
                let image = &bank.images()[at];
                image.kind == kind && real.rows.binary_search(&image.source).is_ok()
            };
            let chosen = (0..bank.images().len()).filter(judged).collect();
            let made = self.embedded(run, bank.clone(), thinned(chosen), failures)?;
            let sources: Vec<usize> = made.rows.iter().map(|&at| bank.images()[at].source).collect();
            add(kind.name(), &made, &sources)?;
        }
        Ok(rows)
    }

    /// Features of those images of `source` that can be read; the others are listed.
    fn embedded(
        &self,
        run: &Run,
        source: Arc<dyn PatchSource>,
        indices: Vec<usize>,
        failures: &mut Vec<Failure>,
    ) -> Result<Embedded> {
        let mut list = |failure: &ReadFailure| {
            let failure = unreadable("evaluate", failure);
            if !failures.contains(&failure) {
                failures.push(failure);
            }
        };
        match self {
            Self::Encoder(_, encoder) => {
                let threads = (run.threads, embed::workers(run));
                let embedded = embed::features(encoder, 1, source, indices, &run.experiment.embed, threads, |_| ())?;
                embedded.failures.iter().for_each(list);
                Ok(Embedded { rows: embedded.indices, dim: encoder.dim(), values: embedded.values })
            }
            Self::Inception(inception) => {
                let (mut rows, mut values) = (vec![], vec![]);
                for batch in indices.chunks(run.experiment.embed.batch.max(1)) {
                    let read: Vec<_> = batch.par_iter().map(|&index| (index, read(&*source, index))).collect();
                    let mut images: Vec<RgbImage> = Vec::with_capacity(read.len());
                    for (index, patch) in read {
                        match patch {
                            Ok(image) => {
                                images.push(image);
                                rows.push(index);
                            }
                            Err(failure) => list(&failure),
                        }
                    }
                    values.extend(inception.embed(&images)?);
                }
                Ok(Embedded { rows, dim: inception::FEATURES, values })
            }
        }
    }

    /// Stores the real images' statistics, with what they are of.
    fn save_reference(&self, run: &Run, real: &Embedded) -> Result<()> {
        let file = match self.name() {
            ENCODER_NAME => "fid_reference".to_owned(),
            other => format!("fid_reference_{}", folder_name(other)),
        };
        let (preprocessing, encoder) = (self.preprocessing(run), self.hash().to_owned());
        let header = ReferenceHeader { data: data_name(run), split: "train".into(), preprocessing, encoder };
        let gaussian = Gaussian::of(real.features()?)?;
        Ok(Reference { header, gaussian }.save(&run.dir.file(&format!("results/{file}.safetensors"))?)?)
    }
}

/// Embeddings of some images of a source.
#[derive(Clone)]
struct Embedded {
    /// Which.
    rows: Vec<usize>,
    dim: usize,
    values: Vec<f32>,
}

impl Embedded {
    fn features(&self) -> Result<Features<'_>> {
        Ok(Features::new(&self.values, self.dim)?)
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.dim..(row + 1) * self.dim]
    }
}

/// At most [`JUDGED`], evenly.
fn thinned(indices: Vec<usize>) -> Vec<usize> {
    let count = indices.len().min(JUDGED);
    (0..count).map(|i| indices[i * indices.len() / count]).collect()
}

fn distances(base: &ResultRow, real: &Embedded, made: &Embedded, seed: u64) -> Result<Vec<ResultRow>> {
    let (truth, drawn) = (real.features()?, made.features()?);
    let frechet = frechet_distance(&Gaussian::of(truth)?, &Gaussian::of(drawn)?)?;
    let size = KernelSubsets::default().size.min(truth.len()).min(drawn.len());
    let kernel = kernel_distance(truth, drawn, &KernelSubsets { size, seed, ..KernelSubsets::default() })?;
    let k = NEIGHBOURS.min(truth.len().min(drawn.len()).saturating_sub(1)).max(1);
    let shares = precision_recall(truth, drawn, k)?;
    let row = |metric: &str, value: f64| ResultRow { metric: metric.into(), value: Some(value), ..base.clone() };
    Ok(vec![
        row("frechet_distance", frechet),
        row("kernel_distance", kernel.mean),
        row("precision", shares.precision),
        row("recall", shares.recall),
    ])
}

/// How often an image's embedding is nearer (cosine) to that of its source, one of `sources` for each, than to those of
/// 99 other real images, drawn for each by the seed.
fn found(base: &ResultRow, sources: &[usize], real: &Embedded, made: &Embedded, seed: u64) -> ResultRow {
    let lineup = LINEUP.min(real.rows.len());
    let nearness = |made: &[f32], row: usize| {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        dot(made, real.row(row)) / dot(real.row(row), real.row(row)).sqrt().max(1e-12)
    };
    let hit = |(row, &at): (usize, &usize)| -> Option<bool> {
        let source = real.rows.binary_search(&sources[row]).ok()?;
        let own = nearness(made.row(row), source);
        let mut rng = keyed(seed, "fid lineup", &[at as u64]);
        let others = sample(&mut rng, real.rows.len() - 1, lineup - 1);
        Some(others.into_iter().all(|other| nearness(made.row(row), other + usize::from(other >= source)) < own))
    };
    let hits: Vec<bool> = made.rows.iter().enumerate().filter_map(hit).collect();
    let share = hits.iter().filter(|hit| **hit).count() as f64 / hits.len().max(1) as f64;
    let value = (!hits.is_empty()).then_some(share);
    ResultRow { metric: format!("source_found_among_{lineup}"), value, n: hits.len() as u64, ..base.clone() }
}

/// Whether the run has a bank to judge.
pub(super) fn has_bank(run: &Run) -> bool {
    run.experiment.gen_dino.enabled && run.dir.record("bank").is_some() && augment::shown_bank(run).is_some()
}

/// What the figures depend on: the bank as it was made and the encoders that judge it, or nothing. Asked for by name it is judged
/// even where Gen-DINO is off.
pub(super) fn header(run: &Run, input: &Input, encoders: &[Trained]) -> Value {
    let Some(bank) = run.dir.record("bank") else { return Value::Null };
    let mut header = json!(bank.header);
    header["patches"] = training::fingerprint(run, input);
    let hash = |name: &String| encoders.iter().find(|encoder| encoder.name == *name).map(|encoder| &encoder.hash);
    header["judges"] = run.experiment.evaluate.fid.encoders.iter().map(|name| json!([name, hash(name)])).collect();
    header["preprocessing"] = sources::with_stain(run, sources::embed_header(&run.experiment.embed));
    // An earlier version looked for sources among images that it did not look at.
    if bank.header["banks"][0]["images"].as_u64().is_some_and(|images| images > JUDGED as u64) {
        header["judged"] = json!("with their sources");
    }
    // Their figures are left out until the latents are there again.
    if !latents::exist(run) {
        header["without"] = json!("reconstructions");
    }
    let inception = &run.experiment.evaluate.fid.inception;
    if !inception.as_os_str().is_empty() {
        header["inception"] = json!(digest::of_file(run, inception));
    }
    let references = &run.experiment.evaluate.fid.references;
    if !references.is_empty() {
        header["references"] = references.iter().map(|path| json!(digest::of_whole_file(run, path))).collect();
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_more_images_than_are_judged_as_many_are_taken_evenly() {
        assert_eq!(thinned(vec![]), [0; 0]);
        assert_eq!(thinned(vec![3, 5, 9]), [3, 5, 9]);
        let taken = thinned((0..JUDGED * 3 / 2).collect());
        assert_eq!((taken.len(), &taken[..4]), (JUDGED, &[0, 1, 3, 4][..]));
    }

    /// Image n looks along axis n; of each something was made that looks like the next one.
    #[test]
    fn every_other_image_of_a_small_set_stands_in_the_lineup() {
        let axis = |at: usize| (0..5).map(move |i| f32::from(u8::from(i == at)));
        let embedded = |of: &dyn Fn(usize) -> usize| Embedded {
            rows: (0..5).collect(),
            dim: 5,
            values: (0..5).flat_map(|at| axis(of(at))).collect(),
        };
        let real = embedded(&|at| at);
        for seed in 0..20 {
            let base = ResultRow::default();
            let found = |made: &Embedded| found(&base, &[0, 1, 2, 3, 4], &real, made, seed);
            let [like_itself, like_the_next] = [found(&real), found(&embedded(&|at| (at + 1) % 5))];
            assert_eq!((like_itself.value, like_the_next.value), (Some(1.0), Some(0.0)));
            assert_eq!((like_itself.metric.as_str(), like_itself.n), ("source_found_among_5", 5));
        }
    }
}
