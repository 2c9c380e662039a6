//! Tests of steps with a disentanglement loss.

use super::tests::{batch, tiny};
use super::*;
use crate::config::{GenDino, Targets, Variant};
use crate::model::parameters;

pub(crate) fn settings(variant: Variant, targets: Targets) -> Settings {
    let gen_dino = GenDino { targets, ..GenDino::default() };
    Settings { gen_dino: Some(gen_dino.recipe(variant)), ..tiny() }
}

fn list<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

fn trainer(settings: &Settings) -> Trainer {
    Trainer::new(settings, 10, &Device::flex()).unwrap()
}

#[test]
fn the_loss_is_the_weighted_sum_of_its_parts_and_the_first_is_dinos() {
    let mut plain = trainer(&tiny());
    let expected = plain.step(&batch(&tiny(), 0), 0).unwrap();
    assert_eq!(expected.parts, None);
    for targets in [Targets::Single, Targets::Four] {
        let mut settings = settings(Variant::Full, targets);
        settings.gen_dino.as_mut().unwrap().disentangle = 0.5;
        let report = trainer(&settings).step(&batch(&settings, 0), 0).unwrap();
        let [crops, disentanglement] = report.parts.unwrap();
        // The same crops through the same products; only the batch of the head is larger.
        assert!((crops - expected.loss).abs() < 1e-6, "{crops} {}", expected.loss);
        assert!(disentanglement > 0.1, "{disentanglement}");
        assert!((report.loss - crops - 0.5 * disentanglement).abs() < 1e-12);
        let line = serde_json::to_value(&report).unwrap();
        assert_eq!(line["parts"].as_array().unwrap().len(), 2);
    }
    let without = settings(Variant::WithoutDisentanglement, Targets::Single);
    assert_eq!(trainer(&without).step(&batch(&without, 0), 0).unwrap().parts, None);
}

#[test]
fn the_centre_knows_nothing_of_secondary_images() {
    let settings = settings(Variant::Full, Targets::Single);
    let (mut one, mut two, mut plain) = (trainer(&settings), trainer(&settings), trainer(&tiny()));
    let first = batch(&settings, 0);
    let mut second = first.clone();
    second.mixed.as_mut().unwrap().secondary.iter_mut().for_each(|value| *value += 1.0);
    let reports = [one.step(&first, 0).unwrap(), two.step(&second, 0).unwrap()];
    assert_ne!(reports[0].parts.unwrap()[1], reports[1].parts.unwrap()[1]);
    plain.step(&batch(&tiny(), 0), 0).unwrap();
    assert_eq!(list(one.center.clone()), list(two.center));
    let worst = list(one.center).iter().zip(list(plain.center)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-6, "{worst}");
}

/// α weighs the patch itself: with 1 the secondary image has no say, with less it has.
#[test]
fn weights_belong_to_their_images() {
    let settings = settings(Variant::Full, Targets::Single);
    let disentanglement = |alpha: f32, brighter: f32| {
        let mut batch = batch(&settings, 0);
        let mixed = batch.mixed.as_mut().unwrap();
        mixed.alphas.fill(alpha);
        mixed.secondary.iter_mut().for_each(|value| *value += brighter);
        trainer(&settings).step(&batch, 0).unwrap().parts.unwrap()[1]
    };
    assert!((disentanglement(1.0, 0.0) - disentanglement(1.0, 1.0)).abs() < 1e-9);
    assert!((disentanglement(0.0, 0.0) - disentanglement(0.0, 1.0)).abs() > 1e-6);
}

/// As for DINO's step: sums of f32 in another order, amplified by Adam.
#[test]
fn micro_batches_add_up_to_the_batch() {
    let run = |replicas: usize| {
        let mut settings = settings(Variant::Full, Targets::Four);
        settings.pretrain.replicas = replicas;
        let mut trainer = trainer(&settings);
        let step = |i: u64| trainer.step(&batch(&settings, i), i as usize).unwrap().loss;
        (0..8).map(step).collect::<Vec<f64>>()
    };
    let one = run(1);
    for replicas in [2, 3] {
        let worst = one.iter().zip(run(replicas)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 2e-4, "{replicas} replicas: losses differ by {worst}");
    }
}

#[test]
fn batches_of_another_recipe_are_refused() {
    let (single, four) = (settings(Variant::Full, Targets::Single), settings(Variant::Full, Targets::Four));
    let message = trainer(&four).step(&batch(&single, 0), 0).unwrap_err().to_string();
    assert!(message.contains("does not have 2 pair(s) of targets"), "{message}");
    let message = trainer(&tiny()).step(&batch(&single, 0), 0).unwrap_err().to_string();
    assert!(message.contains("does not have 0 pair(s)"), "{message}");
    assert!(trainer(&single).step(&batch(&tiny(), 0), 0).is_err());
}

#[test]
fn a_checkpoint_keeps_the_recipes_apart() {
    let (full, lerp) = (settings(Variant::Full, Targets::Single), settings(Variant::Lerp, Targets::Single));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let mut trained = trainer(&full);
    trained.step(&batch(&full, 0), 0).unwrap();
    trained.save(&path, 1).unwrap();
    let mut again = trainer(&full);
    assert_eq!(again.resume(&path).unwrap(), 1);
    assert_eq!(parameters::export(&again.student), parameters::export(&trained.student));
    let message = format!("{:#}", trainer(&lerp).resume(&path).unwrap_err());
    assert!(message.contains("gen_dino.variant = \"full\"") && message.contains("\"lerp\""), "{message}");
    assert!(format!("{:#}", trainer(&tiny()).resume(&path).unwrap_err()).contains("gen_dino"));
}
