//! LPIPS (Zhang et al. 2018): squared differences of VGG16's features, weighed by channel.

use super::{like, plain, unit};
use crate::model::convolution::Conv2d;
use crate::model::layers::parameter;
use crate::model::parameters::{self, Named};
use crate::model::weights::{hash, read_pytorch, read_safetensors};
use anyhow::{Context, Result, ensure};
use burn::module::{Module, Param};
use burn::tensor::activation::relu;
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{Device, Tensor, TensorData};
use std::path::Path;

/// Widths of VGG16's five groups of layers.
pub const VGG: [usize; 5] = [64, 128, 256, 512, 512];
/// Convolutions of each group, by their number among torchvision's `vgg16().features`. Features are compared after the
/// last of each: relu1_2, 2_2, 3_3, 4_3 and 5_3.
const NUMBERS: [&[usize]; 5] = [&[0, 2], &[5, 7], &[10, 12, 14], &[17, 19, 21], &[24, 26, 28]];
/// Smallest side that is still a pixel after four halvings.
const SMALLEST: usize = 16;
/// What images in [-1, 1] are shifted and scaled by: ImageNet's mean and deviation on that range.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];

/// The network and its hash.
#[derive(Clone, Debug)]
pub struct Lpips {
    /// SHA-256 of the weights.
    pub hash: String,
    network: Network,
}

#[derive(Module, Debug)]
struct Network {
    /// The thirteen of all groups.
    convolutions: Vec<Conv2d>,
    /// One a group.
    weights: Vec<Weight>,
}

/// `[1, C, 1, 1]`.
#[derive(Module, Debug)]
struct Weight {
    weight: Param<Tensor<4>>,
}

impl Network {
    fn new(widths: [usize; 5], device: &Device) -> Self {
        let mut input = 3;
        let mut convolutions = Vec::new();
        for (width, numbers) in widths.into_iter().zip(NUMBERS) {
            for number in numbers {
                convolutions.push(Conv2d::new(input, width, 3, 0, &format!("vgg.{number}"), device));
                input = width;
            }
        }
        let weight = |width| Weight { weight: parameter(vec![0.0; width], [1, width, 1, 1], device) };
        Self { convolutions, weights: widths.map(weight).to_vec() }
    }

    /// Unit features after every group of images in [-1, 1].
    fn features(&self, images: Tensor<4>) -> Vec<Tensor<4>> {
        let constant = |values: [f32; 3]| {
            let values: Tensor<4> = Tensor::from_data(TensorData::new(values.to_vec(), [1, 3, 1, 1]), &plain(&images));
            like(values, &images)
        };
        let mut x = (images.clone() - constant(SHIFT)) / constant(SCALE);
        let mut convolutions = self.convolutions.iter();
        let mut features = Vec::new();
        for (group, numbers) in NUMBERS.iter().enumerate() {
            if group > 0 {
                x = max_pool2d(x, MaxPoolOptions::new([2, 2]));
            }
            x = convolutions.by_ref().take(numbers.len()).fold(x, |x, layer| relu(layer.forward(x)));
            features.push(unit(x.clone(), 1));
        }
        features
    }
}

impl Lpips {
    /// Reads the state dictionary of `lpips.LPIPS(net="vgg")` (or of taming-transformers' copy of it), a `.safetensors`
    /// or a `.pth`.
    ///
    /// # Errors
    /// An unreadable file; tensors that are missing, left over or of another shape, by name.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        Self::load_with(path, VGG, device)
    }

    /// As [`load`](Self::load), of a network of other widths.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(path: &Path, widths: [usize; 5], device: &Device) -> Result<Self> {
        let context = || format!("cannot load the LPIPS weights {}", path.display());
        let tensors = match path.extension().and_then(|e| e.to_str()) {
            Some("pth" | "pt" | "ckpt" | "bin") => read_pytorch(path, &["state_dict"]).with_context(context)?,
            _ => read_safetensors(path)?.0,
        };
        let tensors = ours(tensors).with_context(context)?;
        let network = parameters::import(Network::new(widths, device), &tensors).with_context(context)?;
        Ok(Self { hash: hash(&tensors), network })
    }

    /// See [`Perceptual::distances`](super::Perceptual::distances); sides are at least 16 px.
    pub fn distances(&self, images: Tensor<4>, reconstructions: Tensor<4>) -> Tensor<4> {
        let network = match reconstructions.is_autodiff() {
            true => self.network.clone().no_grad().train(),
            false => self.network.clone(),
        };
        let expected = self.network.features(images);
        let found = network.features(reconstructions);
        let batch = found[0].dims()[0];
        let zero: Tensor<4> = Tensor::zeros([batch, 1, 1, 1], &plain(&found[0]));
        let zero = like(zero, &found[0]);
        network.weights.iter().zip(expected.into_iter().zip(found)).fold(zero, |sum, (weight, (a, b))| {
            let difference = (b.clone() - like(a, &b)).square();
            sum + (difference * weight.weight.val()).sum_dim(1).mean_dim(2).mean_dim(3)
        })
    }

    /// Refuses images that leave no pixel after four halvings.
    ///
    /// # Errors
    /// A side below 16 px.
    pub fn check_side(side: usize) -> Result<()> {
        ensure!(
            side >= SMALLEST,
            "autoencoder.perceptual = \"lpips\" needs images of at least {SMALLEST} px, not {side}"
        );
        Ok(())
    }
}

/// Names of the lpips package as ours. It keeps every weight twice (`lin0`, `lins.0`) and the two constants of the input:
/// what is not equal is an error.
fn ours(tensors: Named) -> Result<Named> {
    let mut out = Named::new();
    for (name, values) in &tensors {
        let parts: Vec<&str> = name.split('.').collect();
        match parts.as_slice() {
            ["scaling_layer", which @ ("shift" | "scale")] => {
                let constant = if *which == "shift" { SHIFT } else { SCALE };
                ensure!(values.data == constant, "{name} is {:?}, not {constant:?}", values.data);
            }
            ["lins", number, "model", "1", "weight"] => {
                let twin = format!("lin{number}.model.1.weight");
                ensure!(tensors.get(&twin).is_none_or(|twin| twin == values), "{name} is not {twin}");
                out.insert(format!("weights.{number}.weight"), values.clone());
            }
            _ => {
                out.insert(renamed(&parts).unwrap_or_else(|| name.clone()), values.clone());
            }
        }
    }
    Ok(out)
}

fn renamed(parts: &[&str]) -> Option<String> {
    match parts {
        ["net", slice, number, part] => {
            let group: usize = slice.strip_prefix("slice")?.parse().ok()?;
            let number: usize = number.parse().ok()?;
            let within = NUMBERS.get(group.checked_sub(1)?)?.iter().position(|&n| n == number)?;
            let before: usize = NUMBERS[..group - 1].iter().map(|numbers| numbers.len()).sum();
            Some(format!("convolutions.{}.{part}", before + within))
        }
        [lin, "model", "1", "weight"] => Some(format!("weights.{}.weight", lin.strip_prefix("lin")?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::parameters::Values;
    use std::path::PathBuf;

    const WIDTHS: [usize; 5] = [2, 2, 3, 3, 4];

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/autoencoder").join(name)
    }

    /// Thirteen layers of sums of up to 36 products, whose features are brought to length 1: 1e-6 of distances near 1.
    #[test]
    fn distances_are_those_of_the_formula_in_pytorch() {
        let device = Device::flex();
        let (expected, _) = read_safetensors(&golden("training.safetensors")).unwrap();
        let image = |name: &str| {
            let values: &Values = &expected[name];
            Tensor::<4>::from_data(TensorData::new(values.data.clone(), values.shape.clone()), &device)
        };
        let lpips = Lpips::load_with(&golden("lpips.safetensors"), WIDTHS, &device).unwrap();
        let found = lpips.distances(image("images"), image("lpips.others")).reshape([-1]);
        let found = found.into_data().try_into_vec::<f32>().unwrap();
        let values = &expected["lpips.distances"].data;
        assert!(values.iter().all(|distance| *distance > 0.05), "{values:?}");
        let worst = found.iter().zip(values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == values.len() && worst < 1e-6, "{found:?} is not {values:?}");
    }

    #[test]
    fn weights_of_other_sizes_are_refused_by_name() {
        let message = format!("{:#}", Lpips::load(&golden("lpips.safetensors"), &Device::flex()).unwrap_err());
        assert!(message.contains("convolutions.0.weight is [2, 3, 3, 3], not [64, 3, 3, 3]"), "{message}");
        let other = Named::from([("scaling_layer.shift".to_owned(), Values { shape: vec![3], data: vec![0.0; 3] })]);
        assert!(ours(other).unwrap_err().to_string().contains("scaling_layer.shift"));
        assert!(Lpips::check_side(15).is_err() && Lpips::check_side(16).is_ok());
    }
}
