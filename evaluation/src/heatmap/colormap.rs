//! Perceptual colour maps: equal steps look equal, for colour-blind readers and in print as well.

use serde::{Deserialize, Serialize};
use slide_io::Rgb;

/// Colours from low to high.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colormap {
    /// Purple, blue, green, yellow: stands out from pink and purple stains.
    Viridis,
    /// Black, purple, orange, light yellow.
    Inferno,
}

/// Ten evenly spaced colours of matplotlib's maps of these names (Smith and van der Walt, public domain, CC0).
const VIRIDIS: [u32; 10] =
    [0x440154, 0x482878, 0x3e4989, 0x31688e, 0x26828e, 0x1f9e89, 0x35b779, 0x6ece58, 0xb5de2b, 0xfde725];
const INFERNO: [u32; 10] =
    [0x000004, 0x1b0c41, 0x4a0c6b, 0x781c6d, 0xa52c60, 0xcf4446, 0xed6925, 0xfb9b06, 0xf7d13d, 0xfcffa4];

impl Colormap {
    /// The colour of a level from 0 to 1, on straight lines in RGB between the map's colours.
    pub fn colour(self, level: f32) -> Rgb<u8> {
        let stops = match self {
            Self::Viridis => &VIRIDIS,
            Self::Inferno => &INFERNO,
        };
        let place = level.clamp(0.0, 1.0) * (stops.len() - 1) as f32;
        let below = (place as usize).min(stops.len() - 2);
        let [low, high] = [stops[below], stops[below + 1]].map(|colour| colour.to_be_bytes());
        let share = place - below as f32;
        Rgb([1, 2, 3].map(|channel| {
            let (low, high) = (f32::from(low[channel]), f32::from(high[channel]));
            (low + (high - low) * share).round() as u8
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_begin_end_and_brighten_as_they_should() {
        assert_eq!(Colormap::Viridis.colour(0.0).0, [0x44, 0x01, 0x54]);
        assert_eq!(Colormap::Viridis.colour(1.0).0, [0xfd, 0xe7, 0x25]);
        assert_eq!(Colormap::Inferno.colour(2.0).0, [0xfc, 0xff, 0xa4]);
        // matplotlib's viridis(0.25) is (59, 82, 139), at its 64th of 256 entries.
        let quarter = Colormap::Viridis.colour(0.25).0;
        assert!(quarter.iter().zip([59, 82, 139]).all(|(a, b): (&u8, u8)| a.abs_diff(b) <= 3), "{quarter:?}");
        for map in [Colormap::Viridis, Colormap::Inferno] {
            let luma = |level: f32| {
                let [r, g, b] = map.colour(level).0.map(f32::from);
                0.2126 * r + 0.7152 * g + 0.0722 * b
            };
            assert!((0..100).all(|i| luma(i as f32 / 100.0) <= luma((i + 1) as f32 / 100.0) + 0.5), "{map:?}");
        }
    }
}
