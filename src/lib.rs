//! gensis: a folder of whole-slide images in, a table of slide-level results out, with an encoder trained on those
//! slides alone. See the README for the map of the code.

#![cfg_attr(test, allow(clippy::unwrap_used))]
// Commands tell what they have to tell through `commands::output`.
#![cfg_attr(not(test), deny(clippy::print_stdout))]

pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod demo;
pub mod device;
pub mod model;
pub mod report;
pub mod run_dir;
pub mod sample;
pub mod train;
