//! Scores of test slides as a table of their own, from which figures can be computed again and encoders compared, also those of
//! different runs.

use std::collections::BTreeMap;

use polars::prelude::{Column, DataFrame, StringChunked};

use crate::error::{Error, Result};
use crate::metric::argmax;
use crate::mil::{FoldScores, SlideScore};

/// What stands before a class in the name of the column of its probabilities.
const PROBABILITY: &str = "p_";

/// All test slides of one encoder, head and seed: those of every fold together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// The encoder's name.
    pub encoder: String,
    /// The head's name.
    pub head: String,
    /// Seed of the head's training.
    pub seed: u64,
    /// The slides' scores.
    pub slides: Vec<SlideScore>,
    /// The fold in which each slide was a test slide.
    pub folds: Vec<u32>,
}

impl Scored {
    /// Its slides by their id and fold.
    pub fn tested(&self) -> impl Iterator<Item = ((&str, u32), &SlideScore)> {
        self.slides.iter().zip(&self.folds).map(|(slide, &fold)| ((slide.id.as_str(), fold), slide))
    }

    /// Of one head and seed, from its folds.
    pub fn of<'a>(encoder: &str, head: &str, seed: u64, folds: impl IntoIterator<Item = &'a FoldScores>) -> Self {
        let (mut slides, mut of_fold) = (Vec::new(), Vec::new());
        for fold in folds {
            slides.extend(fold.scores.iter().cloned());
            of_fold.extend(std::iter::repeat_n(fold.fold as u32, fold.scores.len()));
        }
        Self { encoder: encoder.into(), head: head.into(), seed, slides, folds: of_fold }
    }
}

/// One row per encoder, head, seed and test slide: `encoder, head, seed, fold, slide, group, label, predicted` and the
/// probability of every class as `p_<class>`.
///
/// # Errors
/// A slide with another number of scores than there are classes.
pub fn table(scored: &[Scored], classes: &[String]) -> Result<DataFrame> {
    let slides =
        || scored.iter().flat_map(|of| of.slides.iter().zip(&of.folds).map(move |(slide, fold)| (of, slide, fold)));
    if let Some((_, slide, _)) = slides().find(|(_, slide, _)| slide.probabilities.len() != classes.len()) {
        return Err(Error::usage(format!("slide {} has not one score per class {classes:?}", slide.id)));
    }
    let class = |index: u32| classes.get(index as usize).map(String::as_str);
    let text = |name: &str, values: Vec<Option<&str>>| Column::new(name.into(), values);
    let mut columns = vec![
        text("encoder", slides().map(|(of, ..)| Some(of.encoder.as_str())).collect()),
        text("head", slides().map(|(of, ..)| Some(of.head.as_str())).collect()),
        Column::new("seed".into(), slides().map(|(of, ..)| of.seed).collect::<Vec<_>>()),
        Column::new("fold".into(), slides().map(|(.., fold)| *fold).collect::<Vec<_>>()),
        text("slide", slides().map(|(_, slide, _)| Some(slide.id.as_str())).collect()),
        text("group", slides().map(|(_, slide, _)| Some(slide.group.as_str())).collect()),
        text("label", slides().map(|(_, slide, _)| slide.label.and_then(class)).collect()),
        text("predicted", slides().map(|(_, slide, _)| class(argmax(&slide.probabilities))).collect()),
    ];
    columns.extend(classes.iter().enumerate().map(|(index, name)| {
        let probability: Vec<f32> = slides().map(|(_, slide, _)| slide.probabilities[index]).collect();
        Column::new(format!("{PROBABILITY}{name}").into(), probability)
    }));
    Ok(DataFrame::new(slides().count(), columns)?)
}

/// What a table that [`table`] made holds, without attention, and its classes.
///
/// # Errors
/// A table of other columns.
pub fn read(frame: &DataFrame) -> Result<(Vec<Scored>, Vec<String>)> {
    let names = frame.get_column_names();
    let classes: Vec<String> =
        names.iter().filter_map(|name| Some(name.strip_prefix(PROBABILITY)?.to_owned())).collect();
    let probabilities = classes
        .iter()
        .map(|class| Ok(frame.column(&format!("{PROBABILITY}{class}"))?.f32()?.clone()))
        .collect::<Result<Vec<_>>>()?;
    let text = |name: &str| Ok::<_, Error>(frame.column(name)?.str()?.clone());
    let (encoder, head, slide) = (text("encoder")?, text("head")?, text("slide")?);
    let (group, label) = (text("group")?, text("label")?);
    let (seed, fold) = (frame.column("seed")?.u64()?.clone(), frame.column("fold")?.u32()?.clone());
    let word = |column: &StringChunked, row| column.get(row).unwrap_or_default().to_owned();
    let mut places = BTreeMap::new();
    let mut scored: Vec<Scored> = Vec::new();
    for row in 0..frame.height() {
        let key = (word(&encoder, row), word(&head, row), seed.get(row).unwrap_or_default());
        let place = *places.entry(key).or_insert_with_key(|(encoder, head, seed)| {
            scored.push(Scored { encoder: encoder.clone(), head: head.clone(), seed: *seed, ..Scored::default() });
            scored.len() - 1
        });
        let known = label.get(row).and_then(|label| classes.iter().position(|class| class == label));
        scored[place].folds.push(fold.get(row).unwrap_or_default());
        scored[place].slides.push(SlideScore {
            id: word(&slide, row),
            group: word(&group, row),
            label: known.map(|class| class as u32),
            probabilities: probabilities.iter().map(|column| column.get(row).unwrap_or(f32::NAN)).collect(),
            attention: vec![],
        });
    }
    Ok((scored, classes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slide(id: &str, label: Option<u32>, probabilities: [f32; 2]) -> SlideScore {
        SlideScore {
            id: id.into(),
            group: format!("patient of {id}"),
            label,
            probabilities: probabilities.into(),
            attention: vec![],
        }
    }

    #[test]
    fn a_row_per_test_slide_is_written_and_read() {
        let classes = ["benign", "p_tumour"].map(str::to_owned);
        let scored = |encoder: &str, seed| Scored {
            encoder: encoder.into(),
            head: "abmil".into(),
            seed,
            slides: vec![slide("a", Some(1), [0.25, 0.75]), slide("b", None, [0.5, 0.5])],
            folds: vec![0, 3],
        };
        let all = [scored("dino", 0), scored("dino", 1), scored("random", 0)];
        let frame = table(&all, &classes).unwrap();
        let names: Vec<String> = frame.get_column_names().into_iter().map(|name| name.to_string()).collect();
        let expected =
            ["encoder", "head", "seed", "fold", "slide", "group", "label", "predicted", "p_benign", "p_p_tumour"];
        assert_eq!(names, expected);
        assert_eq!(frame.height(), 6);
        assert_eq!(frame.column("predicted").unwrap().str().unwrap().get(2), Some("p_tumour"));
        assert_eq!(read(&frame).unwrap(), (all.to_vec(), classes.to_vec()));
        assert!(table(&all, &classes[..1]).is_err());
        assert!(read(&DataFrame::new(1, vec![Column::new("item".into(), ["a"])]).unwrap()).is_err());
    }

    #[test]
    fn folds_of_a_head_and_seed_are_taken_together() {
        let fold = |fold, slides: &[&str]| FoldScores {
            head: crate::mil::HeadKind::Mean,
            fold,
            seed: 7,
            scores: slides.iter().map(|id| slide(id, Some(0), [1.0, 0.0])).collect(),
        };
        let scored = Scored::of("dino", "mean", 7, &[fold(0, &["a", "b"]), fold(2, &["c"])]);
        assert_eq!(scored.slides.iter().map(|slide| slide.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(scored.folds, [0, 0, 2]);
    }
}
