//! Convolution of f32 images in memory, forward and backward.
//!
//! Inside, an image is `[height, width, channels]`: a window's row is then contiguous in the image, and a convolution with
//! stride 1 is one product per row of the kernel that reads its windows in place (their matrix overlaps itself). With
//! another stride, or where an image is narrow and the weight large, the windows are copied out first. With few channels on
//! either side an image stays `[channels, height, width]`, windows are copied out as planes, and their product is the
//! result.
//!
//! Work is cut into blocks of rows, or of small images, that fit into the cache and whose number depends on sizes only,
//! and every sum runs in a fixed order: the number of threads changes nothing.

use super::order;
use super::product::{Matrix, product};
use super::transpose::to_planes;
use super::windows::{Block, Scratch};
use rayon::prelude::*;
use std::ops::Range;

/// Floats of a block's windows that are meant to stay in a core's second-level cache.
const BLOCK: usize = 96 * 1024;
/// Windows of a block that make it worth to arrange the weight for the product.
const PIXELS: usize = 256;
/// Parts of a batch at most whose gradients of the weight are summed apart.
const PARTS: usize = 8;
/// Fewer channels than this do not fill a vector.
const FEW: usize = 16;

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
    pub fn window(&self) -> usize {
        self.kernel * self.kernel * self.channels
    }

    fn weight_sizes(&self) -> [usize; 3] {
        [self.outputs, self.channels, self.kernel * self.kernel]
    }

    fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.padding == [0; 4]
    }

    fn has_few(&self) -> bool {
        self.channels.min(self.outputs) < FEW
    }

    /// Whether windows are read where they lie in the padded image. The windows between two rows, one in `width`, are then
    /// computed for nothing, which with 8 outputs for every column costs more than copying does.
    pub fn in_place(&self) -> bool {
        self.stride == 1 && self.channels >= FEW && self.outputs < 8 * self.width
    }

    /// Distance of two rows of a padded image, in pixels. The zeros right of a row are those left of the next.
    pub fn pitch(&self) -> usize {
        let [_, left, _, right] = self.padding;
        (self.width + left.max(right)).max(self.out_width())
    }

    /// Distance of two rows of windows, in pixels: the pitch where windows are read in place, so that those between two
    /// rows are computed for nothing.
    fn gapped_width(&self) -> usize {
        if self.in_place() { self.pitch() } else { self.out_width() }
    }

    /// Windows from a block's first to its last.
    fn span(&self, block: &Block) -> usize {
        (block.images.len() * block.rows - 1) * self.gapped_width() + self.out_width()
    }

    /// The blocks of some images of the result. `copied`: windows take space of their own.
    fn blocks(&self, images: Range<usize>, copied: bool) -> impl Iterator<Item = Block> + use<> {
        let (height, width) = (self.out_height(), self.out_width());
        let (line, space) = match copied {
            true => (width * self.window(), BLOCK.max(PIXELS * self.window())),
            false => (self.pitch() * self.channels, BLOCK),
        };
        let rows = (space / line).clamp(1, height);
        let stack = if copied { (PIXELS / (height * width)).clamp(1, self.batch.div_ceil(2).max(1)) } else { 1 };
        let end = images.end;
        images.step_by(stack).flat_map(move |image| {
            let images = image..(image + stack).min(end);
            let block = move |first| Block { images: images.clone(), first, rows: rows.min(height - first) };
            (0..height).step_by(rows).map(block)
        })
    }

    /// `x [B, C, H, W] * weight [O, C, k, k] + bias [O] -> [B, O, H', W']`.
    pub fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        if self.is_pointwise() {
            return self.pointwise(x, weight, (self.channels, 1), Some(bias));
        }
        if self.has_few() {
            return self.planewise(x, weight, Some(bias));
        }
        self.pixelwise(x, &order::taps_first(weight, self.weight_sizes()), Some(bias))
    }

    /// The gradient of x, `[B, C, H, W]`, from that of the result, `[B, O, H', W']`.
    pub fn backward_x(&self, grad: &[f32], weight: &[f32]) -> Vec<f32> {
        if self.is_pointwise() {
            return self.transposed().pointwise(grad, weight, (1, self.channels), None);
        }
        if self.stride > 1 || self.padding.iter().any(|&zeros| zeros >= self.kernel) {
            return self.scatter(grad, weight);
        }
        if self.has_few() {
            return self.transposed().planewise(grad, &order::flipped(weight, self.weight_sizes()), None);
        }
        self.transposed().pixelwise(grad, &order::flipped_taps_first(weight, self.weight_sizes()), None)
    }

    /// A convolution with stride 1 from the result to x.
    fn transposed(&self) -> Self {
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
                Matrix { values: self.image(x, image), row: pixels, column: 1 },
            );
        });
        y
    }

    /// The convolution with weights `[O, C, k, k]`, windows as planes.
    fn planewise(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let rows = (BLOCK / (self.out_width() * self.window())).clamp(1, self.out_height());
        let blocks = (0..self.batch).flat_map(|image| {
            (0..self.out_height()).step_by(rows).map(move |first| Block {
                images: image..image + 1,
                first,
                rows: rows.min(self.out_height() - first),
            })
        });
        self.by_blocks(blocks.collect(), |scratch, block, planes| {
            let pixels = block.rows * self.out_width();
            self.fill_window_planes(x, block, &mut scratch.windows);
            scratch.result.resize(pixels * self.outputs, 0.0);
            product(
                [pixels, self.outputs, self.window()],
                (&mut scratch.result, 1, pixels),
                false,
                Matrix { values: &scratch.windows, row: 1, column: pixels },
                Matrix { values: weight, row: 1, column: self.window() },
            );
            for (o, (plane, values)) in planes.iter_mut().zip(scratch.result.chunks_exact(pixels)).enumerate() {
                let bias = bias.map_or(0.0, |bias| bias[o]);
                plane.iter_mut().zip(values).for_each(|(plane, value)| *plane = value + bias);
            }
        })
    }

    /// The convolution with weights `[k, k, C, O]`, windows as pixels.
    fn pixelwise(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let blocks = self.blocks(0..self.batch, !self.in_place()).collect();
        self.by_blocks(blocks, |scratch, block, planes| {
            self.fill_windows(x, block, scratch);
            let pixels = self.span(block);
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
            let (width, pitch) = (self.out_width(), self.gapped_width());
            for (image, planes) in planes.chunks_mut(self.outputs).enumerate() {
                let first = image * block.rows * pitch * self.outputs;
                to_planes(&scratch.result[first..], (width, pitch), bias, planes);
            }
        })
    }

    /// A result whose blocks are computed on their own; `compute` gets the block's part of every plane of its images.
    fn by_blocks(
        &self,
        blocks: Vec<Block>,
        compute: impl Fn(&mut Scratch, &Block, &mut [&mut [f32]]) + Sync,
    ) -> Vec<f32> {
        let (plane, width) = (self.out_height() * self.out_width(), self.out_width());
        let mut y = vec![0.0; self.batch * self.outputs * plane];
        let mut planes = y.chunks_mut(plane);
        let mut parts: Vec<Vec<&mut [f32]>> = Vec::with_capacity(blocks.len());
        for same_images in blocks.chunk_by(|a, b| a.images == b.images) {
            let begin = parts.len();
            parts.extend(same_images.iter().map(|_| Vec::new()));
            for mut plane in planes.by_ref().take(same_images[0].images.len() * self.outputs) {
                for (block, part) in same_images.iter().zip(&mut parts[begin..]) {
                    let (rows, rest) = plane.split_at_mut(block.rows * width);
                    part.push(rows);
                    plane = rest;
                }
            }
        }
        blocks.par_iter().zip(parts).for_each_init(Scratch::default, |scratch, (block, mut planes)| {
            compute(scratch, block, &mut planes);
        });
        y
    }

    /// The gradient of the weight, `[O, C, k, k]`: each part of the batch sums its images, then the parts are summed.
    pub fn backward_weight(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        let windows = self.batch * self.out_height() * self.out_width();
        let parts = (windows / (2 * PIXELS)).clamp(2, PARTS).min(self.batch);
        let images = |part| part * self.batch / parts..(part + 1) * self.batch / parts;
        let sums: Vec<_> = (0..parts).into_par_iter().map(|part| self.weight_sum(x, grad, images(part))).collect();
        let sum = sums.into_iter().reduce(|mut sum, part| {
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            sum
        });
        let sum = sum.unwrap_or_else(|| vec![0.0; self.outputs * self.window()]);
        order::turned(&sum, [self.outputs, self.kernel * self.kernel, self.channels])
    }

    /// The gradient of the weight over some images, `[O, k, k, C]`.
    fn weight_sum(&self, x: &[f32], grad: &[f32], images: Range<usize>) -> Vec<f32> {
        let mut sum = vec![0.0; self.outputs * self.window()];
        let mut scratch = Scratch::default();
        for block in self.blocks(images, !self.in_place()) {
            self.fill_windows(x, &block, &mut scratch);
            self.fill_grad(grad, &block, self.gapped_width(), &mut scratch.result);
            for tap in self.taps() {
                product(
                    [tap.depth, self.outputs, self.span(&block)],
                    (&mut sum[tap.first..], 1, self.window()),
                    true,
                    Matrix { values: &scratch.windows[tap.offset..], row: 1, column: tap.distance },
                    Matrix { values: &scratch.result, row: self.outputs, column: 1 },
                );
            }
        }
        sum
    }

    /// The gradient of the bias, `[O]`.
    pub fn backward_bias(&self, grad: &[f32]) -> Vec<f32> {
        let mut sums = vec![0.0; self.outputs];
        for (index, plane) in grad.chunks(self.out_height() * self.out_width()).enumerate() {
            sums[index % self.outputs] += sum(plane);
        }
        sums
    }

    /// The gradient of x where the convolution skips pixels: every window's gradient is added where the window was.
    fn scatter(&self, grad: &[f32], weight: &[f32]) -> Vec<f32> {
        let [top, left, bottom, right] = self.padding;
        let (channels, window, pitch, width) = (self.channels, self.window(), self.pitch(), self.out_width());
        let weight = order::turned(weight, self.weight_sizes());
        let mut dx = vec![0.0; self.batch * channels * self.height * self.width];
        let images = dx.par_chunks_mut((channels * self.height * self.width).max(1));
        images.enumerate().for_each_init(Scratch::default, |scratch, (image, dx)| {
            let mut padded = vec![0.0; ((self.height + top + bottom) * pitch + left + right) * channels];
            for block in self.blocks(image..image + 1, true) {
                self.fill_grad(grad, &block, width, &mut scratch.result);
                scratch.windows.resize(block.rows * width * window, 0.0);
                product(
                    [window, block.rows * width, self.outputs],
                    (&mut scratch.windows, 1, window),
                    false,
                    Matrix { values: &weight, row: 1, column: window },
                    Matrix { values: &scratch.result, row: 1, column: self.outputs },
                );
                for (pixel, window) in scratch.windows.chunks_exact(window).enumerate() {
                    let (y, x) = ((block.first + pixel / width) * self.stride, pixel % width * self.stride);
                    for (ky, values) in window.chunks_exact(self.kernel * channels).enumerate() {
                        let target = &mut padded[((y + ky) * pitch + x) * channels..][..values.len()];
                        target.iter_mut().zip(values).for_each(|(target, value)| *target += value);
                    }
                }
            }
            let mut planes: Vec<_> = dx.chunks_mut(self.height * self.width).collect();
            to_planes(&padded[(top * pitch + left) * channels..], (self.width, pitch), None, &mut planes);
        });
        dx
    }
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
