//! Runs to tables.

use super::*;

fn row(encoder: &str, metric: &str, fold: Option<u32>, seed: u64, value: Option<f64>) -> ResultRow {
    ResultRow {
        task: "slide".into(),
        data: "panda".into(),
        encoder: encoder.into(),
        head: "abmil".into(),
        metric: metric.into(),
        fold,
        seed: Some(seed),
        value,
        low: value.map(|value| value - 0.02),
        high: value.map(|value| value + 0.02),
        n: 10,
    }
}

fn run(name: &str, rows: Vec<ResultRow>) -> RunResults {
    RunResults { run: name.into(), rows, comparisons: vec![] }
}

fn test(first: &str, second: &str, values: [f64; 2], p: f64) -> Comparison {
    Comparison {
        head: "abmil".into(),
        first: first.into(),
        second: second.into(),
        test: "permutation".into(),
        metric: "accuracy".into(),
        values: values.map(Some),
        p: Some(p),
        ..Comparison::default()
    }
}

fn close(a: Option<f64>, b: f64) {
    assert!((a.unwrap() - b).abs() < 1e-12, "{a:?} {b}");
}

#[test]
fn folds_are_averaged_first_and_runs_and_seeds_then() {
    let folds = |seed: u64, shift: f64| -> Vec<ResultRow> {
        let mut rows: Vec<ResultRow> = [0.5, 0.7]
            .iter()
            .zip(0..)
            .map(|(v, fold)| row("dino", "accuracy", Some(fold), seed, Some(v + shift)))
            .collect();
        rows.push(row("dino", "accuracy", None, seed, Some(0.61 + shift)));
        rows
    };
    let one = &figures(&[run("a", folds(0, 0.0))])[0].cell;
    close(one.mean, 0.6);
    close(one.sd, 0.2 / 2f64.sqrt());
    assert_eq!((one.over, one.replicates), (Over::Folds, 2));
    close(one.interval.map(|interval| interval.0), 0.59);

    // Two runs of two seeds each: 0.6, 0.7, 0.6, 0.7.
    let whole = |name| run(name, [folds(0, 0.0), folds(1, 0.1)].concat());
    let many = &figures(&[whole("a"), whole("b")])[0].cell;
    close(many.mean, 0.65);
    close(many.sd, (4.0 * 0.05f64.powi(2) / 3.0).sqrt());
    assert_eq!((many.over, many.replicates), (Over::Runs, 4));
    close(many.interval.map(|interval| interval.1), 0.73);
}

#[test]
fn without_bootstrap_the_interval_is_students() {
    let plain = |seed, value| ResultRow { low: None, high: None, ..row("dino", "accuracy", None, seed, Some(value)) };
    let cell = &figures(&[run("a", vec![plain(0, 0.5), plain(1, 0.6), plain(2, 0.7)])])[0].cell;
    // mean 0.6, sd 0.1, t(2) = 4.303.
    close(cell.interval.map(|interval| interval.0), 0.6 - 4.303 * 0.1 / 3f64.sqrt());
    let undefined = figures(&[run("a", vec![row("dino", "macro_auc", None, 0, None)])]);
    assert_eq!((undefined[0].cell.mean, undefined[0].cell.undefined), (None, 1));
}

#[test]
fn bold_needs_a_paired_test_in_every_run_or_intervals_apart() {
    let rows =
        |a: f64, b: f64| vec![row("dino", "accuracy", None, 0, Some(a)), row("gen_dino", "accuracy", None, 0, Some(b))];
    let best = |runs: &[RunResults]| figures(runs).iter().map(|figure| figure.best).collect::<Vec<_>>();
    assert_eq!(best(&[run("a", rows(0.6, 0.7))]), [false, true], "intervals of ± 0.02 do not touch");
    assert_eq!(best(&[run("a", rows(0.6, 0.63))]), [false, false]);
    let with = |p: f64, rows: Vec<ResultRow>, values| RunResults {
        comparisons: vec![test("dino", "gen_dino", values, p)],
        ..run("a", rows)
    };
    assert_eq!(best(&[with(0.01, rows(0.6, 0.63), [0.6, 0.63])]), [false, true], "the paired test decides");
    assert_eq!(best(&[with(0.2, rows(0.6, 0.7), [0.6, 0.7])]), [false, false]);
    let other_way = with(0.01, rows(0.65, 0.64), [0.65, 0.64]);
    let agreeing = with(0.01, rows(0.6, 0.7), [0.6, 0.7]);
    assert_eq!(best(&[agreeing.clone(), other_way]), [false, false], "runs disagree");
    let lower = |a: f64, b: f64| vec![row("dino", "ece", None, 0, Some(a)), row("gen_dino", "ece", None, 0, Some(b))];
    assert_eq!(best(&[run("a", lower(0.1, 0.3))]), [true, false]);
    // What draws or seeds alone tell apart, other test items may not.
    let drawn = |encoder: &str, seed, value| ResultRow {
        low: None,
        high: None,
        ..row(encoder, "accuracy", None, seed, Some(value))
    };
    let draws = (0..5).flat_map(|seed| [drawn("dino", seed, 0.5), drawn("gen_dino", seed, 0.7)]).collect();
    assert_eq!(best(&[run("a", draws)]), [false, false]);
    let near =
        |a: f64, b: f64| vec![row("dino", "cosine", None, 0, Some(a)), row("random", "cosine", None, 0, Some(b))];
    assert_eq!(best(&[run("a", near(0.5, 0.9))]), [false, false], "of two spaces");
    assert_eq!(
        best(&[run("a", vec![row("dino", "accuracy", None, 0, Some(0.9))])]),
        [false],
        "nothing to be better than"
    );
}

#[test]
fn the_papers_rows_and_columns() {
    let mut rows = Vec::new();
    for (encoder, shift) in [("gen_dino", 0.1), ("dino", 0.0), ("uni", 0.3), ("gen_dino_without_disentanglement", 0.05)]
    {
        for metric in ["macro_auc", "accuracy", "macro_f1", "ece"] {
            rows.push(row(encoder, metric, None, 0, Some(0.4 + shift)));
        }
    }
    rows.push(ResultRow { task: "knn".into(), head: "20-NN".into(), data: "imagenet".into(), ..rows[1].clone() });
    rows.push(ResultRow { task: "knn".into(), head: "10-NN".into(), data: "imagenet".into(), ..rows[1].clone() });
    let figures = figures(&[run("a", rows)]);
    let tables = paper_tables(&figures);
    assert_eq!(tables.iter().map(|grid| grid.id.as_str()).collect::<Vec<_>>(), ["table1", "table9"]);
    assert_eq!(tables[0].columns.len(), 1);
    assert_eq!(tables[0].rows[0].1[0].as_ref().unwrap().mean, "50.0");
    let names: Vec<&str> = tables[1].rows.iter().map(|(names, _)| names[0].as_str()).collect();
    assert_eq!(names, ["DINO", "Gen-DINO w/o disentanglement", "Gen-DINO", "uni"]);
    assert_eq!(tables[1].columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>(), ["Acc", "F1", "AUC"]);

    let text = markdown(&tables[1]);
    assert!(text.contains("| Encoder | panda, abmil: Acc | panda, abmil: F1 | panda, abmil: AUC |"), "{text}");
    assert!(text.contains("| uni | **0.700** | **0.700** | **0.700** |"), "{text}");
    let tex = latex(&tables[1]);
    assert!(tex.contains("\\begin{tabular}{lrrr}") && tex.contains("\\multicolumn{3}{c}{panda, abmil}"), "{tex}");
    assert!(tex.contains("\\cmidrule(lr){2-4}") && tex.contains("uni & \\textbf{0.700} & \\textbf{0.700}"), "{tex}");
    assert!(tex.contains("\\caption{Slide-level classification (table 9 of the paper)."), "{tex}");
    assert!(tex.contains("\\label{tab:table9}") && tex.contains("95 \\% bootstrap intervals"), "{tex}");

    // An encoder that lacks slides is marked.
    let on = |encoder: &str, n| ResultRow { n, ..row(encoder, "accuracy", None, 0, Some(0.5)) };
    let unlike = super::figures(&[run("a", vec![on("dino", 1000), on("uni", 700)])]);
    let grid = &paper_tables(&unlike)[0];
    assert!(markdown(grid).contains("| uni | 0.500 § |") && markdown(grid).contains("§: on fewer test items"));
    assert!(latex(grid).contains("uni & 0.500$^\\S$") && !markdown(grid).contains("DINO | 0.500 §"), "{}", latex(grid));

    let general = general_tables(&figures);
    assert_eq!(general.iter().map(|grid| grid.id.as_str()).collect::<Vec<_>>(), ["slide_panda", "knn_imagenet"]);
    assert_eq!(general[0].columns.iter().filter(|column| column.lower).count(), 1);
    assert!(latex(&general[0]).contains("ece $\\downarrow$") && markdown(&general[0]).contains("| ece ↓ |"));
    assert_eq!(general[1].rows.len(), 2);
    assert_eq!(frame(&figures).unwrap().height(), figures.len());
}

#[test]
fn the_papers_tables_of_retrieval_copies_and_videos() {
    let figure = |task: &str, data: &str, head: &str, metric: &str, value: f64| ResultRow {
        task: task.into(),
        data: data.into(),
        head: head.into(),
        ..row("dino", metric, None, 0, Some(value))
    };
    let rows = vec![
        figure("retrieval", "roxford5k", "easy", "map", 0.5),
        figure("retrieval", "roxford5k", "medium", "map", 0.251),
        figure("retrieval", "roxford5k", "hard", "map", 0.102),
        figure("retrieval", "roxford5k", "hard", "mp_at_10", 0.9),
        figure("copy_detection", "copydays", "strong", "map", 0.774),
        figure("video", "davis", "propagation", "j_and_f_mean", 0.5956),
        figure("video", "davis", "propagation", "f_mean", 0.6103),
        figure("video", "davis", "propagation", "j_mean", 0.581),
        figure("video", "davis", "propagation", "j_recall", 0.9),
    ];
    let tables = paper_tables(&figures(&[run("a", rows)]));
    let shown: Vec<_> = tables
        .iter()
        .map(|grid| {
            let names: Vec<&str> = grid.columns.iter().map(|column| column.name.as_str()).collect();
            let cells = grid.rows[0].1.iter().map(|cell| cell.as_ref().unwrap().mean.as_str()).collect::<Vec<_>>();
            (grid.id.as_str(), names, cells)
        })
        .collect();
    assert_eq!(shown[0], ("table2", vec!["mAP", "mAP"], vec!["25.1", "10.2"]));
    assert_eq!(shown[1], ("table3", vec!["mAP"], vec!["77.4"]));
    assert_eq!(shown[2], ("table4", vec!["(J&F)m", "Jm", "Fm"], vec!["59.6", "58.1", "61.0"]));
    let groups: Vec<&str> = tables[0].columns.iter().map(|column| column.group.as_str()).collect();
    assert_eq!(groups, ["roxford5k, medium", "roxford5k, hard"]);
}

#[test]
fn heads_are_rows_where_columns_would_be_too_many() {
    let mut rows = Vec::new();
    for head in ["mean", "abmil", "dsmil", "transmil"] {
        for (encoder, shift) in [("random", 0.0), ("dino", 0.1)] {
            let of = |metric: &str| ResultRow { head: head.into(), ..row(encoder, metric, None, 0, Some(0.5 + shift)) };
            rows.extend(["accuracy", "macro_f1", "macro_auc"].map(of));
        }
    }
    rows.retain(|row| (&*row.head, &*row.encoder) != ("transmil", "random"));
    let grid = &paper_tables(&figures(&[run("a", rows)]))[0];
    assert_eq!(grid.stub, ["Head", "Encoder"]);
    assert_eq!(grid.columns.iter().map(|column| column.group.as_str()).collect::<Vec<_>>(), ["panda"; 3]);
    let names: Vec<String> = grid.rows.iter().map(|(names, _)| names.join(" ")).collect();
    assert_eq!(names[..3], ["mean DINO", "mean Untrained", "abmil DINO"]);
    assert_eq!(names.len(), 7, "{names:?}");
    assert!(grid.rows.iter().all(|(_, cells)| cells.iter().all(Option::is_some)));
    assert!(markdown(grid).contains("| dsmil | DINO | **0.600** | **0.600** | **0.600** |"), "{}", markdown(grid));
}

#[test]
fn spreads_over_folds_are_marked() {
    let rows = vec![
        row("a|b", "accuracy", Some(0), 0, Some(0.5)),
        row("a|b", "accuracy", Some(1), 0, None),
        row("a|b", "accuracy", Some(2), 0, Some(0.6)),
    ];
    let grid = &general_tables(&figures(&[run("a", rows)]))[0];
    let (text, tex) = (markdown(grid), latex(grid));
    assert!(text.contains("| a\\|b | 0.550 ± 0.071† ‡ |"), "{text}");
    assert!(tex.contains("a|b & 0.550 {\\footnotesize$\\pm$0.071$^\\dagger$}$^\\ddagger$"), "{tex}");
}
