//! A picture of what retrieval finds: some queries, each with what is nearest to it, the right ones framed in green.

use std::path::{Path, PathBuf};

use anyhow::Result;
use image::{Rgb, RgbImage};

use super::heads::folder_name;
use crate::commands::Run;
use crate::data::Squares;
use crate::sample::sheet::{sheet, write_png};

/// Queries in a picture, and what was found for each.
const QUERIES: usize = 8;
const FOUND: usize = 6;
/// Side of an image, and width of its frame, px.
const SIDE: u32 = 96;
const FRAME: u32 = 6;

/// Where the pictures lie, and how their names begin; the encoder's follows.
const FOLDER: &str = "results";
const START: &str = "retrieval_";

/// The pictures in a run folder, by encoder.
pub(in crate::commands) fn pictures(root: &Path) -> Vec<PathBuf> {
    let files = root.join(FOLDER).read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(START) && name.ends_with(".png")
    };
    let mut pictures: Vec<PathBuf> = files.filter(is_one).collect();
    pictures.sort();
    pictures
}

/// The encoder whose examples a picture shows.
pub(in crate::commands) fn encoder(picture: &Path) -> String {
    picture.file_stem().unwrap_or_default().to_string_lossy().replacen(START, "", 1)
}

/// A query and the first images of its ranking.
pub(super) struct Example {
    pub query: usize,
    /// Images, and whether they are right.
    pub found: Vec<(usize, bool)>,
}

impl Example {
    /// The example of `query` if it is one of the few of `queries` that are shown, evenly over them.
    pub fn of(query: usize, queries: usize, found: impl Iterator<Item = (usize, bool)>) -> Option<Self> {
        let shown = (0..QUERIES).any(|i| i * queries / QUERIES == query);
        shown.then(|| Self { query, found: found.take(FOUND).collect() })
    }
}

/// Writes the picture of an encoder's examples; `query` and `image` read theirs. What cannot be read is left out.
pub(super) fn draw(
    run: &Run,
    encoder: &str,
    examples: &[Example],
    query: impl Fn(usize) -> Result<RgbImage>,
    image: impl Fn(usize) -> Result<RgbImage>,
) -> Result<()> {
    let squares = Squares::new(SIDE, [0.0; 2]);
    let row = |example: &Example| -> Option<Vec<RgbImage>> {
        let mut row = vec![squares.of(query(example.query).ok()?).ok()?];
        for &(index, right) in &example.found {
            let mut found = squares.of(image(index).ok()?).ok()?;
            if right {
                frame(&mut found);
            }
            row.push(found);
        }
        Some(row)
    };
    let rows: Vec<_> = examples.iter().filter_map(row).collect();
    if rows.is_empty() {
        return Ok(());
    }
    write_png(&run.dir.file(&format!("{FOLDER}/{START}{}.png", folder_name(encoder)))?, &sheet(&rows, SIDE))
}

fn frame(image: &mut RgbImage) {
    let (width, height) = image.dimensions();
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        if x.min(y) < FRAME || x + FRAME >= width || y + FRAME >= height {
            *pixel = Rgb([0, 160, 60]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_queries_evenly_over_all_are_shown() {
        let shown = |queries: usize| -> Vec<usize> {
            (0..queries).filter(|&query| Example::of(query, queries, std::iter::empty()).is_some()).collect()
        };
        assert_eq!(shown(80), [0, 10, 20, 30, 40, 50, 60, 70]);
        assert_eq!(shown(3), [0, 1, 2]);
        let found = (0..20).map(|index| (index, index == 1));
        assert_eq!(Example::of(0, 5, found).unwrap().found[..2], [(0, false), (1, true)]);
    }
}
