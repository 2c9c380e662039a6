//! Files that ask for more than the documented limits: refused before memory is spent, with the limit.

use std::path::Path;

use slide_io::{Error, Slide};

use crate::damage::refused;
use crate::layout::{Layout, TILE_LENGTHS, TILE_OFFSETS};

const IMAGE_WIDTH: u16 = 256;
const IMAGE_LENGTH: u16 = 257;
const TILE_WIDTH: u16 = 322;
const TILE_LENGTH: u16 = 323;

/// Of one tile, so that the tables agree with the sizes.
#[test]
fn tiles_above_the_limits_are_refused_before_memory_is_spent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.tif");
    for (kind, side) in [("deflate_tiles", 4730), ("jpeg_rgb_tiles", 65_535), ("jpeg2000_tiles", 1025)] {
        let seed = crate::breadth::files().into_iter().find(|path| path.file_stem().unwrap() == kind).unwrap();
        let mut layout = Layout::new(std::fs::read(seed).unwrap());
        for tag in [IMAGE_WIDTH, IMAGE_LENGTH, TILE_WIDTH, TILE_LENGTH] {
            let [_, _, value] = layout.fields(layout.entry(0, tag).unwrap());
            layout.put(value, side);
        }
        for tag in [TILE_OFFSETS, TILE_LENGTHS] {
            let [_, count, _] = layout.fields(layout.entry(0, tag).unwrap());
            layout.put(count, 1);
        }
        std::fs::write(&path, &layout.bytes).unwrap();
        let error = refused(Slide::open_as(&path, "tiff"), "px are above the native limit of");
        assert!(matches!(error, Error::Unsupported { .. }), "another reader may have other limits: {error}");
    }
}

/// A tag with its type (2 for text, 3 and 4 for numbers of 2 and 4 bytes), count, and value or offset.
type Tag = (u16, u16, u32, u32);

/// Writes a classic TIFF of these directories, behind `data`, which begins at byte 8.
fn write(path: &Path, data: &[u8], directories: &[Vec<Tag>]) {
    let mut at = 8 + data.len() as u32;
    let mut bytes = [&b"II\x2a\0"[..], &at.to_le_bytes(), data].concat();
    for (number, tags) in directories.iter().enumerate() {
        bytes.extend((tags.len() as u16).to_le_bytes());
        for (tag, kind, count, value) in tags {
            bytes.extend([tag.to_le_bytes(), kind.to_le_bytes()].concat());
            bytes.extend([count.to_le_bytes(), value.to_le_bytes()].concat());
        }
        at += 2 + 12 * tags.len() as u32 + 4;
        let next = if number + 1 < directories.len() { at } else { 0 };
        bytes.extend(next.to_le_bytes());
    }
    std::fs::write(path, bytes).unwrap();
}

/// An image of 16 x 16 grey pixels in one tile that is not stored, with a description of `length` bytes at byte 8.
fn image(length: u32) -> Vec<Tag> {
    let shape = [(IMAGE_WIDTH, 3, 1, 16), (IMAGE_LENGTH, 3, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)];
    let tile = [(TILE_WIDTH, 3, 1, 16), (TILE_LENGTH, 3, 1, 16), (TILE_OFFSETS, 4, 1, 0), (TILE_LENGTHS, 4, 1, 0)];
    [&shape[..], &[(270, 2, length, 8)], &tile[..]].concat()
}

#[test]
fn one_text_shared_by_many_directories() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.tif");
    let text = vec![b'a'; 15 << 20];
    for (directories, fits) in [(17, true), (18, false)] {
        write(&path, &text, &vec![image(text.len() as u32); directories]);
        match fits {
            true => assert_eq!(Slide::open_as(&path, "tiff").unwrap().levels().len(), 1),
            false => {
                let error =
                    refused(Slide::open_as(&path, "tiff"), "directory 17, ImageDescription: the texts and tables");
                assert!(matches!(error, Error::Limit { .. }), "{error}");
            }
        }
    }
    write(&path, &vec![b'a'; (16 << 20) + 1], &[image((16 << 20) + 1)]);
    let error = refused(Slide::open_as(&path, "tiff"), "ImageDescription of 16777217 bytes; the limit is 16777216");
    assert!(matches!(error, Error::Limit { .. }), "{error}");
}

#[test]
fn too_many_directories() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("many.tif");
    for (directories, fits) in [(512, true), (513, false)] {
        write(&path, b"text", &vec![image(4); directories]);
        match fits {
            true => assert!(Slide::open_as(&path, "tiff").is_ok()),
            false => drop(refused(Slide::open_as(&path, "tiff"), "it has more than 512 directories")),
        }
    }
}

#[test]
fn an_associated_image_too_large_for_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("label.svs");
    let description = b"Aperio Image\r\nlabel 9x9\0";
    // 256 strips of 65536 x 256 px, none of which is stored: their tables are zeros, behind the description.
    let data = [&description[..], &[0; 1024]].concat();
    let tables = 8 + description.len() as u32;
    let label = vec![
        (IMAGE_WIDTH, 4, 1, 65_536),
        (IMAGE_LENGTH, 4, 1, 65_536),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (270, 2, description.len() as u32, 8),
        (273, 4, 256, tables),
        (278, 4, 1, 256),
        (279, 4, 256, tables),
    ];
    let length = description.len() as u32;
    write(&path, &data, &[image(length), image(length), label]);
    let slide = Slide::open_as(&path, "tiff").unwrap();
    assert_eq!(slide.associated_names(), ["label"]);
    let error = slide.read_associated("label").unwrap_err();
    assert!(matches!(error, Error::Limit { .. }), "{error}");
    assert!(error.to_string().contains("image `label` of 65536 x 65536 px; the limit is 268435456 px"), "{error}");
}
