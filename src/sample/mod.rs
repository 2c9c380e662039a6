//! Images out of embeddings: between two of them, and stored in a bank.
//!
//! | file | job |
//! |---|---|
//! | [`interpolate`] | between two embeddings (slerp, lerp) and between two images (pixel mixing) |
//! | [`bank`] | the synthetic and interpolated images of a whole data set, made once |

pub mod bank;
pub mod interpolate;
