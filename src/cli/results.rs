//! Options of what scores and shows: `evaluate`, `export`, `report`, `heatmap`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{ComputeArgs, StageArgs};

/// Options of `evaluate`.
#[derive(Debug, Clone, Args)]
pub struct EvaluateArgs {
    /// What to score.
    #[arg(value_enum, default_value_t = Task::All)]
    pub task: Task,
    /// With `video`: score the masks FOLDER/<sequence>/<frame>.png, whoever made them, instead of an encoder's. Needs no
    /// training, only evaluate.video.folder.
    #[arg(long, value_name = "FOLDER")]
    pub masks: Option<PathBuf>,
    /// The stage's options.
    #[command(flatten)]
    pub stage: StageArgs,
}

/// Benchmarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// What the data allow (k-NN of images, slide-level heads, distances of a bank) and what the settings ask for.
    All,
    /// Weighted k-NN on patches.
    Knn,
    /// Linear and few-shot probes on image folders.
    Linear,
    /// k-NN and a linear probe on shifted images (changes of tissue, ImageNet-A, -R, -Sketch, -V2, -C); the trained heads on
    /// shifted slides.
    Robustness,
    /// Slide-level classification.
    Slide,
    /// Fréchet and kernel distance, precision and recall of the bank's images, and whether each shows its source.
    Fid,
    /// Video object segmentation in the videos of evaluate.video.folder (DAVIS): J, F and the masks themselves.
    Video,
    /// Retrieval in evaluate.retrieval.folder (revisited Oxford or Paris, or class folders), or among the test images.
    Retrieval,
    /// Copy detection in evaluate.copies.folder (Copydays, or copies made of any images), or among the test images.
    Copies,
}

impl Task {
    /// Whether it is about images of its own, or of the run, and needs no embeddings of the run.
    pub fn has_own_images(self) -> bool {
        match self {
            Self::Video | Self::Retrieval | Self::Copies => true,
            Self::All | Self::Knn | Self::Linear | Self::Robustness | Self::Slide | Self::Fid => false,
        }
    }
}

/// Options of `export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// What to write.
    #[command(subcommand)]
    pub task: ExportTask,
}

/// What `export` writes.
#[derive(Debug, Clone, Subcommand)]
pub enum ExportTask {
    /// patches/, h5_files/, pt_files/, dataset.csv and splits/, as CLAM's scripts read them.
    #[command(after_help = "Example:\n  gensis export clam runs/mosaic --out clam")]
    Clam(ExportClamArgs),
    /// Every patch as an image file, one folder a slide, with patches.csv and failures.csv.
    #[command(after_help = "Example:\n  gensis export patches runs/mosaic --out patches --format jpeg")]
    Patches(ExportPatchesArgs),
}

/// Options of `export clam`.
#[derive(Debug, Clone, Args)]
pub struct ExportClamArgs {
    /// The run folder.
    pub run: PathBuf,
    /// A new folder, or one in which the same export was stopped.
    #[arg(short, long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Whose features: those in features_<ENCODER>/.
    #[arg(long, default_value = "dino")]
    pub encoder: String,
    /// Only these slides.
    #[arg(long, value_name = "ID,ID", value_delimiter = ',')]
    pub slides: Vec<String>,
    /// Threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

/// Options of `export patches`.
#[derive(Debug, Clone, Args)]
pub struct ExportPatchesArgs {
    /// The run folder.
    pub run: PathBuf,
    /// A new folder, or one in which the same export was stopped.
    #[arg(short, long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Format of the images.
    #[arg(long, value_enum, default_value_t = ImageFormat::Png)]
    pub format: ImageFormat,
    /// Quality of JPEG, 1 to 100.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub quality: u8,
    /// Only these slides.
    #[arg(long, value_name = "ID,ID", value_delimiter = ',')]
    pub slides: Vec<String>,
    /// Threads that read; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

/// Formats of image files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImageFormat {
    /// Without loss.
    Png,
    /// A tenth of the size.
    Jpeg,
}

impl ImageFormat {
    /// Extension of the files.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
        }
    }
}

/// Options of `report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// The run folder, or several.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The folder for the tables: tables.md, tables.tex, figures.csv and results.csv (also as Parquet).
    #[arg(short, long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
}

/// Options of `heatmap`.
#[derive(Debug, Clone, Args)]
pub struct HeatmapArgs {
    /// The run folder.
    pub run: PathBuf,
    /// Slides by id, or features files (*.h5).
    #[arg(long, value_name = "ID|FILE", num_args = 1..)]
    pub slides: Vec<String>,
    /// The encoder, by its name in the result table [default: the first].
    #[arg(long, value_name = "NAME", requires = "slides")]
    pub encoder: Option<String>,
    /// The head: abmil, clam_sb, clam_mb, dsmil or transmil [default: the first with attention].
    #[arg(long, value_name = "HEAD", requires = "slides")]
    pub aggregator: Option<String>,
    /// The class whose attention is shown, where the head tells classes apart [default: the predicted one].
    #[arg(long, value_name = "CLASS", requires = "slides")]
    pub class: Option<String>,
    /// The heads of one seed [default: the mean over all seeds].
    #[arg(long, requires = "slides")]
    pub seed: Option<u64>,
    /// Change one setting, for example --set heatmap.scale=weight. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Where to compute.
    #[command(flatten)]
    pub compute: ComputeArgs,
}
