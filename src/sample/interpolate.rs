//! Between two embeddings, and between two images. **α weighs the first one, 1 - α the second** (Gen-SIS): α = 1 gives
//! the first, the opposite of most libraries' `slerp(a, b, t)`.

use anyhow::Result;
use image::RgbImage;

use crate::config::Interpolation;
use crate::data::crop::{Rect, crop_and_resize};

/// Below this sine of the angle between two embeddings the great circle through them is not determined.
const PARALLEL: f64 = 1e-6;

/// A point between two embeddings of one width.
pub fn interpolate(kind: Interpolation, first: &[f32], second: &[f32], alpha: f64) -> Vec<f32> {
    match kind {
        Interpolation::Slerp => slerp(first, second, alpha),
        Interpolation::Lerp => lerp(first, second, alpha),
    }
}

/// On the great circle: `(sin(αθ) e1 + sin((1-α)θ) e2) / sin θ` with θ the angle between the two. Embeddings that are
/// parallel, opposite or 0 have no such circle: they are interpolated on the line.
///
/// Source: Gen-SIS's project page; Shoemake 1985.
pub fn slerp(first: &[f32], second: &[f32], alpha: f64) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let lengths = (dot(first, first) * dot(second, second)).sqrt();
    let angle = (dot(first, second) / lengths).clamp(-1.0, 1.0).acos();
    let sine = angle.sin();
    // Not a number where an embedding is 0.
    if sine.is_nan() || sine < PARALLEL {
        return lerp(first, second, alpha);
    }
    weighted(first, second, (alpha * angle).sin() / sine, ((1.0 - alpha) * angle).sin() / sine)
}

/// On the straight line: `α e1 + (1-α) e2`.
pub fn lerp(first: &[f32], second: &[f32], alpha: f64) -> Vec<f32> {
    weighted(first, second, alpha, 1.0 - alpha)
}

fn weighted(first: &[f32], second: &[f32], a: f64, b: f64) -> Vec<f32> {
    debug_assert_eq!(first.len(), second.len());
    first.iter().zip(second).map(|(&x, &y)| (a * f64::from(x) + b * f64::from(y)) as f32).collect()
}

/// `α I1 + (1-α) I2` in pixels, rounded; the baseline of interpolation without a model. A second image of another size
/// is cut in the middle to the shape of the first and resized to it.
///
/// # Errors
/// An empty image.
pub fn mix_pixels(first: &RgbImage, second: &RgbImage, alpha: f64) -> Result<RgbImage> {
    let (width, height) = first.dimensions();
    let fitted = match second.dimensions() == (width, height) {
        true => None,
        false => {
            Some(crop_and_resize(second, Rect::center_of_shape(second.dimensions(), (width, height)), (width, height))?)
        }
    };
    let second = fitted.as_ref().unwrap_or(second);
    let mut mixed = first.clone();
    for (byte, &other) in mixed.iter_mut().zip(second.iter()) {
        *byte = (alpha * f64::from(*byte) + (1.0 - alpha) * f64::from(other)).round() as u8;
    }
    Ok(mixed)
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use proptest::prelude::*;

    use super::*;

    /// Seven digits, rounded to f32.
    fn close(found: &[f32], expected: &[f32]) {
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == expected.len() && worst < 2e-7, "{found:?} is not {expected:?}");
    }

    #[test]
    fn alpha_weighs_the_first() {
        let (x, y) = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]);
        close(&slerp(&x, &y, 0.25), &[0.3826834, 0.9238795, 0.0]);
        close(&slerp(&x, &y, 1.0), &x);
        close(&slerp(&x, &y, 0.0), &y);
        close(&lerp(&x, &y, 0.25), &[0.25, 0.75, 0.0]);
        let between = slerp(&[0.6, 0.8], &[0.8, 0.6], 0.3);
        close(&between, &[0.7460811, 0.6658551]);
        assert!((between.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(interpolate(Interpolation::Slerp, &x, &y, 0.25), slerp(&x, &y, 0.25));
        assert_eq!(interpolate(Interpolation::Lerp, &x, &y, 0.25), lerp(&x, &y, 0.25));
    }

    #[test]
    fn parallel_opposite_and_empty_directions_stay_finite() {
        close(&slerp(&[2.0, 0.0], &[4.0, 0.0], 0.5), &[3.0, 0.0]);
        close(&slerp(&[1.0, 0.0], &[-1.0, 0.0], 0.75), &[0.5, 0.0]);
        close(&slerp(&[0.0, 0.0], &[0.0, 2.0], 0.5), &[0.0, 1.0]);
    }

    proptest! {
        #[test]
        fn points_of_the_circle_are_of_unit_length_and_at_their_share_of_the_angle(
            a in prop::collection::vec(-1.0f32..1.0, 8), b in prop::collection::vec(-1.0f32..1.0, 8), alpha in 0.0f64..1.0,
        ) {
            let unit = |v: &[f32]| {
                let length = v.iter().map(|x| x * x).sum::<f32>().sqrt();
                v.iter().map(|x| x / length).collect::<Vec<_>>()
            };
            let angle = |a: &[f32], b: &[f32]| {
                let dot: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                dot.clamp(-1.0, 1.0).acos()
            };
            let (a, b) = (unit(&a), unit(&b));
            prop_assume!(a.iter().chain(&b).all(|v| v.is_finite()) && (0.1..3.0).contains(&angle(&a, &b)));
            let point = slerp(&a, &b, alpha);
            prop_assert!((point.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
            // acos turns f32's rounding near 1 into 5e-4.
            prop_assert!((angle(&a, &point) - (1.0 - alpha) * angle(&a, &b)).abs() < 2e-3);
        }
    }

    #[test]
    fn pixels_are_weighed_and_a_second_image_is_fitted() {
        let first = RgbImage::from_pixel(4, 2, Rgb([200, 100, 0]));
        let second = RgbImage::from_pixel(4, 2, Rgb([100, 200, 255]));
        assert_eq!(mix_pixels(&first, &second, 0.3).unwrap().get_pixel(3, 1).0, [130, 170, 179]);
        assert_eq!(mix_pixels(&first, &second, 1.0).unwrap(), first);
        assert_eq!(mix_pixels(&first, &second, 0.0).unwrap(), second);
        // Twice as wide as its shape needs: the middle half is taken.
        let wide = RgbImage::from_fn(16, 4, |x, _| if (4..12).contains(&x) { Rgb([9; 3]) } else { Rgb([250; 3]) });
        assert_eq!(mix_pixels(&first, &wide, 0.0).unwrap(), RgbImage::from_pixel(4, 2, Rgb([9; 3])));
    }
}
