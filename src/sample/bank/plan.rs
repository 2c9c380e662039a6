//! Which images are made. Secondary image, α and noise are hashes of seed, kind, image and number: no shard, thread or
//! machine has a say in them.

use std::fmt;
use std::str::FromStr;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::Header;
use crate::data::crop::uniform;
use crate::model::random::keyed;

/// What a synthetic image is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The embedding of one image.
    Generative,
    /// A point between the embeddings of two.
    Interpolated,
}

impl Kind {
    /// Its name, in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generative => "generative",
            Self::Interpolated => "interpolated",
        }
    }
}

/// One image to make.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// The image of the data set.
    pub source: usize,
    /// Whether of it alone.
    pub kind: Kind,
    /// Which of the images of this kind, from 0.
    pub k: usize,
    /// The other image of an interpolation.
    pub secondary: Option<usize>,
    /// Weight of `source` against `secondary`; 1 without one.
    pub alpha: f32,
    /// Seed of the noise.
    pub seed: u64,
}

/// What an interpolation mixes: the other image, drawn evenly from all but `source` and those in `without` (ascending),
/// and the weight of the first, uniform in `alpha`. The same whether a model mixes them or pixels are.
///
/// At least one image must be left to draw.
pub fn partner(seed: u64, source: usize, k: usize, images: usize, without: &[usize], alpha: [f64; 2]) -> (usize, f32) {
    let mut rng = keyed(seed, "bank partner", &[source as u64, k as u64]);
    let alpha = uniform(alpha, &mut rng) as f32;
    loop {
        let other = rng.random_range(0..images);
        if other != source && without.binary_search(&other).is_err() {
            return (other, alpha);
        }
    }
}

impl Header {
    /// Everything made of image `source`, in the order it is stored: generative, then interpolated images.
    pub fn requests(&self, source: usize) -> Vec<Request> {
        if self.without.binary_search(&source).is_ok() {
            return vec![];
        }
        let noise = |kind: Kind, k: usize| {
            keyed(self.seed, &format!("bank {}", kind.name()), &[source as u64, k as u64]).next_u64()
        };
        let generative = (0..self.generative).map(|k| Request {
            source,
            kind: Kind::Generative,
            k,
            secondary: None,
            alpha: 1.0,
            seed: noise(Kind::Generative, k),
        });
        let interpolated = (0..self.interpolated).map(|k| {
            let (other, alpha) = partner(self.seed, source, k, self.images, &self.without, self.alpha);
            let seed = noise(Kind::Interpolated, k);
            Request { source, kind: Kind::Interpolated, k, secondary: Some(other), alpha, seed }
        });
        generative.chain(interpolated).collect()
    }

    /// Everything in shard `shard`.
    pub(super) fn shard_requests(&self, shard: usize) -> Vec<Request> {
        let sources = shard * self.shard..((shard + 1) * self.shard).min(self.images);
        sources.flat_map(|source| self.requests(source)).collect()
    }

    /// Images in shard `shard`, without drawing them.
    pub(super) fn shard_images(&self, shard: usize) -> usize {
        let sources = shard * self.shard..((shard + 1) * self.shard).min(self.images);
        let without = self.without.iter().filter(|image| sources.contains(image)).count();
        (sources.len() - without) * self.per_image()
    }
}

/// Every `of`-th shard file from number `part` on, from 1: `2/4` on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    part: usize,
    of: usize,
}

impl Part {
    /// All of them.
    pub const WHOLE: Self = Self { part: 1, of: 1 };

    /// Whether shard `shard` belongs to it.
    pub fn holds(&self, shard: usize) -> bool {
        shard % self.of == self.part - 1
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
        match parsed {
            Some((part, of)) if (1..=of).contains(&part) => Ok(Self { part, of }),
            _ => Err("give which part of how many, such as 2/4".to_owned()),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.part, self.of)
    }
}
