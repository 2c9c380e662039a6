//! Optical density against the glass of the slide, whatever the light was.

use image::RgbImage;

use super::{luminance, saturation};

/// Mean optical density of the channels of every pixel against the image's [`glass`]: 0 for what is as bright or brighter; a
/// channel of 0 counts as 1 (2.41 against white).
pub(crate) fn densities(image: &RgbImage) -> Vec<f64> {
    let glass = glass(image).map(f64::from);
    let tables = glass
        .map(|glass| (0..256_u32).map(|v| (glass / f64::from(v.max(1))).log10().max(0.0) / 3.0).collect::<Vec<f64>>());
    let density = |rgb: [u8; 3]| tables.iter().zip(rgb).map(|(table, v)| table[usize::from(v)]).sum();
    image.pixels().map(|p| density(p.0)).collect()
}

/// The colour of the light where nothing lies: the brightest of the common greys that are not pure white (which is padding,
/// or light beyond the camera's range), and white where hardly anything is grey. Scanners show glass at 180 to 250.
pub(super) fn glass(image: &RgbImage) -> [u8; 3] {
    /// Tinted glass has less saturation than this, stroma more than twice as much.
    const MAX_SATURATION: u8 = 15;
    const MIN_LUMINANCE: usize = 128;
    /// Of the pixels; less is no glass.
    const MIN_SHARE: f64 = 0.01;
    let mut greys = [(0_u64, [0_u64; 3]); 256];
    for pixel in image.pixels().filter(|p| p.0 != [255; 3] && saturation(p.0) <= MAX_SATURATION) {
        let (count, sums) = &mut greys[usize::from(luminance(pixel.0))];
        *count += 1;
        sums.iter_mut().zip(pixel.0).for_each(|(sum, value)| *sum += u64::from(value));
    }
    // Of neighbouring greys together, since glass has the noise of a camera.
    let around = |grey: usize| &greys[grey.saturating_sub(2)..(grey + 3).min(256)];
    let common = |grey: usize| around(grey).iter().map(|(count, _)| *count).sum::<u64>();
    let most = (MIN_LUMINANCE..256).map(common).max().unwrap_or(0);
    let is_peak =
        |grey: &usize| (grey.saturating_sub(2)..(grey + 3).min(256)).all(|near| common(near) <= common(*grey));
    let peaks = (MIN_LUMINANCE..256).rev().filter(is_peak);
    let Some(peak) = peaks.into_iter().find(|&grey| 5 * common(grey) >= most) else { return [255; 3] };
    let count = common(peak);
    if (count as f64) < MIN_SHARE * image.pixels().len() as f64 {
        return [255; 3];
    }
    [0, 1, 2].map(|channel| (around(peak).iter().map(|(_, sums)| sums[channel]).sum::<u64>() / count) as u8)
}
