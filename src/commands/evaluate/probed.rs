//! The encoders that linear probes and robustness benchmarks look at, with features of the training and the test images.

use std::sync::Arc;

use anyhow::{Result, ensure};
use evaluation::embeddings::EmbeddingTable;
use evaluation::linear::Labelled;
use serde_json::json;
use slide_io::{ImageFolder, PatchSource, folder::read_image};

use super::Own;
use crate::commands::embed::{self, is_current};
use crate::commands::progress::Progress;
use crate::commands::sources::{self, ImageSets, UNTRAINED_NAME};
use crate::commands::{Run, unreadable};
use crate::config::{Baseline, Embed};
use crate::device;
use crate::model::Encoder;
use crate::run_dir::Failure;

/// One encoder with features of both parts.
pub(super) struct Probed {
    pub name: String,
    /// Whether it is one of the run's own trained encoders.
    pub own: bool,
    pub encoder: Encoder,
    /// Embeddings beside each other in a row of features, the last block's at the end.
    pub blocks: usize,
    pub train: Features,
    pub test: Features,
}

/// Features of labelled images.
pub(super) struct Features {
    pub table: EmbeddingTable,
    pub labels: Vec<u32>,
}

impl Features {
    fn new(table: EmbeddingTable) -> Result<Self> {
        let labels = table.known_labels()?;
        Ok(Self { table, labels })
    }

    /// Rows for a linear probe.
    pub fn rows(&self) -> Result<Labelled<'_>> {
        Ok(Labelled::new(&self.table.values, self.table.dim, &self.labels, self.table.classes.len())?)
    }
}

/// The encoders to probe: the run's own, and the untrained network where `evaluate.knn.baselines` asks for it.
pub(super) fn names(run: &Run, own: &Own) -> Vec<String> {
    let untrained = run.experiment.evaluate.knn.baselines.contains(&Baseline::Random);
    let own = own.encoders.iter().map(|encoder| encoder.name.clone());
    own.chain(untrained.then(|| UNTRAINED_NAME.to_owned())).collect()
}

impl Probed {
    /// The encoder called `name` with its features of the last `evaluate.linear.blocks` blocks: those that `embed` stored
    /// where that is one, otherwise stored beside them, computed unless they are up to date.
    ///
    /// # Errors
    /// Embeddings that are missing or of other settings, and an encoder with fewer blocks.
    pub fn open(
        run: &Run,
        images: &ImageSets,
        test: &Arc<ImageFolder>,
        own: &Own,
        name: &str,
        failures: &mut Vec<Failure>,
    ) -> Result<Self> {
        let trained = own.encoders.iter().find(|encoder| encoder.name == name);
        let encoder = match trained {
            Some(trained) => trained.load(&device::open(run.device)?)?,
            None => embed::untrained(run)?,
        };
        let (blocks, depth) = (run.experiment.evaluate.linear.blocks, encoder.config.model.depth);
        ensure!(blocks <= depth, "evaluate.linear.blocks is {blocks}, but {name} has {depth} blocks: set at most that");
        let mut part = |part: &str, folder: &Arc<ImageFolder>| -> Result<Features> {
            if blocks > 1 {
                return Features::new(block_features(run, (name, &encoder), blocks, part, folder, failures)?);
            }
            let path = run.dir.root().join(format!("features/{name}-{part}.parquet"));
            let current = is_current(&path, &sources::table_header(run, &encoder.hash, folder));
            ensure!(current, "{} is missing or of other settings: run `gensis embed`", path.display());
            Features::new(EmbeddingTable::load(&path)?)
        };
        let (train, test) = (part("train", &images.train)?, part("test", test)?);
        Ok(Self { name: name.to_owned(), own: trained.is_some(), encoder, blocks, train, test })
    }

    /// The last block's embeddings, which are those of `embed`, out of rows of several blocks.
    pub fn last_block(&self, values: &[f32]) -> Vec<f32> {
        let dim = self.train.table.dim;
        values.chunks_exact(dim).flat_map(|row| &row[dim - dim / self.blocks..]).copied().collect()
    }

    /// What the features are, for the name of a head: nothing where they are what `embed` stores.
    pub fn suffix(&self) -> String {
        if self.blocks > 1 { format!(", {} blocks", self.blocks) } else { String::new() }
    }
}

/// Features of the last `blocks` blocks of a folder's images, from their file where that is up to date.
fn block_features(
    run: &Run,
    (name, encoder): (&str, &Encoder),
    blocks: usize,
    part: &str,
    folder: &Arc<ImageFolder>,
    failures: &mut Vec<Failure>,
) -> Result<EmbeddingTable> {
    let path = run.dir.file(&format!("features/{name}-last{blocks}-{part}.parquet"))?;
    let mut header = sources::table_header(run, &encoder.hash, folder);
    header["embeddings_of_blocks"] = json!(blocks);
    if is_current(&path, &header) {
        let table = EmbeddingTable::load(&path)?;
        failures.extend(left_out(folder, &table));
        return Ok(table);
    }
    let source = sources::images(run, folder)?;
    let title = format!("{name}, {part}: {blocks} blocks");
    let all = (0..folder.len()).collect();
    let embedded = embedded(run, encoder, blocks, source, all, &run.experiment.embed, &title, failures)?;
    let table = EmbeddingTable {
        header,
        dim: blocks * encoder.dim(),
        keys: embedded.indices.iter().map(|&index| folder.key(index)).collect(),
        labels: embedded.indices.iter().map(|&index| folder.label(index)).collect(),
        classes: folder.classes().to_vec(),
        values: embedded.values,
    };
    table.save(&path)?;
    Ok(table)
}

/// Images of a folder that a stored table lacks, with the reason that reading them gives now.
fn left_out(folder: &ImageFolder, table: &EmbeddingTable) -> Vec<Failure> {
    let mut embedded = table.keys.iter().peekable();
    let missing = |&index: &usize| embedded.next_if(|key| **key == folder.key(index)).is_none();
    let failure = |index: usize| {
        let item = folder.key(index).item;
        let reason = read_image(&folder.root().join(&item))
            .err()
            .map_or_else(|| "it gave no features when they were computed".to_owned(), |error| error.to_string());
        Failure { stage: "evaluate".into(), item, reason }
    };
    (0..folder.len()).filter(missing).map(failure).collect()
}

/// Embeds some images of a source under a progress bar; those that give no features are added to `failures`.
#[allow(clippy::too_many_arguments)] // all of them are what is embedded, by what, and how it is told
pub(super) fn embedded(
    run: &Run,
    encoder: &Encoder,
    blocks: usize,
    source: Arc<dyn PatchSource>,
    indices: Vec<usize>,
    settings: &Embed,
    title: &str,
    failures: &mut Vec<Failure>,
) -> Result<embed::Embedded> {
    let progress = Progress::new("evaluate", indices.len() as u64, "images");
    let advance = |count| progress.advance(count as u64);
    let threads = (run.threads, embed::workers(run));
    let mut embedded = embed::features(encoder, blocks, source.clone(), indices, settings, threads, advance)?;
    let unusable = embed::take_unusable(&mut embedded, blocks * encoder.dim()).into_iter().map(|index| Failure {
        stage: "evaluate".into(),
        item: source.key(index).item,
        reason: "its features are no finite numbers: it counts in no score of them".into(),
    });
    for failure in embedded.failures.iter().map(|failure| unreadable("evaluate", failure)).chain(unusable) {
        if !failures.contains(&failure) {
            failures.push(failure);
        }
    }
    progress.finish(title);
    Ok(embedded)
}
