//! DINO's multi-crop recipe.
use crate::config::Crops;
use image::RgbImage;
use rand::Rng;
/// The crops of one patch.
pub struct Views {
    /// Two global crops.
    pub globals: Vec<RgbImage>,
    /// Local crops.
    pub locals: Vec<RgbImage>,
}
/// Checks.
pub fn check(_: &Crops) -> anyhow::Result<()> {
    Ok(())
}
/// All crops of one patch.
pub fn crops(_image: &RgbImage, _crops: &Crops, _rng: &mut impl Rng) -> Views {
    unimplemented!()
}
