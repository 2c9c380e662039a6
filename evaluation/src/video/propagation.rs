//! Labels carried from frame to frame by the similarity of patch tokens, as DINO's `eval_video_segmentation.py` (after
//! Jabri et al. 2020, Space-Time Correspondence as a Contrastive Random Walk).
//!
//! A patch takes the labels of the most similar patches near it in the first frame and in the latest ones:
//! A = exp(cos / T) within a window, of which the k largest over all those frames together are kept and divided by their
//! sum. Only similarities of rows within the window are computed, in bands, so memory stays bounded at any resolution.

use std::collections::VecDeque;

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::soft_mask::SoftMask;
use crate::device::{host, matrix};
use crate::embeddings::l2_normalise;
use crate::error::{Error, Result};

/// Similarities computed at a time: 64 MiB.
const BLOCK: usize = 1 << 24;

/// How labels are carried on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PropagationConfig {
    /// Latest frames asked, beside the first.
    pub queue: usize,
    /// Largest distance along x and along y of a patch that is asked, patches; 0 asks all.
    pub window: usize,
    /// Patches whose labels count.
    pub top_k: usize,
    /// T of exp(cos / T).
    pub temperature: f64,
}

impl Default for PropagationConfig {
    fn default() -> Self {
        Self { queue: 7, window: 12, top_k: 5, temperature: 0.1 }
    }
}

/// Patch tokens of a frame.
#[derive(Clone, Debug)]
pub struct FrameFeatures {
    /// Patches along y.
    pub rows: usize,
    /// Patches along x.
    pub columns: usize,
    /// Width of a token.
    pub dim: usize,
    /// `[rows * columns, dim]`, row-major; scaled to length 1 before they are compared.
    pub values: Vec<f32>,
}

/// A frame that can be asked.
struct Source {
    /// `[rows * columns, dim]`, each of length 1.
    features: Tensor<2>,
    mask: SoftMask,
}

/// The frames that are asked for the labels of the next.
pub struct Propagator {
    config: PropagationConfig,
    device: Device,
    first: Source,
    recent: VecDeque<Source>,
}

impl Propagator {
    /// Begins with the first frame and its mask.
    ///
    /// # Errors
    /// A mask of another grid, tokens that are not finite, and settings that make no sense.
    pub fn new(config: PropagationConfig, first: FrameFeatures, mask: SoftMask, device: &Device) -> Result<Self> {
        if config.top_k == 0 || config.temperature.is_nan() || config.temperature <= 0.0 {
            return Err(Error::usage("labels need at least one neighbour and a temperature above 0"));
        }
        if (first.rows, first.columns) != (mask.rows, mask.columns) {
            return Err(Error::usage(format!(
                "a mask of {} x {} patches for a frame of {} x {}",
                mask.columns, mask.rows, first.columns, first.rows
            )));
        }
        let first = Source { features: unit(first, device)?, mask };
        Ok(Self { config, device: device.clone(), first, recent: VecDeque::new() })
    }

    /// Carries the labels to the next frame, which is then asked for those after it.
    ///
    /// # Errors
    /// A frame of another size or encoder than the first, and a device that fails.
    pub fn advance(&mut self, frame: FrameFeatures) -> Result<SoftMask> {
        let (rows, columns) = (self.first.mask.rows, self.first.mask.columns);
        let dim = self.first.features.dims()[1];
        if (frame.rows, frame.columns, frame.dim) != (rows, columns, dim) {
            return Err(Error::usage(format!(
                "a frame of {} x {} patches of {} numbers follows one of {columns} x {rows} patches of {dim}: all frames of \
                 a video have one size",
                frame.columns, frame.rows, frame.dim
            )));
        }
        let features = unit(frame, &self.device)?;
        let mask = self.carried(&features)?;
        if self.config.queue > 0 {
            if self.recent.len() == self.config.queue {
                self.recent.pop_front();
            }
            self.recent.push_back(Source { features, mask: mask.clone() });
        }
        Ok(mask)
    }

    /// The labels of a frame, band of rows after band.
    fn carried(&self, target: &Tensor<2>) -> Result<SoftMask> {
        let SoftMask { rows, columns, classes, .. } = self.first.mask;
        let sources: Vec<&Source> = std::iter::once(&self.first).chain(&self.recent).collect();
        let masks: Vec<&SoftMask> = sources.iter().map(|source| &source.mask).collect();
        let reach = if self.config.window == 0 { rows.max(columns) } else { self.config.window };
        let height = self.band(sources.len(), reach);
        let mut by_patch: Vec<f32> = Vec::with_capacity(rows * columns * classes);
        for top in (0..rows).step_by(height) {
            let bottom = (top + height).min(rows);
            let band = Band { columns, from: top.saturating_sub(reach), to: (bottom + reach).min(rows), reach };
            let span = |tensor: &Tensor<2>, from: usize, to: usize| {
                tensor.clone().narrow(0, from * columns, (to - from) * columns)
            };
            let asked = sources.iter().map(|source| span(&source.features, band.from, band.to)).collect();
            let similarity = host(span(target, top, bottom).matmul(Tensor::cat(asked, 0).transpose()))?;
            let width = similarity.len() / ((bottom - top) * columns);
            let (config, masks) = (&self.config, &masks[..]);
            by_patch.par_extend(similarity.par_chunks_exact(width).enumerate().flat_map_iter(|(at, similarity)| {
                shares(config, masks, &band, (top + at / columns, at % columns), similarity)
            }));
        }
        let values = (0..classes).flat_map(|class| by_patch.iter().skip(class).step_by(classes).copied()).collect();
        Ok(SoftMask { rows, columns, classes, values })
    }

    /// Rows of a band: as many as keep the similarities within [`BLOCK`], at least one.
    fn band(&self, sources: usize, reach: usize) -> usize {
        let SoftMask { rows, columns, .. } = self.first.mask;
        let size = |height: usize| height * columns * (height + 2 * reach).min(rows) * columns * sources;
        (1..=rows).rev().find(|&height| size(height) <= BLOCK).unwrap_or(1)
    }
}

/// The shares of the classes at one patch, from its similarities to the band's patches of all sources, whose masks these are.
fn shares(
    config: &PropagationConfig,
    masks: &[&SoftMask],
    band: &Band,
    place: (usize, usize),
    similarity: &[f32],
) -> Vec<f32> {
    let mut largest = Largest::new(config.top_k);
    band.near(place, similarity).for_each(|(_, _, similarity)| largest.offer(similarity));
    let (least, most) = largest.ends();
    let (mut shares, mut sum) = (vec![0.0_f64; masks[0].classes], 0.0);
    for (source, patch, similarity) in band.near(place, similarity).filter(|(.., similarity)| *similarity >= least) {
        // Relative to the largest, which the division by the sum undoes: nothing overflows at a low temperature.
        let weight = ((f64::from(similarity) - f64::from(most)) / config.temperature).exp();
        sum += weight;
        let labels = masks[source].values.iter().skip(patch).step_by(masks[source].rows * masks[source].columns);
        shares.iter_mut().zip(labels).for_each(|(share, label)| *share += weight * f64::from(*label));
    }
    shares.into_iter().map(|share| (share / sum) as f32).collect()
}

/// Rows of the sources that a band of target rows may ask.
struct Band {
    columns: usize,
    from: usize,
    to: usize,
    reach: usize,
}

impl Band {
    /// Source, patch and similarity of all patches within the window of the target patch at (row, column).
    fn near<'a>(
        &'a self,
        (row, column): (usize, usize),
        similarity: &'a [f32],
    ) -> impl Iterator<Item = (usize, usize, f32)> + 'a {
        let rows = row.saturating_sub(self.reach).max(self.from)..(row + self.reach + 1).min(self.to);
        let columns = column.saturating_sub(self.reach)..(column + self.reach + 1).min(self.columns);
        let per_source = (self.to - self.from) * self.columns;
        similarity.chunks_exact(per_source).enumerate().flat_map(move |(source, similarity)| {
            let columns = columns.clone();
            rows.clone().flat_map(move |row| {
                let line = &similarity[(row - self.from) * self.columns..][columns.clone()];
                let start = row * self.columns + columns.start;
                line.iter().enumerate().map(move |(at, &similarity)| (source, start + at, similarity))
            })
        })
    }
}

/// The k largest of many numbers, descending.
struct Largest {
    k: usize,
    values: Vec<f32>,
}

impl Largest {
    fn new(k: usize) -> Self {
        Self { k, values: Vec::with_capacity(k + 1) }
    }

    fn offer(&mut self, value: f32) {
        if self.values.len() == self.k && value <= self.values[self.k - 1] {
            return;
        }
        let place = self.values.partition_point(|&kept| kept >= value);
        self.values.insert(place, value);
        self.values.truncate(self.k);
    }

    /// The least and the largest that are kept.
    fn ends(&self) -> (f32, f32) {
        (self.values.last().copied().unwrap_or(f32::MIN), self.values.first().copied().unwrap_or(0.0))
    }
}

/// The tokens on the device, each of length 1.
fn unit(mut frame: FrameFeatures, device: &Device) -> Result<Tensor<2>> {
    let patches = frame.rows * frame.columns;
    if frame.values.len() != patches * frame.dim || frame.values.is_empty() {
        return Err(Error::usage(format!(
            "{} numbers are not {} x {} tokens of {}",
            frame.values.len(),
            frame.columns,
            frame.rows,
            frame.dim
        )));
    }
    if frame.values.iter().any(|value| !value.is_finite()) {
        return Err(Error::usage("the tokens of a frame are not finite: are these the encoder's weights?"));
    }
    l2_normalise(&mut frame.values, frame.dim);
    Ok(matrix(frame.values, patches, device))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(rows: usize, columns: usize, dim: usize, seed: u64) -> FrameFeatures {
        let mut rng = crate::seed::stream(seed, crate::seed::Purpose::Weights, 0, 0);
        let values = (0..rows * columns * dim).map(|_| rand::RngExt::random::<f32>(&mut rng) - 0.5).collect();
        FrameFeatures { rows, columns, dim, values }
    }

    fn mask(rows: usize, columns: usize, classes: usize, seed: u64) -> SoftMask {
        let labels = frame(rows, columns, 1, seed).values.iter().map(|v| ((v + 0.5) * classes as f32) as u8).collect();
        let map = crate::video::LabelMap::new(columns, rows, labels).unwrap();
        let soft = SoftMask::from_labels(&map, rows, columns).unwrap();
        let values = soft.values.into_iter().chain(std::iter::repeat(0.0)).take(classes * rows * columns).collect();
        SoftMask { rows, columns, classes, values }
    }

    /// The protocol over the whole matrix, as it is written down.
    fn by_definition(
        config: &PropagationConfig,
        sources: &[(FrameFeatures, SoftMask)],
        target: &FrameFeatures,
    ) -> Vec<f64> {
        let n = target.rows * target.columns;
        let unit = |frame: &FrameFeatures, at: usize| -> Vec<f64> {
            let row: Vec<f64> = frame.values[at * frame.dim..][..frame.dim].iter().map(|v| f64::from(*v)).collect();
            let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            row.into_iter().map(|v| v / length).collect()
        };
        let classes = sources[0].1.classes;
        let mut out = vec![0.0; classes * n];
        for t in 0..n {
            let ours = unit(target, t);
            let mut affinities = Vec::new();
            for (frame, mask) in sources {
                for s in 0..n {
                    let distance = (t / target.columns)
                        .abs_diff(s / target.columns)
                        .max((t % target.columns).abs_diff(s % target.columns));
                    if config.window > 0 && distance > config.window {
                        continue;
                    }
                    let cosine: f64 = ours.iter().zip(unit(frame, s)).map(|(a, b)| a * b).sum();
                    let labels: Vec<f64> = (0..classes).map(|c| f64::from(mask.values[c * n + s])).collect();
                    affinities.push(((cosine / config.temperature).exp(), labels));
                }
            }
            affinities.sort_by(|a, b| b.0.total_cmp(&a.0));
            affinities.truncate(config.top_k);
            let sum: f64 = affinities.iter().map(|(a, _)| a).sum();
            for (a, labels) in &affinities {
                labels.iter().enumerate().for_each(|(c, l)| out[c * n + t] += a / sum * l);
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Bands and windows give what the definition gives; float32 products of 6 numbers differ by some 1e-6, times 1/T.
        #[test]
        fn as_defined(rows in 1..9_usize, columns in 1..9_usize, window in 0..5_usize, queue in 0..3_usize, top_k in 1..7_usize, seed: u64) {
            let config = PropagationConfig { queue, window, top_k, temperature: 0.1 };
            let first = (frame(rows, columns, 6, seed), mask(rows, columns, 3, seed ^ 1));
            let mut propagator = Propagator::new(config, first.0.clone(), first.1.clone(), &Device::flex()).unwrap();
            let mut recent: Vec<(FrameFeatures, SoftMask)> = Vec::new();
            for step in 0..4 {
                let next = frame(rows, columns, 6, seed ^ (100 + step));
                let sources: Vec<_> = std::iter::once(first.clone()).chain(recent.iter().cloned()).collect();
                let expected = by_definition(&config, &sources, &next);
                let mask = propagator.advance(next.clone()).unwrap();
                for (ours, expected) in mask.values.iter().zip(&expected) {
                    prop_assert!((f64::from(*ours) - expected).abs() < 1e-4, "{ours} {expected}");
                }
                recent.push((next, mask));
                recent.drain(..recent.len().saturating_sub(queue));
            }
        }
    }

    #[test]
    fn frames_that_do_not_belong_together_are_refused() {
        let device = Device::flex();
        let new = |config, first, mask| Propagator::new(config, first, mask, &device).err().map(|e| e.to_string());
        let config = PropagationConfig::default();
        assert!(
            new(config, frame(2, 3, 4, 0), mask(3, 2, 2, 0)).unwrap().contains("2 x 3 patches for a frame of 3 x 2")
        );
        assert!(new(PropagationConfig { top_k: 0, ..config }, frame(2, 3, 4, 0), mask(2, 3, 2, 0)).is_some());
        let mut broken = frame(2, 3, 4, 0);
        broken.values[5] = f32::NAN;
        assert!(new(config, broken, mask(2, 3, 2, 0)).unwrap().contains("not finite"));
        let mut propagator = Propagator::new(config, frame(2, 3, 4, 0), mask(2, 3, 2, 0), &device).unwrap();
        assert!(propagator.advance(frame(2, 4, 4, 0)).unwrap_err().to_string().contains("one size"));
    }
}
