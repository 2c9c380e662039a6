//! Rows of numbers on their way to a device and back, the same for every benchmark.

use burn::tensor::{Device, Tensor, TensorData};

use crate::error::{Error, Result};

/// A row-major matrix of `rows` rows on a device.
pub fn matrix(values: Vec<f32>, rows: usize, device: &Device) -> Tensor<2> {
    let columns = values.len() / rows.max(1);
    Tensor::from_data(TensorData::new(values, [rows, columns]), device)
}

/// The numbers of a tensor, row-major, in host memory.
///
/// # Errors
/// A device that fails to compute them or to hand them back.
pub fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor.try_into_vec_as::<f32>().map_err(|e| Error::Device(e.to_string()))
}
