//! Pillow's `GaussianBlur`, byte for byte: three extended box blurs a direction (`BoxBlur.c`; Gwosdek et al., "Theoretical
//! foundations of Gaussian convolution by extended box filtering", 2011), each rounded to 8 bits, edges repeated.

use image::RgbImage;

const PASSES: usize = 3;
const CHANNELS: usize = 3;

/// The largest standard deviation accepted: beyond it the sums below would not fit their integers.
pub const MAX_SIGMA: f64 = 100.0;

/// Blurs with standard deviation `sigma` px, at most [`MAX_SIGMA`].
pub fn gaussian_blur(image: &mut RgbImage, sigma: f64) {
    let kernel = Kernel::of_gaussian(sigma.min(MAX_SIGMA) as f32);
    let (width, height) = (image.width() as usize, image.height() as usize);
    if width == 0 || height == 0 || kernel.is_identity() {
        return;
    }
    kernel.blur_rows(image, width * CHANNELS);
    kernel.blur_columns(image, width * CHANNELS, height);
}

/// A box of `2 * radius + 1` pixels of weight `inner` and one of weight `far` at each end, in 24-bit fixed point.
struct Kernel {
    radius: usize,
    inner: u32,
    far: u32,
}

impl Kernel {
    /// The box whose threefold application has the variance of a Gaussian.
    fn of_gaussian(sigma: f32) -> Self {
        let variance = sigma * sigma / PASSES as f32;
        let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
        let fraction = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance)
            / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)));
        let radius = whole + fraction;
        let inner = ((1 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
        let pixels = radius as u32 * 2 + 1;
        Self { radius: radius as usize, inner, far: ((1 << 24) - pixels * inner) / 2 }
    }

    fn is_identity(&self) -> bool {
        self.radius == 0 && self.far == 0
    }

    /// One pass: `out[i]` from the values at distances -radius-1 to radius+1, `taps[k][i]` being the one at distance
    /// `k - radius - 1`.
    #[inline]
    fn pass(&self, taps: &[&[u8]], sums: &mut [u16], out: &mut [u8]) {
        let (first, inner, last) = match taps {
            [first, inner @ .., last] => (*first, inner, *last),
            _ => return,
        };
        let n = out.len();
        let (first, last, sums) = (&first[..n], &last[..n], &mut sums[..n]);
        // Up to a standard deviation of 2 (DINO's largest) there are one or three inner pixels.
        match inner {
            [a] => {
                for ((sum, &a), _) in sums.iter_mut().zip(&a[..n]).zip(first) {
                    *sum = u16::from(a);
                }
            }
            [a, b, c] => {
                for (((sum, &a), &b), &c) in sums.iter_mut().zip(&a[..n]).zip(&b[..n]).zip(&c[..n]) {
                    *sum = u16::from(a) + u16::from(b) + u16::from(c);
                }
            }
            _ => {
                sums.fill(0);
                for tap in inner {
                    for (sum, &value) in sums.iter_mut().zip(&tap[..n]) {
                        *sum += u16::from(value);
                    }
                }
            }
        }
        for (((out, &sum), &a), &b) in out.iter_mut().zip(sums.iter()).zip(first).zip(last) {
            let ends = u32::from(a) + u32::from(b);
            *out = ((u32::from(sum) * self.inner + ends * self.far + (1 << 23)) >> 24) as u8;
        }
    }

    fn blur_rows(&self, image: &mut [u8], row_len: usize) {
        let margin = (self.radius + 1) * CHANNELS;
        let mut padded = vec![0; row_len + 2 * margin];
        let mut sums = vec![0; row_len];
        for row in image.chunks_exact_mut(row_len) {
            for _ in 0..PASSES {
                padded[margin..margin + row_len].copy_from_slice(row);
                let (left, right) = (&row[..CHANNELS], &row[row_len - CHANNELS..]);
                padded[..margin].chunks_exact_mut(CHANNELS).for_each(|pixel| pixel.copy_from_slice(left));
                padded[margin + row_len..].chunks_exact_mut(CHANNELS).for_each(|pixel| pixel.copy_from_slice(right));
                let taps: Vec<&[u8]> = (0..2 * self.radius + 3).map(|k| &padded[k * CHANNELS..]).collect();
                self.pass(&taps, &mut sums, row);
            }
        }
    }

    fn blur_columns(&self, image: &mut [u8], row_len: usize, height: usize) {
        let mut sums = vec![0; row_len];
        let mut source = image.to_vec();
        for _ in 0..PASSES {
            source.copy_from_slice(image);
            for (y, out) in image.chunks_exact_mut(row_len).enumerate() {
                let row = |k: usize| {
                    let y = (y + k).saturating_sub(self.radius + 1).min(height - 1);
                    &source[y * row_len..(y + 1) * row_len]
                };
                let taps: Vec<&[u8]> = (0..2 * self.radius + 3).map(row).collect();
                self.pass(&taps, &mut sums, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn worked_numbers() {
        let mut image = RgbImage::new(9, 9);
        image.put_pixel(4, 4, Rgb([255; 3]));
        gaussian_blur(&mut image, 1.0);
        let row: Vec<u8> = (1..8).map(|x| image.get_pixel(x, 4).0[1]).collect();
        assert_eq!(row, [1, 6, 24, 42, 24, 6, 1]);
    }

    #[test]
    fn a_flat_image_stays_flat_and_the_largest_blur_fits_its_integers() {
        for sigma in [0.0, 0.3, 2.0, 25.0, MAX_SIGMA, 1e9] {
            let mut image = RgbImage::from_pixel(5, 4, Rgb([255, 1, 130]));
            gaussian_blur(&mut image, sigma);
            assert_eq!(image, RgbImage::from_pixel(5, 4, Rgb([255, 1, 130])), "{sigma}");
        }
    }
}
