//! The size at which a frame is seen, and OpenCV's bilinear resize to it.

use slide_io::RgbImage;

use super::bilinear::{Tap, taps};

/// The long side becomes a multiple of this.
const MULTIPLE: f64 = 64.0;

/// Size at which DINO's `eval_video_segmentation.py` sees a frame: the short side `short` px, the long one in proportion
/// and floored to a multiple of 64 (854 x 480 at 480 becomes 832 x 480).
pub fn seen_size((width, height): (u32, u32), short: u32) -> (u32, u32) {
    let long = |long: u32, side: u32| {
        let proportional = f64::from(short) * f64::from(long) / f64::from(side);
        ((proportional / MULTIPLE).floor() * MULTIPLE) as u32
    };
    if height > width { (short, long(height, width)) } else { (long(width, height), short) }
}

/// OpenCV's `INTER_LINEAR` of 8-bit images: no antialiasing, weights of 11 bits.
pub fn resized(image: &RgbImage, (width, height): (u32, u32)) -> RgbImage {
    if image.dimensions() == (width, height) {
        return image.clone();
    }
    let (columns, rows) = (weighted(image.width(), width), weighted(image.height(), height));
    let stride = image.width() as usize * 3;
    let source = image.as_raw();
    let along = |row: usize, x: usize, channel: usize| -> i32 {
        let (at, weights) = columns[x];
        let line = &source[row * stride..][..stride];
        i32::from(line[at[0] * 3 + channel]) * weights[0] + i32::from(line[at[1] * 3 + channel]) * weights[1]
    };
    RgbImage::from_fn(width, height, |x, y| {
        let (at, weights) = rows[y as usize];
        slide_io::Rgb([0, 1, 2].map(|channel| {
            let [above, below] = at.map(|row| along(row, x as usize, channel) >> 4);
            ((((weights[0] * above) >> 16) + ((weights[1] * below) >> 16) + 2) >> 2).clamp(0, 255) as u8
        }))
    })
}

/// The two source pixels of every output pixel, with weights that sum to 2048.
fn weighted(from: u32, to: u32) -> Vec<([usize; 2], [i32; 2])> {
    const ONE: f32 = 2048.0;
    let weighted = |Tap { at, share }| (at, [1.0 - share, share].map(|share| (share * ONE).round_ties_even() as i32));
    taps(from as usize, to as usize).into_iter().map(weighted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_script() {
        assert_eq!(seen_size((854, 480), 480), (832, 480));
        assert_eq!(seen_size((480, 854), 480), (480, 832));
        assert_eq!(seen_size((1920, 1080), 480), (832, 480));
        assert_eq!(seen_size((500, 500), 480), (448, 480));
    }

    #[test]
    fn a_ramp_stays_a_ramp() {
        let ramp = RgbImage::from_fn(8, 4, |x, y| slide_io::Rgb([x as u8 * 30, y as u8 * 60, 7]));
        let half = resized(&ramp, (4, 2));
        // Without antialiasing, the middle between the two nearest: 15, 75, ...
        assert_eq!([0, 1, 2, 3].map(|x| half.get_pixel(x, 0).0[0]), [15, 75, 135, 195]);
        assert_eq!([0, 1].map(|y| half.get_pixel(0, y).0[1]), [30, 150]);
        assert!(half.pixels().all(|pixel| pixel.0[2] == 7));
        assert_eq!(resized(&ramp, (8, 4)), ramp);
    }
}
