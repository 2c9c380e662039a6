//! Bilinear interpolation along one side, corners not aligned: where OpenCV's frames and PyTorch's masks take their values
//! from. Each adds up the two by its own arithmetic.

/// The two source cells of an output cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tap {
    /// The cells; both the last one at its far end.
    pub at: [usize; 2],
    /// Share of the second, in 0..1; the first has the rest.
    pub share: f32,
}

/// Output cell i of `to` lies at (i + ½) · from / to - ½ among `from` source cells; what lies beyond the middle of an outer
/// cell takes that cell alone.
pub(super) fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    let last = from.saturating_sub(1);
    let tap = |i: usize| {
        let place = ((i as f64 + 0.5) * scale - 0.5) as f32;
        let below = place.floor();
        let (first, share) = match below {
            below if below < 0.0 => (0, 0.0),
            below if below as usize >= last => (last, 0.0),
            below => (below as usize, place - below),
        };
        Tap { at: [first, (first + 1).min(last)], share }
    };
    (0..to).map(tap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enlarging_is_pytorchs() {
        // torch.nn.functional.interpolate([0, 1], scale_factor=4, mode="bilinear") of one row.
        let mix = |tap: &Tap| tap.at[0] as f32 * (1.0 - tap.share) + tap.at[1] as f32 * tap.share;
        let values: Vec<f32> = taps(2, 8).iter().map(mix).collect();
        assert_eq!(values, [0.0, 0.0, 0.125, 0.375, 0.625, 0.875, 1.0, 1.0]);
    }

    #[test]
    fn a_cell_alone_is_everywhere() {
        assert_eq!(taps(1, 3), [Tap { at: [0, 0], share: 0.0 }; 3]);
    }
}
