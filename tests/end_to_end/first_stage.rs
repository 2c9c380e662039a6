//! `gensis autoencoder`: trained, interrupted, trained anew, taken from a file.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cohort::EXPERIMENT;
use crate::folder::{assert_same, below, failures, results};
use crate::images::draw;
use crate::program::{Ended, Stopped, gensis, kill_when};

const SECTION: &str = r#"
[autoencoder]
channels = 4
groups = 2
codebook = 32
image_size = 16
epochs = 3
batch = 4
lr = 1e-3
disc_start = 2
disc_layers = 1
checkpoint_every = 2
"#;

/// Sixteen images, and an experiment on them.
fn experiment(folder: &Path) -> PathBuf {
    let (images, file) = (folder.join("images"), folder.join("experiment.toml"));
    draw(&images);
    fs::write(&file, format!("[data]\nimages = {images:?}\n{EXPERIMENT}{SECTION}")).unwrap();
    file
}

/// The arguments of a stage.
fn command(stage: &str, file: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let line = [stage, "--config", file.to_str().unwrap(), "--out", out.to_str().unwrap()];
    line.iter().chain(more).map(|argument| argument.to_string()).collect()
}

fn run(stage: &str, file: &Path, out: &Path, more: &[&str]) -> Ended {
    gensis(command(stage, file, out, more))
}

fn summary(out: &Path) -> serde_json::Value {
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("stages/autoencoder.json")).unwrap()).unwrap();
    record["summary"].clone()
}

#[test]
fn it_is_trained_through_the_encoder_and_killed_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (file, [whole, out]) = (experiment(folder.path()), ["whole", "run"].map(|name| folder.path().join(name)));
    run("autoencoder", &file, &whole, &[]).with_error(["looks through the pretrained encoder", "gensis pretrain"]);
    run("pretrain", &file, &whole, &[]).with_code(0);
    run("autoencoder", &file, &whole, &["--resume"]).with_error(["nothing to resume"]);
    run("autoencoder", &file, &whole, &[]).with_code(0).saying(["PSNR", "compared through encoder"]);
    assert_eq!(failures(&whole), []);
    let told = summary(&whole);
    assert!(told["psnr"].as_f64().unwrap() > 3.0 && told["codebook_usage"].as_f64().unwrap() > 0.0, "{told}");
    assert_eq!((told["patches"].as_u64(), told["scale"].as_f64()), (Some(15), Some(1.0)));
    let encoder: serde_json::Value =
        serde_json::from_slice(&fs::read(whole.join("stages/pretrain.json")).unwrap()).unwrap();
    assert_eq!(told["perceptual"]["hash"], encoder["summary"]["encoder"]);
    let picture = image::open(whole.join("autoencoder/reconstructions.png")).unwrap();
    // Enlarged four times, with a gap of 4 px around each.
    assert_eq!((picture.width(), picture.height()), (4 + 68, 4 + 2 * 68));
    run("autoencoder", &file, &whole, &[]).with_code(0).saying(["autoencoder: up to date"]);

    run("pretrain", &file, &out, &[]).with_code(0);
    let lines = || fs::read_to_string(out.join("autoencoder/metrics.jsonl")).map_or(0, |text| text.lines().count());
    let stopped = kill_when(command("autoencoder", &file, &out, &[]), |_| lines() > 3);
    assert!(matches!(stopped, Stopped::Killed) && !out.join("autoencoder/autoencoder.safetensors").exists());
    run("autoencoder", &file, &out, &["--resume"]).with_code(0);
    assert_same(&results(&out), &results(&whole));
}

#[test]
fn other_settings_are_trained_anew_and_the_earlier_training_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (experiment(folder.path()), folder.path().join("run"));
    let plain = ["--set", "autoencoder.perceptual=none"];
    run("autoencoder", &file, &out, &plain).with_code(0);
    let before = below(&results(&out), "autoencoder/");
    let other = [&plain[..], &["--set", "autoencoder.kind=kl_f4", "--set", "autoencoder.codebook=0"]].concat();
    run("autoencoder", &file, &out, &other).with_error(["autoencoder.kind", "--update"]);
    run("autoencoder", &file, &out, &[&other[..], &["--update"]].concat())
        .with_code(0)
        .saying(["the earlier training is kept in"]);
    let kept = below(&results(&out), "autoencoder.old-1/");
    assert_eq!(before.values().collect::<Vec<_>>(), kept.values().collect::<Vec<_>>());
    assert!(summary(&out)["scale"].as_f64().unwrap() != 1.0);
}

#[test]
fn one_from_a_file_is_used_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (experiment(folder.path()), folder.path().join("run"));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/autoencoder/kl.ckpt");
    let weights = format!("autoencoder.weights={golden:?}");
    run("autoencoder", &file, &out, &["--set", "autoencoder.kind=kl_f4"])
        .with_error(["codebook = 32", "only vq kinds"]);
    run("autoencoder", &file, &out, &["--set", &weights]).with_error(["\"vq_f4\"", "kl.ckpt", "\"kl_f4\""]);
    let kind = ["--set", "autoencoder.kind=kl_f4", "--set", "autoencoder.codebook=0", "--set", &weights];
    run("autoencoder", &file, &out, &[&kind[..], &["--update"]].concat()).with_code(0).saying(["PSNR"]);
    let wider = [&kind[..], &["--update", "--set", "autoencoder.latent_channels=8"]].concat();
    run("autoencoder", &file, &out, &wider).with_error(["autoencoder.latent_channels is 8", "kl.ckpt holds 3"]);
    let told = summary(&out);
    assert!(told["scale"].as_f64().unwrap() > 0.0 && told["last"].is_null(), "{told}");
    assert!(!out.join("autoencoder/checkpoint.safetensors").exists());
    let own = format!("autoencoder.weights={:?}", out.join("autoencoder/autoencoder.safetensors"));
    let again = folder.path().join("again");
    let kind = ["--set", "autoencoder.kind=kl_f4", "--set", "autoencoder.codebook=0", "--set", &own];
    run("autoencoder", &file, &again, &kind).with_code(0);
    assert_eq!(summary(&again)["first_stage"], told["first_stage"], "our own file keeps its scale");
}
