//! Which slides train, which choose the model, which are tested. No group (patient) is ever in two of the three, and
//! the classes are spread as evenly as whole groups allow.
//!
//! Groups are dealt greedily, the largest first, each to the part that then comes nearest to its share of every
//! class: the idea of scikit-learn's `StratifiedGroupKFold`, here with unequal shares too, so that one function makes
//! folds and validation parts.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::seed::{Purpose, stream};

/// The three parts of a cohort, as ascending indices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fold {
    /// Weights are fitted to these.
    pub train: Vec<usize>,
    /// The epoch is chosen on these; empty where none were asked for.
    pub validation: Vec<usize>,
    /// The figures come from these; nothing is chosen on them.
    pub test: Vec<usize>,
}

/// A slide's part in a given split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Fitted to.
    Train,
    /// Chosen on.
    #[serde(alias = "validation", alias = "valid")]
    Val,
    /// Tested on.
    Test,
}

/// What is split: one label and one group per item.
#[derive(Clone, Copy, Debug)]
pub struct Strata<'a> {
    labels: &'a [u32],
    groups: &'a [String],
    /// What is spread evenly beside the classes.
    strata: Option<&'a [u32]>,
}

impl<'a> Strata<'a> {
    /// Items with their class and the group that must stay together.
    pub fn new(labels: &'a [u32], groups: &'a [String]) -> Result<Self> {
        if labels.len() != groups.len() {
            return Err(Error::usage(format!("{} groups for {} labels", groups.len(), labels.len())));
        }
        Ok(Self { labels, groups, strata: None })
    }

    /// Spreads these strata evenly over the parts as well as the classes: one per item, such as a number for each pair of class
    /// and hospital.
    pub fn spread(self, strata: &'a [u32]) -> Result<Self> {
        if strata.len() != self.labels.len() {
            return Err(Error::usage(format!("{} strata for {} labels", strata.len(), self.labels.len())));
        }
        Ok(Self { strata: Some(strata), ..self })
    }

    /// `folds` folds: every item is in exactly one test part, and of the items that are not tested about the share `validation`
    /// (0 for none) is held out for choosing the model. A class of fewer groups than folds is absent from some test parts.
    pub fn k_fold(&self, folds: usize, validation: f64, seed: u64) -> Result<Vec<Fold>> {
        let all: Vec<usize> = (0..self.labels.len()).collect();
        if folds < 2 {
            return Err(Error::usage(format!("cross-validation takes 2 folds or more, not {folds}")));
        }
        self.check_groups(folds)?;
        let part = self.deal(&all, &vec![1.0 / folds as f64; folds], seed, 0);
        (0..folds)
            .map(|fold| {
                let (test, rest): (Vec<_>, Vec<_>) = all.iter().partition(|&&item| part[item] == fold);
                let (train, validation) = self.hold_out(&rest, validation, seed, 1 + fold as u64)?;
                Ok(Fold { train, validation, test })
            })
            .collect()
    }

    /// The split that is given. Where no item is marked [`Part::Val`], about the share `validation` of the training
    /// part is held out. Items without a part are left out.
    pub fn given(&self, parts: &[Option<Part>], validation: f64, seed: u64) -> Result<Fold> {
        if parts.len() != self.labels.len() {
            return Err(Error::usage(format!("{} parts for {} items", parts.len(), self.labels.len())));
        }
        self.check_no_leak(parts)?;
        let of = |part| (0..parts.len()).filter(|&item| parts[item] == Some(part)).collect::<Vec<_>>();
        let (mut train, mut chosen_on, test) = (of(Part::Train), of(Part::Val), of(Part::Test));
        for (name, items) in [("train", &train), ("test", &test)] {
            if items.is_empty() {
                return Err(Error::usage(format!("the given split marks no slide as {name}")));
            }
        }
        if chosen_on.is_empty() {
            (train, chosen_on) = self.hold_out(&train, validation, seed, 0)?;
        }
        Ok(Fold { train, validation: chosen_on, test })
    }

    /// Divides `items` into (rest, held out), the latter about the share `share`, by group and class.
    fn hold_out(&self, items: &[usize], share: f64, seed: u64, salt: u64) -> Result<(Vec<usize>, Vec<usize>)> {
        if !(0.0..1.0).contains(&share) {
            return Err(Error::usage(format!("the validation share lies in 0..1, not {share}")));
        }
        if share == 0.0 {
            return Ok((items.to_vec(), Vec::new()));
        }
        let part = self.deal(items, &[1.0 - share, share], seed, 1 + salt);
        let (mut rest, mut held): (Vec<_>, Vec<_>) = items.iter().partition(|&&item| part[item] == 0);
        if held.is_empty() {
            // The share is less than half of every group: the smallest group is the nearest to it.
            let size = |item: &usize| items.iter().filter(|&&other| self.groups[other] == self.groups[*item]).count();
            if let Some(smallest) = items.iter().min_by_key(|item| size(item)).map(|&item| &self.groups[item]) {
                (rest, held) = items.iter().partition(|&&item| &self.groups[item] != smallest);
            }
        }
        if rest.is_empty() || held.is_empty() {
            return Err(Error::usage(format!(
                "{} slides are too few, or their groups too large, to hold out {share} of them for validation; set \
                 validation to 0 to train a fixed number of epochs, or give more groups",
                items.len()
            )));
        }
        Ok((rest, held))
    }

    /// The part of each of `items` (indexed by item; `usize::MAX` for the others), parts having the given shares.
    fn deal(&self, items: &[usize], shares: &[f64], seed: u64, salt: u64) -> Vec<usize> {
        let most = |of: &[u32]| items.iter().map(|&item| of[item] as usize + 1).max().unwrap_or(0);
        let first_stratum = most(self.labels);
        let classes = first_stratum + self.strata.map_or(0, most);
        // An item counts in its class and, behind the classes, in its stratum.
        let counted = |item: usize| {
            let stratum = self.strata.map(|strata| first_stratum + strata[item] as usize);
            std::iter::once(self.labels[item] as usize).chain(stratum)
        };
        let mut totals = vec![0.0; classes];
        let mut groups: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for &item in items {
            let counts = groups.entry(&self.groups[item]).or_insert_with(|| vec![0.0; classes]);
            for class in counted(item) {
                totals[class] += 1.0;
                counts[class] += 1.0;
            }
        }
        // Of unequal shares a stratum counts by the square of its size beside the mean class: many strata of few items, of each of
        // which the small part is best served with none, must not outweigh the classes.
        let mean_class =
            items.len() as f64 / totals[..first_stratum].iter().filter(|&&n| n > 0.0).count().max(1) as f64;
        let equal = shares.iter().all(|share| *share == shares[0]);
        let weight = |class: usize| match equal || class < first_stratum {
            true => 1.0,
            false => (totals[class] / mean_class).powi(2),
        };
        let mut order: Vec<(&str, Vec<f64>)> = groups.into_iter().collect();
        order.shuffle(&mut stream(seed, Purpose::Split, salt, 0));
        // Stable, so that groups of one size stay shuffled.
        order.sort_by_key(|(_, counts)| Reverse(counts.iter().sum::<f64>() as u64));

        let mut filled = vec![vec![0.0; classes]; shares.len()];
        let mut part_of: BTreeMap<&str, usize> = BTreeMap::new();
        for (group, counts) in order {
            // Σ over parts and classes of weight · (share reached - share wanted)² changes only in the part chosen.
            let change = |part: usize| -> f64 {
                (0..classes)
                    .filter(|&class| counts[class] > 0.0)
                    .map(|class| {
                        let gap = filled[part][class] / totals[class] - shares[part];
                        let step = counts[class] / totals[class];
                        weight(class) * step * (step + 2.0 * gap)
                    })
                    .sum()
            };
            let size = |part: usize| filled[part].iter().sum::<f64>() / shares[part];
            let better = |a: &usize, b: &usize| {
                let (change_a, change_b) = (change(*a), change(*b));
                // Sums in another order differ in the last bits: what is equal up to these is a tie.
                match (change_a - change_b).abs() < 1e-9 {
                    true => size(*a).total_cmp(&size(*b)),
                    false => change_a.total_cmp(&change_b),
                }
            };
            let best = (0..shares.len()).reduce(|a, b| if better(&b, &a).is_lt() { b } else { a }).unwrap_or(0);
            filled[best].iter_mut().zip(&counts).for_each(|(sum, n)| *sum += n);
            part_of.insert(group, best);
        }
        let mut part = vec![usize::MAX; self.labels.len()];
        items.iter().for_each(|&item| part[item] = part_of[self.groups[item].as_str()]);
        part
    }

    fn check_groups(&self, folds: usize) -> Result<()> {
        let groups: BTreeSet<&String> = self.groups.iter().collect();
        match groups.len() {
            0 => Err(Error::usage("no labelled slide to split")),
            1 => Err(Error::usage(
                "there is only 1 group (patient, or slide where no group is given) with a label: folds need at least two",
            )),
            count if count < folds => Err(Error::usage(format!(
                "there are only {count} group(s) (patients, or slides where no group is given), fewer than the {folds} folds; \
                 use at most {count} folds"
            ))),
            _ => Ok(()),
        }
    }

    fn check_no_leak(&self, parts: &[Option<Part>]) -> Result<()> {
        let mut part_of: BTreeMap<&str, Part> = BTreeMap::new();
        for (group, part) in self.groups.iter().zip(parts) {
            let Some(part) = *part else { continue };
            let first = *part_of.entry(group).or_insert(part);
            if first != part {
                return Err(Error::usage(format!(
                    "group {group} is in two parts of the given split ({first:?} and {part:?}): its slides would leak \
                     from one to the other; correct the split, or leave the group column out if the groups do not matter"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(groups: &[usize]) -> Vec<String> {
        groups.iter().map(|group| format!("p{group}")).collect()
    }

    fn singles(n: usize) -> Vec<String> {
        names(&(0..n).collect::<Vec<_>>())
    }

    fn groups_of<'a>(items: &[usize], groups: &'a [String]) -> BTreeSet<&'a str> {
        items.iter().map(|&item| groups[item].as_str()).collect()
    }

    fn check_fold(fold: &Fold, groups: &[String], n: usize) {
        let parts = [&fold.train, &fold.validation, &fold.test];
        let mut all: Vec<usize> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..n).collect::<Vec<_>>(), "every item in exactly one part");
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            assert!(groups_of(parts[a], groups).is_disjoint(&groups_of(parts[b], groups)));
        }
    }

    #[test]
    fn a_rare_class_is_absent_from_folds_and_too_few_groups_are_refused() {
        let labels = [0, 0, 0, 0, 0, 1, 1];
        for fold in Strata::new(&labels, &singles(7)).unwrap().k_fold(3, 0.0, 1).unwrap() {
            check_fold(&fold, &singles(7), 7);
            assert!(fold.test.iter().filter(|&&item| labels[item] == 1).count() <= 1);
        }
        let groups = names(&[0, 0, 0, 1, 1, 2, 2]);
        let strata = Strata::new(&labels, &groups).unwrap();
        assert!(strata.k_fold(1, 0.0, 0).is_err() && strata.k_fold(2, 1.0, 0).is_err());
        assert!(Strata::new(&[], &[]).unwrap().k_fold(2, 0.0, 0).is_err());
        assert!(Strata::new(&[1], &[]).is_err());
        let error = strata.k_fold(4, 0.0, 1).unwrap_err().to_string();
        assert!(error.contains("only 3 group(s)") && error.contains("at most 3 folds"), "{error}");
    }

    #[test]
    fn the_demo_cohort_divides_evenly() {
        // 24 slides in 3 classes, 4 folds, a fifth for validation: 6 test slides, 2 of each class, in every fold.
        let labels: Vec<u32> = (0..24).map(|i| i % 3).collect();
        let groups = singles(24);
        for fold in Strata::new(&labels, &groups).unwrap().k_fold(4, 0.2, 5).unwrap() {
            check_fold(&fold, &groups, 24);
            for class in 0..3 {
                let count = |items: &[usize]| items.iter().filter(|&&item| labels[item] == class).count();
                assert_eq!((count(&fold.train), count(&fold.validation), count(&fold.test)), (5, 1, 2));
            }
        }
    }

    #[test]
    fn strata_are_spread_within_the_classes() {
        // 60 slides of 2 classes; in class 0 two thirds are of hospital 0, in class 1 one third.
        let labels: Vec<u32> = (0..60).map(|i| i % 2).collect();
        let strata: Vec<u32> = (0..60).map(|i| i % 2 + 2 * u32::from((i / 2 % 3 == 0) != (i % 2 == 1))).collect();
        let groups = singles(60);
        let plain = Strata::new(&labels, &groups).unwrap();
        let folds = plain.spread(&strata).unwrap().k_fold(5, 0.25, 3).unwrap();
        for fold in &folds {
            check_fold(fold, &groups, 60);
            for stratum in 0..4 {
                let all = strata.iter().filter(|&&of| of == stratum).count();
                let tested = fold.test.iter().filter(|&&item| strata[item] == stratum).count();
                assert_eq!(tested, all / 5, "stratum {stratum}");
            }
        }
        assert!(plain.spread(&strata[1..]).is_err());
        // Three classes at six sites, three or four slides of each: the validation part still is a fifth of what is not tested.
        let labels: Vec<u32> = (0..60).map(|i| i % 3).collect();
        let sites: Vec<u32> = (0..60).map(|i| i % 3 + 3 * (i / 3 % 6)).collect();
        for fold in Strata::new(&labels, &groups).unwrap().spread(&sites).unwrap().k_fold(3, 0.2, 0).unwrap() {
            check_fold(&fold, &groups, 60);
            assert!((7..=9).contains(&fold.validation.len()), "{}", fold.validation.len());
            assert!((18..=22).contains(&fold.test.len()), "{}", fold.test.len());
            let of_site = |site: u32| fold.test.iter().filter(|&&item| sites[item] / 3 == site).count();
            assert!(
                (0..6).all(|site| (2..=5).contains(&of_site(site))),
                "{:?}",
                (0..6).map(of_site).collect::<Vec<_>>()
            );
        }
        // A stratum of one slide is no reason to refuse.
        let rare: Vec<u32> = (0..60).map(|i| if i == 7 { 9 } else { labels[i] }).collect();
        assert!(plain.spread(&rare).unwrap().k_fold(5, 0.25, 0).is_ok());
    }

    #[test]
    fn a_given_split_is_kept_and_its_leaks_are_found() {
        let labels = [0, 1, 0, 1, 0, 1, 0];
        let groups = names(&[0, 1, 2, 3, 4, 5, 6]);
        let strata = Strata::new(&labels, &groups).unwrap();
        let part = |text: &str| -> Vec<Option<Part>> {
            text.chars()
                .map(|c| match c {
                    't' => Some(Part::Train),
                    'v' => Some(Part::Val),
                    'e' => Some(Part::Test),
                    _ => None,
                })
                .collect()
        };
        let fold = strata.given(&part("ttvve-t"), 0.5, 0).unwrap();
        assert_eq!(fold, Fold { train: vec![0, 1, 6], validation: vec![2, 3], test: vec![4] });
        let fold = strata.given(&part("tttteee"), 0.5, 0).unwrap();
        assert_eq!((fold.train.len(), fold.validation.len(), fold.test), (2, 2, vec![4, 5, 6]));
        let fold = strata.given(&part("tttteee"), 0.0, 0).unwrap();
        assert!(fold.validation.is_empty());
        assert!(strata.given(&part("ttttttt"), 0.5, 0).unwrap_err().to_string().contains("no slide as test"));
        assert!(strata.given(&part("tee----"), 0.2, 0).unwrap_err().to_string().contains("too few"));
        let shared = names(&[0, 1, 2, 3, 4, 5, 0]);
        let error = Strata::new(&labels, &shared).unwrap().given(&part("ttttvve"), 0.2, 0).unwrap_err().to_string();
        assert!(error.contains("group p0") && error.contains("leak"), "{error}");
    }

    #[test]
    fn part_names_of_csv_files() {
        let parse = |name: &str| serde_json::from_value::<Part>(name.into());
        assert_eq!(parse("train").unwrap(), Part::Train);
        assert_eq!(parse("validation").unwrap(), parse("val").unwrap());
        assert!(parse("dev").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Any labels, any groups (mixed classes too): no group crosses, each item is tested exactly once, and the
        /// seed alone decides.
        #[test]
        fn groups_never_cross(
            items in prop::collection::vec((0..3u32, 0..40usize), 30..120), folds in 2..5usize, seed in 0..1000u64,
        ) {
            let labels: Vec<u32> = items.iter().map(|item| item.0).collect();
            let groups = names(&items.iter().map(|item| item.1).collect::<Vec<_>>());
            let strata = Strata::new(&labels, &groups).unwrap();
            let Ok(made) = strata.k_fold(folds, 0.25, seed) else { return Ok(()) };
            let mut tested: Vec<usize> = made.iter().flat_map(|fold| fold.test.clone()).collect();
            tested.sort_unstable();
            prop_assert_eq!(tested, (0..items.len()).collect::<Vec<_>>());
            made.iter().for_each(|fold| check_fold(fold, &groups, items.len()));
            prop_assert_eq!(made, strata.k_fold(folds, 0.25, seed).unwrap());
        }

        /// One group per item: test parts differ by at most one item in every class, and the validation part has its
        /// share of every class to within one item.
        #[test]
        fn single_items_are_balanced(
            sizes in prop::array::uniform3(5..30usize), folds in 2..6usize, seed in 0..1000u64,
        ) {
            let labels: Vec<u32> = (0..3).flat_map(|class| vec![class as u32; sizes[class]]).collect();
            let groups = singles(labels.len());
            let made = Strata::new(&labels, &groups).unwrap().k_fold(folds, 0.25, seed).unwrap();
            for class in 0..3 {
                let count = |items: &[usize]| items.iter().filter(|&&item| labels[item] == class).count();
                let tests: Vec<usize> = made.iter().map(|fold| count(&fold.test)).collect();
                prop_assert!(tests.iter().max().unwrap() - tests.iter().min().unwrap() <= 1, "{:?}", tests);
                for fold in &made {
                    let wanted = 0.25 * (count(&fold.train) + count(&fold.validation)) as f64;
                    prop_assert!((count(&fold.validation) as f64 - wanted).abs() < 1.0);
                }
            }
        }
    }

    #[test]
    fn another_seed_makes_other_folds() {
        let labels: Vec<u32> = (0..60).map(|i| i % 2).collect();
        let groups = singles(60);
        let strata = Strata::new(&labels, &groups).unwrap();
        assert_ne!(strata.k_fold(5, 0.2, 0).unwrap(), strata.k_fold(5, 0.2, 1).unwrap());
    }
}
