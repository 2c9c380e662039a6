//! Killed at any moment, or out of disk: the same command finishes with the bytes of an uninterrupted run.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cohort::{JOB, REFERENCE};
use crate::folder::{assert_same, failures, files, left_over, results};
use crate::program::{Stopped, gensis, gensis_with_small_files, holds_file, kill_when};

#[test]
fn killed_in_every_stage_the_same_command_finishes_the_run() {
    let reference = &*REFERENCE;
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let command = reference.cohort.command(&run, &[]);
    let lines = |name: &str| std::fs::read_to_string(run.join(name)).map_or(0, |text| text.lines().count());
    type Reached<'a> = &'a dyn Fn(&str) -> bool;
    let drawn = || {
        run.join("heatmap/dino").read_dir().into_iter().flatten().flatten().any(|head| holds_file(&head.path(), ".h5"))
    };
    let moments: [(&str, Reached); 9] = [
        ("the folder is made", &|_| run.exists()),
        ("the first slide is cut", &|_| holds_file(&run.join(JOB).join("patches"), ".h5")),
        ("the first step is done", &|_| lines("pretrain/metrics.jsonl") > 0),
        ("a checkpoint and some more steps are done", &|_| lines("pretrain/metrics.jsonl") > 10),
        ("the encoder is written", &|_| run.join("pretrain/encoder.safetensors").exists()),
        ("the first slide is embedded", &|_| holds_file(&run.join(JOB).join("features_dino"), ".h5")),
        ("the scores are computed", &|said| said.contains("evaluate: 3 folds")),
        ("a heatmap is drawn", &|_| drawn()),
        ("a figure is drawn", &|_| holds_file(&run.join("figures"), ".png")),
    ];
    for (name, moment) in moments {
        // The last stages may be over in the blink of an eye; every other one must not be finished.
        let brief = ["scores", "heatmap", "figure"].iter().any(|stage| name.contains(stage));
        match kill_when(&command, moment) {
            Stopped::Ended(code) if !brief => panic!("it ended with {code:?} before it could be killed when {name}"),
            _ => {}
        }
        assert!(brief || !run.join("report.html").exists(), "killed too late, when {name}");
    }
    let ended = gensis(&command).with_code(0);
    assert_eq!(left_over(&run), Vec::<String>::new());
    assert_same(&results(&run), &results(&reference.run));
    assert!(ended.stderr.contains("(12 up to date)"), "{}", ended.stderr);
    assert!(run.join("report.html").exists());
}

#[test]
fn killed_again_and_again_it_still_finishes() {
    let reference = &*REFERENCE;
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let command = reference.cohort.command(&run, &[]);
    let mut patience = Duration::from_millis(20);
    let mut kills = 0;
    let code = loop {
        let begun = Instant::now();
        match kill_when(&command, |_| begun.elapsed() > patience) {
            Stopped::Killed => kills += 1,
            Stopped::Ended(code) => break code,
        }
        patience = patience.mul_f64(1.6);
    };
    assert_eq!(code, Some(0));
    assert!(kills >= 3, "killed {kills} times");
    assert_eq!(left_over(&run), Vec::<String>::new());
    assert_same(&results(&run), &results(&reference.run));
}

/// The arguments of `gensis tile` into `out`.
fn tile(out: &Path) -> Vec<String> {
    let experiment = REFERENCE.cohort.experiment();
    let arguments = ["tile", "--config", experiment.to_str().unwrap(), "--out", out.to_str().unwrap()];
    arguments.map(str::to_owned).to_vec()
}

#[test]
fn tiling_killed_at_every_slide_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    gensis(tile(&whole)).with_code(0);
    let patches = killed.join(JOB).join("patches");
    let cut = || {
        let names = patches.read_dir().into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter(|name| !name.to_string_lossy().starts_with('.')).count()
    };
    let mut kills = 0;
    for slides in [0, 1, 2, 4, 6, 8, 10, 11] {
        // Whatever was cut before the last kill counts too.
        match kill_when(tile(&killed), |_| killed.exists() && cut() >= slides) {
            Stopped::Killed => kills += 1,
            Stopped::Ended(code) => assert_eq!(code, Some(0), "before {slides} slides were cut"),
        }
    }
    assert!(kills >= 5, "killed {kills} times");
    gensis(tile(&killed)).with_code(0);
    assert_eq!(left_over(&killed), Vec::<String>::new());
    assert_same(&results(&killed), &results(&whole));
}

#[test]
fn of_two_tilers_in_one_folder_the_second_is_refused_and_the_first_unharmed() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, shared] = ["whole", "shared"].map(|name| folder.path().join(name));
    gensis(tile(&whole)).with_code(0);
    let mut refused = 0;
    let first = kill_when(tile(&shared), |_| {
        if refused == 0 && shared.join("experiment.toml").exists() {
            let second =
                gensis(tile(&shared)).with_error([shared.to_str().unwrap(), "is in use by another gensis process"]);
            assert_eq!((second.stderr.lines().count(), second.stdout.as_str()), (1, ""), "{}", second.stderr);
            refused += 1;
        }
        false
    });
    assert!(matches!(first, Stopped::Ended(Some(0))));
    assert_eq!(refused, 1);
    assert_same(&results(&shared), &results(&whole));
}

#[test]
fn of_many_tilers_started_at_once_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, shared] = ["whole", "shared"].map(|name| folder.path().join(name));
    gensis(tile(&whole)).with_code(0);
    let all: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..4).map(|_| scope.spawn(|| gensis(tile(&shared)))).collect();
        running.into_iter().map(|running| running.join().unwrap()).collect()
    });
    assert!(all.iter().any(|ended| ended.code == Some(0)));
    for ended in all.into_iter().filter(|ended| ended.code != Some(0)) {
        ended.with_error(["in use by another gensis process"]);
    }
    assert_eq!(left_over(&shared), Vec::<String>::new());
    assert_same(&results(&shared), &results(&whole));
}

#[test]
fn files_that_a_killed_writer_left_are_removed() {
    let reference = &*REFERENCE;
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    crate::folder::copy(&reference.run, &run);
    let places = [run.clone(), run.join("pretrain"), run.join(JOB).join("patches"), run.join("results")];
    for place in places {
        std::fs::write(place.join(".gensis-x1y2z3"), b"half").unwrap();
    }
    // Not ours, though hidden.
    std::fs::write(run.join(".note"), b"mine").unwrap();
    reference.cohort.run(&run, &[]).with_code(0);
    assert_eq!(left_over(&run), [".note"]);
}

#[test]
fn a_run_killed_before_its_configuration_was_written_can_begin_again() {
    let reference = &*REFERENCE;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".lock"), b"").unwrap();
    std::fs::write(folder.path().join(".gensis-q8w7e6"), b"seed = ").unwrap();
    let experiment = reference.cohort.experiment();
    let out = folder.path().to_str().unwrap();
    gensis(["tile", "--out", out, "--config", experiment.to_str().unwrap()]).with_code(0);
    assert_eq!(left_over(folder.path()), Vec::<String>::new());
}

#[test]
fn writes_that_fail_are_told_and_lose_nothing() {
    let reference = &*REFERENCE;
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let command = reference.cohort.command(&run, &[]);
    // What is too large first: the configuration, a picture (it comes before the coordinates, which are smaller), a
    // checkpoint.
    let largest = |prefix: &str| {
        let sizes = results(&reference.run).into_iter().filter(|(name, _)| name.starts_with(prefix));
        sizes.map(|(_, bytes)| bytes.len() as u64).max().unwrap()
    };
    let below = |bytes: u64| bytes / 512 - 1;
    let limits = [
        (below(largest("experiment.toml")), "experiment.toml"),
        (below(largest("thumbnails/")), "thumbnails/"),
        (below(largest("pretrain/checkpoint")), "pretrain/checkpoint.safetensors"),
    ];
    for (blocks, name) in limits {
        let ended = gensis_with_small_files(blocks, &command).with_error([name]);
        assert!(ended.stderr.contains("os error") || ended.stderr.contains("File too large"), "{}", ended.stderr);
    }
    gensis(&command).with_code(0);
    assert_eq!(left_over(&run), Vec::<String>::new());
    assert_same(&results(&run), &results(&reference.run));
}

/// Everything is done but one stage, whose file is larger than allowed: the stage names it, and is done when it may.
#[test]
fn writes_that_fail_late_are_told_and_lose_nothing() {
    let reference = &*REFERENCE;
    let features = format!("{JOB}/features_dino");
    let late = [
        ("embed", Some(features.as_str()), ".h5"),
        ("evaluate", Some("heads"), ".safetensors"),
        ("report", None, "report.html"),
    ];
    for (stage, place, name) in late {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        crate::folder::copy(&reference.run, &run);
        let out = run.to_str().unwrap();
        let command = if place.is_some() { vec![stage, "--out", out] } else { vec![stage, out] };
        let written = |(file, _): &(&String, &Vec<u8>)| file.starts_with(place.unwrap_or("report.html"));
        let size = files(&run).iter().filter(written).map(|(_, bytes)| bytes.len()).max().unwrap();
        if let Some(place) = place {
            std::fs::remove_file(run.join("stages").join(format!("{stage}.json"))).unwrap();
            std::fs::remove_dir_all(run.join(place)).unwrap();
        }
        if stage == "evaluate" {
            // Otherwise they would be taken for figures of other settings, and written first without them.
            for folder in ["results", "stages/evaluate"] {
                std::fs::remove_dir_all(run.join(folder)).unwrap();
            }
        }
        std::fs::remove_file(run.join("report.html")).unwrap();
        gensis_with_small_files(size as u64 / 512 - 1, &command).with_error([name]);
        gensis(&command).with_code(0);
        assert_eq!(left_over(&run), Vec::<String>::new());
        gensis(reference.cohort.command(&run, &[])).with_code(0);
        assert_same(&results(&run), &results(&reference.run));
        assert!(run.join("report.html").exists());
    }
}

#[test]
fn a_full_disk_is_told_and_after_making_room_the_run_goes_on() {
    let reference = &*REFERENCE;
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), "400k") else {
        eprintln!("skipped: no right to mount a small disk");
        return;
    };
    let run = folder.path().join("run");
    reference.cohort.run(&run, &[]).with_error(["No space left on device", run.to_str().unwrap()]);
    assert!(run.join("experiment.toml").exists());
    disk.resize("1m");
    reference.cohort.run(&run, &[]).with_error(["No space left on device"]);
    disk.resize("100m");
    reference.cohort.run(&run, &[]).with_code(0);
    assert_eq!(failures(&run), []);
    assert_eq!(left_over(&run), Vec::<String>::new());
    assert_same(&results(&run), &results(&reference.run));
}

/// A file system in memory, gone when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path, size: &str) -> Option<Self> {
        let options = format!("size={size}");
        let arguments = ["-t", "tmpfs", "-o", &options, "gensis-test"];
        let mounted =
            Command::new("mount").args(arguments).arg(at).output().is_ok_and(|output| output.status.success());
        mounted.then_some(Self(at))
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &options]).arg(self.0).status().unwrap().success());
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // A panicking test should report its own failure.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}
