use super::*;
use crate::config::{Head, Model};
use crate::model::parameters;
use crate::model::projection::DinoHead;

fn close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < tolerance, "{found:?} is not {expected:?}");
}

fn tiny() -> Model {
    let base = Model { arch: "custom".into(), patch: 4, image_size: 16, dim: 16, depth: 3, heads: 2, drop_path: 0.1 };
    base.resolve().unwrap()
}

fn images(batch: usize, height: usize, width: usize) -> Tensor<4> {
    let values = random::normal(&mut random::keyed(0, "images", &[]), 1.0, batch * 3 * height * width);
    Tensor::from_data(TensorData::new(values, [batch, 3, height, width]), &Device::flex())
}

fn list<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// timm's `vit_<size>_patch<p>_224` without a classifier.
#[test]
fn every_size_has_the_published_number_of_parameters() {
    for (arch, patch, parameters) in [
        ("vit_tiny", 16, 5_524_416),
        ("vit_base", 16, 85_798_656),
        ("vit_small", 8, 21_670_272),
        ("vit_base", 8, 85_807_872),
    ] {
        let model = Model { arch: arch.into(), patch, ..Model::default() }.resolve().unwrap();
        assert_eq!(Vit::new(&model, 0, &Device::flex()).num_params(), parameters, "{arch}/{patch}");
    }
}

#[test]
fn vit_small_and_its_head_have_the_published_numbers_of_parameters() {
    let model = Model::default().resolve().unwrap();
    let device = Device::flex();
    assert_eq!(Vit::new(&model, 0, &device).num_params(), 21_665_664);
    let head = Head { norm_last_layer: false, ..Head::default() };
    let gains = head.out;
    assert_eq!(DinoHead::new(model.dim, &head, 0, &device).num_params(), 22_286_592 + gains);
}

#[test]
fn only_another_grid_changes_the_positions() {
    let device = Device::flex();
    let vit = Vit::new(&tiny(), 1, &device);
    assert_eq!(list(vit.positions(4, 4)), list(vit.pos_embed.val()));
    let other = vit.positions(2, 6);
    assert_eq!(other.dims(), [1, 13, 16]);
    assert_eq!(list(other.narrow(1, 0, 1)), list(vit.pos_embed.val().narrow(1, 0, 1)));
}

#[test]
fn what_is_no_multiple_of_the_patch_is_floored_away() {
    let vit = Vit::new(&tiny(), 1, &Device::flex());
    let whole = images(2, 19, 22);
    let cut = whole.clone().narrow(2, 0, 16).narrow(3, 0, 20);
    assert_eq!(list(vit.forward(whole)), list(vit.forward(cut)));
}

#[test]
fn cls_is_the_first_token_and_the_last_intermediate_output() {
    let vit = Vit::new(&tiny(), 1, &Device::flex());
    let x = images(2, 16, 16);
    let cls = list(vit.forward(x.clone()));
    let tokens = vit.forward_tokens(x.clone());
    assert_eq!(tokens.dims(), [2, 17, 16]);
    let to64 = |v: Vec<f32>| v.into_iter().map(f64::from).collect::<Vec<_>>();
    // Computed alone, CLS is rounded differently.
    close(&to64(list(tokens.clone().narrow(1, 0, 1))), &to64(cls), 2e-6);
    let both = list(vit.last_embeddings(x.clone(), 2));
    assert_eq!(both.len(), 2 * 2 * 16);
    assert_eq!(list(vit.last_embeddings(x.clone(), 1)), list(vit.forward(x.clone())));
    let outputs = vit.intermediate(x.clone(), 2);
    let cls_of = |block: usize, image: usize| list(outputs[block].clone().narrow(1, 0, 1))[image * 16..][..16].to_vec();
    assert_eq!(both, [cls_of(0, 0), cls_of(1, 0), cls_of(0, 1), cls_of(1, 1)].concat());
    assert_eq!(outputs.len(), 2);
    assert_eq!(list(outputs[1].clone()), list(tokens));
    let attention = vit.last_attention(x);
    assert_eq!(attention.dims(), [2, 2, 17, 17]);
    close(&to64(list(attention.sum_dim(3))), &[1.0; 2 * 2 * 17], 1e-6);
}

#[test]
fn the_initialisation_is_the_references() {
    let model = Model { drop_path: 0.0, ..Model::default() }.resolve().unwrap();
    let device = Device::flex();
    let named = parameters::export(&Vit::new(&model, 5, &device));
    let deviation = |name: &str| {
        let data = &named[name].data;
        (data.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / data.len() as f64).sqrt()
    };
    // The deviation of n draws is known to 1 / sqrt(2 n): 3 % for the 384 of the CLS token, four of them allowed.
    for (name, expected, share) in [
        ("cls_token", 0.02, 0.15),
        ("pos_embed", 0.02, 0.02),
        ("blocks.3.attn.qkv.weight", 0.02, 0.01),
        // U(±b) has deviation b / sqrt(3), b = 1 / sqrt(768).
        ("patch_embed.proj.weight", 1.0 / (3.0f64 * 768.0).sqrt(), 0.01),
        ("patch_embed.proj.bias", 1.0 / (3.0f64 * 768.0).sqrt(), 0.15),
    ] {
        assert!((deviation(name) / expected - 1.0).abs() < share, "{name}: {}", deviation(name));
    }
    assert!(named["blocks.0.mlp.fc1.bias"].data.iter().all(|v| *v == 0.0));
    assert!(named["norm.weight"].data.iter().all(|v| *v == 1.0));
    assert_eq!(named["blocks.0.attn.qkv.weight"].shape, [3 * 384, 384]);
    assert_ne!(named["blocks.0.attn.qkv.weight"].data, named["blocks.1.attn.qkv.weight"].data);
}

#[test]
fn stochastic_depth_belongs_to_the_row() {
    let (device, model) = (Device::flex(), Model { drop_path: 0.5, ..tiny() });
    let factors = |rows: &[u64]| {
        let depth = StochasticDepth::draw(&model, 7, 11, rows, &device).unwrap();
        assert!(depth.blocks[0].is_none());
        depth.blocks[2].clone().unwrap().map(list)
    };
    let rows: Vec<u64> = (0..400).collect();
    let all = factors(&rows);
    assert_eq!(factors(&rows[100..200])[0], all[0][100..200]);
    // Rate 0.5 at the last block: dropped or doubled, half of them within four standard errors.
    let kept = all[1].iter().filter(|f| **f == 2.0).count();
    assert_eq!(all[1].iter().filter(|f| **f == 0.0).count() + kept, 400);
    assert!(kept.abs_diff(200) < 40, "{kept}");
    assert_ne!(all[0], all[1]);
    assert!(StochasticDepth::draw(&Model { drop_path: 0.0, ..model }, 7, 11, &rows, &device).is_none());
}

#[test]
fn a_dropped_branch_adds_nothing() {
    let (device, model) = (Device::flex(), tiny());
    let vit = Vit::new(&model, 1, &device);
    let x = images(1, 16, 16);
    let all_dropped = || Some([Tensor::zeros([1, 1, 1], &device), Tensor::zeros([1, 1, 1], &device)]);
    let depth = StochasticDepth { blocks: (0..3).map(|_| all_dropped()).collect() };
    let expected = vit.norm.forward(vit.embed(x.clone()).narrow(1, 0, 1));
    assert_eq!(list(vit.encode(x, Some(&depth))), list(expected));
}

#[test]
fn unresolvable_models_are_refused() {
    let refuse = |model: Model| model.resolve().unwrap_err().to_string();
    assert!(refuse(Model { arch: "vit_huge".into(), ..Model::default() }).contains("vit_huge"));
    assert!(refuse(Model { arch: "custom".into(), ..Model::default() }).contains("model.dim"));
    assert!(refuse(Model { heads: 5, ..Model::default() }).contains("multiple"));
    assert!(refuse(Model { image_size: 8, ..Model::default() }).contains("patch"));
}
