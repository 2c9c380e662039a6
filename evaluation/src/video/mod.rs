//! Semi-supervised video object segmentation as DAVIS-2017 scores it and DINO propagates it.
//!
//! The first frame of a video comes with a mask of its objects; the task is to find them in all other frames. An encoder
//! is judged without any training: the mask is carried from frame to frame by the similarity of patch tokens alone.
//!
//! | file | job |
//! |---|---|
//! | [`dataset`] | the folders of DAVIS: frames and annotations of every sequence |
//! | [`label_map`] | masks as palette PNG files |
//! | [`frame`] | the size a frame is seen at, OpenCV's bilinear resize |
//! | `bilinear` | where both resizes of frames and of masks take their values from |
//! | [`propagation`] | labels carried to the next frame (Jabri et al. 2020, Caron et al. 2021) |
//! | [`soft_mask`] | masks of the patch grid, and the label map they become |
//! | [`measure`] | region similarity J and contour accuracy F of one object in one frame (Perazzi et al. 2016) |
//! | [`score`] | both over the frames, objects and sequences: mean, recall, decay |

mod bilinear;
pub mod dataset;
pub mod frame;
#[cfg(test)]
mod golden;
pub mod label_map;
pub mod measure;
pub mod propagation;
pub mod score;
pub mod soft_mask;

pub use dataset::{Davis, Sequence};
pub use label_map::LabelMap;
pub use propagation::{FrameFeatures, PropagationConfig, Propagator};
pub use score::{ObjectScores, score_sequence};
pub use soft_mask::SoftMask;
