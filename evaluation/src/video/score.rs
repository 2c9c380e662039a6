//! J and F over the frames of a sequence and over all objects, as DAVIS-2017's semi-supervised track reports them.

use std::path::Path;

use polars::prelude::*;
use rayon::prelude::*;

use super::dataset::{Frame, Sequence};
use super::label_map::{LabelMap, VOID};
use super::measure::{Region, contour_accuracy, region_similarity};
use crate::error::{Error, Result};

/// What a frame is right by.
const RECALL_THRESHOLD: f64 = 0.5;

/// J and F of one object in every frame that is scored.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectScores {
    /// Its sequence.
    pub sequence: String,
    /// Its label, from 1.
    pub object: u8,
    /// Region similarity per frame.
    pub j: Vec<f64>,
    /// Contour accuracy per frame.
    pub f: Vec<f64>,
}

/// A measure over the frames of an object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics {
    /// Mean over the frames.
    pub mean: f64,
    /// Share of the frames above 0.5.
    pub recall: f64,
    /// Mean of the first quarter of the frames less that of the last.
    pub decay: f64,
}

impl Statistics {
    /// Of the values of an object's frames, at least one. The quarters are DAVIS's: both ends of each are part of it.
    pub fn of(values: &[f64]) -> Self {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let last = values.len() as f64 - 1.0;
        // The k-th border among positions from 1, halves rounded up.
        let border = |k: f64| ((1.0 + last * k / 4.0 + 1e-10).round_ties_even() - 1.0) as usize;
        let above = values.iter().filter(|value| **value > RECALL_THRESHOLD).count();
        Self {
            mean: mean(values),
            recall: above as f64 / values.len() as f64,
            decay: mean(&values[border(0.0)..=border(1.0)]) - mean(&values[border(3.0)..=border(4.0)]),
        }
    }

    /// The mean of many objects' statistics; `None` without any.
    pub fn over(objects: impl Iterator<Item = Self>) -> Option<Self> {
        let all: Vec<Self> = objects.collect();
        let mean = |of: fn(&Self) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
        (!all.is_empty()).then(|| Self { mean: mean(|s| s.mean), recall: mean(|s| s.recall), decay: mean(|s| s.decay) })
    }
}

/// Scores the masks `<predictions>/<frame>.png` of a sequence. Its objects are those of the first annotation; the first and
/// the last frame are left out. An object that was not predicted counts as empty. In annotations of two values (DAVIS-2016)
/// there is one object, and whatever is not 0 in a prediction is it.
///
/// # Errors
/// A mask that is missing, damaged, of another size, or with an object that the annotations begin without; annotations
/// without objects.
pub fn score_sequence(sequence: &Sequence, predictions: &Path) -> Result<Vec<ObjectScores>> {
    let first = &sequence.masks[0];
    let opening = LabelMap::read(&first.path)?;
    let binary = opening.is_binary();
    let objects = if binary { 1 } else { opening.objects() };
    if objects == 0 {
        return Err(Error::bad(&first.path, "the first annotation holds no object"));
    }
    let scored = &sequence.masks[1..sequence.masks.len() - 1];
    let frame = |truth: &Frame| -> Result<Vec<[f64; 2]>> {
        let path = predictions.join(format!("{}.png", truth.id));
        if !path.exists() {
            return Err(Error::usage(format!("the mask of frame {} is missing: {}", truth.id, path.display())));
        }
        let (truth, predicted) = (LabelMap::read(&truth.path)?, LabelMap::read(&path)?);
        if (truth.width(), truth.height()) != (predicted.width(), predicted.height()) {
            return Err(Error::usage(format!(
                "the mask {} has {} x {} px, and the annotation of this frame {} x {}: they must be of one size",
                path.display(),
                predicted.width(),
                predicted.height(),
                truth.width(),
                truth.height()
            )));
        }
        if !binary && predicted.objects() > objects {
            let what = format!("it shows object {}, but the annotations begin with {objects}", predicted.objects());
            return Err(Error::bad(&path, what));
        }
        Ok((1..=objects).map(|object| score_frame(&truth, &predicted, object, binary)).collect())
    };
    let frames = scored.par_iter().map(frame).collect::<Result<Vec<_>>>()?;
    let of = |object: usize, measure: usize| frames.iter().map(|frame| frame[object][measure]).collect();
    let object = |object: usize| ObjectScores {
        sequence: sequence.name.clone(),
        object: object as u8 + 1,
        j: of(object, 0),
        f: of(object, 1),
    };
    Ok((0..usize::from(objects)).map(object).collect())
}

/// J and F of an object in a frame.
fn score_frame(truth: &LabelMap, predicted: &LabelMap, object: u8, binary: bool) -> [f64; 2] {
    let (theirs, ours) = match binary {
        true => (truth.mask(|label| label == VOID), predicted.mask(|label| label != 0)),
        false => (truth.mask(|label| label == object), predicted.mask(|label| label == object)),
    };
    let region = |pixels| Region { pixels, width: truth.width() };
    let (ours, theirs) = (region(&ours), region(&theirs));
    [region_similarity(ours, theirs), contour_accuracy(ours, theirs)]
}

/// Of every encoder (or other source of masks) one row per object, then one per sequence with the mean of its objects and no
/// `object`: `encoder, sequence, object, frames, j_and_f_mean, j_mean, j_recall, j_decay, f_mean, f_recall, f_decay`.
pub fn table(scores: &[(String, Vec<ObjectScores>)]) -> Result<DataFrame> {
    let mut rows: Vec<Row> = Vec::new();
    for (encoder, scores) in scores {
        rows.extend(scores.iter().map(|scores| Row::of(encoder, scores)));
        for sequence in scores.chunk_by(|a, b| a.sequence == b.sequence) {
            let of = |object| Row::of(encoder, object);
            let over = |which: usize| Statistics::over(sequence.iter().map(|object| of(object).statistics[which]));
            if let (Some(j), Some(f)) = (over(0), over(1)) {
                rows.push(Row { object: None, statistics: [j, f], ..of(&sequence[0]) });
            }
        }
    }
    let number = |name: &str, of: &dyn Fn(&[Statistics; 2]) -> f64| {
        Column::new(name.into(), rows.iter().map(|row| of(&row.statistics)).collect::<Vec<f64>>())
    };
    Ok(DataFrame::new(
        rows.len(),
        vec![
            Column::new("encoder".into(), rows.iter().map(|row| row.encoder).collect::<Vec<&str>>()),
            Column::new("sequence".into(), rows.iter().map(|row| row.sequence).collect::<Vec<&str>>()),
            Column::new("object".into(), rows.iter().map(|row| row.object).collect::<Vec<Option<u32>>>()),
            Column::new("frames".into(), rows.iter().map(|row| row.frames).collect::<Vec<u64>>()),
            number("j_and_f_mean", &|[j, f]| (j.mean + f.mean) / 2.0),
            number("j_mean", &|[j, _]| j.mean),
            number("j_recall", &|[j, _]| j.recall),
            number("j_decay", &|[j, _]| j.decay),
            number("f_mean", &|[_, f]| f.mean),
            number("f_recall", &|[_, f]| f.recall),
            number("f_decay", &|[_, f]| f.decay),
        ],
    )?)
}

/// A row of [`table`].
struct Row<'a> {
    encoder: &'a str,
    sequence: &'a str,
    object: Option<u32>,
    frames: u64,
    statistics: [Statistics; 2],
}

impl<'a> Row<'a> {
    fn of(encoder: &'a str, scores: &'a ObjectScores) -> Self {
        Self {
            encoder,
            sequence: &scores.sequence,
            object: Some(u32::from(scores.object)),
            frames: scores.j.len() as u64,
            statistics: [Statistics::of(&scores.j), Statistics::of(&scores.f)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::video::Davis;

    /// Worked by hand: of 1..=8 the borders are at positions 1, 2.75, 4.5, 6.25 and 8, that is 1, 3, 5, 6, 8.
    #[test]
    fn quarters_share_their_ends() {
        let values: Vec<f64> = (1..=8).map(|v| f64::from(v) / 10.0).collect();
        let found = Statistics::of(&values);
        assert!((found.mean - 0.45).abs() < 1e-12);
        assert_eq!(found.recall, 3.0 / 8.0);
        assert!((found.decay - (0.2 - 0.7)).abs() < 1e-12, "{found:?}");
        let one = Statistics::of(&[0.75]);
        assert_eq!((one.mean, one.recall, one.decay), (0.75, 1.0, 0.0));
        assert_eq!(Statistics::over([one, one].into_iter()), Some(one));
        assert_eq!(Statistics::over(std::iter::empty()), None);
    }

    /// A square of 4 px in an image of 16 x 12 that the prediction has right in one frame and lost in the other.
    #[test]
    fn a_sequence_is_scored_object_by_object() {
        let root = tempfile::tempdir().unwrap();
        let (truth, ours) = (root.path().join("Annotations/480p/dog"), root.path().join("ours"));
        let square = |label: u8, at: usize| -> LabelMap {
            let inside = |x: usize, y: usize| (at..at + 4).contains(&x) && (4..8).contains(&y);
            let labels = (0..12).flat_map(|y| (0..16).map(move |x| if inside(x, y) { label } else { 0 })).collect();
            LabelMap::new(16, 12, labels).unwrap()
        };
        let write = |masks: [LabelMap; 4], folder: &Path| {
            for (i, mask) in masks.iter().enumerate() {
                mask.write(&folder.join(format!("0000{i}.png"))).unwrap();
            }
        };
        write([0, 1, 2, 3].map(|i| square(2, i)), &truth);
        write([square(2, 0), square(2, 1), square(2, 11), square(2, 3)], &ours);
        let score = || score_sequence(&Davis::open(root.path()).unwrap().sequence("dog", false).unwrap(), &ours);
        let scores = score().unwrap();
        // Object 1 is nowhere, in the annotations and in the prediction.
        assert_eq!((scores[0].j.clone(), scores[0].f.clone()), (vec![1.0, 1.0], vec![1.0, 1.0]));
        assert_eq!((scores[1].object, scores[1].j.clone(), scores[1].f.clone()), (2, vec![1.0, 0.0], vec![1.0, 0.0]));
        let table = table(&[("dino".into(), scores.clone())]).unwrap();
        assert_eq!(table.shape(), (3, 11));
        let both: Vec<Option<f64>> = table.column("j_and_f_mean").unwrap().f64().unwrap().iter().collect();
        assert_eq!(both, [Some(1.0), Some(0.5), Some(0.75)]);
        square(3, 2).write(&ours.join("00001.png")).unwrap();
        assert!(score().unwrap_err().to_string().contains("object 3, but the annotations begin with 2"));
        LabelMap::new(2, 2, vec![0; 4]).unwrap().write(&ours.join("00001.png")).unwrap();
        assert!(score().unwrap_err().to_string().contains("2 x 2 px, and the annotation of this frame 16 x 12"));
        std::fs::remove_file(ours.join("00001.png")).unwrap();
        assert!(score().unwrap_err().to_string().contains("frame 00001 is missing"));
        write([0, 1, 2, 3].map(|i| square(255, i)), &truth);
        write([square(1, 0), square(7, 1), square(1, 2), square(1, 3)], &ours);
        let scores = score().unwrap();
        assert_eq!((scores.len(), scores[0].j.clone()), (1, vec![1.0, 1.0]));
        write([square(0, 0), square(1, 1), square(1, 2), square(1, 3)], &truth);
        assert!(score().unwrap_err().to_string().contains("holds no object"));
    }
}
