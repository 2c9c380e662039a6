//! Convolution of f32 images in memory, forward and backward.
//!
//! Inside, an image is `[height, width, channels]`: a window's row is then contiguous in the image, and a convolution with
//! stride 1 is one product per row of the kernel that reads its windows in place (their matrix overlaps itself). With
//! another stride, or few channels, the windows are copied out first, a few rows at a time so that they stay in the cache.
//!
//! Work is cut into blocks of rows whose number depends on sizes only, and every sum runs in a fixed order: the number of
//! threads changes nothing.

use super::product::{Matrix, product};
use super::transpose::{to_pixels, to_planes};
use rayon::prelude::*;

/// Floats of a block's windows that are meant to stay in a core's second-level cache.
const BLOCK: usize = 96 * 1024;
/// Parts of a batch whose gradients of the weight are summed apart.
const PARTS: usize = 8;
/// Fewer input channels than this, and copying the windows costs less than three short products.
const FEW_CHANNELS: usize = 16;

/// Sizes of a convolution with a square kernel.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    pub batch: usize,
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub outputs: usize,
    pub kernel: usize,
    pub stride: usize,
    /// Zeros at the top, left, bottom and right.
    pub padding: [usize; 4],
}

impl Convolution {
    /// Rows of the result.
    ///
    /// # Panics
    /// An image with its padding that is smaller than the kernel.
    pub fn out_height(&self) -> usize {
        let [top, _, bottom, _] = self.padding;
        self.steps(self.height + top + bottom)
    }

    /// Columns of the result.
    ///
    /// # Panics
    /// An image with its padding that is smaller than the kernel.
    pub fn out_width(&self) -> usize {
        let [_, left, _, right] = self.padding;
        self.steps(self.width + left + right)
    }

    fn steps(&self, length: usize) -> usize {
        assert!(length >= self.kernel, "a kernel of {} on {length} pixels", self.kernel);
        (length - self.kernel) / self.stride + 1
    }

    /// Values of one window.
    fn window(&self) -> usize {
        self.kernel * self.kernel * self.channels
    }

    fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.padding == [0; 4]
    }

    fn in_place(&self) -> bool {
        self.stride == 1 && self.channels >= FEW_CHANNELS
    }

    /// Distance of two rows of a padded image, in pixels. The zeros right of a row are those left of the next.
    fn pitch(&self) -> usize {
        let [_, left, _, right] = self.padding;
        (self.width + left.max(right)).max(self.out_width())
    }

    /// Rows of the result that are computed at a time.
    fn rows(&self) -> usize {
        let row = if self.in_place() { self.pitch() * self.channels } else { self.out_width() * self.window() };
        (BLOCK / row).clamp(1, self.out_height())
    }

    /// Distance of two rows of windows, in pixels: the pitch where windows are read in place, so that those between two
    /// rows are computed for nothing.
    fn gapped_width(&self) -> usize {
        if self.in_place() { self.pitch() } else { self.out_width() }
    }

    /// Windows from the first to the last of `rows` rows.
    fn span(&self, rows: usize) -> usize {
        (rows - 1) * self.gapped_width() + self.out_width()
    }

    /// `x [B, C, H, W] * weight [O, C, k, k] + bias [O] -> [B, O, H', W']`.
    pub fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        if self.is_pointwise() {
            return self.pointwise(x, weight, (self.channels, 1), Some(bias));
        }
        self.apply(x, &self.by_tap(weight), Some(bias))
    }

    /// The gradient of x, `[B, C, H, W]`, from that of the result, `[B, O, H', W']`.
    pub fn backward_x(&self, grad: &[f32], weight: &[f32]) -> Vec<f32> {
        if self.is_pointwise() {
            return self.transposed_sizes().pointwise(grad, weight, (1, self.channels), None);
        }
        if self.stride == 1 && self.padding.iter().all(|&zeros| zeros < self.kernel) {
            return self.transposed_sizes().apply(grad, &self.by_flipped_tap(weight), None);
        }
        self.scatter(grad, weight)
    }

    /// A convolution with stride 1 from the result to x.
    fn transposed_sizes(&self) -> Self {
        Self {
            channels: self.outputs,
            height: self.out_height(),
            width: self.out_width(),
            outputs: self.channels,
            padding: self.padding.map(|zeros| self.kernel - 1 - zeros),
            ..*self
        }
    }

    /// A kernel of one pixel: one product per image, without any copy. `strides` are the weight's from output to output
    /// and from channel to channel.
    fn pointwise(&self, x: &[f32], weight: &[f32], strides: (usize, usize), bias: Option<&[f32]>) -> Vec<f32> {
        let pixels = self.height * self.width;
        let mut y = vec![0.0; self.batch * self.outputs * pixels];
        // A few images alone would leave threads without work.
        let outputs = if self.batch < 4 { self.outputs.min(64) } else { self.outputs };
        let groups = self.outputs.div_ceil(outputs);
        let parts: Vec<_> =
            y.chunks_mut((self.outputs * pixels).max(1)).flat_map(|y| y.chunks_mut(outputs * pixels)).collect();
        parts.into_par_iter().enumerate().for_each(|(index, y)| {
            let (image, first) = (index / groups, index % groups * outputs);
            if let Some(bias) = bias {
                y.chunks_mut(pixels).zip(&bias[first..]).for_each(|(plane, &bias)| plane.fill(bias));
            }
            product(
                [y.len() / pixels, pixels, self.channels],
                (y, pixels, 1),
                bias.is_some(),
                Matrix { values: &weight[first * strides.0..], row: strides.0, column: strides.1 },
                Matrix { values: &x[image * self.channels * pixels..], row: pixels, column: 1 },
            );
        });
        y
    }

    /// The convolution with weights `[kernel, kernel, C, O]`.
    fn apply(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let (height, width) = (self.out_height(), self.out_width());
        let mut y = vec![0.0; self.batch * self.outputs * height * width];
        let blocks: Vec<_> = y
            .chunks_mut((self.outputs * height * width).max(1))
            .enumerate()
            .flat_map(|(image, y)| {
                let blocks = row_blocks(y, height * width, self.rows() * width);
                blocks.into_iter().enumerate().map(move |(block, planes)| (image, block * self.rows(), planes))
            })
            .collect();
        blocks.into_par_iter().for_each_init(Scratch::default, |scratch, (image, first, mut planes)| {
            let rows = planes[0].len() / width;
            self.fill_windows(self.image(x, image), first, rows, scratch);
            let pixels = self.span(rows);
            scratch.result.resize(pixels * self.outputs, 0.0);
            for tap in self.taps() {
                product(
                    [self.outputs, pixels, tap.depth],
                    (&mut scratch.result, 1, self.outputs),
                    tap.first > 0,
                    Matrix { values: &weight[tap.first * self.outputs..], row: 1, column: self.outputs },
                    Matrix { values: &scratch.windows[tap.offset..], row: 1, column: tap.distance },
                );
            }
            to_planes(&scratch.result, (width, self.gapped_width()), bias, &mut planes);
        });
        y
    }

    /// The gradient of the weight, `[O, C, k, k]`: each part of the batch sums its images, then the parts are summed.
    pub fn backward_weight(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        let parts = PARTS.min(self.batch);
        let sums: Vec<_> = (0..parts)
            .into_par_iter()
            .map(|part| {
                let images = part * self.batch / parts..(part + 1) * self.batch / parts;
                if self.is_pointwise() { self.pointwise_sum(x, grad, images) } else { self.tap_sum(x, grad, images) }
            })
            .collect();
        let sum = sums.into_iter().reduce(|mut sum, part| {
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            sum
        });
        let sum = sum.unwrap_or_else(|| vec![0.0; self.outputs * self.window()]);
        let (taps, channels, window) = (self.kernel * self.kernel, self.channels, self.window());
        self.reordered(&sum, |o, c, tap| (o * window + c * taps + tap, o * window + tap * channels + c))
    }

    /// The gradient of a pointwise weight over some images, `[O, C]`.
    fn pointwise_sum(&self, x: &[f32], grad: &[f32], images: std::ops::Range<usize>) -> Vec<f32> {
        let pixels = self.height * self.width;
        let mut sum = vec![0.0; self.outputs * self.channels];
        for image in images {
            product(
                [self.outputs, self.channels, pixels],
                (&mut sum, self.channels, 1),
                true,
                Matrix { values: &grad[image * self.outputs * pixels..], row: pixels, column: 1 },
                Matrix { values: self.image(x, image), row: 1, column: pixels },
            );
        }
        sum
    }

    /// The gradient of the weight over some images, `[O, k, k, C]`.
    fn tap_sum(&self, x: &[f32], grad: &[f32], images: std::ops::Range<usize>) -> Vec<f32> {
        let mut sum = vec![0.0; self.outputs * self.window()];
        let mut scratch = Scratch::default();
        for image in images {
            for first in (0..self.out_height()).step_by(self.rows()) {
                let rows = self.rows().min(self.out_height() - first);
                self.fill_windows(self.image(x, image), first, rows, &mut scratch);
                self.fill_grad(grad, image, (first, rows), self.gapped_width(), &mut scratch.result);
                for tap in self.taps() {
                    product(
                        [tap.depth, self.outputs, self.span(rows)],
                        (&mut sum[tap.first..], 1, self.window()),
                        true,
                        Matrix { values: &scratch.windows[tap.offset..], row: 1, column: tap.distance },
                        Matrix { values: &scratch.result, row: self.outputs, column: 1 },
                    );
                }
            }
        }
        sum
    }

    /// The gradient of the bias, `[O]`.
    pub fn backward_bias(&self, grad: &[f32]) -> Vec<f32> {
        let pixels = self.out_height() * self.out_width();
        let mut sums = vec![0.0; self.outputs];
        for (index, plane) in grad.chunks(pixels).enumerate() {
            sums[index % self.outputs] += sum(plane);
        }
        sums
    }

    /// The gradient of x where the convolution skips pixels: every window's gradient is added where the window was.
    fn scatter(&self, grad: &[f32], weight: &[f32]) -> Vec<f32> {
        let [top, left, bottom, right] = self.padding;
        let (channels, window, pitch) = (self.channels, self.window(), self.pitch());
        let taps = self.kernel * self.kernel;
        let weight = self.reordered(weight, |o, c, tap| (o * window + tap * channels + c, o * window + c * taps + tap));
        let mut dx = vec![0.0; self.batch * channels * self.height * self.width];
        dx.par_chunks_mut((channels * self.height * self.width).max(1)).enumerate().for_each(|(image, dx)| {
            let mut padded = vec![0.0; ((self.height + top + bottom) * pitch + left + right) * channels];
            let mut scratch = Scratch::default();
            for first in (0..self.out_height()).step_by(self.rows()) {
                let rows = self.rows().min(self.out_height() - first);
                let width = self.out_width();
                self.fill_grad(grad, image, (first, rows), width, &mut scratch.result);
                scratch.windows.resize(rows * width * window, 0.0);
                product(
                    [window, rows * width, self.outputs],
                    (&mut scratch.windows, 1, window),
                    false,
                    Matrix { values: &weight, row: 1, column: window },
                    Matrix { values: &scratch.result, row: 1, column: self.outputs },
                );
                let line = self.kernel * channels;
                for (index, values) in scratch.windows.chunks(line).enumerate() {
                    let (pixel, ky) = (index / self.kernel, index % self.kernel);
                    let y = (first + pixel / width) * self.stride + ky;
                    let x = pixel % width * self.stride;
                    let target = &mut padded[(y * pitch + x) * channels..][..line];
                    target.iter_mut().zip(values).for_each(|(target, value)| *target += value);
                }
            }
            let mut planes: Vec<_> = dx.chunks_mut(self.height * self.width).collect();
            to_planes(&padded[(top * pitch + left) * channels..], (self.width, pitch), None, &mut planes);
        });
        dx
    }

    fn image<'a>(&self, x: &'a [f32], image: usize) -> &'a [f32] {
        let size = self.channels * self.height * self.width;
        &x[image * size..][..size]
    }

    /// The windows of `rows` rows of the result from `first` on.
    fn fill_windows(&self, image: &[f32], first: usize, rows: usize, scratch: &mut Scratch) {
        if self.in_place() {
            return self.fill_padded(image, first, rows, &mut scratch.windows);
        }
        self.fill_padded(image, first, rows, &mut scratch.padded);
        let line = self.kernel * self.channels;
        scratch.windows.resize(rows * self.out_width() * self.window(), 0.0);
        for (index, target) in scratch.windows.chunks_mut(line).enumerate() {
            let (pixel, ky) = (index / self.kernel, index % self.kernel);
            let (y, x) = (pixel / self.out_width() * self.stride + ky, pixel % self.out_width() * self.stride);
            target.copy_from_slice(&scratch.padded[(y * self.pitch() + x) * self.channels..][..line]);
        }
    }

    /// The rows of the padded image, `[.., pitch, C]`, that `rows` rows of the result from `first` on are made of.
    fn fill_padded(&self, image: &[f32], first: usize, rows: usize, target: &mut Vec<f32>) {
        let [top, left, _, right] = self.padding;
        let count = (rows - 1) * self.stride + self.kernel;
        target.clear();
        target.resize((count * self.pitch() + left + right) * self.channels, 0.0);
        for row in 0..count {
            let y = first * self.stride + row;
            if (top..top + self.height).contains(&y) {
                let target = &mut target[(row * self.pitch() + left) * self.channels..];
                let source = &image[(y - top) * self.width..];
                to_pixels(source, self.height * self.width, self.channels, self.width, target);
            }
        }
    }

    /// `rows` rows of the result's gradient from `first` on as pixels, `[rows, pitch, O]`, 0 in the gaps.
    fn fill_grad(
        &self,
        grad: &[f32],
        image: usize,
        (first, rows): (usize, usize),
        pitch: usize,
        target: &mut Vec<f32>,
    ) {
        let (height, width, outputs) = (self.out_height(), self.out_width(), self.outputs);
        target.clear();
        target.resize(rows * pitch * outputs, 0.0);
        for row in 0..rows {
            let source = &grad[(image * outputs * height + first + row) * width..];
            to_pixels(source, height * width, outputs, width, &mut target[row * pitch * outputs..]);
        }
    }

    /// The products that make up the convolution.
    fn taps(&self) -> Vec<Tap> {
        let line = self.kernel * self.channels;
        if !self.in_place() {
            return vec![Tap { first: 0, depth: self.window(), offset: 0, distance: self.window() }];
        }
        (0..self.kernel)
            .map(|ky| Tap {
                first: ky * line,
                depth: line,
                offset: ky * self.pitch() * self.channels,
                distance: self.channels,
            })
            .collect()
    }

    /// The weight as `[k, k, C, O]`.
    fn by_tap(&self, weight: &[f32]) -> Vec<f32> {
        let taps = self.kernel * self.kernel;
        let mut target = vec![0.0; weight.len()];
        for first in (0..self.outputs).step_by(16) {
            let last = (first + 16).min(self.outputs);
            for index in 0..self.window() {
                let (c, tap) = (index / taps, index % taps);
                let row = &mut target[(tap * self.channels + c) * self.outputs..][first..last];
                for (o, value) in (first..last).zip(row) {
                    *value = weight[o * self.window() + index];
                }
            }
        }
        target
    }

    /// The weight as `[k, k, O, C]`, turned by half a turn: the kernel of the convolution back to x.
    fn by_flipped_tap(&self, weight: &[f32]) -> Vec<f32> {
        let (taps, window) = (self.kernel * self.kernel, self.window());
        let (channels, outputs) = (self.channels, self.outputs);
        self.reordered(weight, |o, c, tap| {
            (((taps - 1 - tap) * outputs + o) * channels + c, o * window + c * taps + tap)
        })
    }

    /// A weight in another order; `places` gives an element's new and old index.
    fn reordered(&self, weight: &[f32], places: impl Fn(usize, usize, usize) -> (usize, usize)) -> Vec<f32> {
        let mut target = vec![0.0; weight.len()];
        for o in 0..self.outputs {
            for tap in 0..self.kernel * self.kernel {
                for c in 0..self.channels {
                    let (new, old) = places(o, c, tap);
                    target[new] = weight[old];
                }
            }
        }
        target
    }
}

/// One of the products of a convolution: the windows' values `first..first + depth`, which lie at `offset` for the first
/// window of a block and `distance` further for the next.
struct Tap {
    first: usize,
    depth: usize,
    offset: usize,
    distance: usize,
}

/// Memory of one thread, used for one block after the other.
#[derive(Default)]
struct Scratch {
    padded: Vec<f32>,
    windows: Vec<f32>,
    result: Vec<f32>,
}

/// An image's planes cut into blocks of `length` values: the parts of every block.
fn row_blocks(image: &mut [f32], plane: usize, length: usize) -> Vec<Vec<&mut [f32]>> {
    let mut blocks: Vec<Vec<&mut [f32]>> = (0..plane.div_ceil(length)).map(|_| Vec::new()).collect();
    for plane in image.chunks_mut(plane) {
        blocks.iter_mut().zip(plane.chunks_mut(length)).for_each(|(block, part)| block.push(part));
    }
    blocks
}

/// The sum in 16 columns, so that it takes vector instructions without depending on their width.
fn sum(values: &[f32]) -> f32 {
    let mut columns = [0.0; 16];
    let chunks = values.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        columns.iter_mut().zip(chunk).for_each(|(column, value)| *column += value);
    }
    columns.iter().sum::<f32>() + rest
}
