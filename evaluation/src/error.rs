//! One error for the whole crate. It keeps apart what a user does about it: change the call, replace the file, give
//! another kind of file, stay within a limit, or look at the training.

use std::path::{Path, PathBuf};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller asked for something that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The file is damaged, or is not what its name says.
    #[error("{}: the file is damaged: {what}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The file may be fine, but files of its kind are not read.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is or asks for, and what is read.
        what: String,
    },
    /// The file holds more than a documented limit.
    #[error("{}: {what}", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// The limit, and where it is known what was met.
        what: String,
    },
    /// Training went wrong; says where, and what to try.
    #[error("{0}")]
    Training(String),
    /// The device failed to run or to hand back a result.
    #[error("the device failed: {0}")]
    Device(String),
    /// Reading slides, coordinates or features failed.
    #[error(transparent)]
    Slide(#[from] slide_io::Error),
    /// Building or writing a table failed.
    #[error("result table: {0}")]
    Table(#[from] polars::prelude::PolarsError),
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
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
        Self::BadFile { path: path.as_ref().to_owned(), what: what.into() }
    }

    /// `path` is of a kind that is not read; `what` says which, and what is.
    pub fn unsupported(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Unsupported { path: path.as_ref().to_owned(), what: what.into() }
    }

    /// `path` holds more than a documented limit; `what` names it.
    pub fn limit(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Limit { path: path.as_ref().to_owned(), what: what.into() }
    }

    /// An operating-system error about `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source }
    }
}
