//! pyramid
