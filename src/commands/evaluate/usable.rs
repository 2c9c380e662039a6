//! Which stored features can be learnt from: found out before any head is trained, so that one bad file costs one slide.

use std::collections::BTreeSet;
use std::path::Path;

use evaluation::split::Fold;
use slide_io::h5;

use super::subjects::Subject;

/// What is wrong with a file of features of width `dim`; nothing where they are as they should be. Reads the whole file.
pub(super) fn fault(file: &Path, dim: usize) -> Option<String> {
    let features = match h5::read_features(file) {
        Ok(features) => features,
        Err(error) => return Some(error.to_string()),
    };
    let name = file.display();
    if features.dim != dim {
        return Some(format!(
            "{name} has features of width {}, those of the other slides have {dim}: embed all with one encoder",
            features.dim
        ));
    }
    if features.values.is_empty() {
        return Some(format!("{name} holds no patch"));
    }
    let bad = features.values.iter().position(|value| !value.is_finite())?;
    let count = features.values.iter().filter(|value| !value.is_finite()).count();
    Some(format!(
        "{name} holds {count} value(s) that are not finite, the first in patch {}: the slide is left out; embed it again",
        bad / dim.max(1)
    ))
}

/// Classes that a part of a fold lacks, as item and reason: their figures are undefined or left out of the means there. Folds that
/// are `left_out` have none.
pub(super) fn absent_classes(
    folds: &[Fold],
    left_out: &[usize],
    subjects: &[Subject],
    classes: &[String],
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (number, fold) in folds.iter().enumerate().filter(|(number, _)| !left_out.contains(number)) {
        let present = |part: &[usize]| part.iter().filter_map(|&at| subjects[at].label).collect::<BTreeSet<u32>>();
        let name = if folds.len() == 1 { "the given split".to_owned() } else { format!("fold {number}") };
        for (part, slides, what) in [
            ("train", &fold.train, "no head can learn it"),
            ("test", &fold.test, "its AUC is undefined there, and means over classes are over the others"),
        ] {
            let present = present(slides);
            let absent: Vec<&str> = (0..classes.len() as u32)
                .filter(|class| !present.contains(class))
                .map(|class| classes[class as usize].as_str())
                .collect();
            if !absent.is_empty() {
                let one = part == "test" && present.len() == 1;
                let what = if one { "with one class alone areas under curves are undefined" } else { what };
                let absent = absent.join(", ");
                found.push((name.clone(), format!("its {part} part has no slide of class {absent}: {what}")));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use slide_io::Point;
    use slide_io::h5::{Coordinates, Features};

    use super::*;

    #[test]
    fn bad_files_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.h5");
        let write = |values: Vec<f32>| {
            let origins = vec![Point::new(0, 0); values.len() / 2];
            let coordinates = Coordinates { name: "s".into(), origins, geometry: None, labels: None };
            let features = Features { encoder: String::new(), dim: 2, values, coordinates };
            h5::write_features(&file, &features, &serde_json::Value::Null).unwrap();
        };
        write(vec![0.0; 6]);
        assert_eq!(fault(&file, 2), None);
        assert!(fault(&file, 3).unwrap().contains("width 2"));
        write(vec![0.0, 1.0, f32::NAN, f32::INFINITY]);
        let told = fault(&file, 2).unwrap();
        assert!(told.contains("2 value(s)") && told.contains("first in patch 1"), "{told}");
        write(vec![]);
        assert!(fault(&file, 2).unwrap().contains("no patch"));
        std::fs::write(&file, b"no HDF5").unwrap();
        assert!(fault(&file, 2).is_some());
    }
}
