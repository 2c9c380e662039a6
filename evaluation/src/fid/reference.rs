//! Statistics of the real images in a file, so that they are made once: a safetensors file with the arrays of pytorch-fid,
//! `mu` and `sigma` (float64), and where they came from as JSON in its metadata.

use std::collections::HashMap;
use std::path::Path;

use nalgebra::{DMatrix, DVector};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::moments::Gaussian;
use crate::error::{Error, Result};

const METADATA_KEY: &str = "gensis";

/// Where statistics came from: they are compared only with features made in the same way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReferenceHeader {
    /// The data set.
    pub data: String,
    /// Which part of it: `train`, for example.
    pub split: String,
    /// What was done to an image before the encoder: sizes, filter, crop, normalisation.
    pub preprocessing: String,
    /// Hash of the encoder's weights.
    pub encoder: String,
}

/// Stored statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// Where they came from.
    pub header: ReferenceHeader,
    /// The statistics, with the number of images.
    pub gaussian: Gaussian,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    header: ReferenceHeader,
    count: u64,
}

impl Reference {
    /// Writes the file; it appears whole or not at all.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn save(&self, path: &Path) -> Result<()> {
        let Gaussian { count, mean, covariance } = &self.gaussian;
        let json = serde_json::to_string(&Metadata { header: self.header.clone(), count: *count });
        let json = json.map_err(|e| Error::usage(format!("header of the statistics: {e}")))?;
        // Column by column is row by row: the covariance is symmetric.
        let [mu, sigma] = [mean.as_slice(), covariance.as_slice()].map(bytes);
        let dim = mean.len();
        let view = |shape, data| TensorView::new(Dtype::F64, shape, data);
        let file = view(vec![dim], &mu)
            .and_then(|mu| Ok([("mu", mu), ("sigma", view(vec![dim, dim], &sigma)?)]))
            .and_then(|arrays| serialize(arrays, Some(HashMap::from([(METADATA_KEY.to_owned(), json)]))))
            .map_err(|e| Error::usage(format!("statistics that make no file: {e}")))?;
        Ok(slide_io::atomic_file::write(path, &file)?)
    }

    /// That features made in this way may be held against them.
    ///
    /// # Errors
    /// Features of another encoder or of images prepared otherwise, with both values.
    pub fn require(&self, preprocessing: &str, encoder: &str) -> Result<()> {
        for (what, ours, wanted) in [
            ("preprocessing", &self.header.preprocessing[..], preprocessing),
            ("encoder", &self.header.encoder, encoder),
        ] {
            if ours != wanted {
                return Err(Error::usage(format!(
                    "statistics with {what} {ours:?} where {wanted:?} is compared; make them again"
                )));
            }
        }
        Ok(())
    }

    /// Reads statistics.
    ///
    /// # Errors
    /// A file that is damaged or cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        let file = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let bad = |what: String| Error::bad(path, what);
        let (_, metadata) = SafeTensors::read_metadata(&file).map_err(|e| bad(e.to_string()))?;
        let json = metadata.metadata().as_ref().and_then(|texts| texts.get(METADATA_KEY));
        let json = json.ok_or_else(|| bad("it does not say where its statistics came from".into()))?;
        let Metadata { header, count } = serde_json::from_str(json).map_err(|e| bad(format!("its header: {e}")))?;
        let arrays = SafeTensors::deserialize(&file).map_err(|e| bad(e.to_string()))?;
        let read = |name: &str| {
            let array = arrays.tensor(name).map_err(|e| bad(format!("{name}: {e}")))?;
            if array.dtype() != Dtype::F64 {
                return Err(bad(format!("{name} is {:?}, not float64", array.dtype())));
            }
            let numbers: Vec<f64> = array
                .data()
                .chunks_exact(size_of::<f64>())
                .map(|eight| f64::from_le_bytes(eight.try_into().unwrap_or_default()))
                .collect();
            match numbers.iter().all(|x| x.is_finite()) {
                true => Ok(numbers),
                false => Err(bad(format!("{name} has a number that is not finite"))),
            }
        };
        let (mean, covariance) = (read("mu")?, read("sigma")?);
        let dim = mean.len();
        if covariance.len() != dim * dim || count < 2 {
            return Err(bad(format!("{count} images, {dim} means and {} covariances", covariance.len())));
        }
        let (mean, covariance) = (DVector::from_vec(mean), DMatrix::from_vec(dim, dim, covariance));
        Ok(Self { header, gaussian: Gaussian { count, mean, covariance } })
    }
}

fn bytes(numbers: &[f64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}
