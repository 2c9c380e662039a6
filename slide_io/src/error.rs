//! One error for the whole crate. It keeps apart what a user does about it: replace the file, use another
//! format, give the missing information, or stay within a limit.

use std::path::{Path, PathBuf};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
    /// The file is damaged: truncated, inconsistent, or not what its name says.
    #[error("{}: the file is damaged: {what}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The file may be fine, but this build cannot read it.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is missing, and what to do about it.
        what: String,
    },
    /// The file asks for more than a documented limit.
    #[error("{}: {what}", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// The limit and the value met.
        what: String,
    },
    /// No µm/px is known for the slide.
    #[error(
        "{}: the file does not say (or not believably) how many µm a pixel covers. Give it with --mpp (for example --mpp 0.5), or in a column \
         `mpp` of the csv named by data.labels",
        path.display()
    )]
    NoScale {
        /// The slide.
        path: PathBuf,
    },
    /// The caller asked for something that makes no sense.
    #[error("{0}")]
    Usage(String),
}

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An operating-system error about `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source }
    }

    /// `path` is damaged; `what` says how.
    pub fn bad(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::BadFile { path: path.as_ref().to_owned(), what: what.into() }
    }

    /// `path` cannot be read by this build; `what` says why and what to do.
    pub fn unsupported(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Unsupported { path: path.as_ref().to_owned(), what: what.into() }
    }

    /// `path` asks for more than a documented limit; `what` names both.
    pub fn limit(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Limit { path: path.as_ref().to_owned(), what: what.into() }
    }
}
