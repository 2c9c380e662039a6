//! What one bag stands for, a slide or all slides of a patient, and which of them train, choose and test.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use evaluation::Error;
use evaluation::bag::{Bag, merge};
use evaluation::split::{Fold, Part, Strata};
use slide_io::manifest::Split;
use slide_io::{SlideRecord, h5};

use super::given_splits::{self, Unknown};
use crate::config::SlideLevel;

/// A slide, or a patient.
pub(in crate::commands) struct Subject {
    pub id: String,
    /// What must stay together: the patient, or the slide itself.
    pub group: String,
    pub label: Option<u32>,
    split: Option<Split>,
    /// What folds spread evenly beside the class; of a patient that of the first slide.
    stratum: Option<String>,
    /// Its slides.
    pub slides: Vec<String>,
    /// Their features; none where only the folds are asked for.
    pub files: Vec<PathBuf>,
}

/// A subject for each of `slides`, or with `by_patient` for each patient, in order of appearance. `files`: one per slide, or
/// none at all.
///
/// # Errors
/// A patient whose slides have different labels or are in different parts of a given split.
pub(in crate::commands) fn subjects(
    slides: &[&SlideRecord],
    files: &[&PathBuf],
    by_patient: bool,
) -> Result<Vec<Subject>> {
    let mut subjects: Vec<Subject> = Vec::new();
    for (index, slide) in slides.iter().enumerate() {
        let group = slide.group.clone().unwrap_or_else(|| slide.id.clone());
        let file = files.get(index).map(|file| (*file).clone());
        let patient = subjects.iter_mut().find(|subject| by_patient && subject.group == group);
        let Some(patient) = patient else {
            let id = if by_patient { group.clone() } else { slide.id.clone() };
            let files = file.into_iter().collect();
            let slides = vec![slide.id.clone()];
            subjects.push(Subject {
                id,
                group,
                label: slide.label,
                split: slide.split,
                stratum: slide.stratum.clone(),
                slides,
                files,
            });
            continue;
        };
        ensure!(
            patient.label == slide.label && patient.split == slide.split,
            "evaluate.slide.by_patient: the slides of patient {group} differ in their label or split (slide {}); correct the \
             csv, or score slides one by one",
            slide.id
        );
        patient.slides.push(slide.id.clone());
        patient.files.extend(file);
    }
    Ok(subjects)
}

impl Subject {
    /// The patches of all its slides.
    pub fn load(&self) -> evaluation::Result<Bag> {
        let slide = |file: &PathBuf| -> evaluation::Result<Bag> {
            let bag = Bag::of(&self.id, h5::read_features(file)?);
            Ok(Bag { label: self.label, group: self.group.clone(), ..bag })
        };
        let bags = self.files.iter().map(slide).collect::<evaluation::Result<Vec<_>>>()?;
        merge(bags)?.ok_or_else(|| Error::usage(format!("{} has no features", self.id)))
    }
}

/// The given split as one fold, or cross-validation folds.
pub(in crate::commands) fn folds(settings: &SlideLevel, subjects: &[Subject]) -> Result<(Vec<Fold>, Vec<Unknown>)> {
    let labels: Vec<u32> = subjects.iter().filter_map(|subject| subject.label).collect();
    let groups: Vec<String> = subjects.iter().map(|subject| subject.group.clone()).collect();
    let mut numbers = BTreeMap::new();
    let number = |subject: &Subject| {
        let next = numbers.len() as u32;
        *numbers.entry((subject.label, subject.stratum.clone())).or_insert(next)
    };
    let spread: Vec<u32> = subjects.iter().map(number).collect();
    let strata = Strata::new(&labels, &groups)?;
    let strata =
        if subjects.iter().any(|subject| subject.stratum.is_some()) { strata.spread(&spread)? } else { strata };
    let part = |split| match split {
        Split::Train => Part::Train,
        Split::Val => Part::Val,
        Split::Test => Part::Test,
    };
    let parts: Vec<Option<Part>> = subjects.iter().map(|subject| subject.split.map(part)).collect();
    // The folds are those of the first seed: seeds differ in the head's training, not in what is tested.
    let seed = settings.seeds[0];
    if !settings.splits.is_empty() {
        given_splits::folds(&settings.splits, subjects, &strata, settings.validation, seed)
    } else if parts.iter().any(Option::is_some) {
        Ok((vec![strata.given(&parts, settings.validation, seed)?], vec![]))
    } else {
        Ok((strata.k_fold(settings.folds, settings.validation, seed)?, vec![]))
    }
}

/// Folds of the subjects `all` as folds of those of them that are among `some`.
pub(in crate::commands) fn among(folds: &[Fold], all: &[Subject], some: &[Subject]) -> Vec<Fold> {
    let place: BTreeMap<&str, usize> =
        some.iter().enumerate().map(|(place, subject)| (&subject.id[..], place)).collect();
    let kept = |part: &[usize]| -> Vec<usize> {
        let mut places: Vec<usize> =
            part.iter().filter_map(|&subject| place.get(all[subject].id.as_str()).copied()).collect();
        places.sort_unstable();
        places
    };
    let fold = |Fold { train, validation, test }: &Fold| Fold {
        train: kept(train),
        validation: kept(validation),
        test: kept(test),
    };
    folds.iter().map(fold).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slides_without_features_leave_the_others_in_their_folds() {
        let slides: Vec<SlideRecord> = (0..12).map(|n| slide(&format!("s{n:02}"), None, n % 2, None)).collect();
        let all = subjects(&slides.iter().collect::<Vec<_>>(), &[], false).unwrap();
        let some: Vec<&SlideRecord> = slides.iter().filter(|slide| slide.id != "s03").collect();
        let some = subjects(&some, &[], false).unwrap();
        let settings = SlideLevel { folds: 3, ..SlideLevel::default() };
        let (dealt, _) = folds(&settings, &all).unwrap();
        let ids = |part: &[usize], of: &[Subject]| part.iter().map(|&n| of[n].id.clone()).collect::<Vec<_>>();
        for (whole, less) in dealt.iter().zip(among(&dealt, &all, &some)) {
            for (whole, less) in
                [(&whole.train, &less.train), (&whole.validation, &less.validation), (&whole.test, &less.test)]
            {
                let mut expected = ids(whole, &all);
                expected.retain(|id| id != "s03");
                assert_eq!(ids(less, &some), expected);
            }
        }
    }

    fn slide(id: &str, group: Option<&str>, label: u32, split: Option<Split>) -> SlideRecord {
        SlideRecord {
            id: id.into(),
            path: format!("{id}.tiff").into(),
            label: Some(label),
            label_name: None,
            group: group.map(str::to_owned),
            split,
            stratum: None,
            mpp: None,
        }
    }

    #[test]
    fn slides_of_a_patient_are_one_subject_where_asked_for() {
        let slides = [slide("a", Some("p"), 1, None), slide("b", None, 0, None), slide("c", Some("p"), 1, None)];
        let slides: Vec<&SlideRecord> = slides.iter().collect();
        let files = ["a.h5", "b.h5", "c.h5"].map(PathBuf::from);
        let files: Vec<&PathBuf> = files.iter().collect();
        let told = |by_patient| -> Vec<_> {
            let subjects = subjects(&slides, &files, by_patient).unwrap();
            subjects.into_iter().map(|s| (s.id, s.group, s.files.len())).collect()
        };
        let named = |id: &str, group: &str, files| (id.to_owned(), group.to_owned(), files);
        assert_eq!(told(false), [named("a", "p", 1), named("b", "b", 1), named("c", "p", 1)]);
        assert_eq!(told(true), [named("p", "p", 2), named("b", "b", 1)]);
        assert!(subjects(&slides, &[], true).unwrap().iter().all(|subject| subject.files.is_empty()));
    }

    #[test]
    fn a_patient_of_two_labels_or_parts_is_no_subject() {
        let (train, test) = (Some(Split::Train), Some(Split::Test));
        for other in [slide("b", Some("p"), 0, train), slide("b", Some("p"), 1, test)] {
            let first = slide("a", Some("p"), 1, train);
            let error = subjects(&[&first, &other], &[], true).err().unwrap().to_string();
            assert!(error.contains("patient p") && error.contains("slide b"), "{error}");
            assert_eq!(subjects(&[&first, &other], &[], false).unwrap().len(), 2);
        }
    }
}
