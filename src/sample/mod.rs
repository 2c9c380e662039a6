//! Images out of embeddings: drawn from the diffusion model, between two of them, and stored in a bank.
//!
//! | file | job |
//! |---|---|
//! | [`encode`] | images to the latents and embeddings that the diffusion model is trained on |
//! | [`solver`] | from noise to latent: DDIM, DPM-Solver++ and DDPM |
//! | [`painter`] | embeddings to images: guidance, solver, decoder |
//! | [`interpolate`] | between two embeddings (slerp, lerp) and between two images (pixel mixing) |
//! | [`bank`] | the synthetic and interpolated images of a whole data set, made once |
//! | [`generator`] | the bank's images, drawn from the stored embeddings |
//! | [`reconstructions`] | the images of the data set after the autoencoder |
//! | [`sheet`] | rows of images in one picture |

pub mod bank;
pub mod encode;
pub mod generator;
pub mod interpolate;
pub mod painter;
pub mod reconstructions;
pub mod sheet;
pub mod solver;
