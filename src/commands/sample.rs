//! `gensis sample`: images from the diffusion model of a run, of embeddings, of images or between two images, in one
//! picture, with a table of how near to their sources they came.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use evaluation::embeddings::EmbeddingTable;
use image::RgbImage;

use super::Outcome;
use super::output::say_line;
use crate::cli::{Line, SampleArgs};
use crate::config::{Diffusion, Experiment, Interpolation};
use crate::device;
use crate::model::diffusion::DiffusionModel;
use crate::model::{Encoder, FirstStage};
use crate::run_dir::RunDir;
use crate::sample::encode::Eyes;
use crate::sample::interpolate::{interpolate, mix_pixels};
use crate::sample::painter::{Painter, Wish};
use crate::sample::sheet::sheet;
use crate::train::autoencoder::FIRST_STAGE;
use crate::train::diffusion::MODEL;
use crate::train::pretrain::ENCODER;

/// Smallest side of an image in the picture, px.
const SHOWN: u32 = 96;

pub(super) fn sample(args: &SampleArgs) -> Result<Outcome> {
    let picture = free_path(args)?;
    let studio = Studio::open(args)?;
    let rows = match (&args.interpolate[..], &args.embeddings) {
        ([first, second], _) => studio.between(first, second, args)?,
        (_, Some(path)) => studio.of_embeddings(path, args)?,
        _ => studio.of_images(args)?,
    };
    say_line!("row,column,what,alpha,similarity_first,similarity_second")?;
    for (y, row) in rows.iter().enumerate() {
        for (x, drawn) in row.iter().enumerate() {
            let cosine =
                |source: &Option<Vec<f32>>| source.as_ref().map_or(String::new(), |s| studio.nearness(drawn, s));
            let alpha = drawn.alpha.map_or(String::new(), |alpha| alpha.to_string());
            say_line!("{y},{x},{},{alpha},{},{}", drawn.what, cosine(&drawn.first), cosine(&drawn.second))?;
        }
    }
    let images: Vec<Vec<RgbImage>> =
        rows.into_iter().map(|row| row.into_iter().map(|drawn| drawn.image).collect()).collect();
    super::diffusion::write_png(&picture, &sheet(&images, SHOWN))?;
    eprintln!("sample: {}", picture.display());
    Ok(Outcome::Done)
}

/// The picture's path: the one asked for, which must be free, or the first free one in the run folder.
fn free_path(args: &SampleArgs) -> Result<PathBuf> {
    if let Some(path) = &args.picture {
        ensure!(!path.exists(), "{} exists; choose another name with --picture", path.display());
        return Ok(path.clone());
    }
    let name = |number: usize| args.run.join("samples").join(format!("sample-{number:03}.png"));
    (1..).map(name).find(|path| !path.exists()).context("there is a free name")
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

/// The three networks of a run.
struct Studio {
    painter: Painter,
    eyes: Eyes,
    seed: u64,
}

impl Studio {
    fn open(args: &SampleArgs) -> Result<Self> {
        // The recorded experiment with the command line's changes.
        RunDir::experiment(&args.run)?;
        let experiment = Experiment::load(Some(&args.run.join("experiment.toml")), &args.settings)?;
        super::start_threads(args.compute.threads)?;
        let device = device::open(args.compute.device)?;
        let file = |folder: &str, name: &str| args.run.join(folder).join(name);
        let model = DiffusionModel::load(&file("diffusion", MODEL), &device)?;
        let stage = FirstStage::load(&file("autoencoder", FIRST_STAGE), &device)?;
        let encoder = Encoder::load(&file("pretrain", ENCODER), &device)?;
        model.require(&encoder.hash, &stage.hash)?;
        let painter = Painter::new(model, stage.clone(), &experiment.sample, &device)?;
        let unflipped = Diffusion { hflip: false, vflip: false, ..Diffusion::default() };
        let eyes = Eyes::new(stage, encoder, painter.image_side() as u32, &experiment.embed, &unflipped, &device);
        Ok(Self { painter, eyes, seed: experiment.seed })
    }

    /// Rows of an image, and samples of its embedding.
    fn of_images(&self, args: &SampleArgs) -> Result<Vec<Vec<Drawn>>> {
        let row = |path: &PathBuf| -> Result<Vec<Drawn>> {
            let source = open(path)?;
            let embedding = self.embedding(&source)?;
            let mut row = vec![self.shown("source", source)?];
            row.extend(self.samples(&embedding, args.count as usize)?);
            Ok(row)
        };
        args.images.iter().map(row).collect()
    }

    /// Rows of samples of stored embeddings.
    fn of_embeddings(&self, path: &Path, args: &SampleArgs) -> Result<Vec<Vec<Drawn>>> {
        let (dim, values) = stored_embeddings(path)?;
        let rows = values.len() / dim.max(1);
        let row = |&row: &usize| {
            ensure!(row < rows, "{} has {rows} embeddings, and row {row} (from 0) is asked for", path.display());
            self.samples(&values[row * dim..(row + 1) * dim], args.count as usize)
        };
        args.rows.iter().map(row).collect()
    }

    fn samples(&self, embedding: &[f32], count: usize) -> Result<Vec<Drawn>> {
        let wish = |sample: usize| Wish { embedding: Some(embedding.to_vec()), seed: self.seed + sample as u64 };
        let images = self.painter.images(&(0..count).map(wish).collect::<Vec<_>>())?;
        let drawn = |image| Ok(Drawn { first: Some(embedding.to_vec()), ..self.shown("sample", image)? });
        images.into_iter().map(drawn).collect()
    }

    /// Rows from the second image to the first: α, the weight of the first, grows from left to right.
    fn between(&self, first: &Path, second: &Path, args: &SampleArgs) -> Result<Vec<Vec<Drawn>>> {
        let (one, two) = (open(first)?, open(second)?);
        let (e1, e2) = (self.embedding(&one)?, self.embedding(&two)?);
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
        let wish =
            |&alpha: &f64| Wish { embedding: Some(interpolate(kind, e1, e2, alpha)), seed: self.seed + sample as u64 };
        self.painter.images(&alphas.iter().map(wish).collect::<Vec<_>>())
    }

    fn embedding(&self, image: &RgbImage) -> Result<Vec<f32>> {
        let encoded = self.eyes.encode(&self.eyes.views(image)?)?;
        encoded.into_iter().next().map(|encoded| encoded.embedding).context("an image has an embedding")
    }

    fn shown(&self, what: &'static str, image: RgbImage) -> Result<Drawn> {
        let own = self.embedding(&image)?;
        Ok(Drawn { image: self.eyes.square(&image)?, what, alpha: None, first: None, second: None, own })
    }

    /// Cosine of a drawn image's embedding and a source's.
    fn nearness(&self, drawn: &Drawn, source: &[f32]) -> String {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let lengths = (dot(&drawn.own, &drawn.own) * dot(source, source)).sqrt();
        format!("{:.4}", dot(&drawn.own, source) / lengths)
    }
}

fn open(path: &Path) -> Result<RgbImage> {
    Ok(image::open(path).with_context(|| format!("cannot read the image {}", path.display()))?.to_rgb8())
}

/// Width and values of the embeddings in a table (`.parquet`) or a slide's features (`.h5`).
fn stored_embeddings(path: &Path) -> Result<(usize, Vec<f32>)> {
    if path.extension().is_some_and(|extension| extension == "h5") {
        let features = slide_io::h5::read_features(path)?;
        return Ok((features.dim, features.values));
    }
    let table = EmbeddingTable::load(path)?;
    Ok((table.dim, table.values))
}
