//! Tables as Markdown.

use super::{Entry, Grid, Over};

/// The table under its heading, with a line that says how to read it.
pub fn markdown(grid: &Grid) -> String {
    let head = grid.stub.iter().cloned().chain(grid.columns.iter().map(|column| {
        let arrow = if column.lower { " ↓" } else { "" };
        let group = if column.group.is_empty() { String::new() } else { format!("{}: ", column.group) };
        format!("{group}{}{arrow}", column.name)
    }));
    let rule = "|---".repeat(grid.stub.len()) + &"|---:".repeat(grid.columns.len()) + "|";
    let line = |(names, entries): &(Vec<String>, Vec<Option<Entry>>)| {
        joined(names.iter().cloned().chain(entries.iter().map(|entry| entry.as_ref().map_or("–".into(), cell))))
    };
    let rows: Vec<String> = grid.rows.iter().map(line).collect();
    format!("## {}\n\n{}\n{rule}\n{}\n\n{}\n", grid.title, joined(head), rows.join("\n"), super::latex::reading(grid))
}

fn joined(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect();
    format!("| {} |", cells.join(" | "))
}

fn cell(entry: &Entry) -> String {
    let mean = if entry.best { format!("**{}**", entry.mean) } else { entry.mean.clone() };
    let folds = if entry.over == Over::Folds { "†" } else { "" };
    let spread = entry.spread.as_ref().map_or(String::new(), |spread| format!(" ± {spread}{folds}"));
    mean + &spread + if entry.partly { " ‡" } else { "" } + if entry.fewer { " §" } else { "" }
}
