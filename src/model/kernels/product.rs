//! The product of two matrices that lie anywhere in memory: one call of the `gemm` crate, which burn's CPU backend uses
//! as well.
//!
//! The only unsafe code of this package. `gemm` takes raw pointers and strides, and burn's own product takes whole
//! tensors only, so that a convolution written with it would copy every window of its input. Here the lengths are checked
//! first, so that callers need no care.

/// A matrix in a slice: element (i, j) lies at `i * row + j * column`. Elements may overlap, as the windows of a
/// convolution do.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub values: &'a [f32],
    /// Distance of two rows.
    pub row: usize,
    /// Distance of two columns.
    pub column: usize,
}

/// `[m, n] = [m, k] [k, n]`, or `+=` where `accumulate`; the result's element (i, j) lies at `i * row + j * column` of
/// `target`. On the calling thread only, the sum over k in an order that depends on the sizes alone. Fastest where
/// `row` is 1 for `target` and `left` and `right` has 1 from row to row.
///
/// # Panics
/// A slice that ends before its matrix, or `k` 0.
#[allow(unsafe_code)]
pub fn product(
    [m, n, k]: [usize; 3],
    (target, row, column): (&mut [f32], usize, usize),
    accumulate: bool,
    left: Matrix,
    right: Matrix,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(k > 0, "a product over nothing");
    assert!((m - 1) * row + (n - 1) * column < target.len(), "the target ends before its matrix");
    assert!((m - 1) * left.row + (k - 1) * left.column < left.values.len(), "the left slice ends before its matrix");
    assert!(
        (k - 1) * right.row + (n - 1) * right.column < right.values.len(),
        "the right slice ends before its matrix"
    );
    // SAFETY: every element that is read or written lies within its slice, as asserted above; strides are lengths of
    // slices at most and fit into isize; `target` is borrowed mutably, so that nothing else sees it.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            target.as_mut_ptr(),
            column as isize,
            row as isize,
            accumulate,
            left.values.as_ptr(),
            left.column as isize,
            left.row as isize,
            right.values.as_ptr(),
            right.column as isize,
            right.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
