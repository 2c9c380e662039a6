//! `gensis duplicates`: which slides or images show the same thing, and whether a split separates them.
//!
//! Before anything is trained: the table says which pairs to look at, `groups.csv` which slides must stay together.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};
use slide_io::duplicates::{Criteria, Fingerprint, Kind, Pair, groups, pairs};
use slide_io::manifest::Split;
use slide_io::{ImageFolder, Mpp, PatchSource, Slide, atomic_file, folder};

use super::guarded;
use super::output::say_line;
use super::progress::Progress;
use super::sources::{FORMAT, cohort};
use super::{Outcome, start_threads};
use crate::cli::DuplicatesArgs;
use crate::config::{Columns, Data, Experiment};
use crate::run_dir::{self, Failure};

/// The column of the groups, for `data.columns.group`.
const GROUP: &str = "duplicate_group";

/// The file by which the folder is known as ours: settings, version, and the result in brief.
const RECORD: &str = "duplicates.json";

pub(super) fn duplicates(args: &DuplicatesArgs) -> Result<Outcome> {
    let experiment = Experiment::load(args.config.as_deref(), &args.settings.all())?;
    let study = Study::open(&experiment.data)?;
    let usual = if study.unit == SLIDES { Criteria::SLIDES } else { Criteria::IMAGES };
    let criteria = Criteria { min_similarity: args.min_similarity.unwrap_or(usual.min_similarity), ..usual };
    start_threads(args.threads)?;
    let header = json!({
        "stage": "duplicates",
        "format": FORMAT,
        "data": experiment.data,
        "tissue": experiment.tissue,
        "criteria": criteria,
    });
    let _lock = open_folder(&args.out, &header, args.update)?;

    let (prints, unreadable) = fingerprints(&study, &experiment);
    let files: Vec<&Path> = study.pictures.iter().map(|picture| picture.path.as_path()).collect();
    let pairs = pairs(&files, &prints, &criteria)?;
    let rows = rows(&study.pictures, &pairs);
    let failures: Vec<Failure> = unreadable.into_iter().chain(study.problems).collect();
    let leaks = rows.iter().filter(|row| row.problem == Some(Problem::Leak)).count();
    let links = || pairs.iter().map(|pair| (pair.a, pair.b));
    let summary = summary(&study.pictures, &groups(study.pictures.len(), links()), pairs.len(), leaks, study.unit);

    write_table(&args.out.join("pairs.csv"), &COLUMNS, &rows)?;
    write_groups(&args.out.join("groups.csv"), &experiment.data.columns, &study.pictures, links())?;
    write_table(&args.out.join("failures.csv"), &["stage", "item", "reason"], &failures)?;
    let failed = |picture: &&Picture| failures.iter().any(|failure| failure.item == picture.id);
    let plain: Vec<&str> = study
        .pictures
        .iter()
        .zip(&prints)
        .filter(|(picture, print)| print.is_none() && !failed(picture))
        .map(|(picture, _)| picture.id.as_str())
        .collect();
    write_record(&args.out, &header, json!({ "summary": summary, "too_plain_to_compare": plain }))?;
    say_line!("{summary}")?;
    if !plain.is_empty() {
        eprintln!("{} {} too plain to compare, listed in {RECORD}", plain.len(), study.unit);
    }
    if !failures.is_empty() {
        eprintln!("{} failure(s), listed in {}", failures.len(), args.out.join("failures.csv").display());
    }
    eprintln!("the pairs: {}", args.out.join("pairs.csv").display());
    Ok(Outcome::of(leaks + failures.len()))
}

const SLIDES: &str = "slides";
const IMAGES: &str = "images";

/// What is compared.
struct Study {
    pictures: Vec<Picture>,
    /// Rows without a slide and the like.
    problems: Vec<Failure>,
    /// What the pictures are called: [`SLIDES`] or [`IMAGES`].
    unit: &'static str,
}

/// A slide or an image.
struct Picture {
    id: String,
    path: PathBuf,
    label: Option<String>,
    split: Option<Split>,
    group: Option<String>,
    mpp: Option<Mpp>,
    stratum: Option<String>,
}

impl Study {
    fn open(data: &Data) -> Result<Self> {
        match (data.slides.is_empty(), data.images.as_os_str().is_empty()) {
            (false, _) => Self::of_slides(data),
            (true, false) => Self::of_images(&data.images),
            (true, true) => bail!("nothing to compare: give data.slides (--slides) or data.images (--images)"),
        }
    }

    fn of_slides(data: &Data) -> Result<Self> {
        let cohort = cohort(data)?;
        let problems = cohort.problems.into_iter().map(|problem| failure(&problem.item, problem.reason)).collect();
        let pictures = cohort
            .slides
            .into_iter()
            .map(|slide| Picture {
                id: slide.id,
                path: slide.path,
                label: slide.label_name,
                split: slide.split,
                group: slide.group,
                mpp: slide.mpp,
                stratum: slide.stratum,
            })
            .collect();
        Ok(Self { pictures, problems, unit: SLIDES })
    }

    /// The images of a folder, or of the parts it is split into.
    fn of_images(root: &Path) -> Result<Self> {
        let parts = [
            ("train", Split::Train),
            ("val", Split::Val),
            ("valid", Split::Val),
            ("validation", Split::Val),
            ("test", Split::Test),
        ];
        let mut pictures = Vec::new();
        if root.join("train").is_dir() {
            for (name, split) in parts.into_iter().filter(|(name, _)| root.join(name).is_dir()) {
                pictures.extend(images(&root.join(name), &format!("{name}/"), Some(split))?);
            }
        } else {
            pictures = images(root, "", None)?;
        }
        Ok(Self { pictures, problems: vec![], unit: IMAGES })
    }
}

fn images(root: &Path, prefix: &str, split: Option<Split>) -> Result<Vec<Picture>> {
    let folder = ImageFolder::open(root)?;
    let picture = |index: usize| {
        let key = folder.key(index).item;
        Picture {
            path: root.join(&key),
            id: format!("{prefix}{key}"),
            label: folder.label(index).map(|label| folder.classes()[label as usize].clone()),
            split,
            group: None,
            mpp: None,
            stratum: None,
        }
    };
    Ok((0..folder.len()).map(picture).collect())
}

/// The fingerprint of every picture, in parallel; none of plain ones and of those that cannot be read, which are
/// listed.
fn fingerprints(study: &Study, experiment: &Experiment) -> (Vec<Option<Fingerprint>>, Vec<Failure>) {
    let progress = Progress::new("duplicates", study.pictures.len() as u64, study.unit);
    let print = |picture: &Picture| match study.unit {
        SLIDES => Fingerprint::of_slide(&Slide::open(&picture.path)?, picture.mpp, &experiment.tissue),
        _ => Fingerprint::of_image(&folder::read_image(&picture.path)?),
    };
    let results: Vec<Result<Option<Fingerprint>, Failure>> = study
        .pictures
        .par_iter()
        .map(|picture| {
            let result = guarded(|| print(picture)).map_err(|reason| failure(&picture.id, reason));
            if let Err(failure) = &result {
                progress.line(&format!("duplicates: {}: {}", failure.item, failure.reason));
            }
            progress.advance(1);
            result
        })
        .collect();
    let failures: Vec<Failure> = results.iter().filter_map(|result| result.as_ref().err().cloned()).collect();
    progress.finish(&format!("{} {}, {} unreadable", results.len(), study.unit, failures.len()));
    (results.into_iter().map(|result| result.ok().flatten()).collect(), failures)
}

fn failure(item: &str, reason: String) -> Failure {
    Failure { stage: "duplicates".into(), item: item.to_owned(), reason }
}

/// What is wrong with a pair: the worst thing, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
enum Problem {
    #[serde(rename = "leak")]
    Leak,
    #[serde(rename = "groups differ")]
    Groups,
    #[serde(rename = "labels differ")]
    Labels,
}

/// Columns of `pairs.csv`: the fields of [`Row`].
const COLUMNS: [&str; 12] = [
    "a",
    "b",
    "kind",
    "similarity",
    "orientation",
    "label_a",
    "label_b",
    "split_a",
    "split_b",
    "group_a",
    "group_b",
    "problem",
];

#[derive(Serialize)]
struct Row<'a> {
    a: &'a str,
    b: &'a str,
    kind: Kind,
    similarity: String,
    orientation: &'static str,
    label_a: Option<&'a str>,
    label_b: Option<&'a str>,
    split_a: Option<Split>,
    split_b: Option<Split>,
    group_a: Option<&'a str>,
    group_b: Option<&'a str>,
    problem: Option<Problem>,
}

/// The table of pairs, the worst first.
fn rows<'a>(pictures: &'a [Picture], pairs: &[Pair]) -> Vec<Row<'a>> {
    let row = |pair: &Pair| {
        let (a, b) = (&pictures[pair.a], &pictures[pair.b]);
        Row {
            a: &a.id,
            b: &b.id,
            kind: pair.kind,
            similarity: format!("{:.3}", pair.similarity),
            orientation: pair.orientation.name(),
            label_a: a.label.as_deref(),
            label_b: b.label.as_deref(),
            split_a: a.split,
            split_b: b.split,
            group_a: a.group.as_deref(),
            group_b: b.group.as_deref(),
            problem: problem(a, b),
        }
    };
    let mut rows: Vec<Row> = pairs.iter().map(row).collect();
    rows.sort_by_key(|row| (row.problem.is_none(), row.problem));
    rows
}

fn problem(a: &Picture, b: &Picture) -> Option<Problem> {
    if a.split.zip(b.split).is_some_and(|(a, b)| a != b) {
        Some(Problem::Leak)
    } else if a.group != b.group {
        // One of them given is enough: a split by group would not keep the two together.
        Some(Problem::Groups)
    } else {
        a.label.as_ref().zip(b.label.as_ref()).is_some_and(|(a, b)| a != b).then_some(Problem::Labels)
    }
}

/// `3 pairs in 2 groups among 45 slides; 1 leak across splits`.
fn summary(pictures: &[Picture], group: &[usize], pairs: usize, leaks: usize, unit: &str) -> String {
    let mut sizes = vec![0; pictures.len()];
    group.iter().for_each(|&first| sizes[first] += 1);
    let together = sizes.iter().filter(|&&size| size > 1).count();
    let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let leaks = match pictures.iter().any(|picture| picture.split.is_some()) {
        true => format!("{} across splits", plural(leaks, "leak")),
        false => "no splits given".to_owned(),
    };
    format!("{} in {} among {} {unit}; {leaks}", plural(pairs, "pair"), plural(together, "group"), pictures.len())
}

/// Which pictures must stay together, as a csv of labels with the names of `columns`: slide, [`GROUP`], and what else is
/// known. Copies
/// have one group, and so have the slides of a patient, and those of two patients with copies of each other.
fn write_groups(
    path: &Path,
    columns: &Columns,
    pictures: &[Picture],
    links: impl Iterator<Item = (usize, usize)>,
) -> Result<()> {
    let mut first_of_group = HashMap::new();
    let given: Vec<(usize, usize)> = pictures
        .iter()
        .enumerate()
        .filter_map(|(at, picture)| Some((*first_of_group.entry(picture.group.as_ref()?).or_insert(at), at)))
        .collect();
    let group = groups(pictures.len(), links.chain(given));
    let mpp = |picture: &Picture| picture.mpp.map(|mpp| mpp.0.to_string());
    let split = |picture: &Picture| picture.split.map(|split| format!("{split:?}").to_lowercase());
    let known = [
        (&columns.label, pictures.iter().map(|picture| picture.label.clone()).collect::<Vec<_>>()),
        (&columns.split, pictures.iter().map(split).collect()),
        (&columns.mpp, pictures.iter().map(mpp).collect()),
        (&columns.stratum, pictures.iter().map(|picture| picture.stratum.clone()).collect()),
    ];
    let told =
        |(name, values): &&(&String, Vec<Option<String>>)| !name.is_empty() && values.iter().any(Option::is_some);
    let known: Vec<_> = known.iter().filter(told).collect();
    let mut table = csv::Writer::from_writer(Vec::new());
    table
        .write_record([columns.slide.as_str(), GROUP].into_iter().chain(known.iter().map(|(name, _)| name.as_str())))?;
    for (at, picture) in pictures.iter().enumerate() {
        let more = known.iter().map(|(_, values)| values[at].as_deref().unwrap_or_default());
        table.write_record([picture.id.as_str(), pictures[group[at]].id.as_str()].into_iter().chain(more))?;
    }
    Ok(atomic_file::write(path, &table.into_inner()?)?)
}

/// A csv that has its header even without rows.
fn write_table<R: Serialize>(path: &Path, columns: &[&str], rows: &[R]) -> Result<()> {
    let mut table = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    table.write_record(columns)?;
    for row in rows {
        table.serialize(row)?;
    }
    Ok(atomic_file::write(path, &table.into_inner()?)?)
}

/// Makes or takes the folder, and keeps a second process out while the result lives.
///
/// # Errors
/// A folder with files of others, and one of another comparison unless it may be replaced.
fn open_folder(folder: &Path, header: &Value, update: bool) -> Result<std::fs::File> {
    let lock = run_dir::take(folder, RECORD)?;
    let Ok(record) = std::fs::read(folder.join(RECORD)) else {
        write_record(folder, header, json!({}))?;
        return Ok(lock);
    };
    let record: Value = serde_json::from_slice(&record).unwrap_or_default();
    if record["header"] != run_dir::as_stored(header) && !update {
        bail!(
            "{} holds the comparison of other data or with other settings ({RECORD}). Choose another folder with --out, \
             or add --update to replace it",
            folder.display()
        );
    }
    Ok(lock)
}

fn write_record(folder: &Path, header: &Value, result: Value) -> Result<()> {
    let record = json!({ "version": env!("CARGO_PKG_VERSION"), "header": header, "result": result });
    Ok(atomic_file::write(&folder.join(RECORD), &serde_json::to_vec_pretty(&record)?)?)
}
