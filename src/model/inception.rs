//! InceptionV3 as the Fréchet inception distance knows it: TensorFlow's network of 2015-12-05 up to the 2048 averages
//! before its classifier, with weights from a file of the user's (Szegedy et al. 2016; Heusel et al. 2017). It differs from
//! torchvision's: averages leave the padding out, and the last block takes maxima.
//!
//! The file is the state dictionary that pytorch-fid distributes (`pt_inception-2015-12-05-*.pth`), or the same as
//! safetensors. Those weights were trained on ImageNet's labels: figures of them are no longer free of labels.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use burn::tensor::activation::relu;
use burn::tensor::module::{avg_pool2d, conv2d, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions};
use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use rayon::prelude::*;

use super::lies_in_host_memory;
use super::parameters::{self, Named};
use super::weights::{hash, read_pytorch, read_safetensors};

/// Features of an image.
pub const FEATURES: usize = 2048;
/// Side of the images the network sees, px.
const SIDE: usize = 299;
/// What batch normalisation adds to a variance.
const EPS: f32 = 1e-3;
/// Images that one thread takes at a time.
const PIECE: usize = 2;

/// Convolutions that go without padding; every other keeps height and width.
const VALID: [&str; 7] = [
    "Conv2d_1a_3x3",
    "Conv2d_2a_3x3",
    "Conv2d_4a_3x3",
    "Mixed_6a.branch3x3",
    "Mixed_6a.branch3x3dbl_3",
    "Mixed_7a.branch3x3_2",
    "Mixed_7a.branch7x7x3_4",
];
/// Those of them that halve.
const HALVING: [&str; 5] = [
    "Conv2d_1a_3x3",
    "Mixed_6a.branch3x3",
    "Mixed_6a.branch3x3dbl_3",
    "Mixed_7a.branch3x3_2",
    "Mixed_7a.branch7x7x3_4",
];

/// The network, with batch normalisation folded into its convolutions.
#[derive(Clone, Debug)]
pub struct Inception {
    /// SHA-256 of the weights.
    pub hash: String,
    layers: BTreeMap<String, (Tensor<4>, Tensor<1>)>,
    device: Device,
}

impl Inception {
    /// Reads the weights; the classifier in the file is not used.
    ///
    /// # Errors
    /// An unreadable file; tensors that are missing, left over or of another shape, by name.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let context = || format!("cannot load the Inception weights {}", path.display());
        let tensors = match path.extension().and_then(|e| e.to_str()) {
            Some("pth" | "pt" | "ckpt" | "bin") => read_pytorch(path, &["state_dict"]).with_context(context)?,
            _ => read_safetensors(path).with_context(context)?.0,
        };
        Self::new(tensors, device).with_context(context)
    }

    fn new(mut tensors: Named, device: &Device) -> Result<Self> {
        tensors.retain(|name, _| !name.starts_with("fc.") && !name.ends_with("num_batches_tracked"));
        let wanted: BTreeMap<String, Vec<usize>> = specification()
            .into_iter()
            .flat_map(|(name, shape)| {
                let normalisation = ["weight", "bias", "running_mean", "running_var"]
                    .map(|part| (format!("{name}.bn.{part}"), vec![shape[0]]));
                normalisation.into_iter().chain([(format!("{name}.conv.weight"), shape.to_vec())])
            })
            .collect();
        parameters::require(&wanted, &tensors)?;
        let layers = specification().into_iter().map(|(name, shape)| {
            let part = |part: &str| &tensors[&format!("{name}.{part}")].data;
            let layer = folded(
                shape,
                part("conv.weight"),
                ["weight", "bias", "running_mean", "running_var"].map(|name| part(&format!("bn.{name}")).as_slice()),
            );
            let (weight, bias) = layer;
            (
                name,
                (
                    Tensor::from_data(TensorData::new(weight, shape), device),
                    Tensor::from_data(TensorData::new(bias, [shape[0]]), device),
                ),
            )
        });
        Ok(Self { hash: hash(&tensors), layers: layers.collect(), device: device.clone() })
    }

    /// Features of images of any sizes, row after row: resized to 299 x 299 px (bilinear, without antialiasing, as
    /// pytorch-fid does), then scaled to [-1, 1].
    ///
    /// # Errors
    /// A device that cannot be read.
    pub fn embed(&self, images: &[RgbImage]) -> Result<Vec<f32>> {
        let piece = |images: &[RgbImage]| -> Result<Vec<f32>> {
            let pixels = images.iter().flat_map(resized).collect::<Vec<f32>>();
            let input = Tensor::from_data(TensorData::new(pixels, [images.len(), 3, SIDE, SIDE]), &self.device);
            let features = self.forward(input).into_data().try_into_vec_as::<f32>();
            features.map_err(|e| anyhow!("the features could not be read: {e:?}"))
        };
        if !lies_in_host_memory(&self.device) {
            return piece(images);
        }
        Ok(images.par_chunks(PIECE).map(piece).collect::<Result<Vec<_>>>()?.concat())
    }

    /// `[B, 3, 299, 299]` in [-1, 1] to `[B, 2048]`.
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = self.chain(images, "", &["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"]);
        let x = self.chain(halved(x), "", &["Conv2d_3b_1x1", "Conv2d_4a_3x3"]);
        let x = ["Mixed_5b", "Mixed_5c", "Mixed_5d"].into_iter().fold(halved(x), |x, block| self.block_a(x, block));
        let x = self.block_b(x, "Mixed_6a");
        let blocks = ["Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"];
        let x = blocks.into_iter().fold(x, |x, block| self.block_c(x, block));
        let x = self.block_d(x, "Mixed_7a");
        let x = self.block_e(x, "Mixed_7b", averaged);
        let x = self.block_e(x, "Mixed_7c", |x| {
            max_pool2d(x, MaxPoolOptions::new([3, 3]).with_stride([1, 1]).with_padding([1, 1]))
        });
        x.mean_dim(3).mean_dim(2).flatten(1, 3)
    }

    /// Convolution and rectifier.
    fn layer(&self, x: Tensor<4>, name: &str) -> Tensor<4> {
        let (weight, bias) = &self.layers[name];
        let [.., height, width] = weight.dims();
        let padding = if VALID.contains(&name) { [0, 0] } else { [height / 2, width / 2] };
        let stride = if HALVING.contains(&name) { 2 } else { 1 };
        let options = ConvOptions::new([stride; 2], padding, [1, 1], 1);
        relu(conv2d(x, weight.clone(), Some(bias.clone()), options))
    }

    /// Layers of `block` one after the other; no block for those of the stem.
    fn chain(&self, x: Tensor<4>, block: &str, names: &[&str]) -> Tensor<4> {
        let dot = if block.is_empty() { "" } else { "." };
        names.iter().fold(x, |x, name| self.layer(x, &format!("{block}{dot}{name}")))
    }

    fn block_a(&self, x: Tensor<4>, block: &str) -> Tensor<4> {
        let branch = |x: &Tensor<4>, names: &[&str]| self.chain(x.clone(), block, names);
        let branches = vec![
            branch(&x, &["branch1x1"]),
            branch(&x, &["branch5x5_1", "branch5x5_2"]),
            branch(&x, &["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]),
            branch(&averaged(x), &["branch_pool"]),
        ];
        Tensor::cat(branches, 1)
    }

    fn block_b(&self, x: Tensor<4>, block: &str) -> Tensor<4> {
        let branch = |names: &[&str]| self.chain(x.clone(), block, names);
        let branches = vec![
            branch(&["branch3x3"]),
            branch(&["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]),
            halved(x.clone()),
        ];
        Tensor::cat(branches, 1)
    }

    fn block_c(&self, x: Tensor<4>, block: &str) -> Tensor<4> {
        let branch = |x: &Tensor<4>, names: &[&str]| self.chain(x.clone(), block, names);
        let double = ["branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"];
        let branches = vec![
            branch(&x, &["branch1x1"]),
            branch(&x, &["branch7x7_1", "branch7x7_2", "branch7x7_3"]),
            branch(&x, &double),
            branch(&averaged(x), &["branch_pool"]),
        ];
        Tensor::cat(branches, 1)
    }

    fn block_d(&self, x: Tensor<4>, block: &str) -> Tensor<4> {
        let branch = |names: &[&str]| self.chain(x.clone(), block, names);
        let branches = vec![
            branch(&["branch3x3_1", "branch3x3_2"]),
            branch(&["branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"]),
            halved(x.clone()),
        ];
        Tensor::cat(branches, 1)
    }

    fn block_e(&self, x: Tensor<4>, block: &str, pool: impl Fn(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
        let branch = |x: &Tensor<4>, names: &[&str]| self.chain(x.clone(), block, names);
        let single = branch(&x, &["branch3x3_1"]);
        let double = branch(&x, &["branch3x3dbl_1", "branch3x3dbl_2"]);
        let branches = vec![
            branch(&x, &["branch1x1"]),
            branch(&single, &["branch3x3_2a"]),
            branch(&single, &["branch3x3_2b"]),
            branch(&double, &["branch3x3dbl_3a"]),
            branch(&double, &["branch3x3dbl_3b"]),
            branch(&pool(x), &["branch_pool"]),
        ];
        Tensor::cat(branches, 1)
    }
}

/// Every convolution and the shape of its weight, `[out, in, height, width]`.
fn specification() -> Vec<(String, [usize; 4])> {
    let mut layers: Vec<(String, [usize; 4])> = Vec::new();
    let mut add = |block: &str, rows: &[(&str, usize, usize, usize, usize)]| {
        let dot = if block.is_empty() { "" } else { "." };
        layers.extend(rows.iter().map(|&(name, out, input, h, w)| (format!("{block}{dot}{name}"), [out, input, h, w])));
    };
    add(
        "",
        &[
            ("Conv2d_1a_3x3", 32, 3, 3, 3),
            ("Conv2d_2a_3x3", 32, 32, 3, 3),
            ("Conv2d_2b_3x3", 64, 32, 3, 3),
            ("Conv2d_3b_1x1", 80, 64, 1, 1),
            ("Conv2d_4a_3x3", 192, 80, 3, 3),
        ],
    );
    for (block, x, pool) in [("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)] {
        add(
            block,
            &[
                ("branch1x1", 64, x, 1, 1),
                ("branch5x5_1", 48, x, 1, 1),
                ("branch5x5_2", 64, 48, 5, 5),
                ("branch3x3dbl_1", 64, x, 1, 1),
                ("branch3x3dbl_2", 96, 64, 3, 3),
                ("branch3x3dbl_3", 96, 96, 3, 3),
                ("branch_pool", pool, x, 1, 1),
            ],
        );
    }
    add(
        "Mixed_6a",
        &[
            ("branch3x3", 384, 288, 3, 3),
            ("branch3x3dbl_1", 64, 288, 1, 1),
            ("branch3x3dbl_2", 96, 64, 3, 3),
            ("branch3x3dbl_3", 96, 96, 3, 3),
        ],
    );
    for (block, c) in [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)] {
        add(
            block,
            &[
                ("branch1x1", 192, 768, 1, 1),
                ("branch7x7_1", c, 768, 1, 1),
                ("branch7x7_2", c, c, 1, 7),
                ("branch7x7_3", 192, c, 7, 1),
                ("branch7x7dbl_1", c, 768, 1, 1),
                ("branch7x7dbl_2", c, c, 7, 1),
                ("branch7x7dbl_3", c, c, 1, 7),
                ("branch7x7dbl_4", c, c, 7, 1),
                ("branch7x7dbl_5", 192, c, 1, 7),
                ("branch_pool", 192, 768, 1, 1),
            ],
        );
    }
    add(
        "Mixed_7a",
        &[
            ("branch3x3_1", 192, 768, 1, 1),
            ("branch3x3_2", 320, 192, 3, 3),
            ("branch7x7x3_1", 192, 768, 1, 1),
            ("branch7x7x3_2", 192, 192, 1, 7),
            ("branch7x7x3_3", 192, 192, 7, 1),
            ("branch7x7x3_4", 192, 192, 3, 3),
        ],
    );
    for (block, x) in [("Mixed_7b", 1280), ("Mixed_7c", 2048)] {
        add(
            block,
            &[
                ("branch1x1", 320, x, 1, 1),
                ("branch3x3_1", 384, x, 1, 1),
                ("branch3x3_2a", 384, 384, 1, 3),
                ("branch3x3_2b", 384, 384, 3, 1),
                ("branch3x3dbl_1", 448, x, 1, 1),
                ("branch3x3dbl_2", 384, 448, 3, 3),
                ("branch3x3dbl_3a", 384, 384, 1, 3),
                ("branch3x3dbl_3b", 384, 384, 3, 1),
                ("branch_pool", 192, x, 1, 1),
            ],
        );
    }
    layers
}

/// Weight and bias of a convolution with its batch normalisation (gain, shift, mean, variance) folded in.
fn folded(shape: [usize; 4], weight: &[f32], [gain, shift, mean, variance]: [&[f32]; 4]) -> (Vec<f32>, Vec<f32>) {
    let factors: Vec<f32> = gain.iter().zip(variance).map(|(gain, variance)| gain / (variance + EPS).sqrt()).collect();
    let inputs = shape[1] * shape[2] * shape[3];
    let scaled =
        weight.chunks_exact(inputs).zip(&factors).flat_map(|(row, factor)| row.iter().map(move |w| w * factor));
    let bias = shift.iter().zip(mean).zip(&factors).map(|((shift, mean), factor)| shift - mean * factor);
    (scaled.collect(), bias.collect())
}

/// Maxima over 3 x 3 at every second position.
fn halved(x: Tensor<4>) -> Tensor<4> {
    max_pool2d(x, MaxPoolOptions::new([3, 3]).with_stride([2, 2]))
}

/// Means over the part of 3 x 3 that lies inside.
fn averaged(x: Tensor<4>) -> Tensor<4> {
    let options = AvgPoolOptions::new([3, 3]).with_stride([1, 1]).with_padding([1, 1]);
    avg_pool2d(x, options.with_count_include_pad(false))
}

/// An image as three planes of 299 x 299 in [-1, 1]: bilinear at `(i + 0.5) · size / 299 - 0.5`, no antialiasing.
fn resized(image: &RgbImage) -> Vec<f32> {
    let axis = |length: u32| -> Vec<(u32, u32, f32)> {
        let scale = length as f32 / SIDE as f32;
        (0..SIDE)
            .map(|i| {
                let at = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
                let low = (at as u32).min(length - 1);
                (low, (low + 1).min(length - 1), at - low as f32)
            })
            .collect()
    };
    let (columns, rows) = (axis(image.width()), axis(image.height()));
    let mut planes = Vec::with_capacity(3 * SIDE * SIDE);
    for channel in 0..3 {
        let pixel = |x: u32, y: u32| f32::from(image.get_pixel(x, y)[channel]) / 255.0;
        for &(top, bottom, v) in &rows {
            planes.extend(columns.iter().map(|&(left, right, u)| {
                let across = |y| pixel(left, y) * (1.0 - u) + pixel(right, y) * u;
                2.0 * (across(top) * (1.0 - v) + across(bottom) * v) - 1.0
            }));
        }
    }
    planes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::parameters::Values;

    /// The deterministic weights of tests/golden/evaluation/inception.py.
    fn weights() -> Named {
        let mut tensors = Named::new();
        for (name, shape) in specification() {
            let fan_in = (shape[1] * shape[2] * shape[3]) as f64;
            let mut add = |part: &str, shape: Vec<usize>, of: &dyn Fn(f64) -> f64| {
                let name = format!("{name}.{part}");
                let phase = name.bytes().enumerate().map(|(i, b)| (i as f64 + 1.0) * f64::from(b)).sum::<f64>() * 0.001;
                let value = |i: usize| {
                    let turn = (i as f64 + 1.0) * 0.618_033_988_749_894_9 + phase;
                    of(2.0 * (turn - turn.floor()) - 1.0) as f32
                };
                let data = (0..shape.iter().product()).map(value).collect();
                tensors.insert(name, Values { shape, data });
            };
            add("conv.weight", shape.to_vec(), &|u| u * (6.0 / fan_in).sqrt());
            add("bn.weight", vec![shape[0]], &|u| 1.0 + 0.2 * u);
            add("bn.bias", vec![shape[0]], &|u| 0.2 * u);
            add("bn.running_mean", vec![shape[0]], &|u| 0.1 * u);
            add("bn.running_var", vec![shape[0]], &|u| 1.0 + 0.5 * u);
        }
        tensors
    }

    fn image() -> RgbImage {
        RgbImage::from_fn(52, 40, |x, y| image::Rgb([0, 1, 2].map(|c| ((x * 7 + y * 13 + c * 29 + x * y) % 256) as u8)))
    }

    /// 94 layers deep in f32, folded here and not there: 2e-4 of the largest feature.
    #[test]
    fn features_are_those_of_pytorch_fid() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/evaluation/inception.safetensors");
        let expected = &read_safetensors(&path).unwrap().0["features"].data;
        let network = Inception::new(weights(), &Device::flex()).unwrap();
        let found = network.embed(&[image(), RgbImage::new(1, 1), image()]).unwrap();
        assert_eq!((found.len(), expected.len()), (3 * FEATURES, FEATURES));
        assert_eq!(found[..FEATURES], found[2 * FEATURES..]);
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest > 0.1 && worst < 2e-4 * largest, "{worst} of {largest}");
    }

    #[test]
    fn weights_of_another_network_are_refused_by_name() {
        let mut tensors = weights();
        tensors.insert("fc.weight".into(), Values { shape: vec![1], data: vec![0.0] });
        tensors.insert("Mixed_5b.branch1x1.bn.num_batches_tracked".into(), Values { shape: vec![], data: vec![0.0] });
        assert!(Inception::new(tensors.clone(), &Device::flex()).is_ok());
        tensors.remove("Mixed_7c.branch_pool.conv.weight");
        tensors.insert("AuxLogits.fc.bias".into(), Values { shape: vec![1], data: vec![0.0] });
        let message = format!("{:#}", Inception::new(tensors, &Device::flex()).unwrap_err());
        assert!(message.contains("1 missing: Mixed_7c.branch_pool.conv.weight"), "{message}");
        assert!(message.contains("1 left over: AuxLogits.fc.bias"), "{message}");
    }
}
