//! One error for the whole crate. It keeps apart what a user does about it: change the call, replace the file, give
//! another kind of file, stay within a limit, or look at the training.

use std::path::Path;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller asked for something that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A file of slides, coordinates, features or a benchmark: damaged, of a kind that is not read, over a documented limit,
    /// or refused by the operating system.
    #[error(transparent)]
    File(#[from] slide_io::Error),
    /// Training went wrong; says where, and what to try.
    #[error("{0}")]
    Training(String),
    /// The device failed to run or to hand back a result.
    #[error("the device failed: {0}")]
    Device(String),
    /// Building or writing a table failed.
    #[error("result table: {0}")]
    Table(#[from] polars::prelude::PolarsError),
}

/// Result with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A call that makes no sense; `what` says why and what to do.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::Usage(what.into())
    }

    /// `path` is damaged; `what` says how.
    pub fn bad(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        slide_io::Error::bad(path, what).into()
    }

    /// `path` is of a kind that is not read; `what` says which, and what is.
    pub fn unsupported(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        slide_io::Error::unsupported(path, what).into()
    }

    /// `path` holds more than a documented limit; `what` names it.
    pub fn limit(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        slide_io::Error::limit(path, what).into()
    }

    /// An operating-system error about `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        slide_io::Error::io(path, source).into()
    }
}
