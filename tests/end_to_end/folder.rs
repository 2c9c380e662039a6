//! The files of a folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Names below a folder, with `/`, and bytes.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Every file below `root`.
pub fn files(root: &Path) -> Files {
    let mut found = Files::new();
    collect(root, "", &mut found);
    found
}

/// What a run computed: everything but the lock, the log and the report, which hold times.
pub fn results(root: &Path) -> Files {
    let clocked = [".lock", "log.jsonl", "report.html"];
    files(root).into_iter().filter(|(name, _)| !clocked.contains(&name.as_str())).collect()
}

fn collect(folder: &Path, prefix: &str, found: &mut Files) {
    for entry in folder.read_dir().unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), &format!("{name}/"), found);
        } else {
            found.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

/// The same names with the same bytes; the message names what differs.
#[track_caller]
pub fn assert_same(found: &Files, expected: &Files) {
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    let differ: Vec<&String> = found.keys().filter(|&name| found[name] != expected[name]).collect();
    assert!(differ.is_empty(), "these files differ: {differ:?}");
}

/// Only those below `prefix`.
pub fn below(files: &Files, prefix: &str) -> Files {
    files
        .iter()
        .filter(|(name, _)| name.starts_with(prefix))
        .map(|(name, bytes)| (name.clone(), bytes.clone()))
        .collect()
}

/// A copy of a whole folder.
pub fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// The rows of a csv, by column name.
pub fn table(path: &Path) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_path(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    reader.deserialize().map(|row| row.unwrap()).collect()
}

/// `failures.csv` of a run as (stage, item, reason).
pub fn failures(run: &Path) -> Vec<(String, String, String)> {
    let rows = table(&run.join("failures.csv"));
    rows.into_iter().map(|mut row| ["stage", "item", "reason"].map(|name| row.remove(name).unwrap()).into()).collect()
}

/// Names of files a writer was stopped at: hidden, but not the lock.
pub fn left_over(root: &Path) -> Vec<String> {
    let hidden = |name: &String| name.rsplit('/').next().is_some_and(|file| file.starts_with('.') && file != ".lock");
    files(root).into_keys().filter(hidden).collect()
}
