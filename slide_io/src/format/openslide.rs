//! Vendor formats through OpenSlide: Hamamatsu, MIRAX, Leica, Philips, Ventana, JPEG 2000, and whatever else it knows.
//!
//! An error makes an OpenSlide handle useless for good, and every later read of it blank. So a handle that met one is
//! thrown away, and the read is tried once more on a fresh handle of its own: another thread's bad tile must not
//! cost this thread its good one.

/// Version of the OpenSlide library in use; `None` in a build without the cargo feature `openslide`.
pub fn openslide_version() -> Option<String> {
    #[cfg(feature = "openslide")]
    return openslide_rs::OpenSlide::version().ok();
    #[cfg(not(feature = "openslide"))]
    None
}

#[cfg(feature = "openslide")]
pub(super) use library::{detect, open};

#[cfg(feature = "openslide")]
mod library {
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex, PoisonError};

    use image::RgbImage;
    use openslide_rs::errors::OpenSlideError;
    use openslide_rs::{Address, OpenSlide, Region};

    use crate::error::{Error, Result};
    use crate::format::{Area, Head, Info, Opened, Reader, Storage, metadata, openslide_version};
    use crate::geometry::{Level, Size};

    pub(in crate::format) fn detect(path: &Path, _: &Head) -> bool {
        OpenSlide::detect_vendor(path).is_ok()
    }

    pub(in crate::format) fn open(path: &Path) -> Result<Opened> {
        let refused = |error: OpenSlideError| {
            let version = openslide_version().unwrap_or_default();
            Error::unsupported(path, format!("OpenSlide {version} cannot read it: {error}"))
        };
        let handle = OpenSlide::new(path).map_err(refused)?;
        let info = info(&handle).map_err(refused)?;
        if info.levels.is_empty() {
            return Err(Error::bad(path, "OpenSlide finds no level in it"));
        }
        // OpenSlide takes any tiled TIFF, and finds only when it is read that libtiff has no colours for its samples.
        let corner = Region {
            address: Address { x: 0, y: 0 },
            level: info.levels.len() as u32 - 1,
            size: openslide_rs::Size { w: 1, h: 1 },
        };
        if info.vendor == "generic-tiff"
            && let Err(error) = handle.read_region(&corner)
            && error.to_string().contains("TIFFRGBAImageOK")
        {
            return Err(refused(error));
        }
        let handle = Mutex::new(Some(Arc::new(handle)));
        Ok(Opened { info, reader: Box::new(OpenSlideReader { path: path.to_owned(), handle }) })
    }

    fn info(handle: &OpenSlide) -> openslide_rs::Result<Info> {
        let mut properties = std::collections::BTreeMap::new();
        for name in handle.property_names()? {
            let value = handle.property_value(&name)?;
            properties.insert(name, value);
        }
        let levels = handle.all_level_dimensions().iter().zip(handle.all_level_downsamples());
        let levels =
            levels.map(|(size, downsample)| Level { size: Size::new(size.w, size.h), downsample: *downsample });
        let levels: Vec<Level> = levels.collect();
        let tile = |level: usize, side: &str| {
            let stated = properties.get(&format!("openslide.level[{level}].tile-{side}"));
            stated.and_then(|text| text.parse().ok()).filter(|side| *side > 0).unwrap_or(256)
        };
        let storage = |level| Storage {
            tile: Size::new(tile(level, "width"), tile(level, "height")),
            halvings: 0,
            shifts: false,
        };
        Ok(Info {
            vendor: properties.get("openslide.vendor").cloned().unwrap_or_default(),
            storage: (0..levels.len()).map(storage).collect(),
            levels,
            mpp: metadata::scale(&mut properties),
            magnification: metadata::magnification(&properties),
            properties,
            associated: handle.associated_image_names()?,
        })
    }

    struct OpenSlideReader {
        path: PathBuf,
        /// `None` after an error, until the next read.
        handle: Mutex<Option<Arc<OpenSlide>>>,
    }

    impl Reader for OpenSlideReader {
        fn read(&self, area: Area) -> Result<RgbImage> {
            let Area { level, x, y, size, .. } = area;
            let pixels = self.with_handle(|slide| {
                // OpenSlide takes whole level-0 pixels: the nearest to that level pixel, exact for whole downsamples.
                let downsample = slide.all_level_downsamples()[level];
                let level_0 = |position: u32| (f64::from(position) * downsample).round() as u32;
                let size = openslide_rs::Size { w: size.width, h: size.height };
                slide.read_region(&Region {
                    address: Address { x: level_0(x), y: level_0(y) },
                    level: level as u32,
                    size,
                })
            });
            let pixels = pixels.map_err(|e| {
                let Size { width, height } = size;
                let what = format!("level {level}, {width} x {height} px at ({x}, {y}): OpenSlide: {e}");
                Error::bad(&self.path, what)
            })?;
            self.image(size, &pixels)
        }

        fn read_associated(&self, name: &str) -> Result<RgbImage> {
            let read = self.with_handle(|slide| slide.read_associated_buffer(name));
            let (size, pixels) = read.map_err(|e| Error::bad(&self.path, format!("image `{name}`: OpenSlide: {e}")))?;
            self.image(Size::new(size.w, size.h), &pixels)
        }
    }

    impl OpenSlideReader {
        fn image(&self, size: Size, argb: &[u8]) -> Result<RgbImage> {
            let image = RgbImage::from_raw(size.width, size.height, on_white(argb));
            image.ok_or_else(|| Error::bad(&self.path, "OpenSlide returned too few pixels"))
        }

        /// Runs `read` on the shared handle and, where that fails, once more on a fresh one.
        fn with_handle<T>(&self, read: impl Fn(&OpenSlide) -> openslide_rs::Result<T>) -> openslide_rs::Result<T> {
            let shared = self.handle.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(handle) = shared {
                if let Ok(value) = read(&handle) {
                    return Ok(value);
                }
                let mut current = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
                current.take_if(|current| Arc::ptr_eq(current, &handle));
            }
            let fresh = OpenSlide::new(&self.path)?;
            let value = read(&fresh)?;
            *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(fresh));
            Ok(value)
        }
    }

    /// RGB of OpenSlide's pixels (native-endian ARGB, colours multiplied by alpha) over white.
    fn on_white(argb: &[u8]) -> Vec<u8> {
        let mut rgb = Vec::with_capacity(argb.len() / 4 * 3);
        for pixel in argb.chunks_exact(4) {
            let [alpha, red, green, blue] = u32::from_ne_bytes([pixel[0], pixel[1], pixel[2], pixel[3]]).to_be_bytes();
            rgb.extend([red, green, blue].map(|color| color.saturating_add(255 - alpha)));
        }
        rgb
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn transparent_pixels_are_composited_on_white() {
            let pixels = [0x0000_0000, 0x8040_0000, 0xFF0A_141E_u32].map(u32::to_ne_bytes).concat();
            assert_eq!(super::on_white(&pixels), [255, 255, 255, 191, 127, 127, 10, 20, 30]);
        }
    }
}
