//! Which DICOM files are one slide: every level, label and overview is a file of its own, and the series holds them together.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes looked at, and at most: what stands before the series are names, dates and codes.
const HEADS: [u64; 2] = [1 << 14, 1 << 20];
const SERIES_INSTANCE_UID: u32 = 0x0020_000e;
const TRANSFER_SYNTAX_UID: u32 = 0x0002_0010;
const IMPLICIT_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2";
const ITEM_DELIMITATION: u32 = 0xfffe_e00d;
const SEQUENCE_DELIMITATION: u32 = 0xfffe_e0dd;

/// SeriesInstanceUID of a DICOM file (PS3.10, section 7); `None` for any other file, for one that does not say, and for transfer
/// syntaxes in which no slide is stored (big endian, deflated).
pub(super) fn of(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let mut bytes = Vec::new();
    HEADS.into_iter().find_map(|head| {
        file.by_ref().take(head - bytes.len() as u64).read_to_end(&mut bytes).ok()?;
        in_file(&bytes)
    })
}

/// Goes through the data elements (PS3.5, section 7) up to the series, which sequences may name too: of other slides.
fn in_file(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes.get(128..)?.strip_prefix(b"DICM")?;
    let mut implicit = false;
    // Sequences and items of undefined length that are open.
    let mut depth = 0_usize;
    loop {
        let group = number(rest, 0)?;
        let tag = group << 16 | number(rest, 2)?;
        let short = u32::from_le_bytes(rest.get(4..8)?.try_into().ok()?);
        let (header, length) = if group == 0xfffe || (implicit && group > 2) {
            (8, short)
        } else {
            match rest.get(4..6)? {
                b"OB" | b"OD" | b"OF" | b"OL" | b"OV" | b"OW" | b"SQ" | b"SV" | b"UC" | b"UN" | b"UR" | b"UT"
                | b"UV" => (12, u32::from_le_bytes(rest.get(8..12)?.try_into().ok()?)),
                _ => (8, number(rest, 6)?),
            }
        };
        rest = rest.get(header..)?;
        if tag == ITEM_DELIMITATION || tag == SEQUENCE_DELIMITATION {
            depth = depth.checked_sub(1)?;
            continue;
        }
        if length == u32::MAX {
            depth += 1;
            continue;
        }
        let value = rest.get(..usize::try_from(length).ok()?)?;
        rest = &rest[value.len()..];
        match tag {
            TRANSFER_SYNTAX_UID => implicit = uid(value)? == IMPLICIT_LITTLE_ENDIAN,
            SERIES_INSTANCE_UID if depth == 0 => return uid(value),
            _ if depth == 0 && tag > SERIES_INSTANCE_UID => return None,
            _ => {}
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

/// A UID without the byte that makes its length even.
fn uid(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?.trim_end_matches(['\0', ' ']);
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn element(tag: u32, representation: &[u8; 2], value: &[u8]) -> Vec<u8> {
        let mut bytes = [(tag >> 16) as u16, tag as u16].map(u16::to_le_bytes).concat();
        bytes.extend(representation);
        match representation {
            b"SQ" => bytes.extend([&[0, 0], &(value.len() as u32).to_le_bytes()[..]].concat()),
            _ => bytes.extend((value.len() as u16).to_le_bytes()),
        }
        bytes.extend(value);
        bytes
    }

    /// The head of a file whose elements are written out as `dataset`.
    fn file(transfer_syntax: &str, dataset: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; 128];
        bytes.extend(b"DICM");
        bytes.extend(element(TRANSFER_SYNTAX_UID, b"UI", transfer_syntax.as_bytes()));
        bytes.extend(dataset.concat());
        bytes
    }

    /// A file of the series `uid`, and of no use otherwise.
    pub(in crate::manifest) fn of_series(uid: &str) -> Vec<u8> {
        let study = element(0x0020_000d, b"UI", b"1.2.3.99");
        file("1.2.840.10008.1.2.1\0", &[study, element(SERIES_INSTANCE_UID, b"UI", uid.as_bytes())])
    }

    #[test]
    fn the_series_of_the_file_is_found_behind_those_it_refers_to() {
        let item = |length: u32| [&[0xfe, 0xff, 0x00, 0xe0], &length.to_le_bytes()[..]].concat();
        let end = |tag: u32| [&[0xfe, 0xff][..], &(tag as u16).to_le_bytes(), &[0; 4]].concat();
        let other = element(SERIES_INSTANCE_UID, b"UI", b"9.9");
        let whole = element(0x0008_1115, b"SQ", &[item(other.len() as u32), other.clone()].concat());
        let mut open = element(0x0008_1115, b"SQ", &[]);
        open.splice(8..12, u32::MAX.to_le_bytes());
        let open = [open, item(u32::MAX), other, end(ITEM_DELIMITATION), end(SEQUENCE_DELIMITATION)].concat();
        let own = element(SERIES_INSTANCE_UID, b"UI", b"1.2.3\0");
        for before in [Vec::new(), whole, open.clone()] {
            assert_eq!(in_file(&file("1.2.840.10008.1.2.1\0", &[before, own.clone()])).as_deref(), Some("1.2.3"));
        }
        // Implicit representations: a length of four bytes right behind the tag.
        let implicit = [&[0x20, 0x00, 0x0e, 0x00, 6, 0, 0, 0][..], b"1.2.3 "].concat();
        let after = [&[0x08, 0x00, 0x60, 0x00, 2, 0, 0, 0][..], b"SM"].concat();
        assert_eq!(in_file(&file(IMPLICIT_LITTLE_ENDIAN, &[after, implicit])).as_deref(), Some("1.2.3"));
        // It ends inside the sequence, or says nothing of a series, or is no DICOM.
        let cut = file("1.2.840.10008.1.2.1\0", &[open]);
        assert!((0..=cut.len()).all(|length| in_file(&cut[..length]).is_none()));
        let none = file("1.2.840.10008.1.2.1\0", &[element(0x0028_0010, b"US", &[1, 0]), own.clone()]);
        assert_eq!((in_file(&none), in_file(b"II\x2a\0")), (None, None));
        // Far into the file, but not too far.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.dcm");
        for (length, expected) in [(100, Some("1.2.3")), (50_000, Some("1.2.3")), (2_000_000, None)] {
            let long = element(0x0008_1115, b"SQ", &vec![0; length]);
            std::fs::write(&path, file("1.2.840.10008.1.2.1\0", &[long, own.clone()])).unwrap();
            assert_eq!(of(&path).as_deref(), expected);
        }
    }
}
