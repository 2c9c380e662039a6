//! Options of what trains and draws: `pretrain`, `autoencoder`, `diffusion`, `augment`, `sample`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ComputeArgs, StageArgs, share};
use crate::sample::bank::Part;

/// Options of `augment`.
#[derive(Debug, Clone, Args)]
pub struct AugmentArgs {
    /// Make only every n-th file from the i-th on: 1/4, 2/4, 3/4 and 4/4 make the whole.
    #[arg(long, value_name = "I/N", default_value_t = Part::WHOLE)]
    pub shard: Part,
    /// The stage's options.
    #[command(flatten)]
    pub stage: StageArgs,
}

/// Options of `pretrain`.
#[derive(Debug, Clone, Args)]
pub struct PretrainArgs {
    /// Train the encoders of gen_dino.variants on real and synthetic images (gen_dino.enabled): `gensis pretrain`, `autoencoder`,
    /// `diffusion` and `augment` have to come first. A run that began without gen_dino.enabled takes it with --update.
    #[arg(long)]
    pub gen_dino: bool,
    /// The training's options.
    #[command(flatten)]
    pub training: TrainingArgs,
}

/// Options of a stage that trains.
#[derive(Debug, Clone, Args)]
pub struct TrainingArgs {
    /// Fail where there is nothing to continue. Without it a training that was stopped is continued all the same, and
    /// one that was never begun begins.
    #[arg(long, conflicts_with = "update")]
    pub resume: bool,
    /// The stage's options.
    #[command(flatten)]
    pub stage: StageArgs,
}

/// Options of `sample`.
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("sources").required(true).args(["images", "interpolate", "embeddings"]))]
pub struct SampleArgs {
    /// The run folder.
    pub run: PathBuf,
    /// Draw from the embedding of each of these images.
    #[arg(long, value_name = "IMAGE", num_args = 1..)]
    pub images: Vec<PathBuf>,
    /// Draw between two images. α weighs the first.
    #[arg(long, value_name = "IMAGE", num_args = 2)]
    pub interpolate: Vec<PathBuf>,
    /// Draw from embeddings in a table (features/*.parquet) or of a slide (*.h5).
    #[arg(long, value_name = "FILE", requires = "rows")]
    pub embeddings: Option<PathBuf>,
    /// Which of them, from 0.
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    pub rows: Vec<usize>,
    /// Weights of the first image.
    #[arg(long, value_name = "ALPHA", value_delimiter = ',', default_value = "0.2,0.4,0.6,0.8", value_parser = share)]
    pub alphas: Vec<f64>,
    /// Where to interpolate: on the great circle of the embeddings, on their line, or in the pixels.
    #[arg(long, value_enum, default_value_t = Line::Slerp)]
    pub line: Line,
    /// Samples of each source; strips between two images, each with noise of its own.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub count: u32,
    /// The picture [default: RUN/samples/sample-NNN.png].
    #[arg(long, value_name = "PNG")]
    pub picture: Option<PathBuf>,
    /// Change one setting, for example --set sample.steps=100. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Where to compute.
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Where two images are interpolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Line {
    /// On the great circle of their embeddings.
    Slerp,
    /// On the straight line between their embeddings.
    Lerp,
    /// In the pixels, whatever the model.
    Pixels,
}
