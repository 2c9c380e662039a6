//! A patch source for tests: every patch a picture of its index, some of them unreadable.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use slide_io::{Error, Patch, PatchKey, PatchSource, Result, Rgb, RgbImage};

pub struct Pictures {
    pub len: usize,
    pub side: u32,
    /// Unreadable: by an error, and where divisible by 3 by a panic of the reader.
    pub bad: fn(usize) -> bool,
    pub reads: AtomicUsize,
}

impl Pictures {
    pub fn new(len: usize, bad: fn(usize) -> bool) -> Arc<Self> {
        Arc::new(Self { len, side: 40, bad, reads: AtomicUsize::new(0) })
    }
}

impl PatchSource for Pictures {
    fn len(&self) -> usize {
        self.len
    }

    fn key(&self, index: usize) -> PatchKey {
        PatchKey { item: format!("picture {index}"), origin: None }
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn read(&self, index: usize) -> Result<Patch> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if (self.bad)(index) {
            assert!(!index.is_multiple_of(3), "decoder broke on {index}");
            return Err(Error::bad(format!("picture {index}"), "truncated"));
        }
        let shade = |v: u32| (v.wrapping_mul(2_654_435_761) >> 24) as u8;
        let pixel = |x: u32, y: u32| Rgb([index as u8, shade(x * 97 + index as u32), shade(y * 31 + x / 5)]);
        Ok(Patch { key: self.key(index), image: RgbImage::from_fn(self.side, self.side, pixel), label: None })
    }
}
