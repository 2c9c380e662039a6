//! What Pillow and torchvision make of small images (`tests/golden/augment`), and that ours is the same.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::RgbImage;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

use crate::data::blur::gaussian_blur;
use crate::data::color;
use crate::data::crop::{Rect, crop_and_resize, evaluation_view};

#[derive(Deserialize)]
pub struct Golden {
    images: BTreeMap<String, Picture>,
    cases: Vec<Case>,
    pub exhaustive: Exhaustive,
    pub crop_sizes: Vec<CropSize>,
    pub crop_fallbacks: Vec<CropFallback>,
    normalized_ramp: String,
}

#[derive(Deserialize)]
struct Picture {
    size: (u32, u32),
    pixels: String,
}

#[derive(Deserialize)]
struct Case {
    image: String,
    ops: Vec<Vec<serde_json::Value>>,
    #[serde(flatten)]
    expected: Picture,
}

#[derive(Deserialize)]
pub struct Exhaustive {
    pub luma: String,
    pub rgb_to_hsv: String,
    pub hsv_to_rgb: String,
}

#[derive(Deserialize)]
pub struct CropSize {
    pub size: (u32, u32),
    pub share: f64,
    pub ratio: f64,
    pub crop: (u32, u32),
}

#[derive(Deserialize)]
pub struct CropFallback {
    pub size: (u32, u32),
    pub rect: (u32, u32, u32, u32),
}

impl Golden {
    pub fn load() -> Self {
        serde_json::from_str(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/augment/cases.json")))
            .unwrap()
    }

    pub fn normalized_ramp(&self) -> Vec<f32> {
        let bytes = BASE64_STANDARD.decode(&self.normalized_ramp).unwrap();
        bytes.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)).collect()
    }
}

impl Picture {
    fn image(&self) -> RgbImage {
        RgbImage::from_raw(self.size.0, self.size.1, BASE64_STANDARD.decode(&self.pixels).unwrap()).unwrap()
    }
}

/// SHA-256 of bytes in hexadecimal digits.
pub fn sha256<const N: usize>(pieces: impl Iterator<Item = [u8; N]>) -> String {
    let mut hash = Sha256::new();
    let mut buffer = Vec::with_capacity(1 << 16);
    for piece in pieces {
        buffer.extend(piece);
        if buffer.len() + N > buffer.capacity() {
            hash.update(&buffer);
            buffer.clear();
        }
    }
    hash.update(&buffer);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Applies one operation of the cases.
fn apply(mut image: RgbImage, op: &[serde_json::Value]) -> RgbImage {
    let number = |n: usize| op[n].as_f64().unwrap();
    let whole = |n: usize| op[n].as_u64().unwrap() as u32;
    match op[0].as_str().unwrap() {
        "brightness" => color::brightness(&mut image, number(1) as f32),
        "contrast" => color::contrast(&mut image, number(1) as f32),
        "saturation" => color::saturation(&mut image, number(1) as f32),
        "hue" => color::hue(&mut image, number(1)),
        "grayscale" => color::grayscale(&mut image),
        "solarize" => color::solarize(&mut image, 128),
        "hflip" => color::flip_horizontal(&mut image),
        "vflip" => color::flip_vertical(&mut image),
        "blur" => gaussian_blur(&mut image, number(1)),
        "crop_resize" => {
            let rect = Rect { x: whole(1), y: whole(2), width: whole(3), height: whole(4) };
            return crop_and_resize(&image, rect, (whole(5), whole(6))).unwrap();
        }
        "evaluation" => return evaluation_view(image, whole(1), whole(2)).unwrap(),
        other => panic!("unknown operation {other}"),
    }
    image
}

#[test]
fn every_operation_is_that_of_pillow() {
    let golden = Golden::load();
    assert!(golden.cases.len() > 100);
    for case in &golden.cases {
        let image = golden.images[&case.image].image();
        let ours = case.ops.iter().fold(image, |image, op| apply(image, op));
        let theirs = case.expected.image();
        assert_eq!(ours.dimensions(), theirs.dimensions());
        let worst = ours.iter().zip(theirs.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
        // Exact, except that the resize rounds its coefficients to 16 bits where Pillow has 22.
        let resizes = matches!(case.ops[0][0].as_str(), Some("crop_resize" | "evaluation"));
        assert!(worst <= u8::from(resizes), "{} {:?}: a byte differs by {worst}", case.image, case.ops);
    }
}
