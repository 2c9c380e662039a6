//! Images out of embeddings: drawn from the diffusion model, between two of them, and stored in a bank.
//!
//! | file | job |
//! |---|---|
//! | [`solver`] | from noise to image: DDIM, DPM-Solver++ and DDPM |
//! | [`interpolate`] | between two embeddings (slerp, lerp) and between two images (pixel mixing) |
//! | [`bank`] | the synthetic and interpolated images of a whole data set, made once |

pub mod bank;
pub mod interpolate;
pub mod solver;
