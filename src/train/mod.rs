//! Training: DINO's loss, schedules and optimiser, the loop, its checkpoints and its watch; and the first stage of latent
//! diffusion.

pub mod autoencoder;
pub mod checkpoint;
pub mod diffusion;
pub mod dino;
pub mod loss;
pub mod metrics;
pub mod optimizer;
pub mod pretrain;
pub mod replicas;
pub mod schedule;
pub mod selftest;
pub mod source;
pub mod watch;

/// The state to continue from, in the folder of every training.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// The reports, likewise.
pub const METRICS: &str = "metrics.jsonl";

pub use dino::{Settings, StepReport, Trainer};
pub use pretrain::{Observer, pretrain};
pub use source::BatchSource;
