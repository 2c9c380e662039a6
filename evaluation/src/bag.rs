//! Bags: the embeddings of one slide's patches, and where they come from.

use slide_io::Point;
use slide_io::h5::Features;

use crate::error::{Error, Result};

/// The patches of one slide as embeddings.
#[derive(Clone, Debug, PartialEq)]
pub struct Bag {
    /// The slide's id.
    pub id: String,
    /// Numbers per patch.
    pub dim: usize,
    /// One row of `dim` numbers per patch, row-major.
    pub features: Vec<f32>,
    /// Top left corner of each patch in level-0 pixels; may be empty where positions do not matter.
    pub coords: Vec<Point>,
    /// Class of the slide, where known.
    pub label: Option<u32>,
    /// What must not be split apart: the patient, or the slide itself.
    pub group: String,
}

impl Bag {
    /// The bag of `id` without label, a group of its own.
    pub fn of(id: &str, features: Features) -> Self {
        Self {
            id: id.to_owned(),
            dim: features.dim,
            features: features.values,
            coords: features.coordinates.origins,
            label: None,
            group: id.to_owned(),
        }
    }

    /// Number of patches.
    pub fn patches(&self) -> usize {
        self.features.len().checked_div(self.dim).unwrap_or(0)
    }

    /// An error unless there is at least one patch, the rows are whole and every number is finite.
    pub fn check(&self) -> Result<()> {
        let Self { id, dim, features, coords, .. } = self;
        if features.is_empty() || *dim == 0 {
            return Err(Error::usage(format!("slide {id} has no patch embeddings; leave it out of the cohort")));
        }
        if features.len() % dim != 0 || !(coords.is_empty() || coords.len() == self.patches()) {
            return Err(Error::usage(format!(
                "slide {id}: {} numbers and {} positions do not make whole rows of {dim}",
                features.len(),
                coords.len()
            )));
        }
        if let Some(at) = features.iter().position(|x| !x.is_finite()) {
            return Err(Error::usage(format!(
                "slide {id}: the embedding of patch {} is not finite; embed the slide again",
                at / dim
            )));
        }
        Ok(())
    }
}

/// The patches of several bags in one, as of a patient with several slides: it has the id, label and group of the first. `None`
/// where there is no bag.
///
/// # Errors
/// Bags of different widths, or some with positions and some without.
pub fn merge(bags: Vec<Bag>) -> Result<Option<Bag>> {
    let mut bags = bags.into_iter();
    let Some(mut merged) = bags.next() else { return Ok(None) };
    for bag in bags {
        let Bag { id, dim, features, coords, .. } = bag;
        if dim != merged.dim || coords.is_empty() != merged.coords.is_empty() {
            return Err(Error::usage(format!(
                "{}: the features of slide {id} have width {dim} and {} positions, those before them width {} and {}; embed \
                 all slides with the same encoder",
                merged.id,
                coords.len(),
                merged.dim,
                merged.coords.len()
            )));
        }
        merged.features.extend(features);
        merged.coords.extend(coords);
    }
    Ok(Some(merged))
}

/// Bags by index. `load` may read from disk: training holds one bag at a time, so a cohort need not fit in memory.
pub trait BagSource: Sync {
    /// Number of slides.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers per patch, the same for every bag.
    fn dim(&self) -> usize;

    /// Number of classes of the task.
    fn classes(&self) -> usize;

    /// Class of slide `index`, where known, without loading it.
    fn label(&self, index: usize) -> Option<u32>;

    /// Group (patient) of slide `index`, without loading it.
    fn group(&self, index: usize) -> &str;

    /// The bag of slide `index`.
    fn load(&self, index: usize) -> Result<Bag>;
}

/// Bags in memory, for cohorts that fit.
#[derive(Clone, Debug)]
pub struct BagsInMemory {
    bags: Vec<Bag>,
    dim: usize,
    classes: usize,
}

impl BagsInMemory {
    /// Checks every bag, and that they have one width and labels below `classes`.
    pub fn new(bags: Vec<Bag>, classes: usize) -> Result<Self> {
        let dim = bags.first().map_or(0, |bag| bag.dim);
        for bag in &bags {
            bag.check()?;
            if bag.dim != dim {
                let (first, id) = (&bags[0].id, &bag.id);
                return Err(Error::usage(format!("slide {first} has {dim} numbers per patch, {id} has {}", bag.dim)));
            }
            if let Some(label) = bag.label.filter(|&label| label as usize >= classes) {
                return Err(Error::usage(format!("slide {} has label {label} with {classes} classes", bag.id)));
            }
        }
        Ok(Self { bags, dim, classes })
    }
}

impl BagSource for BagsInMemory {
    fn len(&self) -> usize {
        self.bags.len()
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.bags[index].label
    }

    fn group(&self, index: usize) -> &str {
        &self.bags[index].group
    }

    fn load(&self, index: usize) -> Result<Bag> {
        Ok(self.bags[index].clone())
    }
}

/// Bags read one by one, by a function from index to bag: for cohorts that do not fit in memory.
pub struct StreamedBags<Load> {
    dim: usize,
    classes: usize,
    labels: Vec<Option<u32>>,
    groups: Vec<String>,
    load: Load,
}

impl<Load: Fn(usize) -> Result<Bag> + Sync> StreamedBags<Load> {
    /// One label and one group per slide; `load` reads the slide's bag, from any thread.
    pub fn new(dim: usize, classes: usize, labels: Vec<Option<u32>>, groups: Vec<String>, load: Load) -> Result<Self> {
        if labels.len() != groups.len() {
            return Err(Error::usage(format!("{} groups for {} labels", groups.len(), labels.len())));
        }
        if let Some(label) = labels.iter().flatten().find(|&&label| label as usize >= classes) {
            return Err(Error::usage(format!("label {label} with {classes} classes")));
        }
        Ok(Self { dim, classes, labels, groups, load })
    }
}

impl<Load: Fn(usize) -> Result<Bag> + Sync> BagSource for StreamedBags<Load> {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels[index]
    }

    fn group(&self, index: usize) -> &str {
        &self.groups[index]
    }

    fn load(&self, index: usize) -> Result<Bag> {
        (self.load)(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bag(id: &str, features: Vec<f32>) -> Bag {
        Bag { id: id.into(), dim: 2, features, coords: vec![], label: Some(1), group: id.into() }
    }

    #[test]
    fn broken_bags_are_named() {
        let refused = |bag: Bag| BagsInMemory::new(vec![bag], 2).unwrap_err().to_string();
        assert!(BagsInMemory::new(vec![bag("a", vec![0.0; 6])], 2).is_ok());
        assert!(refused(bag("a", vec![])).contains("slide a has no patch embeddings"));
        assert!(refused(bag("b", vec![0.0; 3])).contains("slide b: 3 numbers"));
        assert!(refused(bag("c", vec![0.0, 0.0, f32::NAN, 0.0])).contains("patch 1 is not finite"));
        assert!(refused(Bag { label: Some(2), ..bag("d", vec![0.0; 2]) }).contains("label 2 with 2 classes"));
        assert!(refused(Bag { coords: vec![Point::new(0, 0)], ..bag("e", vec![0.0; 4]) }).contains("1 positions"));
        let widths = vec![bag("f", vec![0.0; 2]), Bag { dim: 1, ..bag("g", vec![0.0; 2]) }];
        assert!(BagsInMemory::new(widths, 2).unwrap_err().to_string().contains("slide f has 2 numbers per patch, g"));
    }

    #[test]
    fn slides_of_a_patient_make_one_bag() {
        let one = |n: usize| Bag { coords: vec![Point::new(n as i64, 0); n], ..bag("a", vec![n as f32; 2 * n]) };
        let merged = merge(vec![one(1), one(3)]).unwrap().unwrap();
        assert_eq!((merged.patches(), merged.coords.len(), merged.id.as_str()), (4, 4, "a"));
        assert_eq!(merged.features, [1.0, 1.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]);
        assert!(merged.check().is_ok());
        assert_eq!(merge(vec![]).unwrap(), None);
        let other = merge(vec![one(1), Bag { dim: 1, ..one(2) }]).unwrap_err().to_string();
        assert!(other.contains("width 1") && other.contains("same encoder"), "{other}");
        assert!(merge(vec![one(1), bag("b", vec![0.0; 2])]).is_err());
    }

    #[test]
    fn streamed_bags_are_read_when_asked_for() {
        let load = |index: usize| match index {
            0 => Ok(bag("a", vec![1.0; 4])),
            _ => Err(Error::bad("b.h5", "truncated")),
        };
        let groups = || vec!["p".to_owned(), "q".to_owned()];
        let bags = StreamedBags::new(2, 2, vec![Some(1), None], groups(), load).unwrap();
        assert_eq!((bags.len(), bags.dim(), bags.classes()), (2, 2, 2));
        assert_eq!((bags.label(1), bags.group(1)), (None, "q"));
        assert_eq!(bags.load(0).unwrap().patches(), 2);
        assert!(bags.load(1).unwrap_err().to_string().contains("b.h5"));
        assert!(StreamedBags::new(2, 1, vec![Some(1), None], groups(), load).is_err());
        assert!(StreamedBags::new(2, 2, vec![None], groups(), load).is_err());
    }
}
