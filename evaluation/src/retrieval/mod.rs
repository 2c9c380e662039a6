//! Image retrieval: how well the images of a query's place, scene or class come first.
//!
//! | file | job |
//! |---|---|
//! | [`pickle`] | a reader of pickled ground truth that runs no code |
//! | [`ground_truth`] | which images are right for which query: revisited Oxford and Paris, or classes |
//! | [`ranking`] | all images by similarity to a query, in blocks of a matrix product |
//! | [`precision`] | mAP and mP@k with junk (Radenović et al. 2018), mAP@R (Musgrave et al. 2020) |

pub mod ground_truth;
pub mod pickle;
pub mod precision;
pub mod ranking;

pub use ground_truth::{Difficulty, GroundTruth, QueryTruth};
pub use precision::{ClassPrecision, Precision, class_precision, precision};
pub use ranking::rank;
