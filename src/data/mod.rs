//! data

