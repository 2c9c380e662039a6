//! Attention scores: CLAM's `attention_scores` and `coords`, and the scores of every class beside them.

use std::path::Path;

use hdf5::File;
use serde_json::Value;

use super::{H5, HEADER, Said, coordinates, corners, dataset, job_relative, open, rows, string, text};
use crate::atomic_file;
use crate::error::{Error, Result};
use crate::h5::{AttentionScores, ClassScores};

const SCORES: &str = "attention_scores";
const BY_CLASS: &str = "attention_scores_by_class";

pub(in crate::h5) fn write_attention(path: &Path, attention: &AttentionScores, header: &Value) -> Result<()> {
    let AttentionScores { coordinates, scores, by_class } = attention;
    let patches = coordinates.origins.len();
    let whole = |by_class: &ClassScores| by_class.values.len() == patches * by_class.classes.len();
    if scores.len() != patches || !by_class.as_ref().is_none_or(whole) {
        let what = format!("{} weights are not one for each of {patches} patches (and class)", scores.len());
        return Err(Error::Usage(format!("{}: {what}", path.display())));
    }
    atomic_file::replace(path, |temporary| {
        fill(temporary, path, attention, header).map_err(|e| Error::io(path, std::io::Error::other(e)))
    })
}

fn fill(temporary: &Path, path: &Path, attention: &AttentionScores, header: &Value) -> H5<()> {
    let file = File::create(temporary)?;
    {
        corners(&file, &attention.coordinates, &job_relative(path.parent().unwrap_or(Path::new("."))))?;
        dataset(&file, SCORES, &attention.scores, 1)?;
        if let Some(ClassScores { classes, values }) = &attention.by_class {
            let values = dataset(&file, BY_CLASS, values, classes.len())?;
            text(&values, "classes", &Value::from(classes.clone()).to_string())?;
        }
        text(&file, HEADER, &header.to_string())?;
    }
    file.flush()?;
    file.close()
}

pub(in crate::h5) fn read_attention(path: &Path) -> Result<AttentionScores> {
    let file = open(path)?;
    attention(&file, path).map_err(|what| Error::bad(path, what))
}

fn attention(file: &File, path: &Path) -> Said<AttentionScores> {
    let coordinates = coordinates(file, path)?;
    let dataset = file.dataset(SCORES).map_err(|_| format!("it holds no dataset `{SCORES}`"))?;
    // CLAM writes (N, 1); a column alone is understood as well.
    let shape = dataset.shape();
    if !matches!(shape[..], [n] | [n, 1] if n == coordinates.origins.len()) {
        return Err(format!("`{SCORES}` has the shape {shape:?} for {} coordinates", coordinates.origins.len()));
    }
    let scores = dataset.read_raw().map_err(|e| format!("`{SCORES}`: {e}"))?;
    let by_class = match file.dataset(BY_CLASS) {
        Err(_) => None,
        Ok(dataset) => {
            let (patches, width) = rows(&dataset, BY_CLASS)?;
            let names = string(&dataset, "classes").and_then(|text| serde_json::from_str(&text).ok());
            let classes: Vec<String> = names.ok_or_else(|| format!("`{BY_CLASS}` does not name its classes"))?;
            if (patches, width) != (coordinates.origins.len(), classes.len()) {
                return Err(format!("`{BY_CLASS}` does not have a row a patch and a column a class"));
            }
            Some(ClassScores { classes, values: dataset.read_raw().map_err(|e| format!("`{BY_CLASS}`: {e}"))? })
        }
    };
    Ok(AttentionScores { coordinates, scores, by_class })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::geometry::Point;
    use crate::h5::{Coordinates, read_header};

    fn attention(by_class: bool) -> AttentionScores {
        let origins = vec![Point::new(0, 0), Point::new(256, 0), Point::new(0, 256)];
        let values = vec![0.5, 0.1, 0.25, 0.1, 0.25, 0.8];
        AttentionScores {
            coordinates: Coordinates { name: "s1".into(), origins, geometry: None, labels: None },
            scores: vec![0.5, 0.25, 0.25],
            by_class: by_class.then(|| ClassScores { classes: vec!["a, b".into(), "c".into()], values }),
        }
    }

    #[test]
    fn scores_are_read_back_and_have_clams_shape() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heatmaps/s1.h5");
        for by_class in [false, true] {
            let written = attention(by_class);
            write_attention(&path, &written, &json!({ "fold": 1 })).unwrap();
            assert_eq!(read_attention(&path).unwrap(), written);
            assert_eq!(read_header(&path).unwrap(), Some(json!({ "fold": 1 })));
            assert_eq!(File::open(&path).unwrap().dataset(SCORES).unwrap().shape(), [3, 1]);
        }
    }

    #[test]
    fn missing_weights_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s1.h5");
        let short = AttentionScores { scores: vec![1.0], ..attention(false) };
        let error = write_attention(&path, &short, &Value::Null).unwrap_err().to_string();
        assert!(error.contains("1 weights are not one for each of 3 patches"), "{error}");
        assert!(!path.exists());
        crate::h5::write_coordinates(&path, &attention(false).coordinates, &Value::Null).unwrap();
        let error = read_attention(&path).unwrap_err().to_string();
        assert!(error.contains("no dataset `attention_scores`"), "{error}");
    }
}
