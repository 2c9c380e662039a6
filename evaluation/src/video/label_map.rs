//! Masks of a frame: one label a pixel, 0 for the background, read from and written to palette PNG files.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use png::{BitDepth, ColorType, Decoder, Encoder, Limits, Transformations};

use crate::atomic_file;
use crate::error::{Error, Result};

/// The label of pixels that DAVIS leaves undecided; in a mask of two values, the object.
pub const VOID: u8 = 255;

/// Largest mask that is read: 64 million pixels, eight times a 4K frame.
const MAX_PIXELS: u64 = 1 << 26;

/// One label a pixel, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMap {
    width: usize,
    height: usize,
    labels: Vec<u8>,
}

impl LabelMap {
    /// A map of `width` x `height` labels.
    ///
    /// # Errors
    /// Another number of labels.
    pub fn new(width: usize, height: usize, labels: Vec<u8>) -> Result<Self> {
        if labels.len() != width * height || labels.is_empty() {
            return Err(Error::usage(format!("{} labels are not a mask of {width} x {height} px", labels.len())));
        }
        Ok(Self { width, height, labels })
    }

    /// Pixels along x.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Pixels along y.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The labels, row by row.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// The largest label but [`VOID`]: the number of objects, as DAVIS numbers them from 1.
    pub fn objects(&self) -> u8 {
        self.labels.iter().copied().filter(|&label| label != VOID).max().unwrap_or(0)
    }

    /// Whether there is nothing but 0 and 255: a mask of one object as DAVIS-2016 stores it, not one with undecided pixels.
    pub fn is_binary(&self) -> bool {
        self.labels.contains(&VOID) && self.objects() == 0
    }

    /// Where `is_object` holds for the label.
    pub fn mask(&self, is_object: impl Fn(u8) -> bool) -> Vec<bool> {
        self.labels.iter().map(|&label| is_object(label)).collect()
    }

    /// The same map with other labels.
    pub fn map(&self, change: impl Fn(u8) -> u8) -> Self {
        Self { labels: self.labels.iter().map(|&label| change(label)).collect(), ..*self }
    }

    /// The nearest label at `width` x `height` px, as Pillow's `NEAREST`: of each pixel, what lies at its centre.
    pub fn resized(&self, width: usize, height: usize) -> Self {
        let source = |at: usize, from: usize, to: usize| {
            let place = (at as f64 + 0.5) * (from as f64 / to as f64);
            (place as usize).min(from - 1)
        };
        let columns: Vec<usize> = (0..width).map(|x| source(x, self.width, width)).collect();
        let row = |y: usize| &self.labels[source(y, self.height, height) * self.width..][..self.width];
        let labels = (0..height).flat_map(|y| columns.iter().map(move |&x| row(y)[x])).collect();
        Self { width, height, labels }
    }

    /// Reads a palette or grey PNG of at most 8 bits; the stored numbers are the labels, whatever their colours.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, too large, or has several channels.
    pub fn read(path: &Path) -> Result<Self> {
        let bad = |what: String| Error::bad(path, what);
        let file = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
        // A row, a palette and what decompression needs; the pixels themselves are bounded below.
        let mut decoder = Decoder::new_with_limits(file, Limits { bytes: 1 << 28 });
        decoder.set_transformations(Transformations::IDENTITY);
        let mut reader = decoder.read_info().map_err(|e| bad(e.to_string()))?;
        let info = reader.info();
        let (width, height) = (info.width as usize, info.height as usize);
        if u64::from(info.width) * u64::from(info.height) > MAX_PIXELS {
            return Err(Error::limit(
                path,
                format!("{width} x {height} px are more than a mask may have ({MAX_PIXELS})"),
            ));
        }
        let bits = match (info.color_type, info.bit_depth) {
            (ColorType::Indexed | ColorType::Grayscale, BitDepth::Sixteen) => None,
            (ColorType::Indexed | ColorType::Grayscale, depth) => Some(depth as usize),
            _ => None,
        };
        let Some(bits) = bits else {
            let what = format!(
                "{:?} of {:?} bits a channel is not a mask: a palette or grey PNG of at most 8 bits is",
                info.color_type, info.bit_depth
            );
            return Err(Error::unsupported(path, what));
        };
        let size = reader.output_buffer_size().ok_or_else(|| bad("its size is not known".into()))?;
        let mut bytes = vec![0; size];
        let frame = reader.next_frame(&mut bytes).map_err(|e| bad(e.to_string()))?;
        let (per_byte, mask) = (8 / bits, (0xFF_u16 >> (8 - bits)) as u8);
        let label = |row: &[u8], x: usize| (row[x / per_byte] >> (8 - bits - bits * (x % per_byte))) & mask;
        let rows = bytes.chunks_exact(frame.line_size).take(height);
        let labels = rows.flat_map(|row| (0..width).map(move |x| label(row, x))).collect();
        Self::new(width, height, labels)
    }

    /// Writes a PNG with DAVIS's palette, in which every label has a colour of its own; it appears whole or not at all.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn write(&self, path: &Path) -> Result<()> {
        atomic_file::replace(path, |file| {
            let mut encoder = Encoder::new(file, self.width as u32, self.height as u32);
            encoder.set_color(ColorType::Indexed);
            encoder.set_depth(BitDepth::Eight);
            encoder.set_palette(palette());
            let written = encoder.write_header().and_then(|mut writer| {
                writer.write_image_data(&self.labels)?;
                writer.finish()
            });
            written.map_err(|e| Error::bad(path, e.to_string()))
        })
    }
}

/// The colours of PASCAL VOC, which DAVIS uses: bit by bit, three bits of the label go to red, green and blue, from the
/// highest bit of the colour down.
fn palette() -> Vec<u8> {
    let colour = |label: u8, channel: u32| (0..8).fold(0, |sum, bit| sum | ((pick(label, channel, bit)) << (7 - bit)));
    (0..=255).flat_map(|label| [0, 1, 2].map(|channel| colour(label, channel))).collect()
}

/// Bit `3 * bit + channel` of a label, 0 beyond its eight.
fn pick(label: u8, channel: u32, bit: u32) -> u8 {
    label.checked_shr(3 * bit + channel).unwrap_or(0) & 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/00000.png");
        let map = LabelMap::new(5, 3, (0..15).map(|i| i * 17).collect()).unwrap();
        map.write(&path).unwrap();
        assert_eq!(LabelMap::read(&path).unwrap(), map);
        assert_eq!(map.objects(), 14 * 17);
        // The first colours of DAVIS's palette: black, red, green, olive.
        assert_eq!(palette()[..12], [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]);
        assert_eq!(palette()[255 * 3..], [224, 224, 192]);
    }

    #[test]
    fn masks_of_few_bits_are_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        for (depth, packed, expected) in [
            (BitDepth::One, vec![0b1010_0000, 0b0110_0000], vec![1, 0, 1, 0, 1, 1]),
            (BitDepth::Two, vec![0b1101_1000, 0b0011_0100], vec![3, 1, 2, 0, 3, 1]),
            (BitDepth::Four, vec![0x12, 0x30, 0x4F, 0x60], vec![1, 2, 3, 4, 15, 6]),
        ] {
            let path = folder.path().join("mask.png");
            let mut encoder = Encoder::new(File::create(&path).unwrap(), 3, 2);
            encoder.set_color(ColorType::Indexed);
            encoder.set_depth(depth);
            encoder.set_palette(palette()[..48].to_vec());
            encoder.write_header().unwrap().write_image_data(&packed).unwrap();
            assert_eq!(LabelMap::read(&path).unwrap().labels(), expected);
        }
    }

    #[test]
    fn what_is_no_mask_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.png");
        let message = || LabelMap::read(&path).unwrap_err().to_string();
        assert!(message().contains("mask.png"));
        std::fs::write(&path, b"not a picture").unwrap();
        assert!(message().contains("damaged"));
        let mut encoder = Encoder::new(File::create(&path).unwrap(), 2, 1);
        encoder.set_color(ColorType::Rgb);
        encoder.write_header().unwrap().write_image_data(&[0; 6]).unwrap();
        assert!(message().contains("palette or grey"), "{}", message());
        assert!(matches!(LabelMap::read(&path), Err(Error::File(slide_io::Error::Unsupported { .. }))));
        let map = LabelMap::new(40, 40, (0..1600).map(|i| (i * 7 % 251) as u8).collect()).unwrap();
        map.write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(message().contains("damaged"));
        // 2²⁷ pixels by a header that is whole; none of them is there.
        let mut encoder = Encoder::new(File::create(&path).unwrap(), 1 << 16, 1 << 11);
        encoder.set_color(ColorType::Grayscale);
        encoder.set_depth(BitDepth::Eight);
        encoder.write_header().unwrap().write_chunk(png::chunk::IDAT, &[0]).unwrap();
        assert!(matches!(LabelMap::read(&path), Err(Error::File(slide_io::Error::Limit { .. }))), "{}", message());
        // A header that promises 4 billion pixels and does not have its checksum.
        let mut huge = bytes.clone();
        huge[16..24].copy_from_slice(&[0, 0, 0xFF, 0xFF, 0, 0, 0xFF, 0xFF]);
        std::fs::write(&path, huge).unwrap();
        assert!(matches!(LabelMap::read(&path), Err(Error::File(slide_io::Error::BadFile { .. }))));
        assert!(LabelMap::new(2, 2, vec![0; 3]).is_err());
    }

    #[test]
    fn nearest_labels_lie_at_the_centres() {
        let map = LabelMap::new(5, 1, vec![0, 1, 2, 3, 4]).unwrap();
        // Centres at 0.83, 2.5 and 4.17.
        assert_eq!(map.resized(3, 2).labels(), [0, 2, 4, 0, 2, 4]);
        assert_eq!(map.resized(10, 1).labels(), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
        assert!(LabelMap::new(2, 1, vec![0, 255]).unwrap().is_binary());
        assert!(!LabelMap::new(3, 1, vec![0, 255, 1]).unwrap().is_binary());
        assert!(!LabelMap::new(2, 1, vec![0, 0]).unwrap().is_binary());
    }
}
