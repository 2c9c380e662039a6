//! The cohort sheet: pages with the quality-control picture of every slide, in the order of `cohort.csv`, for looking through
//! hundreds of slides in a minute.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rayon::prelude::*;
use slide_io::contact_sheet::{Cell, PER_PAGE, page};
use slide_io::folder::read_image;

use super::{TiledSlide, picture_paths, write_jpeg};
use crate::commands::Run;
use crate::run_dir::remove_folder;

/// The folder of the pages in a run folder.
const FOLDER: &str = "cohort_sheet";

/// Whether there are the pages of so many slides.
pub(super) fn is_there(run: &Run, slides: usize) -> bool {
    (0..slides.div_ceil(PER_PAGE)).all(|number| file(run, number).exists())
}

/// Writes the pages; a page of pictures is in memory at a time.
pub(super) fn write(run: &Run, rows: &[TiledSlide]) -> Result<()> {
    remove_folder(&run.dir.root().join(FOLDER))?;
    run.dir.file(&format!("{FOLDER}/."))?;
    for (number, rows) in rows.chunks(PER_PAGE).enumerate() {
        let cells = rows.par_iter().map(|row| cell(run, row)).collect::<Result<Vec<_>>>()?;
        write_jpeg(&file(run, number), &page(&cells)?)?;
    }
    Ok(())
}

fn file(run: &Run, page: usize) -> PathBuf {
    run.dir.root().join(format!("{FOLDER}/page_{:03}.jpg", page + 1))
}

fn cell(run: &Run, row: &TiledSlide) -> Result<Cell> {
    let [_, grid] = picture_paths(run, &row.id)?;
    let wrong = row.failure.as_deref().map(|failure| without_file(failure, &row.id)).or(row.problem.as_deref());
    let label = row.label.iter().map(|label| format!(", {label}")).collect::<String>();
    let dropped: usize =
        row.dropped().iter().filter(|(reason, _)| **reason != slide_io::DropReason::Background).map(|(_, n)| n).sum();
    let dropped = if dropped > 0 { format!(", {dropped} dropped") } else { String::new() };
    let told = format!("{} patches{dropped}{label}", row.kept.unwrap_or(0));
    Ok(Cell {
        picture: read_image(&grid).ok(),
        words: [row.id.clone(), wrong.map_or(told, str::to_owned)],
        marked: wrong.is_some(),
    })
}

/// An error that begins with the slide's file, without it: the name stands above.
fn without_file<'a>(error: &'a str, slide: &str) -> &'a str {
    let of_slide = |file: &str| Path::new(file).file_stem().is_some_and(|stem| stem == slide) && file.contains('.');
    error.split_once(": ").filter(|(file, _)| of_slide(file)).map_or(error, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_loses_its_file_and_nothing_else() {
        assert_eq!(without_file("/data/a.svs: it is damaged: tile 3", "a"), "it is damaged: tile 3");
        for whole in ["no patch: dark", "/data/ab.svs: damaged"] {
            assert_eq!(without_file(whole, "a"), whole);
        }
    }
}
