//! `gensis config`: print the defaults, or an experiment with every default filled in.

use anyhow::Result;

use super::Outcome;
use crate::cli::{ConfigAction, ConfigArgs};
use crate::config::{DEFAULT_TOML, Experiment};

pub(super) fn config(args: &ConfigArgs) -> Result<Outcome> {
    match &args.action {
        ConfigAction::Default => print!("{DEFAULT_TOML}"),
        ConfigAction::Show { file, settings } => print!("{}", Experiment::load(Some(file), settings)?.to_toml()?),
    }
    Ok(Outcome::Done)
}
