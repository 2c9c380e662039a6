//! The self-test of `gensis doctor`.
use anyhow::Result;
use super::Outcome;
use crate::cli::DoctorArgs;
pub(super) fn selftest(_: &DoctorArgs) -> Result<Outcome> { anyhow::bail!("building") }
