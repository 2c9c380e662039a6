//! Tables as LaTeX with the package booktabs.

use super::{Entry, Grid, Over};

/// A `table` environment with caption and label.
pub fn latex(grid: &Grid) -> String {
    let alignment = "l".repeat(grid.stub.len()) + &"r".repeat(grid.columns.len());
    let names = grid.stub.iter().map(|name| escape(name)).chain(grid.columns.iter().map(|column| {
        let arrow = if column.lower { " $\\downarrow$" } else { "" };
        escape(&column.name) + arrow
    }));
    let row = |(names, entries): &(Vec<String>, Vec<Option<Entry>>)| {
        let entries = entries.iter().map(|entry| entry.as_ref().map_or("--".into(), cell));
        line(names.iter().map(|name| escape(name)).chain(entries))
    };
    let rows: String = grid.rows.iter().map(row).collect();
    format!(
        "\\begin{{table}}\n  \\centering\n  \\caption{{{}. {}}}\n  \\label{{tab:{}}}\n  \\begin{{tabular}}{{{alignment}}}\n    \
         \\toprule\n{}{}    \\midrule\n{rows}    \\bottomrule\n  \\end{{tabular}}\n\\end{{table}}\n",
        escape(&caption(&grid.title)),
        escape(&reading(grid)).replace('†', "$^\\dagger$").replace('‡', "$^\\ddagger$").replace('§', "$^\\S$"),
        grid.id.replace('_', "-"),
        groups(grid),
        line(names),
    )
}

/// The title of a table that LaTeX gives a number of its own.
fn caption(title: &str) -> String {
    match title.strip_prefix("Table ").and_then(|numbered| numbered.split_once(": ")) {
        Some((number, what)) => format!("{what} (table {number} of the paper)"),
        None => title.to_owned(),
    }
}

/// The headings above several columns, with rules under them.
fn groups(grid: &Grid) -> String {
    if grid.columns.iter().all(|column| column.group.is_empty()) {
        return String::new();
    }
    let mut cells = vec![String::new(); grid.stub.len()];
    let (mut rules, mut first) = (String::new(), grid.stub.len() + 1);
    for group in grid.columns.chunk_by(|a, b| a.group == b.group) {
        let last = first + group.len() - 1;
        cells.push(format!("\\multicolumn{{{}}}{{c}}{{{}}}", group.len(), escape(&group[0].group)));
        rules += &format!(" \\cmidrule(lr){{{first}-{last}}}");
        first = last + 1;
    }
    format!("{}    {}\n", line(cells.into_iter()), rules.trim_start())
}

fn line(cells: impl Iterator<Item = String>) -> String {
    format!("    {} \\\\\n", cells.collect::<Vec<_>>().join(" & "))
}

fn cell(entry: &Entry) -> String {
    let mean = if entry.best { format!("\\textbf{{{}}}", entry.mean) } else { entry.mean.clone() };
    let folds = if entry.over == Over::Folds { "^\\dagger" } else { "" };
    let spread =
        entry.spread.as_ref().map_or(String::new(), |spread| format!(" {{\\footnotesize$\\pm${spread}${folds}$}}"));
    let partly = if entry.partly { "$^\\ddagger$" } else { "" };
    let fewer = if entry.fewer { "$^\\S$" } else { "" };
    (mean + &spread + partly + fewer).replace("$$", "")
}

/// Text that LaTeX prints as it is.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '~' => out += "\\textasciitilde{}",
            '^' => out += "\\textasciicircum{}",
            '\\' => out += "\\textbackslash{}",
            '<' => out += "\\textless{}",
            '>' => out += "\\textgreater{}",
            '±' => out += "$\\pm$",
            '↓' => out += "$\\downarrow$",
            '–' => out += "--",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// How the entries of a table are to be read.
pub(super) fn reading(grid: &Grid) -> String {
    let any = |test: fn(&Entry) -> bool| grid.rows.iter().flat_map(|(_, entries)| entries.iter().flatten()).any(test);
    let parts = [
        (any(|entry| entry.over == Over::Runs), "Mean ± standard deviation over runs and seeds."),
        (any(|entry| entry.over == Over::Folds), "†: over the folds of one run."),
        (any(|entry| entry.partly), "‡: not defined in some folds or runs."),
        (any(|entry| entry.fewer), "§: on fewer test items than others of its column."),
        (grid.columns.iter().any(|column| column.lower), "↓: lower is better."),
        (
            grid.rows.len() > 1,
            "Bold: better than every other encoder under the same head, by a paired test (p < 0.05 in every run and seed) or, \
             without one, by 95 % bootstrap intervals that do not touch.",
        ),
    ];
    parts.iter().filter(|(holds, _)| *holds).map(|(_, text)| *text).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_character_is_escaped() {
        assert_eq!(
            escape("a_b & 50% $x$ #1 {y} ~ ^ \\ <z>"),
            "a\\_b \\& 50\\% \\$x\\$ \\#1 \\{y\\} \\textasciitilde{} \\textasciicircum{} \\textbackslash{} \\textless{}z\\textgreater{}"
        );
    }
}
