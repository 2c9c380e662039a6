//! Gen-SIS from end to end: autoencoder, diffusion, bank, Gen-DINO, and what is drawn and said of it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cohort::EXPERIMENT;
use crate::folder::{assert_same, failures, results, table};
use crate::images::draw;
use crate::program::{Stopped, gensis, holds_file, kill_when};

const SECTIONS: &str = r#"
[autoencoder]
kind = "kl_f4"
channels = 4
groups = 2
image_size = 32
epochs = 1
batch = 4
lr = 1e-3
perceptual = "none"
disc_weight = 0.0

[diffusion]
epochs = 2
batch = 4
warmup_steps = 2
vflip = true
sample_every = 3
judged = 6

[diffusion.unet]
channels = 8
channel_mult = [1, 2]
res_blocks = 1
attention = [2]
heads = 2
context = 8
groups = 2

[sample]
steps = 3
batch = 4

[bank]
shard = 4

[gen_dino]
enabled = true
variants = ["full", "without_disentanglement"]

[evaluate.fid]
encoders = ["dino", "gen_dino"]
"#;

fn experiment(folder: &Path) -> PathBuf {
    let (images, file) = (folder.join("images"), folder.join("experiment.toml"));
    draw(&images);
    fs::write(&file, format!("[data]\nimages = {images:?}\n{EXPERIMENT}{SECTIONS}")).unwrap();
    file
}

fn line(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

/// One run as it is; another killed while latents, steps, the bank and Gen-DINO are on their way.
#[test]
fn the_whole_chain_ends_with_both_encoders_and_killed_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let file = experiment(folder.path());
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let command = |out: &Path| line(&["run", file.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    gensis(command(&whole)).with_code(0).saying(["the bottleneck is"]);
    assert_eq!(failures(&whole), []);
    let rows = table(&whole.join("results/results.csv"));
    for encoder in ["dino", "gen_dino", "gen_dino_without_disentanglement"] {
        assert!(rows.iter().any(|row| row["task"] == "knn" && row["encoder"] == encoder), "{encoder}");
        assert!(whole.join(format!("figures/attention_{encoder}.png")).exists());
    }
    let fid = |encoder: &str| rows.iter().filter(|row| row["task"] == "fid" && row["encoder"] == encoder).count();
    assert_eq!((fid("dino"), fid("gen_dino")), (15, 15), "five figures of three kinds of images");
    for (head, metric) in
        [("reconstructed", "kernel_distance"), ("generative", "frechet_distance"), ("interpolated", "recall")]
    {
        let row =
            rows.iter().find(|row| row["task"] == "fid" && row["head"] == head && row["metric"] == metric).unwrap();
        assert!(row["value"].parse::<f64>().unwrap() >= 0.0 && row["n"] == "16", "{row:?}");
    }
    let report = fs::read_to_string(whole.join("report.html")).unwrap();
    let shown = [
        "Real, generated and interpolated patches",
        "Between two patches",
        "trained here, on pixels alone",
        "Samples of the diffusion model",
        "Gen-DINO, full: loss",
        "Diffusion: samples",
    ];
    for text in shown {
        assert!(report.contains(text), "{text}");
    }
    let metrics = fs::read_to_string(whole.join("diffusion/metrics.jsonl")).unwrap();
    assert!(metrics.lines().filter(|line| line.contains("frechet_distance")).count() >= 2, "{metrics}");
    gensis(command(&whole)).with_code(0).saying([
        "diffusion: up to date",
        "augment: slerp: up to date",
        "figures: up to date",
    ]);

    let lines = |path: &str| fs::read_to_string(parts.join(path)).map_or(0, |text| text.lines().count());
    let moments: [&dyn Fn(&str) -> bool; 3] =
        [&|_| lines("diffusion/metrics.jsonl") > 0, &|_| holds_file(&parts.join("bank/slerp"), ".json"), &|_| {
            lines("gen_dino/full/metrics.jsonl") > 0
        }];
    for moment in moments {
        assert!(matches!(kill_when(command(&parts), moment), Stopped::Killed), "it ended before it could be killed");
    }
    gensis(command(&parts)).with_code(0);
    assert_same(&results(&parts), &results(&whole));

    references_and_other_weights(&whole, folder.path());
    judged_first(&whole, folder.path());
    samples(&whole, folder.path());
}

/// Images are held against stored statistics too; a model that somebody put in the place of the run's is not used.
fn references_and_other_weights(whole: &Path, folder: &Path) {
    let run = folder.join("copy");
    crate::folder::copy(whole, &run);
    let out = run.to_str().unwrap();
    let fid = |reference: &Path| {
        let setting = format!("evaluate.fid.references=[{reference:?}]");
        gensis(line(&["evaluate", "fid", "--out", out, "--update", "--set", &setting]))
    };
    let stored = whole.join("results/fid_reference_gen_dino.safetensors");
    fid(&stored).with_code(0);
    let rows = table(&run.join("results/results.csv"));
    let against: Vec<_> = rows.iter().filter(|row| row["task"] == "fid" && row["data"] == "images, train").collect();
    assert_eq!(against.len(), 3, "{against:?}");
    for row in against {
        let same = |other: &&std::collections::BTreeMap<String, String>| {
            other["data"] == "images"
                && ["task", "encoder", "head", "metric"].iter().all(|key| other[*key] == row[*key])
        };
        assert_eq!((&*row["encoder"], &row["value"]), ("gen_dino", &rows.iter().find(same).unwrap()["value"]));
    }
    // What is no statistics, or of another encoder, is listed; the other figures are there.
    fid(&whole.join("diffusion/diffusion.safetensors")).with_code(3);
    assert!(
        failures(&run)
            .iter()
            .any(|(_, item, reason)| item.ends_with("diffusion.safetensors") && reason.contains("its header"))
    );
    assert!(table(&run.join("results/results.csv")).iter().any(|row| row["task"] == "fid"));

    gensis(line(&["evaluate", "fid", "--out", out, "--update", "--set", "evaluate.fid.references=[]"])).with_code(0);
    // Latents that were removed to make room are made again where they are needed.
    fs::remove_file(run.join("latents/latents.bin")).unwrap();
    fs::remove_file(run.join("bank/slerp/00001.json")).unwrap();
    gensis(line(&["augment", "--out", out])).with_code(0);
    for file in ["latents/latents.bin", "bank/slerp/00001.tar"] {
        assert!(fs::read(run.join(file)).unwrap() == fs::read(whole.join(file)).unwrap(), "{file}");
    }

    let autoencoder = run.join("autoencoder/autoencoder.safetensors");
    let mut bytes = fs::read(&autoencoder).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&autoencoder, bytes).unwrap();
    fs::remove_file(run.join("bank/slerp/00000.json")).unwrap();
    gensis(line(&["augment", "--out", out])).with_error(["autoencoder.safetensors holds other weights"]);
    gensis(line(&["augment", "--out", out, "--shard", "9/9"])).with_error(["this part has none to make"]);
    let broken = ["--update", "--set", "autoencoder.disc_weight=0.5", "--set", "autoencoder.disc_layers=8"];
    gensis(line(&["autoencoder", "--out", out]).into_iter().chain(line(&broken)))
        .with_error(["autoencoder.disc_layers = 8", "disc_weight = 0"]);
    fs::copy(whole.join("autoencoder/autoencoder.safetensors"), &autoencoder).unwrap();
    let many = ["--update", "--set", "diffusion.batch=5000"];
    gensis(line(&["diffusion", "--out", out]).into_iter().chain(line(&many))).with_error(["do not fill a batch"]);
    assert!(run.join("diffusion/diffusion.safetensors").exists(), "nothing was set aside for it");
    let few = ["pretrain", "--out", out, "--update", "--set", "pretrain.batch=5000"];
    gensis(line(&few)).with_error(["do not fill a batch"]);
    assert!(run.join("pretrain/encoder.safetensors").exists(), "nor for this");
}

/// The bank is judged before Gen-DINO learns from it, and without embeddings; what is refused costs nothing that is finished.
fn judged_first(whole: &Path, folder: &Path) {
    let run = folder.join("judged");
    crate::folder::copy(whole, &run);
    let out = run.to_str().unwrap();
    fs::remove_dir_all(run.join("gen_dino")).unwrap();
    for file in ["stages/embed.json", "stages/evaluate.json", "stages/evaluate/fid.json", "results/results.csv"] {
        fs::remove_file(run.join(file)).unwrap();
    }
    let only = ["--update", "--set", r#"evaluate.fid.encoders=["dino"]"#];
    gensis(line(&["evaluate", "fid", "--out", out]).into_iter().chain(line(&only))).with_code(0);
    let fid = |run: &Path| {
        let rows = table(&run.join("results/results.csv"));
        let values = rows.into_iter().filter(|row| row["task"] == "fid" && row["encoder"] == "dino");
        values.map(|row| (row["head"].clone(), row["metric"].clone(), row["value"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(fid(&run), fid(whole));

    let added = folder.join("images/train/dots/added.png");
    fs::copy(folder.join("images/train/dots/0.png"), &added).unwrap();
    gensis(line(&["pretrain", "--out", out])).with_error(["on other patches (data is "]);
    gensis(line(&["embed", "--out", out])).with_error(["no encoder trained", "(data is "]);
    fs::remove_file(added).unwrap();
    gensis(line(&["pretrain", "--out", out])).with_code(0).saying(["pretrain: up to date"]);
}

/// Of a bank of other settings, or of another model, nothing is said under these.
fn judges_its_own_bank_alone(run: &str) {
    let fid =
        |more: &[&str]| gensis(["evaluate", "fid", "--out", run, "--update"].into_iter().chain(more.iter().copied()));
    let recorded = || fs::read_to_string(Path::new(run).join("experiment.toml")).unwrap();
    let before = recorded();
    let other = ["--set", "sample.guidance=5"];
    fid(&other).with_error(["was made with sampler.guidance = 2.0, and this run has 5.0", "gensis augment --update"]);
    assert_eq!(recorded(), before, "a refused command leaves the experiment as it was");
    fid(&[]).with_code(0).saying(["evaluate: up to date"]);
}

/// Embedded as they are, images of another size than the first, or than generated ones, are listed or refused.
#[test]
fn images_of_other_sizes_give_no_latents() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (experiment(folder.path()), folder.path().join("run"));
    let (file, out) = (file.to_str().unwrap(), out.to_str().unwrap());
    let other = folder.path().join("images/train/stripes/other.png");
    image::RgbImage::from_pixel(64, 48, image::Rgb([90, 30, 60])).save(other).unwrap();
    let as_they_are = ["--set", "embed.resize=0", "--set", "embed.crop=0"];
    let stage = |name: &str, side: &str| {
        let size = format!("autoencoder.image_size={side}");
        let start = line(&[name, "--config", file, "--out", out, "--update", "--set", &size]);
        gensis(start.into_iter().chain(line(&as_they_are)))
    };
    stage("pretrain", "64").with_code(0);
    stage("autoencoder", "32").with_code(0);
    stage("diffusion", "32")
        .with_error(["images of 64 x 64 px are embedded as they are", "generated ones have 32 x 32"]);
    stage("autoencoder", "64").with_code(0);
    stage("diffusion", "64").with_code(3);
    let listed = failures(Path::new(out));
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert!(listed[0].1.ends_with("other.png") && listed[0].2.contains("64 x 48 px where the first image has 64 x 64"));
}

/// Nothing but pixels are mixed: no bank is made, judged or shown.
#[test]
fn an_ablation_without_a_bank_runs_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (experiment(folder.path()), folder.path().join("run"));
    let more = ["--set", "gen_dino.synthetic=0", "--set", r#"gen_dino.variants=["pixel_mixing"]"#];
    let judged = ["--set", r#"evaluate.fid.encoders=["dino"]"#];
    let command = ["run", file.to_str().unwrap(), "--out", out.to_str().unwrap()];
    gensis(line(&command).into_iter().chain(line(&more)).chain(line(&judged))).with_code(0);
    let rows = table(&out.join("results/results.csv"));
    assert!(rows.iter().any(|row| row["encoder"] == "gen_dino_pixel_mixing"));
    assert!(rows.iter().all(|row| row["task"] != "fid") && !out.join("figures/synthetic.png").exists());
}

/// Pictures are drawn, nothing is overwritten, and other models are refused by name.
fn samples(run: &Path, folder: &Path) {
    let [run, picture] = [run.to_path_buf(), folder.join("strip.png")].map(|path| path.to_str().unwrap().to_owned());
    let image = |name: &str| folder.join("images/train").join(name).to_str().unwrap().to_owned();
    let (one, two) = (image("dots/0.png"), image("stripes/0.png"));
    let strip =
        ["sample", &run, "--interpolate", &one, &two, "--alphas", "0.25,0.75", "--count", "1", "--picture", &picture];
    let ended = gensis(strip).with_code(0);
    let told: Vec<Vec<&str>> = ended.stdout.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(told.len(), 1 + 4, "{}", ended.stdout);
    // The ends are the images themselves: the second is itself at α = 0, the first at α = 1.
    assert_eq!((told[1][3], told[1][5], told[4][3], told[4][4]), ("0", "1.0000", "1", "1.0000"), "{}", ended.stdout);
    assert_eq!(image::open(&picture).unwrap().height(), 4 + 96 + 4);
    gensis(strip).with_error(["exists", "--picture"]);
    weighs_the_first(&run, [&one, &two], folder);
    judges_its_own_bank_alone(&run);
    gensis(["sample", &run, "--images", &one, "--set", "embed.crop=24", "--set", "embed.resize=24"])
        .with_error(["was trained with embed.crop = 32, and 24 is asked for"]);
    gensis(["sample", &run, "--images", &one, &two, "--count", "2", "--set", "sample.solver=dpm"]).with_code(0);
    assert!(Path::new(&run).join("samples/sample-001.png").exists());
    let features = Path::new(&run).join("features/dino-test.parquet").to_str().unwrap().to_owned();
    gensis(["sample", &run, "--embeddings", &features, "--rows", "1,7", "--count", "1"]).with_code(0);
    gensis(["sample", &run, "--embeddings", &features, "--rows", "8"]).with_error(["8 embeddings", "row 8"]);
    let others = Path::new(&run).join("features/gen_dino-test.parquet").to_str().unwrap().to_owned();
    gensis(["sample", &run, "--embeddings", &others, "--rows", "0"])
        .with_error(["embeddings by the encoder", "is conditioned on"]);
    gensis(["sample", &run, "--images", &one, "absent.png"]).with_error(["absent.png"]);
    gensis(["sample", &run, "--images", &one, "--set", "sample.steps=2000"]).with_error(["sample.steps = 2000"]);
    // An encoder that the diffusion model does not know.
    let gen_dino = Path::new(&run).join("gen_dino/full/encoder.safetensors");
    fs::copy(gen_dino, Path::new(&run).join("pretrain/encoder.safetensors")).unwrap();
    gensis(["sample", &run, "--images", &one]).with_error(["was trained with the encoder", "and this is"]);
}

/// At α = 1 every line ends at the first image: what is drawn is a sample of it, what is mixed is the image itself.
fn weighs_the_first(run: &str, [one, two]: [&str; 2], folder: &Path) {
    let picture = |name: &str, words: &[&str]| {
        let path = folder.join(name);
        let command = ["sample", run, "--count", "1", "--picture", path.to_str().unwrap()];
        gensis(command.into_iter().chain(words.iter().copied())).with_code(0);
        image::open(path).unwrap().to_rgb8()
    };
    // Cells of 96 px, 4 px apart.
    let cell = |picture: &image::RgbImage, number: u32| {
        image::imageops::crop_imm(picture, 4 + number * 100, 4, 96, 96).to_image()
    };
    let (first, second) = (picture("first.png", &["--images", one]), picture("second.png", &["--images", two]));
    // In other company, so that the last bit may be rounded otherwise.
    let alike = |a: &image::RgbImage, b: &image::RgbImage| a.iter().zip(b.iter()).all(|(a, b)| a.abs_diff(*b) <= 1);
    for line in ["slerp", "lerp", "pixels"] {
        let strip = picture(&format!("{line}.png"), &["--interpolate", one, two, "--alphas", "0,1", "--line", line]);
        // The second image, what is drawn at 0 and at 1, the first.
        let ends = if line == "pixels" { 0 } else { 1 };
        let [at_0, at_1] = [1, 2].map(|number| cell(&strip, number));
        assert!(alike(&at_0, &cell(&second, ends)) && alike(&at_1, &cell(&first, ends)), "{line}");
        // So little trained, the model hardly tells embeddings apart.
        assert!(line != "pixels" || !alike(&at_0, &at_1));
    }
}

#[test]
fn stages_ask_for_the_one_before_and_sizes_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = experiment(folder.path());
    let out = folder.path().join("run");
    let stage = |words: &[&str]| {
        let place = ["--config", file.to_str().unwrap(), "--out", out.to_str().unwrap()];
        gensis(words.iter().chain(&place).copied())
    };
    stage(&["diffusion"]).with_error(["gensis pretrain"]);
    stage(&["pretrain"]).with_code(0);
    stage(&["diffusion"]).with_error(["gensis autoencoder"]);
    stage(&["autoencoder"]).with_code(0);
    stage(&["augment"]).with_error(["gensis diffusion"]);
    stage(&["pretrain", "--gen-dino"]).with_error(["gensis diffusion"]);
    stage(&["diffusion", "--resume"]).with_error(["nothing to resume"]);
    stage(&["diffusion"]).with_code(0);
    stage(&["pretrain", "--gen-dino"]).with_error(["gensis augment"]);
    stage(&["evaluate", "fid"]).with_error(["gensis"]);
    let deeper = "diffusion.unet.channel_mult=[1,1,1,1,1]";
    stage(&["diffusion", "--update", "--set", deeper]).with_error(["8 x 8", "diffusion.unet.channel_mult"]);
    stage(&["diffusion", "--set", "diffusion.unet.attention=[3]"]).with_error(["diffusion.unet.attention = 3"]);
    // A finished training stays where it is until nothing is left that may refuse the next one.
    for name in ["pretrain", "diffusion"] {
        let bf16 = format!("{name}.precision=bf16");
        stage(&[name, "--update", "--set", &bf16]).with_error([&format!("{name}.precision = \"bf16\" needs")]);
        stage(&[name, "--update"]).with_code(0).saying(["up to date"]);
    }
}

/// A share that drops out leaves no latents of the few images that were left; once it is back, all have theirs.
#[test]
fn latents_stop_where_most_images_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = experiment(folder.path());
    let out = folder.path().join("run");
    let stage = |name: &str| gensis([name, "--config", file.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    stage("pretrain").with_code(0);
    stage("autoencoder").with_code(0);
    let class = |name: &str| fs::read_dir(folder.path().join("images/train").join(name)).unwrap();
    let files = ["dots", "stripes"].into_iter().flat_map(class).map(|entry| entry.unwrap().path());
    let whole: Vec<(PathBuf, Vec<u8>)> = files.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    assert_eq!(whole.len(), 16);
    // As long as before, so that nobody notices.
    whole.iter().skip(4).for_each(|(path, bytes)| fs::write(path, vec![0; bytes.len()]).unwrap());
    stage("diffusion").with_error(["12 of 16 reads failed", ".png"]);
    whole.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    stage("diffusion").with_code(0).saying(["latents: 16 images, 0 failure(s)"]);
    assert!(!out.join("latents/unreadable.json").exists());
}

/// Latents are computed once for all trainings of a run folder, and what could not be read stays listed.
#[test]
fn an_unreadable_image_is_listed_and_latents_outlive_a_training() {
    let folder = tempfile::tempdir().unwrap();
    let file = experiment(folder.path());
    fs::write(folder.path().join("images/train/dots/broken.png"), b"not a picture").unwrap();
    let out = folder.path().join("run");
    let stage = |words: &[&str]| {
        let place = ["--config", file.to_str().unwrap(), "--out", out.to_str().unwrap()];
        gensis(words.iter().chain(&place).copied())
    };
    stage(&["pretrain"]).with_code(3);
    stage(&["autoencoder"]).with_code(3);
    let listed =
        || failures(&out).iter().filter(|(stage, item, _)| stage == "diffusion" && item == "dots/broken.png").count();
    stage(&["diffusion"]).with_code(3).saying(["latents: 17 images, 1 failure(s)"]);
    assert_eq!(listed(), 1);
    let again = stage(&["diffusion", "--update", "--set", "diffusion.lr=2e-4"]).with_code(3).saying(["is kept in"]);
    assert!(!again.stderr.contains("latents:"), "{}", again.stderr);
    assert_eq!(listed(), 1);
    stage(&["augment", "--update", "--set", "diffusion.lr=2e-4"]).with_code(3).saying(["slerp: 32 images"]);
}
