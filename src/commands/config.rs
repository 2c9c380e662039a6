//! `gensis config`: print the defaults, an experiment with every default filled in, or the encoders known by name.

use anyhow::Result;

use super::Outcome;
use super::output::say;
use crate::cli::{ConfigAction, ConfigArgs};
use crate::config::presets::{PRESETS, Preset};
use crate::config::{DEFAULT_TOML, Experiment, Pooling};

pub(super) fn config(args: &ConfigArgs) -> Result<Outcome> {
    match &args.action {
        ConfigAction::Default => say!("{DEFAULT_TOML}")?,
        ConfigAction::Encoders => say!("{}", presets())?,
        ConfigAction::Show { file, settings } => {
            say!("{}", Experiment::load(Some(file), settings)?.to_toml()?)?;
        }
    }
    Ok(Outcome::Done)
}

/// The presets as a table.
fn presets() -> String {
    let titles = ["preset", "what", "network", "parameters", "embedding", "input px", "µm/px", "source"];
    let row = |preset: &Preset| {
        let network = &preset.network;
        let pooling = match network.pooling {
            Pooling::Cls => "CLS",
            Pooling::Mean => "mean",
            Pooling::ClsMean => "CLS, mean",
        };
        let input = match preset.resize == preset.crop {
            true => preset.crop.to_string(),
            false => format!("{} > {}", preset.resize, preset.crop),
        };
        [
            preset.name.to_owned(),
            preset.title.to_owned(),
            format!("{}/{}/{}", network.dim, network.depth, network.heads),
            format!("{:.1} M", network.parameters() as f64 / 1e6),
            format!("{} ({pooling})", network.embedding()),
            input,
            preset.mpp.map_or("-".to_owned(), |mpp| mpp.to_string()),
            preset.source.to_owned(),
        ]
    };
    let rows: Vec<[String; 8]> = std::iter::once(titles.map(str::to_owned)).chain(PRESETS.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
