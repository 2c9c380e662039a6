//! Sums of f32 values, in 16 columns on every machine, so that they have one order whatever its vectors are.
//!
//! Plain loops over arrays, all inlined: what the compiler leaves a call in is not compiled for the machine's vectors.

/// Columns of a sum: the widest vector.
const COLUMNS: usize = 16;

/// Mean of some values and 1 / sqrt(variance + eps).
#[derive(Clone, Copy, Debug, Default)]
pub struct Moments {
    pub mean: f32,
    pub scale: f32,
}

impl Moments {
    #[inline(always)]
    pub fn of(values: &[f32], eps: f64) -> Self {
        let count = values.len() as f64;
        let mean = (total(values) / count) as f32;
        let variance = total_squares(values, mean) / count;
        Self { mean, scale: (1.0 / (variance + eps).sqrt()) as f32 }
    }
}

/// The sum of some values.
#[inline(always)]
pub fn total(values: &[f32]) -> f64 {
    let mut columns = [0.0; COLUMNS];
    let (chunks, rest) = values.as_chunks::<COLUMNS>();
    for chunk in chunks {
        for i in 0..COLUMNS {
            columns[i] += chunk[i];
        }
    }
    for (i, value) in rest.iter().enumerate() {
        columns[i] += value;
    }
    folded(&columns)
}

/// The sum of squared distances from `mean`.
#[inline(always)]
fn total_squares(values: &[f32], mean: f32) -> f64 {
    let mut columns = [0.0; COLUMNS];
    let (chunks, rest) = values.as_chunks::<COLUMNS>();
    for chunk in chunks {
        for i in 0..COLUMNS {
            columns[i] += (chunk[i] - mean) * (chunk[i] - mean);
        }
    }
    for (i, value) in rest.iter().enumerate() {
        columns[i] += (value - mean) * (value - mean);
    }
    folded(&columns)
}

/// The sum of `a`, and that of its products with the distances of `b` from `mean`.
#[inline(always)]
pub fn total_products(a: &[f32], b: &[f32], mean: f32) -> (f64, f64) {
    let (mut columns, mut products) = ([0.0; COLUMNS], [0.0; COLUMNS]);
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<COLUMNS>(), b.as_chunks::<COLUMNS>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..COLUMNS {
            columns[i] += a[i];
            products[i] += a[i] * (b[i] - mean);
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        columns[i] += a;
        products[i] += a * (b - mean);
    }
    (folded(&columns), folded(&products))
}

/// The largest of some values; what is not a number is passed over.
#[inline(always)]
pub fn largest(values: &[f32]) -> f32 {
    let mut columns = [f32::NEG_INFINITY; COLUMNS];
    let (chunks, rest) = values.as_chunks::<COLUMNS>();
    for chunk in chunks {
        for i in 0..COLUMNS {
            columns[i] = if chunk[i] > columns[i] { chunk[i] } else { columns[i] };
        }
    }
    columns.iter().chain(rest).fold(f32::NEG_INFINITY, |largest, &value| largest.max(value))
}

/// The sum of the columns, half by half.
#[inline(always)]
fn folded(columns: &[f32; COLUMNS]) -> f64 {
    let mut sums = [0.0; COLUMNS];
    for i in 0..COLUMNS {
        sums[i] = f64::from(columns[i]);
    }
    let mut half = COLUMNS / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[half + i];
        }
        half /= 2;
    }
    sums[0]
}
