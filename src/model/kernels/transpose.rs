//! Between images as planes, `[C, H, W]`, which is what tensors hold, and as pixels, `[H, W, C]`, which is what the
//! products of a convolution want.

/// Channels that are turned at a time. With 16 pixels, a whole cache line of each plane, twice as fast as squares of 8.
const CHANNELS: usize = 8;

/// Rows of an image, `width` wide, from planes that begin `plane` apart to pixels, of which a row takes `pitch`:
/// `source[c * plane + y * width + x] -> target[(y * pitch + x) * channels + c]`. A few planes at a time from end to end,
/// which is how memory likes to be read.
pub fn to_pixels(
    source: &[f32],
    (plane, channels): (usize, usize),
    [rows, width, pitch]: [usize; 3],
    target: &mut [f32],
) {
    let whole = channels - channels % CHANNELS;
    for c in (0..whole).step_by(CHANNELS) {
        for y in 0..rows {
            for (x, length) in steps(width) {
                let source = &source[c * plane + y * width + x..];
                let target = &mut target[(y * pitch + x) * channels + c..];
                match length {
                    16 => tile_to_pixels::<16>(source, plane, target, channels),
                    8 => tile_to_pixels::<8>(source, plane, target, channels),
                    _ => tile_to_pixels::<1>(source, plane, target, channels),
                }
            }
        }
    }
    for c in whole..channels {
        for y in 0..rows {
            for x in 0..width {
                target[(y * pitch + x) * channels + c] = source[c * plane + y * width + x];
            }
        }
    }
}

fn tile_to_pixels<const P: usize>(source: &[f32], plane: usize, target: &mut [f32], channels: usize) {
    let rows: [&[f32; P]; CHANNELS] = std::array::from_fn(|i| array(&source[i * plane..]));
    for j in 0..P {
        let pixel = array_mut::<CHANNELS>(&mut target[j * channels..]);
        for i in 0..CHANNELS {
            pixel[i] = rows[i][j];
        }
    }
}

/// Pixels to planes, of which `planes` are the parts to fill, each of whole rows of `width`; a row of the source takes
/// `pitch` pixels. `offset[c]` is added.
pub fn to_planes(source: &[f32], (width, pitch): (usize, usize), offset: Option<&[f32]>, planes: &mut [&mut [f32]]) {
    let channels = planes.len();
    let rows = planes.first().map_or(0, |plane| plane.len() / width);
    for (group, planes) in planes.chunks_mut(CHANNELS).enumerate() {
        let c = group * CHANNELS;
        let shift: [f32; CHANNELS] =
            std::array::from_fn(|i| offset.and_then(|offset| offset.get(c + i)).copied().unwrap_or(0.0));
        for y in 0..rows {
            for (x, length) in steps(width) {
                let source = &source[(y * pitch + x) * channels + c..];
                let place = y * width + x;
                match length {
                    16 => tile_to_planes::<16>(source, channels, &shift, planes, place),
                    8 => tile_to_planes::<8>(source, channels, &shift, planes, place),
                    _ => tile_to_planes::<1>(source, channels, &shift, planes, place),
                }
            }
        }
    }
}

fn tile_to_planes<const P: usize>(
    source: &[f32],
    channels: usize,
    shift: &[f32; CHANNELS],
    planes: &mut [&mut [f32]],
    place: usize,
) {
    if planes.len() < CHANNELS {
        for (i, plane) in planes.iter_mut().enumerate() {
            for j in 0..P {
                plane[place + j] = source[j * channels + i] + shift[i];
            }
        }
        return;
    }
    let pixels: [&[f32; CHANNELS]; P] = std::array::from_fn(|j| array(&source[j * channels..]));
    for (i, plane) in planes.iter_mut().enumerate().take(CHANNELS) {
        let target = array_mut::<P>(&mut plane[place..]);
        for j in 0..P {
            target[j] = pixels[j][i] + shift[i];
        }
    }
}

/// The first values, of which the compiler knows the number.
fn array<const N: usize>(values: &[f32]) -> &[f32; N] {
    values.first_chunk().expect("a slice of whole tiles")
}

fn array_mut<const N: usize>(values: &mut [f32]) -> &mut [f32; N] {
    values.first_chunk_mut().expect("a slice of whole tiles")
}

/// 0..count in pieces of 16, 8 and 1: where each begins, and its length.
fn steps(count: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let length = match count - next {
            0 => return None,
            16.. => 16,
            8.. => 8,
            _ => 1,
        };
        next += length;
        Some((next - length, length))
    })
}
