//! Encoders that somebody else trained: tiny networks of timm and DINOv2 from `tests/golden/encoders`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};
use slide_io::h5;

use crate::cohort::{JOB, REFERENCE, id};
use crate::folder::{below, failures, files, table};
use crate::images;
use crate::program::gensis;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/encoders");

/// A setting with two of them: one by CLS, one by CLS and the mean of the patches.
fn two(pooling: &str) -> String {
    format!(
        "encoders=[{{name=\"registers\", weights=\"{GOLDEN}/timm_registers.safetensors\", mpp=0.25, \
         network={{heads=2, positions=\"patches\"}}}}, \
         {{name=\"dinov2\", weights=\"{GOLDEN}/dinov2_training.pth\", resize=50, network={{heads=2, interpolation=\"dino\", \
         pooling=\"{pooling}\"}}}}]"
    )
}

/// The slides' features of an encoder.
fn features(run: &Path, encoder: &str) -> crate::folder::Files {
    below(&files(run), &format!("{JOB}/features_{encoder}/"))
}

#[test]
fn slides_are_scored_with_encoders_of_others_and_without_training() {
    let cohort = &REFERENCE.cohort;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let encoders = two("cls_mean");
    let ended = cohort.run(&out, &["--set", "pretrained_only=true", "--set", &encoders]).with_code(0).saying([
        "registers was made for patches of 0.25 µm/px, and grid.mpp is 0.5",
        "registers: patches of 128 px are resized to 42 px (1.524 µm/px)",
        "dinov2: patches of 128 px are resized to 50 px (1.280 µm/px) and cut to the centre 42 px",
    ]);
    assert!(!ended.stderr.contains("pretrain") && !out.join("pretrain").exists(), "{}", ended.stderr);
    let rows = table(&out.join("results/results.csv"));
    for encoder in ["registers", "dinov2"] {
        assert!(rows.iter().any(|row| row["encoder"] == encoder && row["metric"] == "macro_auc"), "{encoder}");
        assert!(out.join(format!("figures/attention_{encoder}.png")).exists());
    }
    let compared = table(&out.join("results/comparisons.csv"));
    assert!(compared.iter().any(|row| row.values().any(|value| value == "dinov2")), "{compared:?}");

    let read =
        |encoder: &str| h5::read_features(&out.join(JOB).join(format!("features_{encoder}/{}.h5", id(3)))).unwrap();
    assert_eq!((read("registers").dim, read("dinov2").dim), (8, 16));
    let header = h5::read_header(&out.join(JOB).join(format!("features_registers/{}.h5", id(3)))).unwrap().unwrap();
    let file = Sha256::digest(fs::read(Path::new(GOLDEN).join("timm_registers.safetensors")).unwrap());
    let file: String = file.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(header["weights"]["sha256"], file);
    assert_eq!(header["weights"]["description"]["network"]["heads"], 2);

    let clam = folder.path().join("clam");
    let [run, to] = [&out, &clam].map(|path| path.to_str().unwrap());
    gensis(["export", "clam", run, "--encoder", "registers", "--out", to])
        .with_code(0)
        .saying(["12 slides, 12 with features"]);
    assert!(clam.join(format!("pt_files/{}.pt", id(3))).exists());

    cohort
        .run(&out, &["--set", "pretrained_only=true", "--set", &encoders])
        .with_code(0)
        .saying(["evaluate: up to date"]);
    // Another description of the same file is another encoder; the one beside it stays.
    let before = [features(&out, "registers"), features(&out, "dinov2")];
    cohort.run(&out, &["--set", "pretrained_only=true", "--set", &two("mean"), "--update"]).with_code(0);
    assert!(features(&out, "registers") == before[0] && features(&out, "dinov2") != before[1]);
    assert_eq!(read("dinov2").dim, 8);
}

#[test]
fn images_are_scored_with_an_own_encoder_and_one_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let [pictures, out] = ["images", "run"].map(|name| folder.path().join(name));
    images::draw(&pictures);
    images::run(&pictures, &out, &["--set", &two("cls")]).with_code(0);
    let rows = table(&out.join("results/results.csv"));
    for encoder in ["dino", "random", "pixels", "registers", "dinov2"] {
        assert!(rows.iter().any(|row| row["encoder"] == encoder && row["head"] == "3-NN"), "{encoder}");
    }
}

#[test]
fn an_encoder_that_cannot_be_loaded_costs_its_own_figures_alone() {
    let folder = tempfile::tempdir().unwrap();
    let [pictures, out, weights] = ["images", "run", "other.pth"].map(|name| folder.path().join(name));
    images::draw(&pictures);
    let harm = folder.path().join("harm");
    let command = format!("touch {}", harm.display());
    let length = (command.len() as u32).to_le_bytes();
    fs::write(&weights, [b"\x80\x02cos\nsystem\nX", &length[..], command.as_bytes(), b"\x85R."].concat()).unwrap();
    let encoders = format!(
        "encoders=[{{name=\"registers\", weights=\"{GOLDEN}/timm_registers.safetensors\", network={{heads=2, positions=\"patches\"}}}}, \
         {{name=\"other\", weights=\"{}\", network={{heads=2, pooling=\"mean\"}}}}]",
        weights.display()
    );
    let settings = ["--set", "pretrained_only=true", "--set", &encoders];
    images::run(&pictures, &out, &settings).with_code(3).saying(["encoder other: it has no embeddings", "other.pth"]);
    let scored = || -> BTreeSet<String> {
        table(&out.join("results/results.csv")).into_iter().map(|row| row["encoder"].clone()).collect()
    };
    assert!(scored().contains("registers") && !scored().contains("other"), "{:?}", scored());
    assert!(!harm.exists());
    let failed = failures(&out);
    assert!(failed.iter().any(|(stage, item, _)| stage == "embed" && item == "encoder other"), "{failed:?}");
    let before = below(&files(&out), "features/registers-");

    // A file that `embed` has not met, in a benchmark with images of its own.
    fs::write(&weights, b"no weights").unwrap();
    let set = ["--set", "evaluate.copies.image_size=32", "--update", "--out", out.to_str().unwrap()];
    gensis(["evaluate", "copies"].into_iter().chain(set)).with_code(3).saying(["copies: encoder other", "other.pth"]);
    let copies = table(&out.join("results/copies.csv"));
    assert!(!copies.is_empty() && copies.iter().all(|row| row["encoder"] != "other"), "{copies:?}");

    let settings = [&settings[..], &["--update"]].concat();
    fs::copy(Path::new(GOLDEN).join("timm_mean.pth"), &weights).unwrap();
    images::run(&pictures, &out, &settings).with_code(0);
    assert!(scored().contains("registers") && scored().contains("other"), "{:?}", scored());
    assert!(failures(&out).is_empty() && below(&files(&out), "features/registers-") == before);
}

/// `embed` on a tiled run, with nothing trained.
#[test]
fn a_file_that_is_not_what_the_preset_says_is_refused() {
    let cohort = &REFERENCE.cohort;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let [out, config] = [out.to_str().unwrap(), cohort.experiment().to_str().unwrap()].map(str::to_owned);
    gensis(["tile", "--config", &config, "--out", &out]).with_code(0);
    let embed = |encoder: &str| gensis(["embed", "--config", &config, "--update", "--out", &out, "--encoder", encoder]);
    embed(&format!("uni2_h={GOLDEN}/timm_registers.safetensors")).with_error([
        "no encoder was trained here",
        "timm_registers.safetensors",
        "dim 8, not 1536",
    ]);
    embed("uni=absent.bin").with_error(["encoders.uni.weights: cannot read absent.bin"]);
    embed(&format!("unni={GOLDEN}/timm_mean.pth")).with_error(["did you mean \"uni\"?"]);
    let listed = gensis(["config", "encoders"]).with_code(0).stdout;
    for preset in ["uni2_h", "681.4 M", "2560 (CLS, mean)", "256 > 224", "huggingface.co/bioptimus/H-optimus-1"] {
        assert!(listed.contains(preset), "{preset:?} is not in\n{listed}");
    }
}
