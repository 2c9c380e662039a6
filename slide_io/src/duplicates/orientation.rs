//! The eight ways a slide can lie: turned by quarter turns, or seen from behind.

use serde::{Serialize, Serializer};

/// One of the eight orientations, named as Pillow's `Image.Transpose` (rotations are counter-clockwise).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Orientation {
    /// Columns become rows. Done before the flips.
    pub transposed: bool,
    /// Left and right are exchanged.
    pub flipped_x: bool,
    /// Top and bottom are exchanged.
    pub flipped_y: bool,
}

impl Orientation {
    /// All eight, the unchanged one first.
    pub const ALL: [Self; 8] = [
        Self::new(false, false, false),
        Self::new(false, true, false),
        Self::new(false, false, true),
        Self::new(false, true, true),
        Self::new(true, false, false),
        Self::new(true, true, false),
        Self::new(true, false, true),
        Self::new(true, true, true),
    ];

    const fn new(transposed: bool, flipped_x: bool, flipped_y: bool) -> Self {
        Self { transposed, flipped_x, flipped_y }
    }

    /// Pillow's name in lower case; `none` where nothing is to be done.
    pub fn name(self) -> &'static str {
        match (self.transposed, self.flipped_x, self.flipped_y) {
            (false, false, false) => "none",
            (false, true, false) => "flip_left_right",
            (false, false, true) => "flip_top_bottom",
            (false, true, true) => "rotate_180",
            (true, false, false) => "transpose",
            (true, true, false) => "rotate_270",
            (true, false, true) => "rotate_90",
            (true, true, true) => "transverse",
        }
    }

    /// What undoes it: only the two quarter turns are not their own inverse.
    pub fn inverse(self) -> Self {
        match self.transposed {
            true => Self { flipped_x: self.flipped_y, flipped_y: self.flipped_x, ..self },
            false => self,
        }
    }

    /// The square picture `values` of `side` x `side`, row-major, brought into this orientation.
    pub(super) fn apply<T: Copy>(self, values: &[T], side: usize) -> Vec<T> {
        let from = |flipped: bool, at: usize| if flipped { side - 1 - at } else { at };
        let at = |x: usize, y: usize| {
            let (x, y) = (from(self.flipped_x, x), from(self.flipped_y, y));
            if self.transposed { values[x * side + y] } else { values[y * side + x] }
        };
        (0..side * side).map(|i| at(i % side, i / side)).collect()
    }
}

impl Serialize for Orientation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use image::imageops;
    use image::{GrayImage, Luma};

    use super::*;

    #[test]
    fn orientations_are_pillows() {
        let image = GrayImage::from_fn(3, 3, |x, y| Luma([(3 * y + x) as u8]));
        for orientation in Orientation::ALL {
            // The crate `image` turns clockwise.
            let expected = match orientation.name() {
                "none" => image.clone(),
                "flip_left_right" => imageops::flip_horizontal(&image),
                "flip_top_bottom" => imageops::flip_vertical(&image),
                "rotate_180" => imageops::rotate180(&image),
                "rotate_90" => imageops::rotate270(&image),
                "rotate_270" => imageops::rotate90(&image),
                "transpose" => imageops::flip_horizontal(&imageops::rotate90(&image)),
                _ => imageops::flip_vertical(&imageops::rotate90(&image)),
            };
            let turned = orientation.apply(image.as_raw(), 3);
            assert_eq!(&turned, expected.as_raw(), "{}", orientation.name());
            assert_eq!(&orientation.inverse().apply(&turned, 3), image.as_raw(), "{}", orientation.name());
        }
    }
}
