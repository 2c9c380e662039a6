//! The command line: what can be asked, with defaults and one example each.

mod results;
mod training;

pub use results::{
    EvaluateArgs, ExportArgs, ExportClamArgs, ExportPatchesArgs, ExportTask, HeatmapArgs, ImageFormat, ReportArgs, Task,
};
pub use training::{AugmentArgs, Line, PretrainArgs, SampleArgs, TrainingArgs};

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};

use crate::device::DeviceChoice;

/// Whole-slide images in, slide-level results out, with an encoder trained on those slides alone.
#[derive(Debug, Parser)]
#[command(name = "gensis", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 done but something is listed in failures.csv.\n\
    Start with `gensis demo`, then `gensis inspect SLIDES`.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show levels, µm/px, vendor and tissue share of a slide, or a table of a folder.
    #[command(after_help = "Example:\n  gensis inspect slides/ --json > slides.json")]
    Inspect(InspectArgs),
    /// Find slides or images that show the same thing, and whether a split separates them.
    #[command(after_help = "Exit code 3 also where copies lie in different splits.\n\n\
        Example:\n  gensis duplicates --slides slides/ --labels labels.csv --out duplicates\n  \
        gensis run mine.toml --slides slides/ --labels duplicates/groups.csv --set data.columns.group=duplicate_group")]
    Duplicates(DuplicatesArgs),
    /// Find tissue and write patch coordinates at an exact µm/px (TRIDENT and CLAM layout).
    #[command(after_help = "Example:\n  gensis tile --slides 'slides/*.svs' --set grid.mpp=0.5 --out runs/mine")]
    Tile(TileArgs),
    /// Train an encoder on the patches with DINO, or with --gen-dino; continues where it was stopped.
    #[command(after_help = "Example:\n  gensis pretrain --config configs/mosaic.toml --out runs/mosaic --device cuda")]
    Pretrain(PretrainArgs),
    /// Train the first stage of latent diffusion, or take one from a file; continues where it was stopped.
    #[command(
        after_help = "Example:\n  gensis autoencoder --out runs/mosaic --update --set autoencoder.kind=kl_f4 --device cuda\n  \
        gensis autoencoder --out runs/mosaic --update --set autoencoder.weights=vq-f4.ckpt"
    )]
    Autoencoder(TrainingArgs),
    /// Train the latent diffusion model on the encoder's own embeddings; continues where it was stopped.
    #[command(
        after_help = "Example:\n  gensis diffusion --out runs/mosaic --update --set diffusion.unet.channels=96 --device cuda"
    )]
    Diffusion(TrainingArgs),
    /// Draw images from the diffusion model: of an image's embedding, of stored embeddings, or between two images.
    #[command(
        after_help = "Rows of the picture: a source and samples of it; or the second image, α = 0.2 ..., the first image. \
        The table on standard output says how near (cosine of embeddings, as they condition) each came to its sources.\n\n\
        Example:\n  gensis sample runs/mosaic --images a.png b.png --count 6 --set sample.guidance=3\n  \
        gensis sample runs/mosaic --interpolate a.png b.png --alphas 0.2,0.4,0.6,0.8 --line slerp"
    )]
    Sample(SampleArgs),
    /// Make synthetic and interpolated images of every patch with the diffusion model; continues where it was stopped.
    #[command(
        after_help = "Several machines can share the work: give each a copy of the run folder and a part of the files, \
        then copy the files of bank/ together and run the command once more.\n\n\
        Example:\n  gensis augment --out runs/mosaic --device cuda --shard 2/4"
    )]
    Augment(AugmentArgs),
    /// Compute patch embeddings with the trained encoder and those of others, one HDF5 file per slide.
    #[command(after_help = "Example:\n  gensis embed --out runs/mosaic\n  \
        gensis embed --out runs/mosaic --update --encoder uni=pytorch_model.bin --encoder phikon=model.safetensors")]
    Embed(StageArgs),
    /// Score the embeddings: k-NN, linear probes and robustness on patches, multiple-instance heads on slides, distances of
    /// generated images. Score the encoder on videos, retrieval and copy detection, with images of their own.
    #[command(after_help = "Example:\n  gensis evaluate --out runs/mosaic --set evaluate.slide.folds=10 --update\n  \
        gensis evaluate video --out runs/mine --set evaluate.video.folder=DAVIS --update\n  \
        gensis evaluate video --masks osvos/ --set evaluate.video.folder=DAVIS --out scores")]
    Evaluate(EvaluateArgs),
    /// Write coordinates and features in the folders of CLAM, or the patches as images. The run folder itself is TRIDENT's
    /// layout.
    #[command(after_help = "Example:\n  gensis export clam runs/mosaic --out clam")]
    Export(ExportArgs),
    /// Draw attention maps of the encoders, and real beside generated and interpolated patches, into figures/.
    #[command(after_help = "Example:\n  gensis figures --out runs/mosaic")]
    Figures(StageArgs),
    /// Draw what the trained slide-level heads attend to, from stored features: PNG, HDF5 (CLAM's names) and GeoJSON (QuPath).
    #[command(
        after_help = "A slide is shown by the heads of the fold that tests it, which have not seen it; a slide without a \
        label by the mean of all folds. The table on standard output says which. Without --slides: the slides that `run` \
        draws (heatmap.slides). A slide that is not in the cohort is given by its features file.\n\n\
        Example:\n  gensis heatmap runs/mosaic --slides s01 s02 --aggregator clam_mb --class 2\n  \
        gensis heatmap runs/mosaic --slides other/features/x.h5 --set heatmap.geojson=regions"
    )]
    Heatmap(HeatmapArgs),
    /// Run a whole experiment: tile, pretrain, embed, evaluate, heatmap, figures, report; with gen_dino.enabled also the autoencoder, the
    /// diffusion model, the bank and Gen-DINO. Finished stages are skipped.
    #[command(
        after_help = "Example:\n  gensis run configs/mosaic.toml --slides cohort/train_images --labels cohort/train.csv --out runs/mosaic"
    )]
    Run(RunArgs),
    /// Write report.html of a run folder again; of several runs, the tables that compare them (Markdown and LaTeX).
    #[command(
        after_help = "Runs that differ in nothing but seeds are averaged; where settings differ, the encoders' names say so.\n\n\
        Example:\n  gensis report runs/mosaic\n  gensis report runs/seed0 runs/seed1 runs/seed2 --out tables"
    )]
    Report(ReportArgs),
    /// Draw a small cohort of slides and run the whole experiment on it (3 to 8 minutes on two CPU cores).
    #[command(after_help = "Example:\n  gensis demo --out demo-run")]
    Demo(DemoArgs),
    /// Print configurations.
    #[command(after_help = "Example:\n  gensis config show configs/mosaic.toml --set pretrain.epochs=50")]
    Config(ConfigArgs),
    /// Show devices, libraries, threads and disk; --selftest proves that a device computes rightly.
    #[command(after_help = "Example:\n  gensis doctor --selftest --device cuda --json")]
    Doctor(DoctorArgs),
}

/// Where to compute.
#[derive(Debug, Clone, Args)]
pub struct ComputeArgs {
    /// cpu, cuda[:N] or wgpu[:N].
    #[arg(long, default_value_t = DeviceChoice::Cpu)]
    pub device: DeviceChoice,
    /// Threads that decode and augment; 0 takes all cores. Results do not depend on it.
    #[arg(long, default_value_t = 0, value_parser = RangedU64ValueParser::<usize>::new().range(..=1024))]
    pub threads: usize,
}

/// µm/px times magnification: 20x is 0.5 µm/px, by convention.
const MPP_TIMES_MAGNIFICATION: f64 = 10.0;

fn magnification(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix(['x', 'X']).unwrap_or(text).parse::<f64>().ok();
    number.filter(|mag| (0.1..=200.0).contains(mag)).ok_or_else(|| "give a magnification such as 20".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "give a number from 0 to 1".to_owned())
}

fn similarity(text: &str) -> Result<f32, String> {
    let number = text.parse::<f32>().ok().filter(|number| (0.1..=1.0).contains(number));
    number.ok_or_else(|| "give a number from 0.1 to 1".to_owned())
}

/// What to work on and what to change: settings by name, and shorthands for those that every user needs. Where both speak of
/// one setting, `--set` is the one that counts.
#[derive(Debug, Clone, Args)]
pub struct SettingsArgs {
    /// Change one setting, for example --set pretrain.epochs=5. May be repeated; counts more than a shorthand such as --mag.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// A folder of slides or a quoted glob (data.slides).
    #[arg(long, value_name = "FOLDER|GLOB", conflicts_with = "images")]
    slides: Option<String>,
    /// A folder of images in class folders (data.images).
    #[arg(long, value_name = "FOLDER")]
    images: Option<String>,
    /// csv with one row per slide (data.labels).
    #[arg(long, value_name = "CSV")]
    labels: Option<String>,
    /// Rows of the csv without a slide, slides without a row or a label, and labelled slides without features are no failures
    /// (data.allow_missing).
    #[arg(long)]
    allow_missing: bool,
    /// A folder of regions somebody drew, <slide id>.geojson, .png or _mask.tiff, in place of the tissue mask; nothing but
    /// exclusions (Ignore*) is taken away from it (data.roi). What `tile`
    /// found lies in contours_geojson/ of the run folder: edit it in QuPath and give it back.
    #[arg(long, value_name = "FOLDER")]
    roi: Option<String>,
    /// Magnification of the patches, where you think in it: 20 is grid.mpp = 0.5, 40 is 0.25. Every slide is resampled to
    /// it by its true scale.
    #[arg(long, value_name = "X", value_parser = magnification)]
    mag: Option<f64>,
    /// µm/px of level 0 for every slide, overriding the files (data.mpp).
    #[arg(long, value_name = "UM_PER_PX", allow_negative_numbers = true)]
    mpp: Option<f64>,
    /// An encoder that somebody else trained: a preset and its file, for example uni=pytorch_model.bin. May be repeated; stands in
    /// the place of all [[encoders]] of the experiment. `gensis config encoders` lists the presets.
    #[arg(long, value_name = "PRESET=FILE", value_parser = preset_and_file)]
    encoder: Vec<(String, PathBuf)>,
}

fn preset_and_file(text: &str) -> Result<(String, PathBuf), String> {
    let (preset, file) = text.split_once('=').ok_or("give PRESET=FILE, for example uni=pytorch_model.bin")?;
    Ok((preset.to_owned(), file.into()))
}

impl SettingsArgs {
    /// All settings of the command line, shorthands first.
    pub fn all(&self) -> Vec<String> {
        // JSON strings are TOML basic strings, so quotes and backslashes in a path stay as they are.
        let text =
            |key: &str, value: &Option<String>| value.as_ref().map(|v| format!("{key}={}", serde_json::json!(v)));
        let shorthands = [
            text("data.slides", &self.slides),
            text("data.images", &self.images),
            text("data.labels", &self.labels),
            text("data.roi", &self.roi),
            self.mpp.map(|mpp| format!("data.mpp={mpp:?}")),
            self.allow_missing.then(|| "data.allow_missing=true".to_owned()),
            self.mag.map(|mag| format!("grid.mpp={:?}", MPP_TIMES_MAGNIFICATION / mag)),
            (!self.encoder.is_empty()).then(|| {
                let entry = |(preset, file): &(String, PathBuf)| {
                    format!("{{preset={}, weights={}}}", serde_json::json!(preset), serde_json::json!(file))
                };
                format!("encoders=[{}]", self.encoder.iter().map(entry).collect::<Vec<_>>().join(", "))
            }),
        ];
        shorthands.into_iter().flatten().chain(self.settings.iter().cloned()).collect()
    }
}

/// Options of a single stage.
#[derive(Debug, Clone, Args)]
pub struct StageArgs {
    /// Experiment file; left out, the one recorded in --out is used, or the defaults.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to change in it.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// The run folder.
    #[arg(short, long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Go on in a folder of other settings; stages they touch run again.
    #[arg(long)]
    pub update: bool,
    /// Where to compute.
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Options of `tile`.
#[derive(Debug, Clone, Args)]
pub struct TileArgs {
    /// Pack the patches of every slide as JPEG in one tar file, which training then reads instead of the slide
    /// (pack.enabled).
    #[arg(long)]
    pub pack: bool,
    /// The stage's options.
    #[command(flatten)]
    pub stage: StageArgs,
}

/// Options of `duplicates`.
#[derive(Debug, Clone, Args)]
pub struct DuplicatesArgs {
    /// Experiment file, of which [data] and [tissue] count.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to compare.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Smallest similarity of a pair, 0.1 to 1 [default: 0.7 for slides, 0.6 for images]. Less finds copies that are
    /// altered more, and more pairs that are none.
    #[arg(long, value_name = "X", value_parser = similarity)]
    pub min_similarity: Option<f32>,
    /// The folder for pairs.csv, groups.csv and failures.csv.
    #[arg(short, long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Replace what the folder holds of another comparison.
    #[arg(long)]
    pub update: bool,
    /// Threads that read; 0 takes all cores. Results do not depend on it.
    #[arg(long, default_value_t = 0, value_parser = RangedU64ValueParser::<usize>::new().range(..=1024))]
    pub threads: usize,
}

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Experiment file.
    #[arg(value_name = "EXPERIMENT")]
    pub experiment: PathBuf,
    /// What to change in it.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// The run folder [default: runs/<name of the experiment file>].
    #[arg(short, long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Go on in a folder of other settings; stages they touch run again.
    #[arg(long)]
    pub update: bool,
    /// Where to compute.
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Options of `inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// A slide, a folder of slides, or a quoted glob.
    pub path: String,
    /// µm/px of level 0, for slides that do not state it.
    #[arg(long, value_name = "UM_PER_PX", allow_negative_numbers = true)]
    pub mpp: Option<f64>,
    /// Show the vendor's properties of a single slide too; some name people and places.
    #[arg(long)]
    pub properties: bool,
    /// Write an associated image of a single slide to --save: macro, thumbnail, label (which may name a patient).
    #[arg(long, value_name = "NAME", requires = "save")]
    pub image: Option<String>,
    /// Where --image goes, a PNG or JPEG that is not there yet.
    #[arg(long, value_name = "FILE", requires = "image")]
    pub save: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// The run folder; the drawn slides go into its cohort/ folder.
    #[arg(short, long, value_name = "FOLDER", default_value = "demo-run")]
    pub out: PathBuf,
    /// Slides to draw, in three classes; fewer than 24 want fewer evaluate.slide.folds.
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = RangedU64ValueParser::<usize>::new().range(3..))]
    pub slides: usize,
    /// Change one setting. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Go on in a folder of other settings; stages they touch run again.
    #[arg(long)]
    pub update: bool,
    /// Where to compute.
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Options of `config`.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// What to print.
    #[command(subcommand)]
    pub action: ConfigAction,
}

/// What `config` prints.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigAction {
    /// Every setting with its default and meaning.
    #[command(after_help = "Example:\n  gensis config default > mine.toml")]
    Default,
    /// Published encoders that [[encoders]] and --encoder know by name: their networks, images and sources.
    #[command(after_help = "Example:\n  gensis config encoders")]
    Encoders,
    /// An experiment file with all defaults filled in.
    #[command(after_help = "Example:\n  gensis config show configs/mosaic.toml --set pretrain.epochs=50")]
    Show {
        /// Experiment file.
        file: PathBuf,
        /// Change one setting. May be repeated.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
}

/// Options of `doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Run the golden numbers and training steps on --device; needs no data and no other file.
    #[arg(long)]
    pub selftest: bool,
    /// Training steps of the self-test.
    #[arg(long, default_value_t = 300)]
    pub steps: usize,
    /// Images per step of the self-test.
    #[arg(long, default_value_t = 32, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub batch: usize,
    /// Another gensis binary whose self-test runs after this one's and stands beside it: one built with kernel fusion and one
    /// without.
    #[arg(long, value_name = "BINARY", requires = "selftest")]
    pub beside: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where to compute.
    #[command(flatten)]
    pub compute: ComputeArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn shorthands_become_settings_that_later_ones_override() {
        let line = [
            "gensis",
            "tile",
            "--slides",
            "a \"b\"/*.svs",
            "--mpp",
            "0.5",
            "--mag",
            "40x",
            "--encoder",
            "uni=a \"b\".bin",
            "--encoder",
            "phikon=c",
            "--set",
            "seed=3",
            "--out",
            "o",
        ];
        let Command::Tile(args) = Cli::parse_from(line).command else { panic!("expected tile") };
        let experiment = crate::config::Experiment::load(None, &args.stage.settings.all()).unwrap();
        assert_eq!(experiment.data.slides, "a \"b\"/*.svs");
        assert_eq!((experiment.data.mpp, experiment.grid.mpp.0, experiment.seed), (0.5, 0.25, 3));
        let encoders: Vec<_> = experiment.encoders.iter().map(|e| (e.name(), e.weights.to_str().unwrap())).collect();
        assert_eq!(encoders, [("uni", "a \"b\".bin"), ("phikon", "c")]);
        assert!(Cli::try_parse_from(["gensis", "tile", "--mag", "many", "--out", "o"]).is_err());
        assert!(Cli::try_parse_from(["gensis", "tile", "--encoder", "uni", "--out", "o"]).is_err());
    }
}
