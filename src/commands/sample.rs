//! `gensis sample`: images from the diffusion model of a run, of embeddings, of images or between two images, in one
//! picture, with a table of how near to their sources they came.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use evaluation::embeddings::EmbeddingTable;
use image::RgbImage;
use serde_json::{Value, json};
use slide_io::stain::{Method, Target};
use slide_io::{atomic_file, folder, h5};

use super::output::say_line;
use super::{Outcome, digest, sources};
use crate::cli::{Line, SampleArgs};
use crate::config::{Diffusion, Experiment, Interpolation};
use crate::device;
use crate::model::diffusion::DiffusionModel;
use crate::model::{Encoder, FirstStage};
use crate::run_dir::{RunDir, as_stored, read_record};
use crate::sample::encode::Eyes;
use crate::sample::interpolate::mix_pixels;
use crate::sample::painter::{Painter, Wish};
use crate::sample::sheet::{png, sheet};
use crate::train::autoencoder::FIRST_STAGE;
use crate::train::checkpoint::first_difference;
use crate::train::diffusion::MODEL;
use crate::train::pretrain::ENCODER;

/// Smallest side of an image in the picture, px.
const SHOWN: u32 = 96;

pub(super) fn sample(args: &SampleArgs) -> Result<Outcome> {
    if let Some(path) = &args.picture {
        ensure!(!path.exists(), "{} exists; choose another name with --picture", path.display());
    }
    let studio = Studio::open(args)?;
    let rows = match (&args.interpolate[..], &args.embeddings) {
        ([first, second], _) => studio.between(first, second, args)?,
        (_, Some(path)) => studio.of_embeddings(path, args)?,
        _ => studio.of_images(args)?,
    };
    say_line!("row,column,what,alpha,similarity_first,similarity_second")?;
    for (y, row) in rows.iter().enumerate() {
        for (x, drawn) in row.iter().enumerate() {
            let cosine = |source: &Option<Vec<f32>>| {
                source.as_ref().map_or(String::new(), |source| format!("{:.4}", studio.nearness(drawn, source)))
            };
            let alpha = drawn.alpha.map_or(String::new(), |alpha| alpha.to_string());
            say_line!("{y},{x},{},{alpha},{},{}", drawn.what, cosine(&drawn.first), cosine(&drawn.second))?;
        }
    }
    if !args.interpolate.is_empty() {
        let moving = rows.iter().filter(|row| studio.follows(row)).count();
        eprintln!(
            "sample: with every step of α the first image gained on the second in {moving} of {} strips",
            rows.len()
        );
    }
    let images: Vec<Vec<RgbImage>> =
        rows.into_iter().map(|row| row.into_iter().map(|drawn| drawn.image).collect()).collect();
    let picture = publish(args, &sheet(&images, SHOWN))?;
    eprintln!("sample: {}", picture.display());
    Ok(Outcome::Done)
}

/// Writes the picture where it was asked for, or under the first free name in the run folder. Nothing is replaced: another that came
/// to be there meanwhile sends it to the run folder too.
fn publish(args: &SampleArgs, image: &RgbImage) -> Result<PathBuf> {
    let bytes = png(image)?;
    if let Some(path) = &args.picture {
        if atomic_file::create(path, &bytes)? {
            return Ok(path.clone());
        }
        eprintln!("sample: {} has come to exist meanwhile", path.display());
    }
    let name = |number: usize| args.run.join("samples").join(format!("sample-{number:03}.png"));
    let mut number = 1;
    while !atomic_file::create(&name(number), &bytes)? {
        number += 1;
    }
    Ok(name(number))
}

/// An image with what it was made of.
struct Drawn {
    image: RgbImage,
    what: &'static str,
    alpha: Option<f64>,
    /// Embeddings of its sources.
    first: Option<Vec<f32>>,
    second: Option<Vec<f32>>,
    /// Its own embedding.
    own: Vec<f32>,
}

/// The three networks of a run, and the stain that they know.
struct Studio {
    painter: Painter,
    eyes: Eyes,
    stain: Option<Target>,
    /// Hash of the encoder whose embeddings condition.
    encoder: String,
    seed: u64,
}

impl Studio {
    fn open(args: &SampleArgs) -> Result<Self> {
        // The recorded experiment with the command line's changes.
        RunDir::experiment(&args.run)?;
        let experiment = Experiment::load(Some(&args.run.join("experiment.toml")), &args.settings)?;
        super::start_threads(args.compute.threads)?;
        require_view(&args.run, &experiment)?;
        let device = device::open(args.compute.device)?;
        let file = |folder: &str, name: &str| args.run.join(folder).join(name);
        let there = file("diffusion", MODEL).exists();
        ensure!(there, "{} has no diffusion model: run `gensis diffusion` first", args.run.display());
        let model = DiffusionModel::load(&file("diffusion", MODEL), &device)?;
        let stage = FirstStage::load(&file("autoencoder", FIRST_STAGE), &device)?;
        let encoder = Encoder::load(&file("pretrain", ENCODER), &device)?;
        model.require(&encoder.hash, &stage.hash)?;
        let hash = encoder.hash.clone();
        let painter = Painter::new(model, stage.clone(), &experiment.sample, &device)?;
        let unflipped = Diffusion { hflip: false, vflip: false, ..Diffusion::default() };
        let eyes = Eyes::new(stage, encoder, painter.image_side() as u32, &experiment.embed, &unflipped, &device);
        let (stain, encoder) = (Target::new(&experiment.stain)?, hash);
        Ok(Self { painter, eyes, stain, encoder, seed: experiment.seed })
    }

    /// Rows of an image, and samples of its embedding.
    fn of_images(&self, args: &SampleArgs) -> Result<Vec<Vec<Drawn>>> {
        // What cannot be read is found out before the first is drawn.
        let sources = args.images.iter().map(|path| self.read(path)).collect::<Result<Vec<_>>>()?;
        let row = |(source, embedding): (RgbImage, Vec<f32>)| -> Result<Vec<Drawn>> {
            let mut row = vec![self.shown("source", source)?];
            row.extend(self.samples(&embedding, args.count as usize)?);
            Ok(row)
        };
        sources.into_iter().map(row).collect()
    }

    /// Rows of samples of stored embeddings.
    fn of_embeddings(&self, path: &Path, args: &SampleArgs) -> Result<Vec<Vec<Drawn>>> {
        let (dim, values, encoder) = stored_embeddings(path)?;
        ensure!(
            encoder.as_ref().is_none_or(|encoder| *encoder == self.encoder),
            "{} holds embeddings by the encoder {}, and the diffusion model is conditioned on those of {}",
            path.display(),
            encoder.as_deref().unwrap_or_default(),
            self.encoder
        );
        if encoder.is_none() {
            eprintln!(
                "sample: warning: {} does not say which encoder made it; only embeddings by {} mean something here",
                path.display(),
                self.encoder
            );
        }
        let rows = values.len() / dim.max(1);
        for row in &args.rows {
            ensure!(*row < rows, "{} has {rows} embeddings, and row {row} (from 0) is asked for", path.display());
        }
        let row = |&row: &usize| self.samples(&values[row * dim..(row + 1) * dim], args.count as usize);
        args.rows.iter().map(row).collect()
    }

    fn samples(&self, embedding: &[f32], count: usize) -> Result<Vec<Drawn>> {
        let wish =
            |sample: usize| Wish { condition: self.painter.condition(embedding), seed: self.seed + sample as u64 };
        let images = self.painter.images(&(0..count).map(wish).collect::<Vec<_>>())?;
        let drawn = |image| Ok(Drawn { first: Some(embedding.to_vec()), ..self.shown("sample", image)? });
        images.into_iter().map(drawn).collect()
    }

    /// Rows from the second image to the first: α, the weight of the first, grows from left to right.
    fn between(&self, first: &Path, second: &Path, args: &SampleArgs) -> Result<Vec<Vec<Drawn>>> {
        let ((one, e1), (two, e2)) = (self.read(first)?, self.read(second)?);
        let squares = [&one, &two].map(|image| self.eyes.square(image));
        let [one, two] = squares;
        let (one, two) = (one?, two?);
        let rows = if args.line == Line::Pixels { 1 } else { args.count as usize };
        let mut strips = Vec::new();
        for sample in 0..rows {
            let images = match args.line {
                Line::Pixels => {
                    args.alphas.iter().map(|&alpha| mix_pixels(&one, &two, alpha)).collect::<Result<_>>()?
                }
                Line::Slerp => self.on_line(Interpolation::Slerp, [&e1, &e2], &args.alphas, sample)?,
                Line::Lerp => self.on_line(Interpolation::Lerp, [&e1, &e2], &args.alphas, sample)?,
            };
            let whole = args.alphas.iter().copied().zip(images).map(|(alpha, image)| ("interpolated", alpha, image));
            let ends = |what, alpha, image: &RgbImage| std::iter::once((what, alpha, image.clone()));
            let strip = ends("second", 0.0, &two).chain(whole).chain(ends("first", 1.0, &one));
            let drawn = strip.map(|(what, alpha, image)| {
                let (first, second) = (Some(e1.clone()), Some(e2.clone()));
                Ok(Drawn { alpha: Some(alpha), first, second, ..self.shown(what, image)? })
            });
            strips.push(drawn.collect::<Result<_>>()?);
        }
        Ok(strips)
    }

    /// Samples of the points between two embeddings, all from the same noise.
    fn on_line(
        &self,
        kind: Interpolation,
        [e1, e2]: [&Vec<f32>; 2],
        alphas: &[f64],
        sample: usize,
    ) -> Result<Vec<RgbImage>> {
        let wish = |&alpha: &f64| Wish {
            condition: self.painter.between(kind, e1, e2, alpha),
            seed: self.seed + sample as u64,
        };
        self.painter.images(&alphas.iter().map(wish).collect::<Vec<_>>())
    }

    /// An image, with the stain that the run gives its images: by the statistics of this image; and its embedding.
    fn read(&self, path: &Path) -> Result<(RgbImage, Vec<f32>)> {
        let mut image = folder::read_image(path)?;
        if let Some(stain) = &self.stain {
            let normalizer = stain.normalizer(image.as_chunks::<3>().0);
            let lacking = |why| anyhow!("{}: its stain cannot be normalised: {why}", path.display());
            normalizer.map_err(lacking)?.apply(&mut image);
        }
        let embedding = self.embedding(&image).with_context(|| format!("cannot embed {}", path.display()))?;
        Ok((image, embedding))
    }

    fn embedding(&self, image: &RgbImage) -> Result<Vec<f32>> {
        let encoded = self.eyes.encode(&self.eyes.views(image)?)?;
        encoded.into_iter().next().map(|encoded| encoded.embedding).context("an image has an embedding")
    }

    fn shown(&self, what: &'static str, image: RgbImage) -> Result<Drawn> {
        let own = self.embedding(&image)?;
        Ok(Drawn { image: self.eyes.square(&image)?, what, alpha: None, first: None, second: None, own })
    }

    /// Cosine of a drawn image's embedding and a source's, both as they condition: a large common part says nothing about
    /// which image is meant.
    fn nearness(&self, drawn: &Drawn, source: &[f32]) -> f64 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let [own, source] = [&drawn.own[..], source].map(|embedding| self.painter.conditioned(embedding));
        dot(&own, &source) / (dot(&own, &own) * dot(&source, &source)).sqrt().max(1e-12)
    }

    /// Whether the images of a strip, ends and all, go from the second image to the first as α grows: by how much nearer they
    /// are to the first than to the second.
    fn follows(&self, strip: &[Drawn]) -> bool {
        let place = |drawn: &Drawn| -> Option<(f64, f64)> {
            let ahead = self.nearness(drawn, drawn.first.as_ref()?) - self.nearness(drawn, drawn.second.as_ref()?);
            Some((drawn.alpha?, ahead))
        };
        let mut places: Vec<(f64, f64)> = strip.iter().filter_map(place).collect();
        places.sort_by(|a, b| a.0.total_cmp(&b.0));
        places.is_sorted_by(|a, b| a.0 == b.0 || a.1 < b.1)
    }
}

/// That images are put before the encoder as the diffusion model learnt to know them. A folder that was given the weights alone
/// has no record to compare with.
fn require_view(run: &Path, experiment: &Experiment) -> Result<()> {
    let Some(record) = read_record(run, "diffusion") else { return Ok(()) };
    let learnt = json!({ "embed": record.header["embed"], "stain": record.header["stain"] });
    let mut asked = json!({ "embed": sources::embed_header(&experiment.embed), "stain": null });
    if experiment.stain.normalize != Method::None {
        let reference = &experiment.stain.reference;
        let digest = match reference.as_os_str().is_empty() {
            true => None,
            false => Some(digest::sampled(reference).with_context(|| format!("cannot read {}", reference.display()))?),
        };
        asked["stain"] = sources::stain_header(&experiment.stain, digest);
    }
    if let Some((key, learnt, asked)) = first_difference("", &learnt, &as_stored(&asked)) {
        bail!(
            "the diffusion model was trained with {key} = {learnt}, and {asked} is asked for: set it back with --set, or train \
             the model anew (`gensis diffusion --update`)"
        );
    }
    Ok(())
}

/// Width and values of the embeddings in a table (`.parquet`) or a slide's features (`.h5`), and the hash of their encoder where
/// the file says it.
fn stored_embeddings(path: &Path) -> Result<(usize, Vec<f32>, Option<String>)> {
    let encoder = |header: &Value| header["encoder"].as_str().map(str::to_owned);
    if path.extension().is_some_and(|extension| extension == "h5") {
        let features = h5::read_features(path)?;
        let header = h5::read_header(path)?;
        return Ok((features.dim, features.values, header.as_ref().and_then(encoder)));
    }
    let table = EmbeddingTable::load(path)?;
    Ok((table.dim, table.values, encoder(&table.header)))
}
