//! A yes or no for every pixel of a low-resolution copy of a slide: tissue, ink, folds, regions somebody drew.

use crate::error::{Error, Result};
use crate::geometry::Size;
use crate::tissue::filter;

/// Pixels over a whole slide, each set or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    size: Size,
    scale: (f64, f64),
    data: Vec<bool>,
    /// Sums of `data` over everything above and to the left, `(width + 1) x (height + 1)`.
    integral: Vec<u32>,
}

impl Mask {
    /// A mask of `size` px, row-major, over a slide of `slide` level-0 pixels.
    ///
    /// # Errors
    /// [`Error::Usage`] if the number of pixels is not `size`, or a side is 0.
    pub fn new(size: Size, slide: Size, data: Vec<bool>) -> Result<Self> {
        if [size.width, size.height, slide.width, slide.height].contains(&0) {
            return Err(Error::Usage("a mask needs a slide and a mask of at least one pixel".into()));
        }
        let scale = (f64::from(slide.width) / f64::from(size.width), f64::from(slide.height) / f64::from(size.height));
        if data.len() != size.width as usize * size.height as usize {
            return Err(Error::Usage(format!(
                "a mask of {}x{} cannot have {} pixels",
                size.width,
                size.height,
                data.len()
            )));
        }
        let integral = filter::integral(&data, size.width as usize, size.height as usize);
        Ok(Self { size, scale, data, integral })
    }

    /// A mask with the whole slide set.
    pub fn full(slide: Size) -> Self {
        let slide = Size::new(slide.width.max(1), slide.height.max(1));
        Self::new(Size::square(1), slide, vec![true]).expect("one pixel for a size of one")
    }

    /// A mask with nothing set.
    pub fn none(slide: Size) -> Self {
        let slide = Size::new(slide.width.max(1), slide.height.max(1));
        Self::new(Size::square(1), slide, vec![false]).expect("one pixel for a size of one")
    }

    /// What is set in at least one of two masks of one size.
    ///
    /// # Errors
    /// [`Error::Usage`] for masks of different sizes.
    pub fn or(&self, other: &Self) -> Result<Self> {
        self.combined(other, |a, b| a || b)
    }

    /// What is set in both of two masks of one size.
    ///
    /// # Errors
    /// [`Error::Usage`] for masks of different sizes.
    pub fn and(&self, other: &Self) -> Result<Self> {
        self.combined(other, |a, b| a && b)
    }

    fn combined(&self, other: &Self, both: impl Fn(bool, bool) -> bool) -> Result<Self> {
        if self.size != other.size {
            return Err(Error::Usage(format!(
                "a mask of {:?} px and one of {:?} px have nothing in common",
                self.size, other.size
            )));
        }
        let data: Vec<bool> = self.data.iter().zip(&other.data).map(|(a, b)| both(*a, *b)).collect();
        let integral = filter::integral(&data, self.size.width as usize, self.size.height as usize);
        Ok(Self { data, integral, ..*self })
    }

    /// Pixels of the mask.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Level-0 pixels per mask pixel along x and y.
    pub fn scale(&self) -> (f64, f64) {
        self.scale
    }

    /// Set or not, row-major.
    pub fn data(&self) -> &[bool] {
        &self.data
    }

    /// Share of the slide that is set, 0 to 1.
    pub fn share(&self) -> f64 {
        f64::from(*self.integral.last().expect("an integral image has at least four nodes")) / self.data.len() as f64
    }

    /// Share of a rectangle (level-0 pixels) that is set, 0 to 1. Exact, mask pixels cut by its border included in
    /// proportion. What lies outside the slide counts as not set.
    pub fn fraction(&self, x: f64, y: f64, width: f64, height: f64) -> f64 {
        if width <= 0.0 || height <= 0.0 {
            return 0.0;
        }
        let (x0, y0) = (x / self.scale.0, y / self.scale.1);
        let (x1, y1) = ((x + width) / self.scale.0, (y + height) / self.scale.1);
        let inside = self.sum(x1, y1) - self.sum(x0, y1) - self.sum(x1, y0) + self.sum(x0, y0);
        inside / ((x1 - x0) * (y1 - y0))
    }

    /// Area set above and to the left of (`x`, `y`), mask pixels: the integral image between its nodes, where it is
    /// bilinear because the mask is constant within a pixel.
    fn sum(&self, x: f64, y: f64) -> f64 {
        let (x, y) = (x.clamp(0.0, f64::from(self.size.width)), y.clamp(0.0, f64::from(self.size.height)));
        let (i, j) = ((x as usize).min(self.size.width as usize - 1), (y as usize).min(self.size.height as usize - 1));
        let (u, v) = (x - i as f64, y - j as f64);
        let node = |i: usize, j: usize| f64::from(self.integral[j * (self.size.width as usize + 1) + i]);
        (1.0 - v) * ((1.0 - u) * node(i, j) + u * node(i + 1, j))
            + v * ((1.0 - u) * node(i, j + 1) + u * node(i + 1, j + 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fractions_by_hand() {
        // Two mask pixels of 10 level-0 px: tissue, background.
        let mask = Mask::new(Size::new(2, 1), Size::new(20, 10), vec![true, false]).unwrap();
        assert_eq!(mask.fraction(0.0, 0.0, 20.0, 10.0), 0.5);
        assert_eq!(mask.fraction(5.0, 0.0, 10.0, 10.0), 0.5);
        assert!((mask.fraction(7.5, 2.0, 10.0, 4.0) - 0.25).abs() < 1e-12);
        assert_eq!(mask.fraction(-10.0, 0.0, 20.0, 10.0), 0.5);
        assert_eq!(mask.fraction(30.0, 30.0, 5.0, 5.0), 0.0);
        assert_eq!(mask.fraction(0.0, 0.0, 0.0, 5.0), 0.0);
    }

    #[test]
    fn both_is_both() {
        let mask = |data: [bool; 4]| Mask::new(Size::new(4, 1), Size::new(8, 2), data.to_vec()).unwrap();
        let both = mask([true, true, false, false]).and(&mask([true, false, true, false])).unwrap();
        assert_eq!(both, mask([true, false, false, false]));
        let either = mask([true, true, false, false]).or(&mask([true, false, true, false])).unwrap();
        assert_eq!(either, mask([true, true, true, false]));
        assert_eq!(Mask::none(Size::new(8, 2)).share(), 0.0);
        assert!(both.and(&Mask::full(Size::new(8, 2))).is_err());
    }

    #[test]
    fn the_number_of_pixels_must_fit() {
        assert!(Mask::new(Size::new(2, 2), Size::new(4, 4), vec![true]).is_err());
        assert!(Mask::new(Size::new(0, 2), Size::new(4, 4), vec![]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_fraction_is_the_sum_over_fine_cells(
            bits in proptest::collection::vec(any::<bool>(), 35),
            x in -20i32..70, y in -20i32..70, w in 1i32..60, h in 1i32..60,
        ) {
            // 7 x 5 mask pixels of 8 x 10 level-0 px; rectangles on whole pixels, counted pixel by pixel.
            let mask = Mask::new(Size::new(7, 5), Size::new(56, 50), bits.clone()).unwrap();
            let mut tissue = 0;
            for j in y..y + h {
                for i in x..x + w {
                    let inside = (0..56).contains(&i) && (0..50).contains(&j);
                    tissue += i32::from(inside && bits[(j / 10 * 7 + i / 8) as usize]);
                }
            }
            let expected = f64::from(tissue) / f64::from(w * h);
            let got = mask.fraction(f64::from(x), f64::from(y), f64::from(w), f64::from(h));
            prop_assert!((got - expected).abs() < 1e-9, "{got} {expected}");
        }
    }
}
