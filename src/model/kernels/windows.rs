//! The windows of a convolution: the parts of its input that its kernel sees, a few rows of the result at a time.

use super::convolution::Convolution;
use super::transpose::to_pixels;
use std::ops::Range;

/// Memory of one thread, used for one block after the other.
#[derive(Default)]
pub struct Scratch {
    padded: Vec<f32>,
    pub windows: Vec<f32>,
    pub result: Vec<f32>,
}

/// What is computed at once: some rows of an image of the result, or several whole images.
#[derive(Clone)]
pub struct Block {
    pub images: Range<usize>,
    pub first: usize,
    pub rows: usize,
}

/// One of the products of a convolution: the windows' values `first..first + depth`, which lie at `offset` for the first
/// window of a block and `distance` further for the next.
pub struct Tap {
    pub first: usize,
    pub depth: usize,
    pub offset: usize,
    pub distance: usize,
}

impl Convolution {
    /// The products that make up the convolution when windows are pixels.
    pub fn taps(&self) -> Vec<Tap> {
        let line = self.kernel * self.channels;
        if !self.in_place() {
            return vec![Tap { first: 0, depth: self.window(), offset: 0, distance: self.window() }];
        }
        let tap = |ky| Tap {
            first: ky * line,
            depth: line,
            offset: ky * self.pitch() * self.channels,
            distance: self.channels,
        };
        (0..self.kernel).map(tap).collect()
    }

    /// The windows of a block as pixels, where [`taps`](Self::taps) says.
    pub fn fill_windows(&self, x: &[f32], block: &Block, scratch: &mut Scratch) {
        if self.in_place() {
            return self.fill_padded(self.image(x, block.images.start), block, &mut scratch.windows);
        }
        let (width, line) = (self.out_width(), self.kernel * self.channels);
        let size = block.rows * width * self.window();
        scratch.windows.resize(block.images.len() * size, 0.0);
        for (image, windows) in block.images.clone().zip(scratch.windows.chunks_exact_mut(size)) {
            self.fill_padded(self.image(x, image), block, &mut scratch.padded);
            for (pixel, window) in windows.chunks_exact_mut(self.window()).enumerate() {
                let (y, x) = (pixel / width * self.stride, pixel % width * self.stride);
                for (ky, target) in window.chunks_exact_mut(line).enumerate() {
                    target.copy_from_slice(&scratch.padded[((y + ky) * self.pitch() + x) * self.channels..][..line]);
                }
            }
        }
    }

    /// The rows of the padded image, `[.., pitch, C]`, that a block's rows of the result are made of.
    fn fill_padded(&self, image: &[f32], block: &Block, target: &mut Vec<f32>) {
        let [top, left, _, right] = self.padding;
        let count = (block.rows - 1) * self.stride + self.kernel;
        target.clear();
        target.resize((count * self.pitch() + left + right) * self.channels, 0.0);
        // The rows of the image itself among those of the padded one.
        let begin = top.saturating_sub(block.first * self.stride).min(count);
        let end = (top + self.height).saturating_sub(block.first * self.stride).clamp(begin, count);
        if begin < end {
            to_pixels(
                &image[(block.first * self.stride + begin - top) * self.width..],
                (self.height * self.width, self.channels),
                [end - begin, self.width, self.pitch()],
                &mut target[(begin * self.pitch() + left) * self.channels..],
            );
        }
    }

    /// The windows of a block of one image as planes, `[C, k, k, rows, W']`.
    pub fn fill_window_planes(&self, x: &[f32], block: &Block, target: &mut Vec<f32>) {
        let [top, left, _, _] = self.padding;
        let (image, rows) = (self.image(x, block.images.start), block.rows);
        let (kernel, stride, width) = (self.kernel, self.stride, self.out_width());
        target.resize(self.window() * rows * width, 0.0);
        for (index, target) in target.chunks_exact_mut(width).enumerate() {
            let (place, y) = (index / rows, (block.first + index % rows) * stride);
            let (c, ky, kx) = (place / (kernel * kernel), place / kernel % kernel, place % kernel);
            if !(top..top + self.height).contains(&(y + ky)) {
                target.fill(0.0);
                continue;
            }
            let source = &image[(c * self.height + y + ky - top) * self.width..][..self.width];
            let begin = left.saturating_sub(kx).div_ceil(stride).min(width);
            let end = (self.width + left).saturating_sub(kx).div_ceil(stride).clamp(begin, width);
            target[..begin].fill(0.0);
            target[end..].fill(0.0);
            if begin == end {
                continue;
            }
            let source = &source[begin * stride + kx - left..];
            if stride == 1 {
                target[begin..end].copy_from_slice(&source[..end - begin]);
            } else {
                target[begin..end].iter_mut().zip(source.iter().step_by(stride)).for_each(|(t, s)| *t = *s);
            }
        }
    }

    /// A block of the result's gradient as pixels, `[images, rows, pitch, O]`, 0 in the gaps.
    pub fn fill_grad(&self, grad: &[f32], block: &Block, pitch: usize, target: &mut Vec<f32>) {
        let (height, width, outputs) = (self.out_height(), self.out_width(), self.outputs);
        target.clear();
        target.resize(block.images.len() * block.rows * pitch * outputs, 0.0);
        let size = block.rows * pitch * outputs;
        for (image, target) in block.images.clone().zip(target.chunks_exact_mut(size)) {
            let source = &grad[(image * outputs * height + block.first) * width..];
            to_pixels(source, (height * width, outputs), [block.rows, width, pitch], target);
        }
    }

    /// One image of x.
    pub fn image<'a>(&self, x: &'a [f32], image: usize) -> &'a [f32] {
        let size = self.channels * self.height * self.width;
        &x[image * size..][..size]
    }
}
