//! Tests of steps over crops alone.

use super::*;
use crate::config::Precision;
use crate::model::parameters;

fn list<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// Sums of f32 in another order.
fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-6, "{found:?} is not {expected:?}");
}

/// A tiny network: 2 global crops of 16 px and 2 local ones of 8 px, patches of 4 px.
pub(crate) fn tiny() -> Settings {
    let model = Model { arch: "custom".into(), patch: 4, image_size: 16, dim: 16, depth: 2, heads: 2, drop_path: 0.2 };
    Settings {
        seed: 3,
        model: model.resolve().unwrap(),
        head: Head { hidden: 24, bottleneck: 12, out: 40, norm_last_layer: true },
        crops: Crops { global_size: 16, local_size: 8, local_count: 2, ..Crops::default() },
        pretrain: Pretrain { epochs: 3, warmup_epochs: 1, batch: 5, lr: 0.05, ..Pretrain::default() },
        gen_dino: None,
    }
}

pub(crate) fn batch(settings: &Settings, step: u64) -> CropBatch {
    let size = settings.pretrain.batch;
    let draw = |name: &str, count: usize| {
        crate::model::random::normal(&mut crate::model::random::keyed(9, name, &[step]), 1.0, count)
    };
    let side = |s: u32| 3 * (s as usize).pow(2);
    CropBatch {
        size,
        globals: draw("globals", 2 * size * side(settings.crops.global_size)),
        locals: draw("locals", settings.crops.local_count * size * side(settings.crops.local_size)),
        indices: (0..size).collect(),
        mixed: settings.gen_dino.as_ref().filter(|recipe| recipe.disentangle > 0.0).map(|recipe| MixedBatch {
            views: draw("mixed", size * side(settings.crops.global_size)),
            secondary: draw(
                "secondary",
                (1 + usize::from(recipe.targets == Targets::Four)) * size * side(settings.crops.global_size),
            ),
            alphas: (0..size).map(|i| 0.3 + 0.1 * i as f32).collect(),
        }),
    }
}

#[test]
fn the_centre_follows_the_mean_of_the_teacher() {
    let settings = tiny();
    let mut trainer = Trainer::new(&settings, 10, &Device::flex()).unwrap();
    let batch = batch(&settings, 0);
    let side = settings.crops.global_size as usize;
    let globals = trainer.crops(&batch.globals, batch.size, &(0..batch.size), side);
    let logits = trainer.teacher.forward(vec![(globals, None)], Precision::F32);
    let expected = list(logits.mean_dim(0).mul_scalar(0.1));
    trainer.step(&batch, 0).unwrap();
    close(&list(trainer.center), &expected);
}

/// Against a teacher and a centre that stand still, the student must get better at the same batch.
#[test]
fn the_student_learns_what_a_fixed_teacher_says() {
    let mut settings = tiny();
    settings.model.drop_path = 0.0;
    settings.pretrain.teacher_momentum = 1.0;
    settings.pretrain.center_momentum = 1.0;
    let mut trainer = Trainer::new(&settings, 10, &Device::flex()).unwrap();
    let spread = random_like(&trainer.center);
    trainer.center = spread;
    let batch = batch(&settings, 0);
    let losses: Vec<_> = (0..30).map(|step| trainer.step(&batch, step).unwrap().loss).collect();
    assert!(losses[29] < 0.8 * losses[0], "{losses:?}");
}

fn random_like(center: &Tensor<2>) -> Tensor<2> {
    let mut rng = crate::model::random::keyed(1, "center", &[]);
    let values = crate::model::random::normal(&mut rng, 0.1, center.dims()[1]);
    Tensor::from_data(TensorData::new(values, center.dims()), &center.device())
}

/// Sums of f32 in another order: 1e-6 of the largest values, and Adam's division by small square roots amplifies.
#[test]
fn micro_batches_add_up_to_the_batch() {
    let run = |replicas: usize| {
        let mut settings = tiny();
        settings.pretrain.replicas = replicas;
        let mut trainer = Trainer::new(&settings, 10, &Device::flex()).unwrap();
        let losses: Vec<_> = (0..12).map(|i| trainer.step(&batch(&settings, i), i as usize).unwrap().loss).collect();
        (losses, trainer)
    };
    let (one, trained_one) = run(1);
    for replicas in [2, 3] {
        let (many, trained) = run(replicas);
        let worst = one.iter().zip(&many).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 2e-4, "{replicas} replicas: losses differ by {worst}");
        let (a, b) = (list(trained_one.center.clone()), list(trained.center));
        let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{replicas} replicas: centres differ by {worst}");
    }
    assert_eq!(run(2).0, run(2).0);
}

#[test]
fn a_loss_that_is_not_finite_stops_and_says_what_to_try() {
    let settings = tiny();
    let mut trainer = Trainer::new(&settings, 10, &Device::flex()).unwrap();
    let before = parameters::export(&trainer.student);
    let mut broken = batch(&settings, 0);
    broken.globals[0] = f32::NAN;
    let message = trainer.step(&broken, 7).unwrap_err().to_string();
    assert!(message.contains("step 7") && message.contains("pretrain.lr"), "{message}");
    assert_eq!(parameters::export(&trainer.student), before);
}

/// The bf16 path on the CPU, which a run may not take there: three steps whose losses agree with f32's to the 3
/// digits that 8 bits of mantissa leave.
#[test]
fn products_in_bf16_follow_those_in_f32() {
    let settings = tiny();
    let losses = [Precision::F32, Precision::Bf16].map(|precision| {
        let mut trainer = Trainer::new(&settings, 10, &Device::flex()).unwrap();
        trainer.settings.pretrain.precision = precision;
        for network in [&mut trainer.student, &mut trainer.teacher] {
            network.backbone = network.backbone.clone().with_precision(precision);
        }
        [0, 1, 2].map(|step| trainer.step(&batch(&settings, step as u64), step).unwrap().loss)
    });
    for (single, half) in losses[0].iter().zip(losses[1]) {
        assert!((single - half).abs() < 0.02 * single && *single != half, "{losses:?}");
    }
}

#[test]
fn bf16_and_wrong_crops_are_refused() {
    let mut settings = tiny();
    settings.pretrain.precision = Precision::Bf16;
    let message = Trainer::new(&settings, 10, &Device::flex()).unwrap_err().to_string();
    assert!(message.contains("bf16") && message.contains("f32"), "{message}");
    let settings = tiny();
    let mut short = batch(&settings, 0);
    short.locals.pop();
    let mut trainer = Trainer::new(&settings, 10, &Device::flex()).unwrap();
    assert!(trainer.step(&short, 0).unwrap_err().to_string().contains("configured crops"));
}
