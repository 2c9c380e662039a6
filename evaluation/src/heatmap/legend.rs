//! The colour bar beside a heatmap, with three numbers.

use slide_io::{Rgb, RgbImage};

use super::Overlay;

const PAPER: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([40; 3]);

/// `picture` with a bar of the colours on its right, as they look over glass; `ticks` stand at its lower end, its middle and its
/// upper end. Numbers, `.` and `x` can be written.
pub fn with_legend(picture: &RgbImage, overlay: &Overlay, ticks: &[String; 3]) -> RgbImage {
    let (width, height) = picture.dimensions();
    // A dot of the writing: letters of 3 x 5 dots that stay readable however large the picture is.
    let dot = (height.max(width) / 170).max(2);
    let longest = ticks.iter().map(|text| text.chars().count()).max().unwrap_or(0) as u32;
    let (margin, bar) = (3 * dot, 5 * dot);
    let panel = 3 * margin + bar + 4 * dot * longest;
    let mut whole = RgbImage::from_pixel(width + panel, height, PAPER);
    for (x, y, pixel) in picture.enumerate_pixels() {
        whole.put_pixel(x, y, *pixel);
    }
    let length = height.saturating_sub(2 * margin).min(80 * dot).max(1);
    let (left, top) = (width + margin, (height - length.min(height)) / 2);
    for y in 0..length {
        let level = 1.0 - y as f32 / (length - 1).max(1) as f32;
        for x in 0..bar {
            put(&mut whole, left + x, top + y, overlay.over(PAPER, level));
        }
    }
    for (text, level) in ticks.iter().zip([0.0, 0.5, 1.0]) {
        let middle = top as f32 + (1.0 - level) * (length - 1) as f32;
        let y = (middle - 2.5 * dot as f32).clamp(0.0, height.saturating_sub(5 * dot) as f32) as u32;
        write(&mut whole, (left + bar + margin, y), dot, text);
    }
    whole
}

fn put(image: &mut RgbImage, x: u32, y: u32, colour: Rgb<u8>) {
    if x < image.width() && y < image.height() {
        image.put_pixel(x, y, colour);
    }
}

/// Writes with dots of `dot` px, the upper left corner at `(x, y)`.
fn write(image: &mut RgbImage, (x, y): (u32, u32), dot: u32, text: &str) {
    for (place, letter) in text.chars().enumerate() {
        for (row, bits) in glyph(letter).into_iter().enumerate() {
            for column in (0..3).filter(|column| bits >> (2 - column) & 1 == 1) {
                let corner = (x + dot * (4 * place as u32 + column), y + dot * row as u32);
                for (dx, dy) in (0..dot * dot).map(|i| (i % dot, i / dot)) {
                    put(image, corner.0 + dx, corner.1 + dy, INK);
                }
            }
        }
    }
}

/// Five rows of three dots; nothing for what has no sign here.
fn glyph(letter: char) -> [u8; 5] {
    match letter {
        '0' => [0b111, 0b101, 0b101, 0b101, 0b111],
        '1' => [0b010, 0b110, 0b010, 0b010, 0b111],
        '2' => [0b111, 0b001, 0b111, 0b100, 0b111],
        '3' => [0b111, 0b001, 0b111, 0b001, 0b111],
        '4' => [0b101, 0b101, 0b111, 0b001, 0b001],
        '5' => [0b111, 0b100, 0b111, 0b001, 0b111],
        '6' => [0b111, 0b100, 0b111, 0b101, 0b111],
        '7' => [0b111, 0b001, 0b001, 0b010, 0b010],
        '8' => [0b111, 0b101, 0b111, 0b101, 0b111],
        '9' => [0b111, 0b101, 0b111, 0b001, 0b111],
        '.' => [0b000, 0b000, 0b000, 0b000, 0b010],
        'x' => [0b000, 0b101, 0b010, 0b101, 0b000],
        _ => [0; 5],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heatmap::Colormap;

    #[test]
    fn the_picture_stays_and_the_bar_runs_from_bottom_to_top() {
        let picture = RgbImage::from_pixel(400, 300, Rgb([9, 9, 9]));
        let overlay = Overlay { colormap: Colormap::Viridis, alpha: 1.0 };
        let whole = with_legend(&picture, &overlay, &["0".into(), "50".into(), "100".into()]);
        assert!(whole.width() > 400 && whole.height() == 300);
        assert!((0..300).all(|y| whole.get_pixel(399, y).0 == [9; 3]));
        let bar: Vec<Rgb<u8>> = (0..300).map(|y| *whole.get_pixel(410, y)).filter(|pixel| *pixel != PAPER).collect();
        assert_eq!(bar.first(), Some(&Colormap::Viridis.colour(1.0)));
        assert_eq!(bar.last(), Some(&Colormap::Viridis.colour(0.0)));
        let ink = |rows: std::ops::Range<u32>| {
            rows.flat_map(|y| (401..whole.width()).map(move |x| (x, y)))
                .filter(|&(x, y)| *whole.get_pixel(x, y) == INK)
                .count()
        };
        assert!(ink(0..100) > ink(200..300), "100 has more dots than 0");
        assert!(ink(100..200) > 0);
    }

    #[test]
    fn small_pictures_do_not_overflow() {
        for side in [1, 2, 9] {
            let overlay = Overlay { colormap: Colormap::Inferno, alpha: 0.5 };
            with_legend(&RgbImage::new(side, side), &overlay, &["0.1x".into(), "1.0x".into(), "12x".into()]);
        }
    }
}
