//! One table of patch embeddings with its header: what `embed` writes for an image folder, what k-NN reads.
//!
//! On disk: one Parquet file with the columns `item`, `x`, `y` (level-0 pixels, null for image files), `label`,
//! `embedding` (a list of float32), so that pandas and polars read it as it is. The header (where it came from),
//! the width and the class names are JSON under the key [`METADATA_KEY`] of the file's own metadata.

use std::fs::File;
use std::path::Path;

use polars::prelude::*;
use serde::{Deserialize, Serialize};
use slide_io::{PatchKey, Point};

use crate::atomic_file;
use crate::error::{Error, Result};

/// Key of the header in the Parquet file's key-value metadata.
pub const METADATA_KEY: &str = "gensis";

/// Embeddings of many patches.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingTable {
    /// Where it came from: configuration, version, weights hash, seed.
    pub header: serde_json::Value,
    /// Numbers per patch.
    pub dim: usize,
    /// Which patch each row is.
    pub keys: Vec<PatchKey>,
    /// Class index per row, where known.
    pub labels: Vec<Option<u32>>,
    /// Names of the classes by index; empty where there are no labels.
    pub classes: Vec<String>,
    /// One row of `dim` numbers per key, row-major.
    pub values: Vec<f32>,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    header: serde_json::Value,
    dim: usize,
    classes: Vec<String>,
}

impl EmbeddingTable {
    /// Number of patches.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The embedding of patch `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.dim..(index + 1) * self.dim]
    }

    /// The class of every row.
    ///
    /// # Errors
    /// A row without a label, by its name.
    pub fn known_labels(&self) -> Result<Vec<u32>> {
        let label = |(label, key): (&Option<u32>, &PatchKey)| {
            label.ok_or_else(|| Error::usage(format!("{} has no label", key.item)))
        };
        self.labels.iter().zip(&self.keys).map(label).collect()
    }

    /// An error unless the columns have one length, labels name a class, and every number is finite.
    pub fn check(&self) -> Result<()> {
        let n = self.len();
        if self.labels.len() != n || self.values.len() != n * self.dim {
            return Err(Error::usage(format!(
                "an embedding table of {n} keys has {} labels and {} numbers of {} per row",
                self.labels.len(),
                self.values.len(),
                self.dim
            )));
        }
        if let Some(label) = self.labels.iter().flatten().find(|&&label| label as usize >= self.classes.len()) {
            return Err(Error::usage(format!("label {label} has no name: there are {} classes", self.classes.len())));
        }
        if let Some(at) = self.values.iter().position(|x| !x.is_finite()) {
            return Err(Error::usage(format!("the embedding of {} is not finite", self.keys[at / self.dim].item)));
        }
        Ok(())
    }

    /// Writes the table as one Parquet file; it appears whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.check()?;
        let mut embedding = ListPrimitiveChunkedBuilder::<Float32Type>::new(
            "embedding".into(),
            self.len(),
            self.values.len(),
            DataType::Float32,
        );
        (0..self.len()).for_each(|row| embedding.append_slice(self.row(row)));
        let item: Vec<&str> = self.keys.iter().map(|key| key.item.as_str()).collect();
        let x: Vec<Option<i64>> = self.keys.iter().map(|key| key.origin.map(|p| p.x)).collect();
        let y: Vec<Option<i64>> = self.keys.iter().map(|key| key.origin.map(|p| p.y)).collect();
        let mut frame = DataFrame::new(
            self.len(),
            vec![
                Column::new("item".into(), item),
                Column::new("x".into(), x),
                Column::new("y".into(), y),
                Column::new("label".into(), &self.labels),
                embedding.finish().into_series().into_column(),
            ],
        )?;
        let metadata = Metadata { header: self.header.clone(), dim: self.dim, classes: self.classes.clone() };
        let json = serde_json::to_string(&metadata).map_err(|e| Error::usage(format!("embedding header: {e}")))?;
        atomic_file::replace(path, |file| {
            ParquetWriter::new(file)
                .with_key_value_metadata(Some(KeyValueMetadata::from_static(vec![(METADATA_KEY.to_owned(), json)])))
                .finish(&mut frame)?;
            Ok(())
        })
    }

    /// Reads a table written by [`save`](Self::save).
    pub fn load(path: &Path) -> Result<Self> {
        let metadata = read_metadata(path)?;
        let frame = reader(path)?.finish().map_err(|e| Error::bad(path, e.to_string()))?;
        let broken = |e: PolarsError| Error::bad(path, e.to_string());
        let item = frame.column("item").and_then(|c| c.str()).map_err(broken)?;
        let x = frame.column("x").and_then(|c| c.i64()).map_err(broken)?;
        let y = frame.column("y").and_then(|c| c.i64()).map_err(broken)?;
        let label = frame.column("label").and_then(|c| c.u32()).map_err(broken)?;
        let embedding = frame.column("embedding").and_then(|c| c.list()).map_err(broken)?;
        let keys = item
            .iter()
            .zip(x.iter().zip(y.iter()))
            .map(|(item, (x, y))| {
                let item = item.ok_or_else(|| Error::bad(path, "a row has no item"))?.to_owned();
                Ok(PatchKey { item, origin: x.zip(y).map(|(x, y)| Point::new(x, y)) })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut values = Vec::with_capacity(frame.height() * metadata.dim);
        for row in embedding.amortized_iter() {
            let row = row.ok_or_else(|| Error::bad(path, "a row has no embedding"))?;
            let row = row.as_ref().f32().map_err(broken)?;
            values.extend(row.iter().map(|value| value.unwrap_or(f32::NAN)));
            if values.len() % metadata.dim.max(1) != 0 {
                return Err(Error::bad(path, format!("an embedding has not {} numbers", metadata.dim)));
            }
        }
        let table = Self {
            header: metadata.header,
            dim: metadata.dim,
            keys,
            labels: label.iter().collect(),
            classes: metadata.classes,
            values,
        };
        table.check().map_err(|e| Error::bad(path, e.to_string()))?;
        Ok(table)
    }

    /// Reads only the header: cheap, for deciding whether a stage is done.
    pub fn load_header(path: &Path) -> Result<serde_json::Value> {
        Ok(read_metadata(path)?.header)
    }
}

fn reader(path: &Path) -> Result<ParquetReader<File>> {
    Ok(ParquetReader::new(File::open(path).map_err(|e| Error::io(path, e))?))
}

fn read_metadata(path: &Path) -> Result<Metadata> {
    let mut reader = reader(path)?;
    let file = reader.get_metadata().map_err(|e| Error::bad(path, e.to_string()))?;
    let json = file.key_value_metadata.iter().flatten().find(|pair| pair.key == METADATA_KEY);
    let json = json.and_then(|pair| pair.value.as_deref());
    let json = json.ok_or_else(|| Error::bad(path, "no embedding header: not a file written by `gensis embed`"))?;
    serde_json::from_str(json).map_err(|e| Error::bad(path, format!("embedding header: {e}")))
}

/// Scales each row of `dim` numbers to Euclidean length 1. As `torch.nn.functional.normalize`: the length is taken
/// as at least 1e-12, so a row of zeros stays zero.
pub fn l2_normalise(values: &mut [f32], dim: usize) {
    for row in values.chunks_exact_mut(dim.max(1)) {
        let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt().max(1e-12);
        row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> EmbeddingTable {
        EmbeddingTable {
            header: serde_json::json!({"encoder": "sha256:12", "seed": 3}),
            dim: 3,
            keys: vec![
                PatchKey { item: "a/1.png".into(), origin: None },
                PatchKey { item: "slide-7".into(), origin: Some(Point::new(-4, 1 << 40)) },
            ],
            labels: vec![Some(1), None],
            classes: vec!["benign".into(), "tumour".into()],
            values: vec![1.5, -2.0, 1e-30, 0.1, 0.2, 0.3],
        }
    }

    #[test]
    fn a_saved_table_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("patches.parquet");
        table().save(&path).unwrap();
        assert_eq!(EmbeddingTable::load(&path).unwrap(), table());
        assert_eq!(EmbeddingTable::load_header(&path).unwrap(), table().header);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let empty = EmbeddingTable { keys: vec![], labels: vec![], values: vec![], ..table() };
        empty.save(&path).unwrap();
        assert_eq!(EmbeddingTable::load(&path).unwrap(), empty);
    }

    #[test]
    fn damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("patches.parquet");
        table().save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(matches!(EmbeddingTable::load(&path), Err(Error::File(slide_io::Error::BadFile { .. }))));
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(EmbeddingTable::load(&path), Err(Error::File(slide_io::Error::BadFile { .. }))));
        let mut foreign = DataFrame::new(1, vec![Column::new("item".into(), ["a"])]).unwrap();
        ParquetWriter::new(File::create(&path).unwrap()).finish(&mut foreign).unwrap();
        let error = EmbeddingTable::load(&path).unwrap_err().to_string();
        assert!(error.contains("no embedding header"), "{error}");
    }

    #[test]
    fn a_table_that_contradicts_itself_is_refused() {
        assert!(table().check().is_ok());
        assert!(EmbeddingTable { labels: vec![Some(1)], ..table() }.check().is_err());
        assert!(EmbeddingTable { labels: vec![Some(2), None], ..table() }.check().is_err());
        let mut nan = table();
        nan.values[4] = f32::NAN;
        assert!(nan.check().unwrap_err().to_string().contains("slide-7"));
        assert_eq!(table().known_labels().unwrap_err().to_string(), "slide-7 has no label");
        assert_eq!(EmbeddingTable { labels: vec![Some(1), Some(0)], ..table() }.known_labels().unwrap(), [1, 0]);
    }

    #[test]
    fn normalised_rows_have_length_one_and_zeros_stay() {
        let mut values = vec![3.0, 4.0, 0.0, 0.0];
        l2_normalise(&mut values, 2);
        assert_eq!(values, [0.6, 0.8, 0.0, 0.0]);
    }
}
