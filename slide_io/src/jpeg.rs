//! jpeg
