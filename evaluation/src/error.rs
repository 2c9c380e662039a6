//! One error for the whole crate.

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller asked for something that makes no sense.
    #[error("{0}")]
    Usage(String),
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
        path: std::path::PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
}

/// Result with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;
