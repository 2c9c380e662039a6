//! Which pictures of a cohort show the same thing: the same slide scanned again, a copy that is turned, mirrored,
//! recompressed or cropped a little. A split that separates them leaks the test set into the training set.
//!
//! In the flow: after a [`Cohort`](crate::manifest::Cohort) or image folders are listed, before anything is split. A
//! [`Fingerprint`] is taken of every picture (of a slide its tissue, wherever it lies on the glass), [`pairs`] compares
//! them all, [`groups`] says what must stay together.
//!
//! Pairs are found in two steps. A perceptual hash of 63 bits proposes: every pair is compared in all eight
//! orientations, which for 11,000 pictures is 5e8 bit counts, 0.4 s on two cores. Then the fine detail of two pictures
//! of 64 x 64 px is correlated, after the best small shift and zoom, and decides: coarse shades alone would make all
//! needle biopsies copies of each other; for the 0.4 % that are proposed of 11,000 pictures of noise that takes 45 s.
//! The time grows with the square of their number.
//!
//! Found of altered copies (`benches/duplicates.rs`; H&E tiles, then slides): JPEG 60, scaled, turned, mirrored,
//! brighter all; cropped 5 % 292 of 300 and 16 of 16; canvas shifted 5 % 291 of 300 and 15 of 16; cropped 10 % 131
//! of 300 and 12 of 16. The most alike of different pictures: 0.35 among 4e5 pairs of tiles, 0.50 among 3e6 of Tiny
//! ImageNet, 0.56 among 1,770 pairs of drawn biopsies of one shape. Not found: slides laid on the scanner at another
//! angle (3 degrees: 2 of 16), and parts of a slide.

mod content;
mod fingerprint;
mod hash;
mod orientation;
mod similarity;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::Serialize;

use crate::error::{Error, Result};
pub use fingerprint::Fingerprint;
use fingerprint::View;
use hash::Hash;
pub use orientation::Orientation;
use similarity::Detail;

/// More pairs than this are refused: the pictures are then mostly one picture, and the table would fill the memory.
const MAX_PAIRS: usize = 2_000_000;

/// When two pictures count as copies of each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Criteria {
    /// Bits of the hash that may differ, 0 to 63.
    pub max_distance: u32,
    /// Smallest correlation of the fine detail, 0 to 1.
    pub min_similarity: f32,
}

impl Criteria {
    /// For slides. Outlines are half of what is seen of them, and needle biopsies share those: hence stricter. Copies
    /// that are found are at 0.77 and above, but for crops of a tenth.
    pub const SLIDES: Self = Self { max_distance: 18, min_similarity: 0.7 };
    /// For images: above all different ones that were met, below copies cropped by 5 % (0.74 and above).
    pub const IMAGES: Self = Self { max_distance: 18, min_similarity: 0.6 };
}

/// What two copies have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Every byte of the file.
    Exact,
    /// What they show.
    Near,
}

/// Two pictures that show the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// The first picture's index.
    pub a: usize,
    /// The second's, always larger.
    pub b: usize,
    /// What they have in common.
    pub kind: Kind,
    /// Correlation of the fine detail after the best small shift and zoom, up to 1.
    pub similarity: f32,
    /// What must be done to `b` to make it lie like `a`.
    pub orientation: Orientation,
}

/// How two pictures agree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match {
    /// Correlation of the fine detail after the best small shift and zoom, up to 1.
    pub similarity: f32,
    /// What must be done to the second to make it lie like the first.
    pub orientation: Orientation,
}

impl Fingerprint {
    /// How `other` agrees with this picture; `None` where the two are no copies of each other.
    pub fn compare(&self, other: &Self, criteria: &Criteria) -> Option<Match> {
        let each = self.views.iter().flat_map(|view| other.views.iter().map(move |second| (view, second)));
        each.filter_map(|(view, second)| Turned::new(view).compare(second, criteria))
            .max_by(|x, y| x.similarity.total_cmp(&y.similarity))
    }
}

/// All pairs of pictures that are copies of each other, sorted. `files` and `fingerprints` belong together one by one;
/// a picture without a fingerprint (unreadable, or too plain) is compared by its file's bytes only. The order of the
/// pictures changes nothing but the direction of the orientation.
///
/// # Errors
/// Lists of different lengths, and more than two million pairs.
pub fn pairs<P: AsRef<Path> + Sync>(
    files: &[P],
    fingerprints: &[Option<Fingerprint>],
    criteria: &Criteria,
) -> Result<Vec<Pair>> {
    if files.len() != fingerprints.len() {
        let (files, prints) = (files.len(), fingerprints.len());
        return Err(Error::Usage(format!("{files} files cannot have {prints} fingerprints")));
    }
    let equal = content::equal_files(files);
    if equal.iter().map(|set| set.len() * (set.len() - 1) / 2).sum::<usize>() > MAX_PAIRS {
        return too_many();
    }
    let mut all = near_pairs(fingerprints, criteria)?;
    for (a, b) in equal.iter().flat_map(|set| two_of(set)) {
        // Equal bytes are the same picture, however it compares with itself turned.
        all.insert((a, b), Pair { a, b, kind: Kind::Exact, similarity: 1.0, orientation: Orientation::ALL[0] });
    }
    if all.len() > MAX_PAIRS { too_many() } else { Ok(all.into_values().collect()) }
}

/// Every two of a sorted set.
fn two_of(set: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    set.iter().enumerate().flat_map(|(at, &a)| set[at + 1..].iter().map(move |&b| (a, b)))
}

/// Compares every picture with every later one; the best of several views counts.
fn near_pairs(fingerprints: &[Option<Fingerprint>], criteria: &Criteria) -> Result<BTreeMap<(usize, usize), Pair>> {
    let views: Vec<(usize, &View)> = fingerprints
        .iter()
        .enumerate()
        .flat_map(|(picture, print)| {
            print.iter().flat_map(move |print| print.views.iter().map(move |view| (picture, view)))
        })
        .collect();
    // Apart from the pictures, so that the search runs through little memory.
    let hashes: Vec<Hash> = views.iter().map(|(_, view)| view.hash).collect();
    let found = AtomicUsize::new(0);
    let rows: Vec<Vec<Pair>> = (0..views.len())
        .into_par_iter()
        .map(|at| {
            let (a, view) = views[at];
            let first = Turned::new(view);
            let close = |other: &usize| hashes[at].smallest_distance(hashes[*other]) <= criteria.max_distance;
            let row: Vec<Pair> = (at + 1..views.len())
                .filter(|&other| views[other].0 != a)
                .filter(close)
                .filter_map(|other| {
                    let Match { similarity, orientation } = first.compare(views[other].1, criteria)?;
                    Some(Pair { a, b: views[other].0, kind: Kind::Near, similarity, orientation })
                })
                .collect();
            if found.fetch_add(row.len(), Ordering::Relaxed) + row.len() > MAX_PAIRS { too_many() } else { Ok(row) }
        })
        .collect::<Result<_>>()?;
    let mut best: BTreeMap<(usize, usize), Pair> = BTreeMap::new();
    for pair in rows.into_iter().flatten() {
        let known = best.entry((pair.a, pair.b)).or_insert(pair);
        if pair.similarity > known.similarity {
            *known = pair;
        }
    }
    Ok(best)
}

/// A view that is compared with many others: its detail is computed once, when it is first needed.
struct Turned<'a> {
    view: &'a View,
    detail: OnceCell<Detail>,
}

impl<'a> Turned<'a> {
    fn new(view: &'a View) -> Self {
        Self { view, detail: OnceCell::new() }
    }

    /// How `other` must be turned to agree best, and how well it then does; `None` where that is not enough.
    fn compare(&self, other: &View, criteria: &Criteria) -> Option<Match> {
        let detail = self.detail.get_or_init(|| self.view.detail(Orientation::ALL[0]));
        let close = |orientation: &Orientation| {
            self.view.hash.distance(other.hash, *orientation) <= criteria.max_distance
                && self.view.fits(other, *orientation)
        };
        let compared = Orientation::ALL.into_iter().filter(close).map(|orientation| {
            let similarity = detail.similarity(&other.detail(orientation));
            Match { similarity, orientation }
        });
        compared
            .max_by(|x, y| x.similarity.total_cmp(&y.similarity))
            .filter(|best| best.similarity >= criteria.min_similarity)
    }
}

fn too_many<T>() -> Result<T> {
    Err(Error::Usage(format!(
        "more than {MAX_PAIRS} pairs of pictures are copies of each other: most of them show the same; look at a few \
         of them first"
    )))
}

/// For every picture the smallest index among the pictures it is linked to, over any number of links: its group.
pub fn groups(pictures: usize, links: impl IntoIterator<Item = (usize, usize)>) -> Vec<usize> {
    let mut first: Vec<usize> = (0..pictures).collect();
    for (a, b) in links {
        let (a, b) = (root(&mut first, a), root(&mut first, b));
        // The smaller index stays the root, so that roots are first members.
        first[a.max(b)] = a.min(b);
    }
    (0..pictures).map(|picture| root(&mut first, picture)).collect()
}

/// The end of the chain from `at`, which is halved on the way.
fn root(first: &mut [usize], mut at: usize) -> usize {
    while first[at] != at {
        first[at] = first[first[at]];
        at = first[at];
    }
    at
}

#[cfg(test)]
mod tests;
