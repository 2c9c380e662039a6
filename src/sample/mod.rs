//! Images out of embeddings: drawn from the diffusion model, between two of them, and stored in a bank.
//!
//! | file | job |
//! |---|---|
//! | [`solver`] | from noise to image: DDIM, DPM-Solver++ and DDPM |

pub mod solver;
