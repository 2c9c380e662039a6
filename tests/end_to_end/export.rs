//! `gensis export`, and coordinates of other tools in place of the grid.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use slide_io::patch::read_patch;
use slide_io::{GridSpec, Mpp, Point, Slide, h5};

use crate::cohort::{Cohort, JOB, REFERENCE};
use crate::folder::{assert_same, below, files, results};
use crate::program::{Ended, gensis};

fn export(task: &str, run: &Path, out: &Path, more: &[&str]) -> Ended {
    let line = ["export", task, run.to_str().unwrap(), "--out", out.to_str().unwrap()];
    gensis(line.iter().chain(more).map(|argument| argument.to_string()).collect::<Vec<_>>())
}

fn table(path: &Path) -> Vec<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_path(path).unwrap();
    reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect()
}

#[test]
fn clams_folders_hold_the_runs_features_and_its_coordinates_come_back_as_the_grid() {
    let folder = tempfile::tempdir().unwrap();
    let cohort = Cohort::draw(&folder.path().join("cohort"));
    let [run, clam, again, back] = ["run", "clam", "again", "back"].map(|name| folder.path().join(name));
    export("clam", &run, &clam, &[]).with_error(["not a run folder"]);
    cohort.run(&run, &[]).with_code(0);
    export("clam", &run, &clam, &[]).with_code(0).saying(["12 slides, 12 with features, 12 labelled, 3 split(s)"]);

    let slide = h5::read_features(&run.join(JOB).join("features_dino/s02.h5")).unwrap();
    let exported = h5::read_features(&clam.join("h5_files/s02.h5")).unwrap();
    assert_eq!((exported.dim, &exported.values), (slide.dim, &slide.values));
    assert_eq!(exported.coordinates.origins, slide.coordinates.origins);
    let numbers: Vec<u8> = slide.values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let tensor = fs::read(clam.join("pt_files/s02.pt")).unwrap();
    assert!(tensor.windows(numbers.len()).any(|window| window == numbers));

    // 128 px of 0.5 µm/px are 139 of the slide's own 0.46.
    let coordinates = h5::read_coordinates(&clam.join("patches/s02.h5")).unwrap().geometry.unwrap();
    assert_eq!((coordinates.size, coordinates.level, coordinates.side_level0), (139, 0, 139.0));

    assert_eq!(
        table(&clam.join("dataset.csv"))[..2],
        [["case_id", "slide_id", "label"], ["p0", "s00", "dots"]].map(own)
    );
    let splits: Vec<Vec<Vec<String>>> =
        (0..3).map(|fold| table(&clam.join(format!("splits/splits_{fold}.csv")))).collect();
    let mut tested = Vec::new();
    for split in &splits {
        assert_eq!(split[0], ["", "train", "val", "test"]);
        let of = |column: usize| split[1..].iter().map(move |row| row[column].clone()).filter(|id| !id.is_empty());
        assert_eq!(of(1).chain(of(2)).chain(of(3)).collect::<std::collections::BTreeSet<_>>().len(), 12);
        tested.extend(of(3));
    }
    tested.sort();
    assert_eq!(tested, (0..12).map(|number| format!("s{number:02}")).collect::<Vec<_>>());
    let scored = table(&run.join("results/slide_scores.csv"));
    let in_fold = |fold: &str| {
        let column = |name: &str| scored[0].iter().position(|head| head == name).unwrap();
        let of = scored[1..].iter().filter(|row| row[column("fold")] == fold);
        of.map(|row| row[column("slide")].clone()).collect::<std::collections::BTreeSet<_>>()
    };
    let first: std::collections::BTreeSet<String> =
        splits[0][1..].iter().map(|row| row[3].clone()).filter(|id| !id.is_empty()).collect();
    assert_eq!(first, in_fold("0"));

    // Some of the slides lie in the folds of all.
    let some = folder.path().join("some");
    export("clam", &run, &some, &["--slides", "s00,s03,s04,s07,s10"]).with_code(0);
    let first_of_some: Vec<String> =
        table(&some.join("splits/splits_0.csv"))[1..].iter().map(|row| row[3].clone()).collect();
    let expected = first.iter().filter(|id| ["s00", "s03", "s04", "s07", "s10"].contains(&&***id));
    assert_eq!(
        first_of_some.into_iter().filter(|id| !id.is_empty()).collect::<Vec<_>>(),
        expected.cloned().collect::<Vec<_>>()
    );

    // What is there stays; a part that is missing is made again with the same bytes.
    let whole = files(&clam);
    fs::remove_file(clam.join("pt_files/s02.pt")).unwrap();
    export("clam", &run, &clam, &[]).with_code(0);
    assert_same(&below(&files(&clam), "pt_files"), &below(&whole, "pt_files"));
    export("clam", &run, &clam, &["--slides", "s02"]).with_error(["holds an export of other patches", "--out"]);
    export("clam", &run, &again, &["--slides", "s99"]).with_error(["no slide s99"]);
    export("clam", &run, &cohort.slides(), &[]).with_error(["holds files that gensis did not write"]);

    let taken = format!("data.coordinates={:?}", clam.join("patches"));
    let tile = |more: &[&str]| {
        let arguments = ["tile", "--config", cohort.experiment().to_str().unwrap(), "--out", back.to_str().unwrap()]
            .map(str::to_owned);
        gensis(arguments.into_iter().chain(more.iter().map(|a| a.to_string())).collect::<Vec<_>>())
    };
    tile(&["--set", &taken]).with_code(0);
    for slide in ["s00", "s02"] {
        let read =
            |root: &Path| h5::read_coordinates(&root.join(JOB).join(format!("patches/{slide}_patches.h5"))).unwrap();
        assert_eq!(read(&back).origins, read(&run).origins);
    }
    // Training reads the footprint of the file: 139 px of 0.46 are 128 of 0.4995.
    tile(&["--set", &taken, "--update", "--set", "grid.size=96", "--set", "grid.stride=96"])
        .with_code(3)
        .saying(["squares are 128 px of level 0", "grid.mpp = 0.6667"]);
    fs::remove_file(clam.join("patches/s02.h5")).unwrap();
    tile(&["--set", &taken, "--update"]).with_code(3).saying(["s02: there are no coordinates of it"]);
    tile(&["--set", &taken, "--set", &format!("data.roi={clam:?}"), "--update"]).with_error(["give one of them"]);
}

/// h5py opens what is written here, and what it writes is read.
#[test]
fn the_files_of_other_tools_are_read_by_h5py_and_those_of_h5py_here() {
    let python = std::env::var("GENSIS_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_h5py = Command::new(&python).args(["-c", "import h5py"]).output().is_ok_and(|run| run.status.success());
    if !has_h5py {
        eprintln!("skipped: {python} has no h5py (pip install h5py, or name another in GENSIS_PYTHON)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [run, clam] = ["run", "clam"].map(|name| folder.path().join(name));
    crate::folder::copy(&REFERENCE.run, &run);
    let job = run.join(JOB);
    export("clam", &run, &clam, &[]).with_code(0);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/end_to_end/interchange.py");
    let called = Command::new(&python).arg(script).args([&job, &clam, folder.path()]).arg("s02").output().unwrap();
    assert!(called.status.success(), "{}", String::from_utf8_lossy(&called.stderr));
    let found: Value = serde_json::from_slice(&called.stdout).unwrap();

    let ours = h5::read_coordinates(&job.join("patches/s02_patches.h5")).unwrap();
    let coords: Vec<[i64; 2]> = ours.origins.iter().map(|origin| [origin.x, origin.y]).collect();
    for reader in ["trident", "clam", "exported"] {
        assert_eq!(found[reader]["coords"], json!(coords), "{reader}");
    }
    let trident = &found["trident"];
    assert_eq!(
        (&trident["patch_size"], &trident["overlap"], &trident["name"]),
        (&json!(128), &json!(0), &json!("s02"))
    );
    assert_eq!(trident["patch_size_level0"], json!(ours.geometry.unwrap().side_level0.round() as i64));
    assert_eq!((&found["exported"]["level"], &found["exported"]["size"]), (&json!(0), &json!(139)));
    let features = h5::read_features(&job.join("features_dino/s02.h5")).unwrap();
    assert_eq!(found["features"]["shape"], json!([ours.origins.len(), features.dim]));
    let sum: f64 = features.values.iter().map(|value| f64::from(*value)).sum();
    assert!((found["features"]["sum"].as_f64().unwrap() - sum).abs() < 1e-9 * sum.abs().max(1.0));
    assert_eq!(found["bag"], found["features"]);

    let read = |name: &str| h5::read_coordinates(&folder.path().join(name)).unwrap();
    let (theirs, other) = (read("clam.h5"), read("trident.h5"));
    assert_eq!(theirs.origins, [Point::new(0, 0), Point::new(256, 512)]);
    assert_eq!((theirs.geometry.unwrap().side_level0, other.geometry.unwrap().side_level0), (256.0, 512.0));
    let bag = h5::read_features(&folder.path().join("features.h5")).unwrap();
    assert_eq!((bag.dim, &bag.values[..]), (3, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0][..]));
}

fn own(row: [&str; 3]) -> Vec<String> {
    row.map(str::to_owned).to_vec()
}

#[test]
fn patches_are_written_as_they_are_cut() {
    let folder = tempfile::tempdir().unwrap();
    let cohort = Cohort::draw(&folder.path().join("cohort"));
    let [run, out, small] = ["run", "patches", "small"].map(|name| folder.path().join(name));
    let experiment = cohort.experiment();
    let tile = ["tile", "--config", experiment.to_str().unwrap(), "--out", run.to_str().unwrap()];
    gensis(tile.map(str::to_owned).to_vec()).with_code(0);
    let before = results(&run);
    export("patches", &run, &out, &["--slides", "s00,s02"]).with_code(0).saying(["0 unreadable"]);
    assert_same(&results(&run), &before);
    let rows = table(&out.join("patches.csv"));
    assert_eq!(rows[0], ["file", "slide_id", "x", "y", "label"]);
    let slide = Slide::open(cohort.slide("s02.tiff")).unwrap();
    let spec = GridSpec { size: 128, stride: 128, ..GridSpec::default() };
    let origins = h5::read_coordinates(&run.join(JOB).join("patches/s02_patches.h5")).unwrap().origins;
    let written: Vec<_> = rows.iter().filter(|row| row[1] == "s02").collect();
    assert_eq!(written.len(), origins.len());
    for (row, origin) in written.iter().zip(origins) {
        assert_eq!(row[0], format!("s02/{}_{}.png", origin.x, origin.y));
        let image = image::open(out.join(&row[0])).unwrap().into_rgb8();
        assert_eq!(image, read_patch(&slide, Mpp(0.46), origin, &spec).unwrap());
    }
    export("patches", &run, &small, &["--slides", "s00", "--format", "jpeg", "--quality", "60"]).with_code(0);
    let jpegs = files(&small);
    assert!(jpegs.keys().filter(|name| name.ends_with(".jpg")).count() > 3);
    export("patches", &run, &small, &["--slides", "s00"]).with_error(["holds an export of other patches"]);
    assert_eq!(table(&small.join("failures.csv")), [["file", "slide_id", "x", "y", "reason"]]);

    // A tile whose data end in the middle: nothing looks there when coordinates are cut.
    let path = cohort.slide("s00.tiff");
    let mut bytes = fs::read(&path).unwrap();
    let scans: Vec<usize> = (0..bytes.len() - 1).filter(|&i| bytes[i..i + 2] == [0xff, 0xda]).collect();
    bytes[scans[24] + 20..scans[24] + 22].copy_from_slice(&[0xff, 0xd9]);
    fs::write(&path, bytes).unwrap();
    gensis(["tile", "--out", run.to_str().unwrap()]).with_code(0);
    let hurt = folder.path().join("hurt");
    export("patches", &run, &hurt, &["--slides", "s00"]).with_code(3).saying(["1 unreadable"]);
    let failed = table(&hurt.join("failures.csv"));
    assert!(
        failed.len() == 2 && failed[1][0] == "s00/384_384.png" && failed[1][4].contains("(384, 384)"),
        "{failed:?}"
    );
    assert_eq!(table(&hurt.join("patches.csv")).len(), jpegs.keys().filter(|name| name.ends_with(".jpg")).count());
}
