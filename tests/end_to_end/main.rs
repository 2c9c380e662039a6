//! The program from the outside: real commands on small drawn cohorts, judged by exit code, standard error and files.
//!
//! | file | what it holds |
//! |---|---|
//! | `program` | running, killing and limiting the program |
//! | `cohort` | the slides, their csv and the experiment, drawn in a second |
//! | `folder` | the files of a run folder, to compare |
//! | `whole_run` | one experiment from slides to report; the same bytes whatever the threads |
//! | `interruption` | `kill -9` and full disks: the same command finishes with the same bytes |
//! | `demo` | the demo, killed while it draws |
//! | `changed_settings` | folders of other experiments, `--update`, folders that are not ours |
//! | `bad_slides` | damaged files and slides without scale or tissue; the real slides |
//! | `labels` | what can be wrong with a csv, given splits, groups |
//! | `configuration` | mistakes in configurations and on the command line; `config`, `inspect`, `doctor` |
//! | `duplicates` | copies among slides and images, leaks across splits |
//! | `images` | image folders instead of slides |
//! | `encoders` | encoders that somebody else trained |
//! | `probes` | linear probes and robustness benchmarks of image folders |
//! | `first_stage` | the autoencoder of latent diffusion |
//! | `generation` | Gen-SIS: diffusion, bank, Gen-DINO, samples |
//! | `annotations` | regions that people draw, label masks |
//! | `export` | files for other tools, and their coordinates taken back |
//! | `packing` | patches packed for training |
//! | `own_images` | videos, retrieval and copy detection |
//! | `stain` | stain normalisation of slides and images |
//! | `features` | cohorts that are nothing but features |
//! | `slide_level` | bad input of slide-level evaluation |
//! | `heatmaps` | attention of the slide-level heads |
//! | `tables` | tables over several runs |
//! | `ready_configurations` | PANDA and BRIGHT in their own formats |
//! | `browser` | the report in a browser |

#![allow(clippy::unwrap_used)]

mod annotations;
mod bad_slides;
mod browser;
mod changed_settings;
mod cohort;
mod configuration;
mod demo;
mod duplicates;
mod encoders;
mod export;
mod features;
mod first_stage;
mod folder;
mod generation;
mod heatmaps;
mod images;
mod interruption;
mod labels;
mod own_images;
mod packing;
mod probes;
mod program;
mod ready_configurations;
mod slide_level;
mod stain;
mod tables;
mod whole_run;
