//! `gensis report RUN RUN... --out FOLDER`: the tables that compare runs. One run alone gets its page.

mod across;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use evaluation::comparison::{self, Comparison};
use evaluation::scored::{self, Scored};
use evaluation::summary::{self, RunResults, general_tables, latex, markdown, paper_tables};
use evaluation::table::{ResultRow, ResultTable, read_parquet, write_csv, write_parquet, write_runs};
use slide_io::atomic_file;

use super::evaluate::{COMPARISONS, RESULTS, SCORES};
use super::output::say;
use super::{Outcome, report};
use crate::cli::ReportArgs;
use crate::config::Experiment;
use crate::run_dir::{self, RunDir};

/// Settings in which runs may differ and still be repetitions of each other: seeds, places, what is only looked at, and how
/// many figures are made of one training.
const REPEATED: [&str; 44] = [
    "seed",
    "data.slides",
    "data.labels",
    "data.images",
    "data.roi",
    "data.label_masks",
    "data.coordinates",
    "pack.",
    "pretrain.knn_every",
    "pretrain.checkpoint_every",
    "autoencoder.checkpoint_every",
    "diffusion.checkpoint_every",
    "diffusion.sample_every",
    "diffusion.judged",
    "sample.batch",
    "embed.batch",
    "evaluate.knn.k",
    "evaluate.knn.baselines",
    "evaluate.linear.enabled",
    "evaluate.robustness.tissue",
    "evaluate.robustness.imagenet_a",
    "evaluate.robustness.imagenet_r",
    "evaluate.robustness.imagenet_sketch",
    "evaluate.robustness.imagenet_v2",
    "evaluate.robustness.imagenet_c",
    "evaluate.fid.",
    "evaluate.video.folder",
    "evaluate.video.baselines",
    "evaluate.retrieval.enabled",
    "evaluate.retrieval.folder",
    "evaluate.retrieval.baselines",
    "evaluate.copies.enabled",
    "evaluate.copies.folder",
    "evaluate.copies.sets",
    "evaluate.copies.distractors",
    "evaluate.copies.baselines",
    "evaluate.slide.aggregators",
    "evaluate.slide.seeds",
    "evaluate.slide.permutations",
    "evaluate.slide.features",
    "evaluate.slide.baselines",
    "evaluate.slide.bootstrap",
    "evaluate.slide.keep_heads",
    "heatmap.",
];
/// What tells a folder of tables from a folder of the user's.
const RECORD: &str = "tables.json";
/// Settings that only concern encoders from elsewhere.
const ELSEWHERE: [&str; 2] = ["encoders", "pretrained_only"];
/// Settings that only concern encoders trained with synthetic images.
const GENERATIVE: [&str; 5] = ["autoencoder.", "diffusion.", "sample.", "bank.", "gen_dino."];

pub(super) fn report(args: &ReportArgs) -> Result<Outcome> {
    match (&args.runs[..], &args.out) {
        ([run], None) => report::write(run).map(|_| Outcome::Done),
        (_, None) => bail!("where do the tables of several runs go? Give a folder with --out"),
        (runs, Some(out)) => tables(runs, out),
    }
}

/// A run with its settings.
struct Read {
    experiment: Experiment,
    results: RunResults,
    /// Its test slides' scores, and the classes.
    scored: Vec<Scored>,
    classes: Vec<String>,
}

fn tables(paths: &[PathBuf], out: &Path) -> Result<Outcome> {
    let (mut runs, mut failures) = (Vec::new(), 0);
    let place = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    for (number, path) in paths.iter().enumerate() {
        let twice = paths[..number].iter().any(|other| place(other) == place(path));
        ensure!(!twice, "{} is given twice: it would count twice", path.display());
        match read(path) {
            Ok(run) => runs.push(run),
            Err(error) => {
                eprintln!("report: {}: {error:#}", path.display());
                failures += 1;
            }
        }
    }
    ensure!(!runs.is_empty(), "none of these runs has results");
    // Files of others in the folder stay as they are.
    let _lock = run_dir::take(out, RECORD)?;
    let of = serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "runs": paths });
    atomic_file::write(&out.join(RECORD), &serde_json::to_vec_pretty(&of)?)?;
    tell_apart(&mut runs)?;
    let across = across::compare_runs(&runs)?;
    let within =
        runs.iter().enumerate().flat_map(|(run, read)| read.results.comparisons.iter().map(move |test| (run, test)));
    let tests: Vec<([usize; 2], Comparison)> =
        within.map(|(run, test)| ([run; 2], test.clone())).chain(across.iter().cloned()).collect();
    across.into_iter().for_each(|([first, _], test)| runs[first].results.comparisons.push(test));
    let results: Vec<RunResults> = runs.into_iter().map(|run| run.results).collect();
    let figures = summary::figures(&results);
    let grids: Vec<_> = paper_tables(&figures).into_iter().chain(general_tables(&figures)).collect();
    let names: Vec<String> = results.iter().map(|run| format!("- {}", run.run)).collect();
    let text = format!(
        "# Results\n\n{}\n\n{}",
        grids.iter().map(markdown).collect::<Vec<_>>().join("\n"),
        format_args!("Runs:\n\n{}\n", names.join("\n"))
    );
    let tex =
        "% Needs \\usepackage{booktabs}.\n\n".to_owned() + &grids.iter().map(latex).collect::<Vec<_>>().join("\n");
    atomic_file::write(&out.join("tables.md"), text.as_bytes())?;
    atomic_file::write(&out.join("tables.tex"), tex.as_bytes())?;
    let frame = summary::frame(&figures)?;
    write_parquet(&frame, &out.join("figures.parquet"))?;
    write_csv(&frame, &out.join("figures.csv"))?;
    let rows: Vec<_> = results.iter().map(|run| (run.run.as_str(), run.rows.as_slice())).collect();
    write_runs(&rows, &out.join("results"))?;
    let of_runs = |(runs, test): ([usize; 2], Comparison)| (runs.map(|run| results[run].run.as_str()), test);
    let frame = comparison::table_of_runs(&tests.into_iter().map(of_runs).collect::<Vec<_>>())?;
    write_parquet(&frame, &out.join("comparisons.parquet"))?;
    write_csv(&frame, &out.join("comparisons.csv"))?;
    say!("{text}")?;
    eprintln!("report: {} tables of {} runs in {}", grids.len(), results.len(), out.display());
    Ok(Outcome::of(failures))
}

fn read(path: &Path) -> Result<Read> {
    let experiment = RunDir::experiment(path)?;
    let rows = rows(path)?;
    ensure!(!rows.is_empty(), "it has no results: run `gensis evaluate`");
    let table = |stem: &str| {
        let path = path.join(stem).with_extension("parquet");
        path.exists().then(|| read_parquet(&path)).transpose()
    };
    let comparisons = table(COMPARISONS)?.map_or(Ok(vec![]), |frame| comparison::read(&frame))?;
    let (scored, classes) = table(SCORES)?.map_or(Ok(Default::default()), |frame| scored::read(&frame))?;
    let results = RunResults { run: path.display().to_string(), rows, comparisons };
    Ok(Read { experiment, results, scored, classes })
}

/// The rows of every result table of a run: of the whole evaluation, and of benchmarks that keep one of their own.
///
/// # Errors
/// A table that is damaged.
pub(super) fn rows(run: &Path) -> Result<Vec<ResultRow>> {
    let stem = run.join(RESULTS);
    let folder = stem.parent().unwrap_or(run);
    let mut paths: Vec<PathBuf> = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    // Slides' scores and paired tests lie there too, and what a killed program was writing: they are no result tables.
    let others = [SCORES, COMPARISONS].map(|stem| run.join(stem).with_extension("parquet"));
    let unfinished = |path: &Path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(atomic_file::TEMPORARY_PREFIX))
    };
    paths.retain(|path| path.extension().is_some_and(|kind| kind == "parquet"));
    paths.retain(|path| !others.contains(path) && !unfinished(path));
    paths.sort_by_key(|path| (path.with_extension("") != stem, path.clone()));
    let mut rows: Vec<ResultRow> = Vec::new();
    for path in paths {
        for row in ResultTable::read(&path)?.rows()? {
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

/// Gives encoders of one name that were trained or scored with different settings different names: their figures must not be
/// averaged as if they were repetitions.
fn tell_apart(runs: &mut [Read]) -> Result<()> {
    type Recipes = Vec<(usize, Vec<String>)>;
    let mut recipes: BTreeMap<[String; 3], Recipes> = BTreeMap::new();
    for (place, run) in runs.iter().enumerate() {
        let mut places: Vec<[String; 3]> =
            run.results.rows.iter().map(|row| [row.task.clone(), row.data.clone(), row.encoder.clone()]).collect();
        places.sort();
        places.dedup();
        for key in places {
            let [task, _, encoder] = &key;
            let same = recipes.entry(key.clone()).or_default();
            let first = same.first().map_or(place, |(first, _)| *first);
            same.push((place, differing(&runs[first].experiment, &run.experiment, encoder, task)?));
        }
    }
    for ([task, data, encoder], runs_of) in recipes {
        // Every setting in which any of them differs from the first.
        let mut keys: Vec<String> = runs_of.iter().flat_map(|(_, keys)| keys.iter().cloned()).collect();
        keys.sort();
        keys.dedup();
        if keys.is_empty() {
            continue;
        }
        for (place, _) in runs_of {
            let values = toml::Value::try_from(&runs[place].experiment)?;
            let own = runs[place].experiment.encoders.iter().find(|entry| entry.name() == encoder);
            let tell = |key: &String| match own {
                Some(own) if key == "encoders" => format!("weights={}", own.weights.display()),
                _ => format!("{key}={}", lookup(&values, key)),
            };
            let told: Vec<String> = keys.iter().take(3).map(tell).collect();
            let more = if keys.len() > 3 { format!(", ... in {}", runs[place].results.run) } else { String::new() };
            let name = format!("{encoder} ({}{more})", told.join(", "));
            rename(&mut runs[place], [&task, &data, &encoder], &name);
        }
    }
    Ok(())
}

/// Keys of the settings on which an encoder's figures of a task depend and in which the two differ.
fn differing(first: &Experiment, second: &Experiment, encoder: &str, task: &str) -> Result<Vec<String>> {
    let generative = encoder.starts_with("gen_dino");
    let own = generative || ["dino", "random", "pixels"].contains(&encoder);
    let counts = |key: &String| {
        let starts =
            |names: &[&str]| names.iter().any(|name| key == name || (name.ends_with('.') && key.starts_with(name)));
        let of_task = |section: &str| match task {
            "copy_detection" => section == "copies",
            // Its classifiers are the heads of the slides, or a k-NN and a linear probe.
            "robustness" if !first.data.slides.is_empty() => ["robustness", "slide"].contains(&section),
            "robustness" => ["robustness", "knn", "linear"].contains(&section),
            _ => section == task,
        };
        let section = key.strip_prefix("evaluate.").and_then(|rest| rest.split('.').next());
        let idle = starts(&REPEATED)
            || section.is_some_and(|section| !of_task(section))
            || (!generative && starts(&GENERATIVE))
            || (own && starts(&ELSEWHERE));
        !idle
    };
    let keys = first.differences(second)?.into_iter().filter_map(|line| Some(line.split_once(": ")?.0.to_owned()));
    // Other encoders beside it change nothing about it.
    let entry = |experiment: &Experiment| -> Result<Option<toml::Value>> {
        let own = experiment.encoders.iter().find(|entry| entry.name() == encoder);
        Ok(own.map(toml::Value::try_from).transpose()?)
    };
    let same = entry(first)? == entry(second)?;
    Ok(keys.filter(|key| counts(key) && !(same && key == "encoders")).collect())
}

fn lookup(values: &toml::Value, key: &str) -> String {
    let found = key.split('.').try_fold(values, |table, part| table.get(part));
    found.map_or("none".into(), |value| value.to_string().trim_matches('"').to_owned())
}

fn rename(run: &mut Read, [task, data, encoder]: [&str; 3], name: &str) {
    run.results
        .rows
        .iter_mut()
        .filter(|row| row.task == task && row.data == data && row.encoder == encoder)
        .for_each(|row| row.encoder = name.into());
    if task != "slide" {
        return;
    }
    let sides = run.results.comparisons.iter_mut().flat_map(|test| [&mut test.first, &mut test.second]);
    let names = sides.chain(run.scored.iter_mut().map(|scored| &mut scored.encoder));
    names.filter(|side| *side == encoder).for_each(|side| *side = name.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, settings: &[&str]) -> Read {
        let settings: Vec<String> = settings.iter().map(|setting| setting.to_string()).collect();
        let row = |encoder: &str| ResultRow {
            task: "slide".into(),
            data: "mosaic".into(),
            encoder: encoder.into(),
            head: "abmil".into(),
            metric: "accuracy".into(),
            value: Some(0.5),
            ..ResultRow::default()
        };
        let results = RunResults { run: name.into(), rows: vec![row("dino"), row("gen_dino")], comparisons: vec![] };
        Read { experiment: Experiment::load(None, &settings).unwrap(), results, scored: vec![], classes: vec![] }
    }

    fn encoders(runs: &[Read]) -> Vec<&str> {
        runs.iter().flat_map(|run| run.results.rows.iter().map(|row| row.encoder.as_str())).collect()
    }

    #[test]
    fn seeds_are_repetitions_and_other_settings_are_named() {
        let mut runs = [run("a", &[]), run("b", &["seed=1", "data.slides=elsewhere", "heatmap.slides=3"])];
        tell_apart(&mut runs).unwrap();
        assert_eq!(encoders(&runs), ["dino", "gen_dino", "dino", "gen_dino"]);

        let mut runs = [run("a", &[]), run("b", &["gen_dino.disentangle=0.5"])];
        tell_apart(&mut runs).unwrap();
        assert_eq!(
            encoders(&runs),
            ["dino", "gen_dino (gen_dino.disentangle=1.0)", "dino", "gen_dino (gen_dino.disentangle=0.5)"]
        );

        // How another task is scored is nothing to slides; how it is scored matters to itself.
        let mut runs = [run("a", &[]), run("b", &["evaluate.retrieval.image_size=96"])];
        for run in &mut runs {
            run.results.rows[1].task = "retrieval".into();
        }
        tell_apart(&mut runs).unwrap();
        let names = encoders(&runs);
        assert_eq!((names[0], names[2], names[3]), ("dino", "dino", "gen_dino (evaluate.retrieval.image_size=96)"));

        let mut runs = [run("a", &[]), run("b", &["pretrain.epochs=50"]), run("c", &["seed=3"])];
        tell_apart(&mut runs).unwrap();
        assert_eq!(encoders(&runs)[0], "dino (pretrain.epochs=100)");
        assert_eq!(encoders(&runs)[2], "dino (pretrain.epochs=50)");
        assert_eq!(encoders(&runs)[0], encoders(&runs)[4], "the third repeats the first");
    }
}
