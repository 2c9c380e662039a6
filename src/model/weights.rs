//! Encoder files: safetensors with timm's names, the configuration in their metadata, so that one file is enough to
//! embed. Those of others are [`foreign`].

use super::parameters::{self, Named, Values};
use super::vit::Vit;
use super::{foreign, lies_in_host_memory};
use crate::config::{Model, Network, Precision, View};
use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::store::pytorch_reader::PytorchReader;
use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use slide_io::atomic_file;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use zip::{CompressionMethod, ZipArchive};

/// The one metadata key of our files; its value is JSON. One key, since the order of several is not fixed.
const METADATA_KEY: &str = "gensis";

/// Images embedded by one thread at a time.
const EMBED_PIECE: usize = 4;

/// What has to be known to use an encoder's weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// The network, resolved.
    pub model: Model,
    /// Mean of the normalisation its images went through, RGB.
    pub mean: [f32; 3],
    /// Standard deviation of that normalisation.
    pub std: [f32; 3],
    /// Where the weights come from: free-form, written by whoever made them.
    #[serde(default)]
    pub origin: serde_json::Value,
}

/// The tokens of an image.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Patches along y.
    pub rows: usize,
    /// Patches along x.
    pub columns: usize,
    /// `[dim]`.
    pub cls: Vec<f32>,
    /// `[rows * columns, dim]`, row-major.
    pub patches: Vec<f32>,
}

/// An encoder ready to use.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// How it was made.
    pub config: EncoderConfig,
    /// SHA-256 of the weights, in hexadecimal: see [`hash`]. Of an encoder from elsewhere that of its file and of how it
    /// is described.
    pub hash: String,
    /// The network.
    pub vit: Vit,
    /// How images reach it, where that is its own affair and not the experiment's.
    pub view: Option<View>,
    pub(super) device: Device,
}

impl Encoder {
    /// Wraps a network.
    pub fn new(vit: Vit, config: EncoderConfig, device: &Device) -> Self {
        Self { config, hash: hash(&parameters::export(&vit)), vit, view: None, device: device.clone() }
    }

    /// Reads a file of ours (`.safetensors`), or any other that [`foreign`] can read without a description.
    ///
    /// # Errors
    /// An unreadable file, and weights that do not fit: nothing is loaded half-way.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let context = || format!("cannot load the encoder {}", path.display());
        if foreign::is_pytorch(path) {
            return foreign::undescribed(path, None, device).with_context(context);
        }
        let (tensors, metadata) = read_safetensors(path)?;
        let Some(json) = metadata else {
            return foreign::undescribed(path, Some(tensors), device).with_context(context);
        };
        let config: EncoderConfig = serde_json::from_value(json).with_context(context)?;
        let hash = hash(&tensors);
        let vit = parameters::import(Vit::new(&config.model, 0, device), &tensors).with_context(context)?;
        Ok(Self { config, hash, vit, view: None, device: device.clone() })
    }

    /// Writes the weights and the configuration, atomically.
    ///
    /// # Errors
    /// A folder that cannot be written to; a network that [`Model`] cannot say in full.
    pub fn save(&self, path: &Path) -> Result<()> {
        ensure!(
            *self.vit.network() == Network::from(&self.config.model),
            "{} would not come back as it is: only encoders that gensis trained are written",
            path.display()
        );
        write_safetensors(path, &parameters::export(&self.vit), &serde_json::to_value(&self.config)?)
    }

    /// The same encoder computing in `precision`.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { vit: self.vit.with_precision(precision), ..self }
    }

    /// Width of an embedding.
    pub fn dim(&self) -> usize {
        self.vit.network().embedding()
    }

    /// Embeddings of `count` normalised images `[count, 3, height, width]`: row-major `[count, dim]`.
    ///
    /// # Errors
    /// A length that does not match, an image smaller than a patch.
    pub fn embed(&self, images: Vec<f32>, count: usize, height: usize, width: usize) -> Result<Vec<f32>> {
        self.embed_blocks(images, count, height, width, 1)
    }

    /// As [`embed`](Self::embed), the embedding as each of the last `blocks` blocks gives it beside each other, the last block's
    /// at the end: `[count, blocks * dim]`.
    ///
    /// # Errors
    /// As [`embed`](Self::embed), and more blocks than the network has.
    pub fn embed_blocks(
        &self,
        images: Vec<f32>,
        count: usize,
        height: usize,
        width: usize,
        blocks: usize,
    ) -> Result<Vec<f32>> {
        let depth = self.config.model.depth;
        ensure!((1..=depth).contains(&blocks), "features of {blocks} blocks of a network that has {depth}");
        ensure!(
            images.len() == count * 3 * height * width,
            "{} values are not {count} x 3 x {height} x {width}",
            images.len()
        );
        let patch = self.config.model.patch;
        ensure!(height.min(width) >= patch, "an image of {width} x {height} px holds no patch of {patch} px");
        if !lies_in_host_memory(&self.device) {
            return self.features(images, [count, 3, height, width], blocks);
        }
        // Small pieces in parallel are faster on a CPU than one large batch, and of a fixed size they are rounded the
        // same on any machine.
        let pieces = images.par_chunks(EMBED_PIECE * 3 * height * width);
        let features = pieces
            .map(|piece| self.features(piece.to_vec(), [piece.len() / (3 * height * width), 3, height, width], blocks));
        Ok(features.collect::<Result<Vec<_>>>()?.concat())
    }

    /// All tokens of one normalised image `[3, height, width]` after the last block and its normalisation.
    ///
    /// # Errors
    /// A length that does not match, an image smaller than a patch.
    pub fn tokens(&self, image: Vec<f32>, height: usize, width: usize) -> Result<Tokens> {
        ensure!(image.len() == 3 * height * width, "{} values are not 3 x {height} x {width}", image.len());
        let patch = self.config.model.patch;
        ensure!(height.min(width) >= patch, "an image of {width} x {height} px holds no patch of {patch} px");
        let image = Tensor::from_data(TensorData::new(image, [1, 3, height, width]), &self.device);
        let tokens = self.vit.forward_tokens(image);
        let mut cls: Vec<f32> = tokens.try_into_vec_as().map_err(|e| anyhow!("the tokens could not be read: {e:?}"))?;
        let (rows, columns) = (height / patch, width / patch);
        // Whatever tokens are not of patches come first, CLS before all.
        let dim = self.config.model.dim;
        let patches = cls.split_off(cls.len() - rows * columns * dim);
        cls.truncate(dim);
        Ok(Tokens { rows, columns, cls, patches })
    }

    fn features(&self, images: Vec<f32>, shape: [usize; 4], blocks: usize) -> Result<Vec<f32>> {
        let images = Tensor::from_data(TensorData::new(images, shape), &self.device);
        self.vit
            .last_embeddings(images, blocks)
            .try_into_vec_as::<f32>()
            .map_err(|e| anyhow!("the embedding could not be read: {e:?}"))
    }
}

/// SHA-256 over every tensor in name order: name, shape and little-endian values. Independent of the file's metadata.
pub fn hash(tensors: &Named) -> String {
    hash_with(tensors, &[])
}

/// As [`hash`], then over `more`: a part of the metadata that belongs to the weights.
pub fn hash_with(tensors: &Named, more: &[u8]) -> String {
    let mut hash = Sha256::new();
    for (name, values) in tensors {
        hash.update(name.as_bytes());
        hash.update([0]);
        for length in &values.shape {
            hash.update((*length as u64).to_le_bytes());
        }
        hash.update(bytes_of(&values.data));
    }
    hash.update(more);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Writes `tensors` with `metadata` under our key: to a temporary file beside `path`, synced, then renamed.
///
/// # Errors
/// A folder that cannot be written to.
pub fn write_safetensors(path: &Path, tensors: &Named, metadata: &serde_json::Value) -> Result<()> {
    let buffers: Vec<_> = tensors.iter().map(|(name, values)| (name, &values.shape, bytes_of(&values.data))).collect();
    let views: Vec<_> = buffers
        .iter()
        .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes)?)))
        .collect::<Result<_>>()?;
    let file = serialize(views, Some(HashMap::from([(METADATA_KEY.into(), metadata.to_string())])))?;
    Ok(atomic_file::write(path, &file)?)
}

/// The tensors of a safetensors file as f32, and our metadata if it has any. Whole numbers of 32 and 64 bits are left out: they
/// are counters and places (`num_batches_tracked`, `position_ids`), no weights.
///
/// # Errors
/// An unreadable or corrupt file; tensors of bytes and of other types in which weights are compressed.
pub fn read_safetensors(path: &Path) -> Result<(Named, Option<serde_json::Value>)> {
    let context = || format!("cannot read the weights {}", path.display());
    let bytes = std::fs::read(path).with_context(context)?;
    parse_safetensors(&bytes).with_context(context)
}

/// As [`read_safetensors`], of a file in memory.
///
/// # Errors
/// A corrupt file; tensors of bytes and of other types in which weights are compressed.
pub fn parse_safetensors(bytes: &[u8]) -> Result<(Named, Option<serde_json::Value>)> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let metadata = header.metadata().as_ref().and_then(|m| m.get(METADATA_KEY));
    let metadata = metadata.map(|json| serde_json::from_str(json)).transpose()?;
    let tensors = SafeTensors::deserialize(bytes)?
        .tensors()
        .into_iter()
        .filter(|(_, view)| !matches!(view.dtype(), Dtype::I32 | Dtype::I64))
        .map(|(name, view)| {
            let data_type = match view.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::F64 => DType::F64,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                other => bail!("{name} is of type {other:?}"),
            };
            let values = to_single(view.data().to_vec(), view.shape().to_vec(), data_type)?;
            Ok((name, values))
        })
        .collect::<Result<_>>()?;
    Ok((tensors, metadata))
}

fn to_single(bytes: Vec<u8>, shape: Vec<usize>, data_type: DType) -> Result<Values> {
    let data = TensorData::from_bytes_vec(bytes, shape.clone(), data_type).convert::<f32>();
    let data = data.try_into_vec::<f32>().map_err(|e| anyhow!("{e:?}"))?;
    Ok(Values { shape, data })
}

/// The state dictionary called by the first of `keys` that there is (a checkpoint's `teacher`, or `state_dict`), or the
/// whole of a plain one. Whole numbers are left out as [`read_safetensors`] does.
///
/// # Errors
/// An unreadable or corrupt file, one with compressed entries; tensors in which weights are compressed.
pub fn read_pytorch(path: &Path, keys: &[&str]) -> Result<Named> {
    refuse_compressed(path).with_context(|| format!("cannot read the weights {}", path.display()))?;
    let called = |&key: &&str| PytorchReader::with_top_level_key(path, key).ok().filter(|reader| !reader.is_empty());
    let reader = keys
        .iter()
        .find_map(called)
        .map_or_else(|| PytorchReader::new(path), Ok)
        .map_err(|e| anyhow!("cannot read the weights {}: {e}", path.display()))?;
    reader
        .tensors()
        .iter()
        .map(|(name, tensor)| (name, tensor, format!("{:?}", tensor.dtype())))
        .filter(|(_, _, data_type)| !matches!(data_type.as_str(), "I32" | "I64"))
        .map(|(name, tensor, data_type)| {
            let data_type = match data_type.as_str() {
                "F32" => DType::F32,
                "F64" => DType::F64,
                "F16" => DType::F16,
                "BF16" => DType::BF16,
                other => bail!("{name} is of type {other}"),
            };
            Ok((name.clone(), to_single(tensor.read()?, tensor.shape().to_vec(), data_type)?))
        })
        .collect()
}

/// PyTorch stores the entries of its archives as they are, so that no file unpacks to more than its size; one that is compressed,
/// or says that it holds more than the file does, was not written by it.
fn refuse_compressed(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    // Files from before the archives, and damaged ones, are the reader's to judge.
    let Ok(mut archive) = ZipArchive::new(file) else { return Ok(()) };
    let mut total = 0u64;
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index)?;
        ensure!(
            entry.compression() == CompressionMethod::Stored,
            "its entry {} is compressed, which PyTorch's files are not",
            String::from_utf8_lossy(entry.name_raw())
        );
        total = total.saturating_add(entry.size());
    }
    ensure!(total <= size, "its entries say that they hold {total} bytes, and the file has {size}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, Write};
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    /// A file that unpacks to more than it is, or says so, is not unpacked; a cut one is an error, as any other.
    #[test]
    fn archives_that_pytorch_does_not_write_are_refused() {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        writer.start_file("archive/data.pkl", stored).unwrap();
        writer.write_all(&[0; 100]).unwrap();
        let bytes = writer.finish().unwrap().into_inner();
        let central = bytes.windows(4).position(|four| four == b"PK\x01\x02").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.pth");
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut changed = bytes.clone();
            change(&mut changed);
            std::fs::write(&path, changed).unwrap();
            format!("{:#}", read_pytorch(&path, &[]).unwrap_err())
        };
        let compressed = refused(&|bytes| (bytes[8], bytes[central + 10]) = (8, 8));
        assert!(compressed.contains("weights.pth") && compressed.contains("data.pkl is compressed"), "{compressed}");
        let large = refused(&|bytes| bytes[central + 24..central + 28].fill(0x7f));
        assert!(large.contains("say that they hold 2139062143 bytes"), "{large}");
        assert!(refused(&|bytes| bytes.truncate(bytes.len() / 2)).contains("weights.pth"));
        assert!(refused(&|_| ()).contains("weights.pth"));
    }

    fn encoder() -> Encoder {
        let model =
            Model { arch: "custom".into(), patch: 4, image_size: 8, dim: 64, depth: 2, heads: 1, drop_path: 0.0 }
                .resolve()
                .unwrap();
        let device = Device::flex();
        let config = EncoderConfig { model, mean: [0.5; 3], std: [0.25; 3], origin: serde_json::json!({"a": 1}) };
        Encoder::new(Vit::new(&config.model, 4, &device), config, &device)
    }

    fn refused(path: &Path) -> String {
        format!("{:#}", Encoder::load(path, &Device::flex()).unwrap_err())
    }

    #[test]
    fn a_file_comes_back_as_it_was_and_writes_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one.safetensors"), folder.path().join("two.safetensors"));
        let encoder = encoder();
        encoder.save(&one).unwrap();
        let loaded = Encoder::load(&one, &Device::flex()).unwrap();
        assert_eq!((&loaded.hash, &loaded.config), (&encoder.hash, &encoder.config));
        assert_eq!(parameters::export(&loaded.vit), parameters::export(&encoder.vit));
        loaded.save(&two).unwrap();
        assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "a temporary file was left behind");
    }

    #[test]
    fn missing_left_over_and_misshapen_tensors_are_all_listed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("encoder.safetensors");
        let encoder = encoder();
        let mut tensors = parameters::export(&encoder.vit);
        tensors.remove("blocks.1.mlp.fc2.bias");
        tensors.insert("surprise".into(), Values { shape: vec![1], data: vec![0.0] });
        tensors.insert("norm.bias".into(), Values { shape: vec![3], data: vec![0.0; 3] });
        write_safetensors(&path, &tensors, &serde_json::to_value(&encoder.config).unwrap()).unwrap();
        let message = refused(&path);
        for part in ["1 missing: blocks.1.mlp.fc2.bias", "1 left over: surprise", "norm.bias is [3], not [64]"] {
            assert!(message.contains(part), "{part:?} is not in {message}");
        }
    }

    #[test]
    fn foreign_names_are_read_and_the_network_is_taken_from_the_shapes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("foreign.safetensors");
        let encoder = encoder();
        let mut tensors: Named = parameters::export(&encoder.vit)
            .into_iter()
            .map(|(name, values)| (format!("module.backbone.{name}"), values))
            .collect();
        tensors.insert("module.head.mlp.0.bias".into(), Values { shape: vec![1], data: vec![0.0] });
        let buffers: Vec<_> = tensors.iter().map(|(n, v)| (n, v.shape.clone(), bytes_of(&v.data))).collect();
        let views = buffers.iter().map(|(n, s, b)| (*n, TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
        std::fs::write(&path, serialize(views, None).unwrap()).unwrap();
        let loaded = Encoder::load(&path, &Device::flex()).unwrap();
        assert_eq!(loaded.hash, encoder.hash);
        let Model { patch, image_size, dim, depth, heads, .. } = loaded.config.model;
        assert_eq!((patch, image_size, dim, depth, heads), (4, 8, 64, 2, 1));
    }

    #[test]
    fn what_is_no_encoder_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["absent.safetensors", "absent.pth"] {
            assert!(refused(&folder.path().join(name)).contains(name));
        }
        for name in ["broken.safetensors", "broken.pth"] {
            std::fs::write(folder.path().join(name), b"not an encoder").unwrap();
            assert!(refused(&folder.path().join(name)).contains(name));
        }
        let path = folder.path().join("other.safetensors");
        let other = Named::from([("weight".into(), Values { shape: vec![1], data: vec![1.0] })]);
        let buffers: Vec<_> = other.iter().map(|(n, v)| (n, v.shape.clone(), bytes_of(&v.data))).collect();
        let views = buffers.iter().map(|(n, s, b)| (*n, TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
        std::fs::write(&path, serialize(views, None).unwrap()).unwrap();
        assert!(refused(&path).contains("not a vision transformer"));
    }
}
