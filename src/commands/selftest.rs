//! The self-test of `gensis doctor`.
use super::Outcome;
use crate::cli::DoctorArgs;
use anyhow::Result;
pub(super) fn selftest(_: &DoctorArgs) -> Result<Outcome> {
    anyhow::bail!("building")
}
