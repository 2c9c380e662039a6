//! Coordinates of GeoJSON, of any depth, without a list for every number.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

/// Coordinates: lists in lists around positions. Compact, since they are nearly all of a file.
pub(super) enum Nested {
    /// Two finite numbers (and further ones, which are dropped).
    Position([f64; 2]),
    Many(Vec<Nested>),
    /// Something that should not be there.
    Other,
}

impl Nested {
    pub(super) fn many(&self, what: &str) -> std::result::Result<&[Nested], String> {
        match self {
            Self::Many(parts) => Ok(parts),
            _ => Err(format!("{what} are no list")),
        }
    }
}

impl<'de> Deserialize<'de> for Nested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Ok(match deserializer.deserialize_any(Coordinates)? {
            Part::Nested(nested) => nested,
            Part::Number(_) => Nested::Other,
        })
    }
}

/// What a list of coordinates is made of.
enum Part {
    Number(f64),
    Nested(Nested),
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(Coordinates)
    }
}

struct Coordinates;

impl<'de> Visitor<'de> for Coordinates {
    type Value = Part;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("coordinates")
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Part, E> {
        Ok(Part::Number(value))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Part, E> {
        Ok(Part::Number(value as f64))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Part, E> {
        Ok(Part::Number(value as f64))
    }

    fn visit_unit<E>(self) -> std::result::Result<Part, E> {
        Ok(Part::Nested(Nested::Other))
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Part, E> {
        Ok(Part::Nested(Nested::Other))
    }

    fn visit_str<E>(self, _: &str) -> std::result::Result<Part, E> {
        Ok(Part::Nested(Nested::Other))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> std::result::Result<Part, A::Error> {
        let (mut numbers, mut lists) = (Vec::new(), Vec::new());
        while let Some(part) = parts.next_element()? {
            match part {
                Part::Number(number) => numbers.push(number),
                Part::Nested(nested) => lists.push(nested),
            }
        }
        Ok(Part::Nested(match (numbers.as_slice(), lists.is_empty()) {
            ([], _) => Nested::Many(lists),
            (&[x, y, ..], true) if x.is_finite() && y.is_finite() => Nested::Position([x, y]),
            _ => Nested::Other,
        }))
    }
}
