//! Bank, Gen-DINO, embeddings and scores as a run makes them, with a generator that shifts the colours of real images.

use std::collections::BTreeMap;
use std::path::Path;

use image::{Rgb, RgbImage};
use rand::RngExt;

use super::*;
use crate::cli::{ComputeArgs, Task};
use crate::config::Experiment;
use crate::device::DeviceChoice;
use crate::model::random::keyed;
use crate::run_dir::RunDir;
use crate::sample::bank::{Latent, Picture, Request};
use crate::sample::interpolate::mix_pixels;

/// On the line the shifts are larger.
struct Shifts(Arc<dyn PatchSource>, Interpolation);

impl Generator for Shifts {
    fn decode(&self, _: &[Latent]) -> Result<Vec<RgbImage>> {
        Ok(vec![])
    }

    fn generate(&self, requests: &[Request]) -> Result<Vec<Picture>> {
        let image = |request: &Request| {
            let mut image = self.0.read(request.source)?.image;
            if let Some(other) = request.secondary {
                image = mix_pixels(&image, &self.0.read(other)?.image, f64::from(request.alpha))?;
            }
            let shift =
                keyed(request.seed, "shift", &[]).random_range(0..20u8) + 20 * u8::from(self.1 == Interpolation::Lerp);
            image.iter_mut().for_each(|byte| *byte = byte.saturating_add(shift));
            Ok(Picture::Image(image))
        };
        requests.iter().map(image).collect()
    }
}

/// Two classes of 8 x 8 px, told apart by their colour, in `train/` and `test/`.
fn images(root: &Path) {
    for (part, count) in [("train", 10), ("test", 4)] {
        for (class, base) in [("blue", [40, 60, 200]), ("red", [200, 60, 40])] {
            let folder = root.join(part).join(class);
            std::fs::create_dir_all(&folder).unwrap();
            for number in 0..count {
                let shade = |x: u32, y: u32| (x * 7 + y * 3 + number * 5) as u8 % 50;
                let image = RgbImage::from_fn(8, 8, |x, y| Rgb(base.map(|c: u8| c + shade(x, y))));
                image.save(folder.join(format!("{number}.png"))).unwrap();
            }
        }
    }
}

fn experiment(images: &Path, more: &[&str]) -> Experiment {
    let text = format!(
        r#"
        data.images = {:?}
        model = {{ arch = "custom", patch = 4, image_size = 8, dim = 16, depth = 1, heads = 2 }}
        head = {{ hidden = 16, bottleneck = 8, out = 32 }}
        crops = {{ global_size = 8, local_size = 4, local_count = 2 }}
        pretrain = {{ epochs = 2, batch = 5, warmup_epochs = 1, knn_every = 0 }}
        bank = {{ shard = 6, alpha = [0.3, 0.7] }}
        gen_dino = {{ enabled = true, variants = ["full", "without_disentanglement", "lerp", "pixel_mixing", "without_generative"] }}
        embed = {{ resize = 8, crop = 8 }}
        evaluate.knn = {{ k = [3], baselines = ["random"] }}
        evaluate.slide.bootstrap = 10
        "#,
        images.display()
    );
    let more: Vec<String> = more.iter().map(|setting| setting.to_string()).collect();
    Experiment::parse(&text, "test", &more).unwrap()
}

fn open_run(out: &Path, experiment: Experiment, update: bool) -> Run {
    let compute = ComputeArgs { device: DeviceChoice::Cpu, threads: 1 };
    Run {
        dir: RunDir::open(out, &experiment, update).unwrap(),
        experiment,
        device: compute.device,
        threads: 1,
        update,
        digests: Default::default(),
        foreign: Default::default(),
    }
}

fn some_models() -> Models {
    Models {
        autoencoder: "a".into(),
        diffusion: "d".into(),
        sampler: json!({ "steps": 20 }),
        size: [8, 8],
        images: 20,
        without: vec![],
    }
}

fn input(run: &Run) -> Input {
    Input::open(&run.experiment.data).unwrap()
}

fn make_banks(run: &Run, models: &Models, part: &str) -> Result<()> {
    let Input::Images(sets) = input(run) else { panic!("images") };
    make(run, &input(run), models, part.parse().unwrap(), |interpolation| {
        Ok(Box::new(Shifts(sets.train.clone(), interpolation)))
    })
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    files.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn a_run_makes_its_banks_trains_every_variant_and_scores_them_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("images"), folder.path().join("run"));
    images(&data);
    let (run, models) = (open_run(&out, experiment(&data, &[]), false), some_models());
    let message = |result: Result<()>| format!("{:#}", result.unwrap_err());
    let without_encoder = message(make_banks(&run, &models, "1/1"));
    assert!(without_encoder.contains("run `gensis pretrain` first"), "{without_encoder}");
    crate::commands::pretrain::pretrain(&run, false).unwrap();
    assert!(message(augment(&run, Part::WHOLE)).contains("run `gensis autoencoder` first"));

    make_banks(&run, &models, "1/2").unwrap();
    assert!(run.dir.record("bank").is_none(), "half of it is missing");
    let train = || crate::commands::gen_dino::train(&run, input(&run), &models, false);
    assert!(message(train()).contains("2 of the 4 shard files"));
    make_banks(&run, &models, "2/2").unwrap();
    // 20 images, one synthetic and one interpolated each, and the interpolated ones once more on the line.
    assert_eq!(run.dir.record("bank").unwrap().summary["images"], 60);
    assert_eq!((files(&out.join("bank/slerp")).len(), files(&out.join("bank/lerp")).len()), (8, 8));

    train().unwrap();
    let record = run.dir.record("gen_dino").unwrap();
    let names = ["gen_dino", "gen_dino_lerp", "gen_dino_pixel_mixing", "gen_dino_without_disentanglement"];
    let hashes = record.summary["encoders"].as_object().unwrap();
    assert!(names.iter().all(|name| hashes.contains_key(*name)) && hashes.len() == 5, "{hashes:?}");
    let distinct: std::collections::HashSet<&str> = hashes.values().map(|hash| hash.as_str().unwrap()).collect();
    assert_eq!(distinct.len(), 5, "every variant learns something else");
    let metrics = std::fs::read_to_string(out.join("gen_dino/full/metrics.jsonl")).unwrap();
    let line: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    let (loss, parts) = (line["loss"].as_f64().unwrap(), line["parts"].as_array().unwrap());
    assert!((loss - parts[0].as_f64().unwrap() - parts[1].as_f64().unwrap()).abs() < 1e-9, "{line}");
    let before = files(&out.join("gen_dino/lerp"));
    train().unwrap();
    assert!(files(&out.join("gen_dino/lerp")) == before, "what is trained is not trained again");

    let trained = crate::commands::gen_dino::encoders(&run, &input(&run), Some(&models)).unwrap();
    crate::commands::embed::embed_with(&run, input(&run), &trained).unwrap();
    crate::commands::evaluate::evaluate_with(&run, Task::Knn, &input(&run), Some(trained.clone())).unwrap();
    let table = std::fs::read_to_string(out.join("results/results.csv")).unwrap();
    for name in names.iter().copied().chain(["dino", "gen_dino_without_generative", "random"]) {
        assert!(table.lines().any(|line| line.split(',').any(|cell| cell == name)), "{name} is missing in {table}");
    }

    // Embeddings of another encoder are not scored.
    let mut other = trained;
    other[2].hash = "0".repeat(64);
    let message = message(crate::commands::evaluate::evaluate_with(&run, Task::Knn, &input(&run), Some(other)));
    assert!(message.contains("of another encoder"), "{message}");
}

#[test]
fn a_bank_of_another_encoder_or_other_images_is_refused_and_with_update_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("images"), folder.path().join("run"));
    images(&data);
    let variants = "gen_dino.variants=[\"full\"]";
    let run = open_run(&out, experiment(&data, &[variants]), false);
    crate::commands::pretrain::pretrain(&run, false).unwrap();
    make_banks(&run, &some_models(), "1/1").unwrap();
    let first = crate::commands::pretrain::require_encoder(&run, &input(&run)).unwrap().1;
    let bank = files(&out.join("bank/slerp"));

    let message = |result: Result<()>| format!("{:#}", result.unwrap_err());
    let other = Models { diffusion: "d2".into(), ..some_models() };
    let told = message(make_banks(&run, &other, "1/1"));
    assert!(told.contains("diffusion = \"d\"") && told.contains("has \"d2\""), "{told}");
    let told = message(crate::commands::gen_dino::train(&run, input(&run), &other, false));
    assert!(told.contains("diffusion = \"d\"") && told.contains("has \"d2\""), "{told}");
    drop(run);

    // Another encoder: the same run with one more epoch of pretraining.
    let changed = experiment(&data, &[variants, "pretrain.epochs=3"]);
    let run = open_run(&out, changed.clone(), true);
    crate::commands::pretrain::pretrain(&run, false).unwrap();
    let second = crate::commands::pretrain::require_encoder(&run, &input(&run)).unwrap().1;
    assert_ne!(first, second);
    let told = message(crate::commands::gen_dino::train(&run, input(&run), &some_models(), false));
    assert!(told.contains(&format!("encoder = \"{first}\"")) && told.contains(&second), "{told}");
    assert!(files(&out.join("bank/slerp")) == bank, "it was not touched");
    drop(run);

    // Another image set.
    std::fs::remove_file(data.join("train/red/0.png")).unwrap();
    std::fs::copy(data.join("train/red/1.png"), data.join("train/red/9a.png")).unwrap();
    let run = open_run(&out, changed, true);
    crate::commands::pretrain::pretrain(&run, false).unwrap();
    let header = header(&run, &input(&run), &some_models(), Interpolation::Slerp).unwrap();
    let Input::Images(sets) = input(&run) else { panic!("images") };
    let told = SyntheticBank::open(&out.join("bank/slerp"), &header, sets.train, None).err().unwrap().to_string();
    assert!(told.contains("data = {\"patches\":"), "{told}");
    // With --update it is made anew, and the old one kept.
    make_banks(&run, &some_models(), "1/1").unwrap();
    assert!(files(&out.join("bank/slerp.old-1")) == bank);
    assert!(files(&out.join("bank/slerp")) != bank);
}
