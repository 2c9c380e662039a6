//! The orders in which a convolution's weight, `[O, C, k, k]`, is wanted. A tap is a place of the kernel, `ky * k + kx`.

use super::transpose::to_pixels;

/// `[O, C, taps] -> [taps, C, O]`.
pub fn taps_first(weight: &[f32], [outputs, channels, taps]: [usize; 3]) -> Vec<f32> {
    let mut turned = vec![0.0; weight.len()];
    let row = channels * taps;
    to_pixels(weight, (row, outputs), [1, row, row], &mut turned);
    let mut target = vec![0.0; weight.len()];
    for (row, values) in turned.chunks_exact(outputs).enumerate() {
        let (c, tap) = (row / taps, row % taps);
        target[(tap * channels + c) * outputs..][..outputs].copy_from_slice(values);
    }
    target
}

/// `[O, C, taps] -> [taps, O, C]`, the last tap first: turned by half a turn, the weight of the convolution back to x, for
/// which inputs and outputs change places.
pub fn flipped_taps_first(weight: &[f32], [outputs, channels, taps]: [usize; 3]) -> Vec<f32> {
    let mut target = vec![0.0; weight.len()];
    for (tap, target) in target.chunks_exact_mut(outputs * channels).enumerate() {
        let source = weight.iter().skip(taps - 1 - tap).step_by(taps);
        target.iter_mut().zip(source).for_each(|(target, value)| *target = *value);
    }
    target
}

/// `[O, C, taps] -> [C, O, taps]`, turned by half a turn.
pub fn flipped(weight: &[f32], [outputs, channels, taps]: [usize; 3]) -> Vec<f32> {
    let mut target = vec![0.0; weight.len()];
    for (row, values) in weight.chunks_exact(taps).enumerate() {
        let (o, c) = (row / channels, row % channels);
        let target = &mut target[(c * outputs + o) * taps..][..taps];
        target.iter_mut().rev().zip(values).for_each(|(target, value)| *target = *value);
    }
    target
}

/// `[O, rows, columns] -> [O, columns, rows]`.
pub fn turned(weight: &[f32], [outputs, rows, columns]: [usize; 3]) -> Vec<f32> {
    let mut target = vec![0.0; weight.len()];
    for o in 0..outputs {
        let place = o * rows * columns..(o + 1) * rows * columns;
        to_pixels(&weight[place.clone()], (columns, rows), [1, columns, columns], &mut target[place]);
    }
    target
}
