//! Mistakes in configurations and on the command line; commands that need no run.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::cohort::{REFERENCE, SLIDES};
use crate::folder::files;
use crate::program::{Ended, gensis};

/// `gensis run` of a configuration of this text, and whether it left anything behind.
fn run(text: &str, settings: &[&str]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    fs::write(&file, text).unwrap();
    let out = folder.path().join("out");
    let mut line = vec!["run", file.to_str().unwrap(), "--out", out.to_str().unwrap()];
    settings.iter().for_each(|setting| line.extend(["--set", setting]));
    let ended = gensis(line);
    assert!(!out.exists(), "a folder was made for a configuration that cannot run");
    ended
}

#[test]
fn unknown_keys_name_file_line_and_the_nearest_key() {
    run("seed = 1\n\n[pretrain]\nepohcs = 3\n", &[]).with_error([
        "mine.toml",
        "line 4",
        "`epohcs`",
        "did you mean `epochs`?",
    ]);
    run("[pretrian]\nepochs = 3\n", &[]).with_error(["mine.toml", "line 1", "did you mean `pretrain`?"]);
    run("[evaluate.slide]\nfold = 3\n", &[]).with_error(["line 2", "did you mean `folds`?"]);
    run("[data.columns]\nslide_name = \"x\"\n", &[]).with_error(["line 2", "did you mean `slide`?"]);
    run("", &["pretrain.epohcs=3"]).with_error(["--set pretrain.epohcs=3", "did you mean `epochs`?"]);
    run("", &["epochs=3"]).with_error(["--set epochs=3", "unknown key `epochs`"]);
}

#[test]
fn wrong_types_and_broken_files_name_file_and_line() {
    run("[pretrain]\nepochs = \"ten\"\n", &[]).with_error(["mine.toml", "line 2", "invalid type"]);
    run("[grid]\nsize = -5\n", &[]).with_error(["mine.toml", "line 2"]);
    run("[grid\nsize = 5\n", &[]).with_error(["mine.toml", "line 1"]);
    run("seed = 1\nseed = 2\n", &[]).with_error(["mine.toml", "line 2", "duplicate"]);
    run("", &["grid.size=many"]).with_error(["--set grid.size=many"]);
    run("", &["grid.size"]).with_error(["--set grid.size", "key=value"]);
    run("", &["seed.x=1"]).with_error(["--set seed.x=1"]);
}

#[test]
fn values_that_make_no_sense_name_the_key() {
    for (setting, says) in [
        ("grid.mpp=0", "grid.mpp"),
        ("grid.size=0", "grid.size"),
        ("grid.min_tissue=50", "grid.min_tissue"),
        ("pretrain.batch=0", "pretrain.batch"),
        ("pretrain.epochs=0", "pretrain.epochs"),
        ("pretrain.warmup_epochs=500", "pretrain.warmup_epochs"),
        ("evaluate.slide.folds=1", "evaluate.slide.folds"),
        ("evaluate.knn.k=[]", "evaluate.knn.k"),
        ("evaluate.slide.seeds=[]", "evaluate.slide.seeds"),
        ("evaluate.slide.validation=1", "evaluate.slide.validation"),
        ("crops.global_scale=[0.9, 0.1]", "crops.global_scale"),
        ("pretrain.precision=f16", "f16"),
        ("model.arch=resnet50", "resnet50"),
        ("pretrain.lr=-1", "pretrain.lr"),
        ("pretrain.lr=nan", "pretrain.lr"),
        ("crops.hflip=2", "crops.hflip"),
        ("model.drop_path=1.5", "model.drop_path"),
        ("tissue.smooth=4", "tissue.smooth"),
        ("tissue.mpp=0", "tissue.mpp"),
    ] {
        run("", &[setting]).with_error([says]);
    }
}

#[test]
fn missing_files_and_wrong_usage() {
    gensis(["run", "nowhere/mine.toml"]).with_error(["cannot read nowhere/mine.toml", "No such file"]);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    gensis(["report", out]).with_error(["is not a run folder"]);
    gensis(["tile", "--out", out]).with_error(["data.slides"]);
    for usage in [
        &["run"][..],
        &["fly"],
        &["tile"],
        &["tile", "--out", out, "--slides", "a", "--images", "b"],
        &["tile", "--out", out, "--device", "gpu"],
        &["tile", "--out", out, "--mpp", "half"],
        &["evaluate", "everything", "--out", out],
    ] {
        gensis(usage).with_code(2).saying(["--help"]);
    }
    gensis([] as [&str; 0]).with_code(2).saying(["Usage"]);
    gensis(["--help"]).with_code(0);
    gensis(["--version"]).with_code(0);
}

#[test]
fn help_of_every_command_has_an_example() {
    let all = gensis(["--help"]).with_code(0).stdout;
    let listed = all.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A name begins a line, the rest of what it does goes on below.
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let commands: Vec<&str> =
        names.filter_map(|line| line.split_whitespace().next()).filter(|c| *c != "help").collect();
    assert_eq!(commands.len(), 18, "{commands:?}");
    for command in commands {
        let help = gensis([command, "--help"]).with_code(0).stdout;
        assert!(help.contains(&format!("Example:\n  gensis {command}")), "{help}");
    }
    for action in ["default", "show", "encoders"] {
        let help = gensis(["config", action, "--help"]).with_code(0).stdout;
        assert!(help.contains(&format!("Example:\n  gensis config {action}")), "{help}");
    }
    let demo = gensis(["demo", "--help"]).stdout;
    assert!(demo.split_whitespace().collect::<Vec<_>>().join(" ").contains("[default: demo-run]"), "{demo}");
}

#[test]
fn a_device_that_is_not_there_is_one_line_and_leaves_no_folder() {
    let doctor: Value = serde_json::from_str(&gensis(["doctor", "--json"]).with_code(0).stdout).unwrap();
    for device in ["cuda", "wgpu", "cuda:7"] {
        let name = device.split(':').next().unwrap();
        let backend = doctor["backends"].as_array().unwrap().iter().find(|b| b["name"] == name).unwrap();
        if backend["devices"].as_array().is_some_and(|devices| !devices.is_empty()) {
            eprintln!("skipped: this machine has {device}");
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        let run = REFERENCE.cohort.run(&out, &["--device", device]);
        let selftest = gensis(["doctor", "--selftest", "--steps", "0", "--device", device]);
        let doctor = gensis(["doctor", "--device", device]);
        for ended in [run, selftest, doctor] {
            let ended = ended.with_error([&format!("--device {name}")[..]]);
            assert!(ended.stderr.starts_with("error: ") && ended.stderr.lines().count() == 1, "{}", ended.stderr);
            assert_eq!(ended.stdout, "");
        }
        assert!(!out.exists());
    }
}

#[test]
fn config_default_is_a_configuration_of_defaults() {
    let default = gensis(["config", "default"]).with_code(0).stdout;
    let folder = tempfile::tempdir().unwrap();
    let [empty, whole] = ["empty.toml", "whole.toml"].map(|name| folder.path().join(name));
    fs::write(&empty, "").unwrap();
    fs::write(&whole, &default).unwrap();
    let show = |file: &Path| gensis(["config", "show", file.to_str().unwrap()]).with_code(0).stdout;
    assert_eq!(show(&whole), show(&empty));
    let parsed: toml::Table = default.parse().unwrap();
    assert_eq!(parsed, show(&empty).parse::<toml::Table>().unwrap());
    let shown = gensis(["config", "show", empty.to_str().unwrap(), "--set", "pretrain.epochs=50"]).with_code(0).stdout;
    assert_eq!(shown.parse::<toml::Table>().unwrap()["pretrain"]["epochs"].as_integer(), Some(50));
    // Every configuration that is shipped can be read.
    for name in
        files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")).keys().filter(|name| name.ends_with(".toml"))
    {
        show(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name));
    }
}

#[test]
fn inspect_tells_what_is_in_slides() {
    let slides = REFERENCE.cohort.slides();
    let folder = slides.to_str().unwrap();
    let table = gensis(["inspect", folder]).with_code(0).stdout;
    assert_eq!(table.lines().count(), SLIDES + 1, "{table}");
    assert!(table.contains("s00.tiff") && table.contains("800x800") && table.contains("0.5000"), "{table}");
    let json: Value = serde_json::from_str(&gensis(["inspect", folder, "--json"]).with_code(0).stdout).unwrap();
    let first = &json.as_array().unwrap()[0];
    assert_eq!((json.as_array().unwrap().len(), first["levels"].as_array().unwrap().len()), (SLIDES, 2));
    assert_eq!(first["levels"][1]["downsample"], 4.0);
    let share = first["tissue_share"].as_f64().unwrap();
    assert!((0.3..0.7).contains(&share), "{share}");
    assert!(first["error"].is_null());

    let one = slides.join("s02.tiff");
    let whole = gensis(["inspect", one.to_str().unwrap()]).with_code(0).stdout;
    assert!(whole.contains("scale          0.4600") || whole.contains("scale          0.5000"), "{whole}");

    let bad = tempfile::tempdir().unwrap();
    fs::copy(&one, bad.path().join("good.tiff")).unwrap();
    fs::write(bad.path().join("broken.svs"), b"II*\0garbage").unwrap();
    let ended = gensis(["inspect", bad.path().to_str().unwrap()]).with_code(3);
    assert!(ended.stdout.contains("broken.svs") && ended.stdout.contains("error: "), "{}", ended.stdout);
    let json: Value =
        serde_json::from_str(&gensis(["inspect", bad.path().to_str().unwrap(), "--json"]).with_code(3).stdout).unwrap();
    assert!(json[0]["error"].is_string() && json[1]["error"].is_null(), "{json}");
    gensis(["inspect", "nowhere"]).with_error(["nowhere"]);
    gensis(["inspect", folder, "--properties"]).with_error(["for a single slide"]);
    gensis(["inspect", folder, "--mpp", "-1"]).with_error(["--mpp must be 0.02 to 50"]);
}

#[test]
fn doctor_tells_what_is_there_and_proves_the_numbers() {
    let text = gensis(["doctor"]).with_code(0).stdout;
    for word in ["--device cpu", "OpenSlide", "HDF5", "threads", "free disk"] {
        assert!(text.contains(word), "{text}");
    }
    let json: Value = serde_json::from_str(&gensis(["doctor", "--json"]).with_code(0).stdout).unwrap();
    assert!(json["threads"].as_u64().unwrap() > 0 && json["free_disk_gb"].as_f64().unwrap() > 0.0);
    let old = json["openslide"].as_str().is_some_and(|version| version.starts_with('3'));
    assert_eq!(text.contains("older than 4.0.1"), old || json["openslide"] == "4.0.0", "{text}");

    let selftest = gensis(["doctor", "--selftest", "--steps", "0"]).with_code(0).stdout;
    assert!(selftest.contains("pass") && !selftest.contains("FAIL"), "{selftest}");
    let json: Value =
        serde_json::from_str(&gensis(["doctor", "--selftest", "--steps", "0", "--json"]).with_code(0).stdout).unwrap();
    let lines = json["lines"].as_array().unwrap();
    assert!(lines.len() >= 2 && lines.iter().all(|line| line["verdict"] == "pass"), "{json}");
    // Another binary, here the same one, beside it in one table.
    let beside = ["doctor", "--selftest", "--steps", "0", "--beside", env!("CARGO_BIN_EXE_gensis")];
    let table = gensis(beside).with_code(0).stdout;
    let both = table.lines().filter(|line| line.split_whitespace().take(2).eq(["pass", "pass"])).count();
    assert_eq!((both, table.lines().count()), (lines.len(), lines.len() + 1), "{table}");
    let all: Value = serde_json::from_str(&gensis([&beside[..], &["--json"]].concat()).with_code(0).stdout).unwrap();
    assert_eq!((&all[0], &all[1]), (&json, &json));
    gensis(["doctor", "--selftest", "--steps", "0", "--beside", "/nowhere"]).with_error(["--beside /nowhere"]);
}

/// Aperio's file of the reader's tests has a label.
#[test]
fn associated_images_are_written_where_they_are_asked_for_by_name() {
    let slide = concat!(env!("CARGO_MANIFEST_DIR"), "/slide_io/tests/golden/breadth/aperio.tif");
    let whole = gensis(["inspect", slide, "--properties"]).with_code(0).stdout;
    assert!(whole.contains("thumbnail, label, macro") && whole.contains("aperio.AppMag: 20"), "{whole}");
    let folder = tempfile::tempdir().unwrap();
    let [png, gif] = ["label.png", "label.gif"].map(|name| folder.path().join(name));
    let save =
        |name: &str, to: &std::path::Path| gensis(["inspect", slide, "--image", name, "--save", to.to_str().unwrap()]);
    save("label", &png).with_code(0);
    assert_eq!(image::open(&png).unwrap().into_rgb8().dimensions(), (24, 40));
    save("label", &png).with_error(["is there already"]);
    save("lable", &folder.path().join("other.png")).with_error(["no associated image `lable`"]);
    save("label", &gif).with_error([".png or .jpg"]);

    // And by nothing else: tiling, packing and exporting write the slide, and no associated image. The label is yellow, which
    // nothing else of the slide is, nor what is drawn over it.
    let yellow = |path: &std::path::Path| {
        let is_yellow = |&image::Rgb([r, g, b]): &image::Rgb<u8>| b > 60 && r.min(g) > b.saturating_add(25);
        image::open(path).unwrap().into_rgb8().pixels().filter(|pixel| is_yellow(pixel)).count()
    };
    assert!(yellow(&png) > 700, "{}", yellow(&png));
    let slides = folder.path().join("slides");
    std::fs::create_dir(&slides).unwrap();
    std::fs::copy(slide, slides.join("aperio.tif")).unwrap();
    let [out, exported] = ["run", "run/exported"].map(|name| folder.path().join(name));
    let settings =
        ["grid.size=16", "grid.stride=16", "grid.min_tissue=0", "tissue.min_piece_mm2=0", "pack.enabled=true"];
    let places = ["tile", "--slides", slides.to_str().unwrap(), "--out", out.to_str().unwrap()];
    gensis(places.into_iter().chain(settings.iter().flat_map(|setting| ["--set", setting])));
    gensis(["export", "patches", out.to_str().unwrap(), "--out", exported.to_str().unwrap()]);
    let names: Vec<String> = crate::folder::files(&out).into_keys().collect();
    assert!(names.iter().any(|name| name.contains("thumbnails/aperio")), "{names:?}");
    let pictures: Vec<&String> =
        names.iter().filter(|name| [".jpg", ".png"].iter().any(|kind| name.ends_with(kind))).collect();
    assert!(pictures.len() > 10, "{pictures:?}");
    for name in pictures {
        assert_eq!(yellow(&out.join(name)), 0, "{name}");
    }
    assert!(names.iter().all(|name| !name.contains("label") && !name.contains("macro")), "{names:?}");
}
