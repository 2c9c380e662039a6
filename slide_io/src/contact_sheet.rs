//! A cohort at a glance: pages with a small picture of every slide and two lines of words below it.

use fast_image_resize::FilterType;
use font8x8::{BASIC_FONTS, LATIN_FONTS, UnicodeFonts};
use image::{Rgb, RgbImage};

use crate::error::Result;
use crate::geometry::Size;
use crate::patch::resample;

/// Pictures beside each other on a page.
const COLUMNS: u32 = 6;
/// Pictures below each other.
const ROWS: u32 = 8;
/// Most pictures on a page.
pub const PER_PAGE: usize = (COLUMNS * ROWS) as usize;

/// Side of the square a picture is fitted into, px.
const PICTURE: u32 = 288;
/// Side of a letter, px.
const LETTER: u32 = 8;
/// Height of a line of words, px.
const LINE: u32 = 12;
/// Free space around everything, px.
const MARGIN: u32 = 8;
const CELL: Size = Size { width: PICTURE + MARGIN, height: PICTURE + 2 * LINE + 2 * MARGIN };

const WHITE: Rgb<u8> = Rgb([255; 3]);
const BLACK: Rgb<u8> = Rgb([30; 3]);
const RED: Rgb<u8> = Rgb([190, 0, 0]);
const GREY: Rgb<u8> = Rgb([232; 3]);

/// One slide on a page.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// Its picture; none where it could not be read.
    pub picture: Option<RgbImage>,
    /// Its name, and what is to be said of it; cut in their middle and at their end where they are too long.
    pub words: [String; 2],
    /// Whether something is wrong with it: the words are red.
    pub marked: bool,
}

/// A page with up to [`PER_PAGE`] slides, row by row.
///
/// # Errors
/// A picture without pixels.
pub fn page(cells: &[Cell]) -> Result<RgbImage> {
    let columns = (cells.len() as u32).clamp(1, COLUMNS);
    let rows = (cells.len() as u32).div_ceil(COLUMNS).clamp(1, ROWS);
    let mut page = RgbImage::from_pixel(columns * CELL.width + MARGIN, rows * CELL.height + MARGIN, WHITE);
    for (number, cell) in (0u32..).zip(&cells[..cells.len().min(PER_PAGE)]) {
        let corner = (MARGIN + number % COLUMNS * CELL.width, MARGIN + number / COLUMNS * CELL.height);
        draw(&mut page, corner, cell)?;
    }
    Ok(page)
}

fn draw(page: &mut RgbImage, (x, y): (u32, u32), cell: &Cell) -> Result<()> {
    let picture = match &cell.picture {
        Some(picture) => fitted(picture)?,
        None => RgbImage::from_pixel(PICTURE, PICTURE, GREY),
    };
    let (left, top) = (x + (PICTURE - picture.width()) / 2, y + (PICTURE - picture.height()) / 2);
    image::imageops::replace(page, &picture, i64::from(left), i64::from(top));
    let colour = if cell.marked { RED } else { BLACK };
    let (letters, top) = ((PICTURE / LETTER) as usize, y + PICTURE + MARGIN / 2);
    let [name, told] = &cell.words;
    write(page, (x, top), &cut(name, letters, letters / 2), colour);
    write(page, (x, top + LINE), &cut(told, letters, 0), colour);
    Ok(())
}

/// The picture as large as fits; small ones are not enlarged.
fn fitted(picture: &RgbImage) -> Result<RgbImage> {
    let (width, height) = (f64::from(picture.width()), f64::from(picture.height()));
    let scale = (f64::from(PICTURE) / width.max(height)).min(1.0);
    let side = |pixels: f64| (pixels * scale).round().max(1.0) as u32;
    resample(picture, (0.0, 0.0), (width, height), Size::new(side(width), side(height)), FilterType::Bilinear)
}

/// `words` in at most `most` letters, of which `end` are the last ones where something is cut: of a name both ends tell it from
/// others.
fn cut(words: &str, most: usize, end: usize) -> String {
    let letters: Vec<char> = words.chars().collect();
    if letters.len() <= most {
        return words.to_owned();
    }
    let start = most.saturating_sub(2 + end);
    letters[..start].iter().chain(&['.', '.']).chain(&letters[letters.len() - end..]).collect()
}

/// Writes `words` with their top left corner at (`x`, `y`). Letters that the font lacks are question marks.
fn write(page: &mut RgbImage, (x, y): (u32, u32), words: &str, colour: Rgb<u8>) {
    for (place, letter) in (0u32..).zip(words.chars()) {
        let known = BASIC_FONTS.get(letter).or_else(|| LATIN_FONTS.get(letter)).or_else(|| BASIC_FONTS.get('?'));
        for (row, bits) in (0u32..).zip(known.unwrap_or_default()) {
            for column in (0..LETTER).filter(|column| bits >> column & 1 == 1) {
                let (x, y) = (x + place * LETTER + column, y + row);
                if x < page.width() && y < page.height() {
                    page.put_pixel(x, y, colour);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_keep_their_shape_and_words_their_ends() {
        let blue = RgbImage::from_pixel(1000, 500, Rgb([0, 0, 255]));
        let cell = |picture, marked| Cell { picture, words: ["a".into(), String::new()], marked };
        let cells = vec![cell(Some(blue), false), cell(None, true)];
        let page = page(&cells).unwrap();
        assert_eq!(page.dimensions(), (2 * CELL.width + MARGIN, CELL.height + MARGIN));
        let count = |colour: Rgb<u8>| page.pixels().filter(|pixel| **pixel == colour).count() as u32;
        assert_eq!((count(Rgb([0, 0, 255])), count(GREY)), (PICTURE * PICTURE / 2, PICTURE * PICTURE));
        // The letter a once in each colour.
        let ink = BASIC_FONTS.get('a').unwrap().iter().map(|row| row.count_ones()).sum::<u32>();
        assert_eq!((count(BLACK), count(RED)), (ink, ink));
        assert_eq!(cut("TCGA-CR-7395-01A", 16, 8), "TCGA-CR-7395-01A");
        assert_eq!(cut("TCGA-CR-7395-01A", 9, 3), "TCGA..01A");
        assert_eq!(cut("no patch: dark", 10, 0), "no patch..");
    }

    #[test]
    fn a_page_holds_no_more_than_it_has_room_for() {
        let cells = vec![Cell::default(); PER_PAGE + 3];
        let full = page(&cells).unwrap();
        assert_eq!(full.height(), ROWS * CELL.height + MARGIN);
        assert_eq!(page(&cells[..7]).unwrap().height(), 2 * CELL.height + MARGIN);
        assert!(page(&[]).is_ok());
        let odd = Cell { words: ["é☃\u{1F600}".into(), "x".repeat(500)], ..Cell::default() };
        assert!(page(&[odd]).is_ok());
    }
}
