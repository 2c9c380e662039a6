//! The program from the outside: real commands on small drawn cohorts, judged by exit code, standard error and files.
//!
//! | file | what it holds |
//! |---|---|
//! | `program` | running, killing and limiting the program |
//! | `cohort` | the slides, their csv and the experiment, drawn in a second |
//! | `folder` | the files of a run folder, to compare |
//! | `whole_run` | one experiment from slides to report; the same bytes whatever the threads |
//! | `interruption` | `kill -9` and full disks: the same command finishes with the same bytes |
//! | `changed_settings` | folders of other experiments, `--update`, folders that are not ours |
//! | `bad_slides` | damaged files and slides without scale or tissue; the real slides |
//! | `labels` | what can be wrong with a csv, given splits, groups |
//! | `configuration` | mistakes in configurations and on the command line; `config`, `inspect`, `doctor` |
//! | `duplicates` | copies among slides and images, leaks across splits |
//! | `images` | image folders instead of slides |
//! | `first_stage` | the autoencoder of latent diffusion |
//! | `generation` | Gen-SIS: diffusion, bank, Gen-DINO, samples |
//! | `annotations` | regions that people draw, label masks |
//! | `packing` | patches packed for training |
//! | `own_images` | videos, retrieval and copy detection |
//! | `stain` | stain normalisation of slides and images |

#![allow(clippy::unwrap_used)]

mod annotations;
mod bad_slides;
mod changed_settings;
mod cohort;
mod configuration;
mod duplicates;
mod first_stage;
mod folder;
mod generation;
mod images;
mod interruption;
mod labels;
mod own_images;
mod packing;
mod program;
mod stain;
mod whole_run;
