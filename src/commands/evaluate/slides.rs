//! Slide-level scores: multiple-instance heads over bags of stored features, the run's own and those made elsewhere.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use evaluation::bag::StreamedBags;
use evaluation::bootstrap::Bootstrap;
use evaluation::comparison::{self, Comparison};
use evaluation::metric::Predictions;
use evaluation::mil::{CrossValidation, FoldScores, HeadKind, SlideScore, score_all};
use evaluation::paired::Exchanges;
use evaluation::scored::{self, Scored};
use evaluation::split::Fold;
use evaluation::table::{DataFrame, ResultRow, write_csv, write_parquet};
use serde_json::{Value, json};
use slide_io::{Cohort, SlideRecord};

use super::drawn::{confusion, curves};
use super::foreign::foreign_features;
use super::given_splits::Unknown;
use super::head_training::train;
use super::heads::{EncoderHeads, HeadIndex, HeadPlace, Keeper, KeptSubject, begin, remove_heads};
use super::subjects::{Subject, among, folds, subjects};
use super::submission::{self, Entrant};
use super::usable::{absent_classes, fault};
use super::{Own, Scores, bootstrap, data_name, has_features, rows_of};
use crate::commands::sources::{self, ENCODER_NAME, Input, UNTRAINED_NAME};
use crate::commands::{Run, digest};
use crate::config::{Baseline, Data, SlideLevel};
use crate::device::{self, DeviceChoice};
use crate::run_dir::{Failure, remove};

/// The table of every test slide's scores, below the run folder, without extension.
pub(in crate::commands) const SCORES: &str = "results/slide_scores";
/// The table of paired tests, likewise.
pub(in crate::commands) const COMPARISONS: &str = "results/comparisons";

/// Removes the scores of slides of an earlier evaluation, of whatever encoder, what was made of them, and the heads behind
/// them, but for those of the evaluation with this digest, which takes them up.
pub(super) fn remove_scores(run: &Run, evaluation: &str) -> Result<()> {
    remove_heads(run, evaluation)?;
    remove_tables(run)
}

/// Removes the scores of slides and what was made of them, but not the heads.
pub(super) fn remove_tables(run: &Run) -> Result<()> {
    let folder = run.dir.root().join("results");
    let files = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let of_slides = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        ["slide_scores", submission::NAME, "comparisons"].iter().any(|start| name.starts_with(start))
    };
    files.filter(of_slides).try_for_each(|path| remove(&path))
}

/// Stops before hours of work if the labels cannot be split as asked: a patient in two parts, too few per class.
pub(in crate::commands) fn check_folds(run: &Run) -> Result<()> {
    let settings = &run.experiment.evaluate.slide;
    if let Input::Slides(cohort) = Input::open(&run.experiment.data)? {
        let labelled: Vec<&SlideRecord> = cohort.slides.iter().filter(|slide| slide.label.is_some()).collect();
        if let [first, ..] = &labelled[..] {
            let label = first.label_name.as_deref().unwrap_or_default();
            ensure!(
                labelled.iter().any(|slide| slide.label != first.label),
                "all {} labelled slides are of class {label}, so that there is nothing to tell apart: correct data.labels, or \
                 leave it empty to train without scores",
                labelled.len()
            );
            folds(settings, &subjects(&labelled, &[], settings.by_patient)?)?;
            tell_of_ungrouped(&run.experiment.data, settings, &labelled);
        }
    }
    Ok(())
}

/// Says so where slides are not known to be of a patient, though a column for it is named: they may lie in several parts.
fn tell_of_ungrouped(data: &Data, settings: &SlideLevel, labelled: &[&SlideRecord]) {
    // A given split is its maker's.
    if !settings.splits.is_empty() || labelled.iter().any(|slide| slide.split.is_some()) {
        return;
    }
    let (column, without) = (&data.columns.group, labelled.iter().filter(|slide| slide.group.is_none()).count());
    if column.is_empty() || without == 0 {
        return;
    }
    let which = match without == labelled.len() {
        true => "no slide has".to_owned(),
        false => format!("{without} of {} slides have not", labelled.len()),
    };
    eprintln!(
        "evaluate: {which} a patient or site in the column {column:?} of data.labels: each counts as a patient of its own, and \
         slides of one patient may lie in different folds. Name the column with data.columns.group, or set it to \"\" if there is none"
    );
}

/// Every head on the given split, or on stratified grouped folds, for the run's own encoder and its baselines, and for features
/// made elsewhere; then the encoders against each other.
/// `evaluation` is the digest of its header, by which the heads are known as this evaluation's.
pub(super) fn slide_level(run: &Run, cohort: &Cohort, own: Option<&Own>, evaluation: &str) -> Result<Scores> {
    let labelled: Vec<&SlideRecord> = cohort.slides.iter().filter(|slide| slide.label.is_some()).collect();
    let mut scores = Scores::default();
    if labelled.is_empty() {
        return Ok(scores);
    }
    begin(run, evaluation)?;
    let settings = &run.experiment.evaluate.slide;
    let untrained = settings.baselines.contains(&Baseline::Random);
    let trained: Vec<&str> = own.map_or(vec![], |own| own.encoders.iter().map(|encoder| &encoder.name[..]).collect());
    let names = trained.iter().copied().chain(untrained.then_some(UNTRAINED_NAME));
    if run.dir.record("tile").is_none() {
        // Otherwise `tile` has listed them.
        scores.failures.extend(sources::missing(run, cohort, "evaluate"));
    }
    let (mut scored, mut disk) = (Vec::new(), None);
    // One encoder or head that cannot be scored should not cost the rows of the others.
    let mut score =
        |stored: &Stored, scores: &mut Scores| match score_slides(run, cohort, &labelled, stored, evaluation, scores) {
            Ok(found) => scored.extend(found),
            Err(error) if is_of_the_disk(&error) => drop(disk.get_or_insert(error)),
            Err(error) => {
                scores.failures.push(failure(&stored.name, format!("it could not be scored: {error:#}")));
            }
        };
    for (name, own) in names.filter_map(|name| own.map(|own| (name, own))) {
        let hash = own.summary["hashes"][name].as_str();
        let hash = hash.with_context(|| format!("no features of {name}: run `gensis embed` again"))?;
        let file = |slide: &SlideRecord| {
            has_features(run, slide, name, hash).then(|| sources::features_path(run, name, &slide.id))
        };
        let dim = own.summary["dims"][name].as_u64().or(own.summary["dim"].as_u64()).unwrap_or(0) as usize;
        let files = labelled.iter().map(|slide| file(slide)).collect();
        let folder = sources::features_path(run, name, "").parent().map(PathBuf::from).unwrap_or_default();
        let folder = folder.strip_prefix(run.dir.root()).map(PathBuf::from).unwrap_or(folder);
        let stored = Stored { name: name.into(), dim, files, listed: vec![], hash: hash.into(), folder };
        score(&stored, &mut scores);
    }
    let mut names: Vec<String> = [ENCODER_NAME, UNTRAINED_NAME].iter().chain(&trained).map(|n| n.to_string()).collect();
    for foreign in foreign_features(run, cohort) {
        match foreign.stored(&labelled, &names, &mut scores) {
            Ok(stored) => {
                names.push(stored.name.clone());
                score(&stored, &mut scores);
            }
            Err(error) => {
                let folder = foreign.folder().display();
                scores.failures.push(failure(&folder.to_string(), format!("it could not be scored: {error:#}")));
            }
        }
    }
    if let Some(error) = disk {
        return Err(error);
    }
    if scores.rows.is_empty() {
        // The reasons are among the failures.
        return Ok(Scores { failures: scores.failures, ..Scores::default() });
    }
    if !scores.heads.is_empty() {
        let encoders = std::mem::take(&mut scores.heads);
        HeadIndex { evaluation: evaluation.into(), classes: cohort.classes.clone(), encoders }.write(run)?;
    }
    if scored.is_empty() {
        return Ok(scores);
    }
    write_frame(run, SCORES, &scored::table(&scored, &cohort.classes)?)?;
    if settings.permutations > 0 && scored.iter().any(|other| other.encoder != scored[0].encoder) {
        write_frame(run, COMPARISONS, &comparison::table(&compare(&scored, settings, &cohort.classes)?)?)?;
    }
    Ok(scores)
}

/// Whether an error is one of reading or writing files: it would meet every encoder.
pub(super) fn is_of_the_disk(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.is::<std::io::Error>() || matches!(cause.downcast_ref(), Some(slide_io::Error::Io { .. })))
}

fn write_frame(run: &Run, stem: &str, frame: &DataFrame) -> Result<()> {
    write_parquet(frame, &run.dir.file(&format!("{stem}.parquet"))?)?;
    Ok(write_csv(frame, &run.dir.file(&format!("{stem}.csv"))?)?)
}

/// Paired tests of every pair of encoders under the same head and seed.
fn compare(scored: &[Scored], settings: &SlideLevel, classes: &[String]) -> Result<Vec<Comparison>> {
    let exchanges = exchanges(settings);
    let mut found = Vec::new();
    for (at, first) in scored.iter().enumerate() {
        let same = |second: &&Scored| (&second.head, second.seed) == (&first.head, first.seed);
        for second in scored[at + 1..].iter().filter(same) {
            found.extend(comparison::compare(first, second, classes, &exchanges)?);
        }
    }
    Ok(found)
}

/// How the settings ask for paired tests.
pub(in crate::commands) fn exchanges(settings: &SlideLevel) -> Exchanges {
    Exchanges { draws: settings.permutations, seed: settings.seeds[0] }
}

/// Features of slides, in files.
pub(super) struct Stored {
    /// The encoder's name.
    pub name: String,
    pub dim: usize,
    /// Of every labelled slide, where it has features.
    pub files: Vec<Option<PathBuf>>,
    /// Slides without a file here whose reason is listed already.
    pub listed: Vec<String>,
    /// Hash of the encoder's weights; empty where they were made elsewhere.
    pub hash: String,
    /// The files' folder, below the run folder or absolute.
    pub folder: PathBuf,
}

/// Scores one encoder's features with every head; the test slides of each head and seed.
fn score_slides(
    run: &Run,
    cohort: &Cohort,
    labelled: &[&SlideRecord],
    stored: &Stored,
    evaluation: &str,
    scores: &mut Scores,
) -> Result<Vec<Scored>> {
    let Stored { name, dim, hash, .. } = stored;
    let settings = &run.experiment.evaluate.slide;
    let (slides, paths) = usable(run, labelled, stored, &mut scores.failures);
    let all = subjects(labelled, &[], settings.by_patient)?;
    let subjects = subjects(&slides, &paths, settings.by_patient)?;
    // Dealt over all labelled slides, so that every encoder is tested on a slide in the same fold, whichever of them it lacks.
    let (dealt, unknown) = folds(settings, &all)?;
    if !run.experiment.data.allow_missing {
        for Unknown { name, file } in unknown {
            let place = format!("{}, {name}", file.display());
            let unlisted = failure(&place, "it is no labelled slide of the cohort, so it is in no part".into());
            if !scores.failures.contains(&unlisted) {
                scores.failures.push(unlisted);
            }
        }
    }
    let folds = among(&dealt, &all, &subjects);
    let mut left_out = Vec::new();
    for (number, (dealt, fold)) in dealt.iter().zip(&folds).enumerate() {
        let parts = [
            ("train", &dealt.train, &fold.train),
            ("validation", &dealt.validation, &fold.validation),
            ("test", &dealt.test, &fold.test),
        ];
        let Some((part, ..)) = parts.iter().find(|(_, before, left)| left.is_empty() && !before.is_empty()) else {
            continue;
        };
        let reason = format!(
            "no slide of fold {number}'s {part} part has usable features: {} of {} labelled slides have none, the first of them {}",
            labelled.len() - slides.len(),
            labelled.len(),
            labelled.iter().find(|slide| slides.iter().all(|s| s.id != slide.id)).map_or("", |slide| &slide.id)
        );
        ensure!(folds.len() > left_out.len() + 1, reason);
        scores.failures.push(failure(&format!("{name}, fold {number}"), reason));
        left_out.push(number);
    }
    for (item, reason) in absent_classes(&folds, &left_out, &subjects, &cohort.classes) {
        scores.failures.push(failure(&format!("{name}, {item}"), reason));
    }
    let labels = subjects.iter().map(|subject| subject.label).collect();
    let groups = subjects.iter().map(|subject| subject.group.clone()).collect();
    // Bags stay in their files until they are needed: a cohort need not fit in memory.
    let read = AtomicU64::new(0);
    let bags = StreamedBags::new(*dim, cohort.classes.len(), labels, groups, |index: usize| {
        read.fetch_add(1, Ordering::Relaxed);
        subjects[index].load()
    })?;

    let device = device::open(run.device)?;
    let config = settings.mil();
    let validation = CrossValidation {
        source: &bags,
        folds: &folds,
        config: &config,
        seeds: &settings.seeds,
        device: &device.clone().autodiff(),
        workers: if run.device == DeviceChoice::Cpu { run.threads } else { 1 },
        left_out: &left_out,
        known: &[],
        keep_attention: false,
    };
    // Heads on an untrained network show nothing worth a look.
    let weights = settings.keep_heads && name != UNTRAINED_NAME;
    let members = |part: &[usize]| -> Vec<Value> {
        part.iter().map(|&at| json!([subjects[at].id, subjects[at].slides, subjects[at].label])).collect()
    };
    let digest_of = |fold: &Fold| {
        digest::of_text(&json!([&fold.train, &fold.validation, &fold.test].map(|part| members(part))).to_string())
    };
    let digests: Vec<String> = folds.iter().map(digest_of).collect();
    let keeper = &Keeper { run, weights, evaluation, encoder: name, hash, folds: &digests };
    let classes = cohort.classes.len();
    let (heads, predicted) = train(&validation, &settings.aggregators, classes, keeper, &read, &mut scores.failures)?;
    if weights {
        let all = heads.iter().flat_map(|&kind| settings.seeds.iter().map(move |&seed| (kind, seed)));
        let all = all.flat_map(|(kind, seed)| (0..folds.len()).map(move |fold| HeadPlace { kind, fold, seed }));
        let trained = |place: &HeadPlace| {
            let HeadPlace { kind, fold, seed } = *place;
            predicted.iter().any(|done| (done.head, done.fold, done.seed) == (kind, fold, seed))
        };
        let untrained = all.filter(|place| !trained(place)).collect();
        let entrant = Entrant { cohort, subjects: &subjects, predicted: &predicted, heads: &heads, keeper, stored };
        scores.failures.extend(entrant.write(&device)?);
        scores.heads.push(EncoderHeads {
            name: name.clone(),
            hash: hash.clone(),
            features: stored.folder.clone(),
            subjects: subjects.iter().map(kept).collect(),
            folds: folds.clone(),
            heads,
            seeds: settings.seeds.clone(),
            untrained,
        });
    }
    tabulate(run, cohort, stored, folds.len(), &predicted, scores)
}

/// The slides with features that can be learnt from, and their files; the others are listed.
fn usable<'a>(
    run: &Run,
    labelled: &[&'a SlideRecord],
    stored: &'a Stored,
    failures: &mut Vec<Failure>,
) -> (Vec<&'a SlideRecord>, Vec<&'a PathBuf>) {
    let mut left_out = |slide: &SlideRecord, reason: &str| {
        let failure = failure(&slide.id, reason.to_owned());
        if !failures.contains(&failure) {
            failures.push(failure);
        }
    };
    let (mut slides, mut paths, mut allowed) = (Vec::new(), Vec::new(), Vec::new());
    for (&slide, file) in labelled.iter().zip(&stored.files) {
        match file {
            Some(file) => match fault(file, stored.dim) {
                Some(reason) => left_out(slide, &format!("{}: {reason}", stored.name)),
                None => {
                    slides.push(slide);
                    paths.push(file);
                }
            },
            None if stored.listed.contains(&slide.id) => {}
            None if run.experiment.data.allow_missing => allowed.push(&slide.id),
            None => {
                let name = &stored.name;
                left_out(slide, &format!("labelled, but without features of {name}: it counts in no score of these"));
            }
        }
    }
    if let [first, more @ ..] = &allowed[..] {
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        eprintln!("evaluate: {}: no features of {first}{more}, which count in no score of it (allowed)", stored.name);
    }
    if slides.iter().any(|slide| slide.split.is_some()) {
        let unsplit = slides.iter().filter(|slide| slide.split.is_none());
        unsplit.for_each(|slide| {
            left_out(slide, "labelled, but without a split where others have one: it counts in no score")
        });
    }
    (slides, paths)
}

fn kept(subject: &Subject) -> KeptSubject {
    KeptSubject { id: subject.id.clone(), label: subject.label, slides: subject.slides.clone() }
}

/// Something that is left out of the evaluation.
pub(super) fn failure(item: &str, reason: String) -> Failure {
    Failure { stage: "evaluate".into(), item: item.into(), reason }
}

/// Rows of every fold, and of all `folds` pooled where the split is not given; the test slides of each head and seed. What lacks a
/// fold is not pooled, nor held against what lacks none.
fn tabulate(
    run: &Run,
    cohort: &Cohort,
    Stored { name, .. }: &Stored,
    folds: usize,
    predicted: &[FoldScores],
    scores: &mut Scores,
) -> Result<Vec<Scored>> {
    let settings = &run.experiment.evaluate.slide;
    let (bootstrap, given) = (bootstrap(run), folds == 1);
    let mut scored = Vec::new();
    let trained = |head: &&HeadKind| predicted.iter().any(|prediction| prediction.head == **head);
    for &head in settings.aggregators.iter().filter(trained) {
        let base = ResultRow {
            task: "slide".into(),
            data: data_name(run),
            encoder: name.clone(),
            head: head.name().into(),
            ..ResultRow::default()
        };
        let of_head = || predicted.iter().filter(|prediction| prediction.head == head);
        for prediction in of_head() {
            let fold = (!given).then_some(prediction.fold as u32);
            let base = ResultRow { fold, ..base.clone() };
            scores.rows.extend(rows_for(&base, prediction.seed, &prediction.scores, cohort, &bootstrap)?.0);
        }
        let whole = |seed: u64| of_head().filter(|prediction| prediction.seed == seed).count() == folds;
        for &seed in settings.seeds.iter().filter(|&&seed| whole(seed)) {
            let of_seed = Scored::of(name, head.name(), seed, of_head().filter(|prediction| prediction.seed == seed));
            let (rows, predictions) = rows_for(&base, seed, &of_seed.slides, cohort, &bootstrap)?;
            // Of random splits a slide may be tested in several: there is nothing to pool.
            let mut tested: Vec<&str> = of_seed.slides.iter().map(|slide| &slide.id[..]).collect();
            tested.sort_unstable();
            let once = tested.windows(2).all(|pair| pair[0] != pair[1]);
            if !given && once {
                scores.rows.extend(rows);
            }
            if name != UNTRAINED_NAME {
                let title = format!("{name}, {}, seed {seed}, test slides", head.name());
                scores.curves.push(curves(title.clone(), &predictions, &cohort.classes));
                scores.confusions.push(confusion(title, &predictions, &cohort.classes));
            }
            scored.push(of_seed);
        }
    }
    Ok(scored)
}

fn rows_for(
    base: &ResultRow,
    seed: u64,
    slides: &[SlideScore],
    cohort: &Cohort,
    bootstrap: &Bootstrap,
) -> Result<(Vec<ResultRow>, Predictions)> {
    let (predictions, groups) = score_all(slides, cohort.classes.len())?;
    let base = ResultRow { seed: Some(seed), n: slides.len() as u64, ..base.clone() };
    Ok((rows_of(&base, &predictions, Some(&groups), bootstrap)?, predictions))
}
