//! Both kinds of first stage against diffusers, under both namings.

use super::*;
use crate::config::AutoencoderKind;
use crate::model::parameters::{Named, Values};
use std::path::PathBuf;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/autoencoder")
}

/// The golden networks have 2 groups.
fn golden(name: &str) -> FirstStage {
    FirstStage::import(&folder().join(name), 2, &Device::flex()).unwrap()
}

fn tensor<const D: usize>(values: &Values) -> Tensor<D> {
    let data = burn::tensor::TensorData::new(values.data.clone(), values.shape.clone());
    Tensor::from_data(data, &Device::flex())
}

/// Some 40 layers of sums of up to 54 products of size 1, each rounded to 6e-8, and normalisations in between.
fn close<const D: usize>(found: Tensor<D>, expected: &Values) {
    assert_eq!(found.dims().to_vec(), expected.shape);
    let found = found.into_data().try_into_vec::<f32>().unwrap();
    let worst = found.iter().zip(&expected.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 2e-5, "{worst}");
}

fn forward() -> Named {
    read_safetensors(&folder().join("forward.safetensors")).unwrap().0
}

#[test]
fn kl_is_diffusers_under_both_namings() {
    let expected = forward();
    let stages = ["kl.safetensors", "kl.ckpt"].map(golden);
    assert_eq!(stages[0].hash, stages[1].hash);
    let [stage, _] = stages;
    let sizes = &stage.config.network;
    assert_eq!((sizes.kind, sizes.ch_mult.as_slice(), sizes.channels), (AutoencoderKind::KlF4, &[1, 2, 3][..], 2));
    let images = tensor(&expected["kl.images"]);
    let posterior = Posterior::new(stage.network.moments(images.clone()));
    close(posterior.mean.clone(), &expected["kl.mean"]);
    close(posterior.log_variance.clone(), &expected["kl.logvar"]);
    let divergence = posterior.divergence().into_scalar::<f32>();
    let sum: f32 = expected["kl.divergence"].data.iter().sum();
    assert!((divergence - sum).abs() < 1e-5 * sum, "{divergence} is not {sum}");
    let latents = stage.encode(images).unwrap();
    close(latents.clone(), &expected["kl.mean"]);
    close(stage.decode(latents), &expected["kl.decoded"]);
    assert_eq!((stage.latent_channels(), stage.factor()), (3, 4));
    assert!(stage.encode(Tensor::zeros([1, 3, 16, 18], &Device::flex())).unwrap_err().to_string().contains("18 x 16"));
}

#[test]
fn vq_with_attention_is_diffusers_under_both_namings() {
    let expected = forward();
    let stages = ["vq.safetensors", "vq_compvis.safetensors"].map(golden);
    assert_eq!(stages[0].hash, stages[1].hash);
    let [stage, _] = stages;
    let sizes = &stage.config.network;
    assert_eq!((sizes.kind, sizes.codebook, sizes.attention.as_slice()), (AutoencoderKind::VqF8, 24, &[8][..]));
    let latents = stage.encode(tensor(&expected["vq.images"])).unwrap();
    close(latents.clone(), &expected["vq.latents"]);
    let quantized = stage.network.quantize.as_ref().unwrap().quantize(latents.clone());
    let codes = quantized.codes.into_data().convert::<f32>().try_into_vec::<f32>().unwrap();
    assert_eq!(codes, expected["vq.codes"].data);
    close(quantized.latents, &expected["vq.quantized"]);
    close(quantized.loss, &expected["vq.loss"]);
    close(stage.decode(latents), &expected["vq.decoded"]);
}

#[test]
fn a_file_comes_back_as_it_was_with_its_scale() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one.safetensors"), folder.path().join("two.safetensors"));
    let imported = golden("kl.ckpt");
    let stage = imported.clone().with_scale(0.18215);
    assert_ne!(stage.hash, imported.hash, "another scale is another latent space");
    stage.save(&one).unwrap();
    let loaded = FirstStage::load(&one, &Device::flex()).unwrap();
    assert_eq!((&loaded.config, &loaded.hash), (&stage.config, &stage.hash));
    loaded.save(&two).unwrap();
    assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap());
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |name: &str, change: &dyn Fn(&mut Named)| {
        let (mut tensors, _) = read_safetensors(&self::folder().join(name)).unwrap();
        change(&mut tensors);
        let buffers: Vec<_> = tensors
            .iter()
            .map(|(n, v)| (n, v.shape.clone(), v.data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()))
            .collect();
        let views = buffers.iter().map(|(n, s, b)| {
            (*n, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, s.clone(), b).unwrap())
        });
        let path = folder.path().join("changed.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        format!("{:#}", FirstStage::import(&path, 2, &Device::flex()).unwrap_err())
    };
    let message = refused("kl.safetensors", &|tensors| {
        tensors.remove("decoder.up_blocks.1.resnets.2.conv1.bias");
        tensors.insert("loss.logvar".into(), Values { shape: vec![1], data: vec![0.0] });
        tensors.insert("quant_conv.bias".into(), Values { shape: vec![3], data: vec![0.0; 3] });
    });
    for part in
        ["missing: decoder.up_blocks.1.resnets.2.conv1.bias", "left over: loss.logvar", "quant_conv.bias is [3]"]
    {
        assert!(message.contains(part) && message.contains("changed.safetensors"), "{part:?} is not in {message}");
    }
    let message = refused("vq.safetensors", &|tensors| {
        tensors.retain(|name, _| !name.starts_with("quantize") && !name.contains(".down_blocks.3."));
        // Without a codebook and one level less it reads as a kl_f4, which it does not fit.
    });
    assert!(message.contains("left over") && message.contains("of another shape"), "{message}");
    let message = refused("kl.safetensors", &|tensors| {
        tensors.retain(|name, _| !name.contains(".down_blocks.2."));
    });
    assert!(message.contains("one latent of 2 px"), "{message}");
    let message = format!("{:#}", FirstStage::load(&self::folder().join("kl.ckpt"), &Device::flex()).unwrap_err());
    assert!(message.contains("not a multiple of autoencoder.groups = 32"), "{message}");
    let message = refused("kl.safetensors", &|tensors| tensors.clear());
    assert!(message.contains("no tensor named encoder.conv_in.weight"), "{message}");
}

/// As diffusers counts its AutoencoderKL and VQModel of these sizes.
#[test]
fn default_sizes_have_the_published_numbers_of_parameters() {
    use crate::config::Autoencoder as Settings;
    use burn::module::Module;
    for (kind, expected) in [(AutoencoderKind::KlF8, 83_653_863), (AutoencoderKind::VqF4, 55_322_782)] {
        let sizes = Settings { kind, ..Settings::default() }.sizes().unwrap();
        assert_eq!(Autoencoder::new(&sizes, 0, &Device::flex()).num_params(), expected, "{kind:?}");
    }
}
