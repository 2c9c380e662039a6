//! `gensis inspect`: what is in a slide, or in each slide of a folder.

use std::collections::BTreeMap;
use std::io::Cursor;

use anyhow::{Context, Result, ensure};
use image::ImageFormat;
use rayon::prelude::*;
use serde::Serialize;
use slide_io::{Level, Mpp, PLAUSIBLE_MPP, Slide, TissueMask, TissueParams, atomic_file};
use std::path::Path;

use super::Outcome;
use super::guarded;
use super::output::say_line;
use super::sources::cohort;
use crate::cli::InspectArgs;
use crate::config::Data;

/// What is said about one slide.
#[derive(Debug, Serialize)]
struct Inspection {
    file: String,
    format: Option<String>,
    levels: Vec<Level>,
    /// µm/px of level 0: given, or from the file.
    mpp: Option<f64>,
    magnification: Option<f64>,
    /// Share of the slide that is tissue, and why it is none.
    tissue_share: Option<f64>,
    no_tissue: Option<String>,
    /// Names only; the label image is never shown, since it may name a patient.
    associated_images: Vec<String>,
    /// The vendor's, where they are asked for.
    properties: BTreeMap<String, String>,
    error: Option<String>,
}

pub(super) fn inspect(args: &InspectArgs) -> Result<Outcome> {
    let single = Path::new(&args.path).is_file();
    let mpp = args.mpp.map(Mpp);
    let plausible = args.mpp.is_none_or(|mpp| PLAUSIBLE_MPP.contains(&mpp));
    ensure!(plausible, "--mpp must be {} to {} µm/px, as slides have", PLAUSIBLE_MPP.start(), PLAUSIBLE_MPP.end());
    ensure!(single || (args.image.is_none() && !args.properties), "--image and --properties are for a single slide");
    if let (Some(name), Some(to)) = (&args.image, &args.save) {
        save(Path::new(&args.path), name, to)?;
        return Ok(Outcome::of(0));
    }
    let files: Vec<_> = if single {
        vec![args.path.clone().into()]
    } else {
        cohort(&Data { slides: args.path.clone(), ..Data::default() })?
            .slides
            .into_iter()
            .map(|slide| slide.path)
            .collect()
    };
    let slides: Vec<Inspection> = files.par_iter().map(|file| look(file, mpp, args.properties)).collect();
    if args.json {
        say_line!("{}", serde_json::to_string_pretty(&slides)?)?;
    } else if single {
        slides.iter().try_for_each(print_whole)?;
    } else {
        print_table(&slides)?;
    }
    Ok(Outcome::of(slides.iter().filter(|slide| slide.error.is_some()).count()))
}

/// Writes an associated image, in the format of the file's extension.
fn save(slide: &Path, name: &str, to: &Path) -> Result<()> {
    ensure!(!to.exists(), "{} is there already", to.display());
    let format = ImageFormat::from_path(to).ok();
    let format = format.filter(|format| [ImageFormat::Png, ImageFormat::Jpeg].contains(format));
    let format = format.with_context(|| format!("{}: give it the ending .png or .jpg", to.display()))?;
    let mut bytes = Cursor::new(Vec::new());
    Slide::open(slide)?.read_associated(name)?.write_to(&mut bytes, format)?;
    Ok(atomic_file::write(to, bytes.get_ref())?)
}

fn look(file: &Path, given: Option<Mpp>, properties: bool) -> Inspection {
    let mut seen = Inspection {
        file: file.display().to_string(),
        format: None,
        levels: vec![],
        mpp: None,
        magnification: None,
        tissue_share: None,
        no_tissue: None,
        associated_images: vec![],
        properties: BTreeMap::new(),
        error: None,
    };
    if let Err(error) = guarded(|| fill(&mut seen, file, given, properties)) {
        seen.error = Some(error);
    }
    seen
}

fn fill(seen: &mut Inspection, file: &Path, given: Option<Mpp>, properties: bool) -> slide_io::Result<()> {
    let slide = Slide::open(file)?;
    seen.format = Some(slide.format());
    seen.levels = slide.levels().to_vec();
    seen.magnification = slide.magnification();
    seen.associated_images = slide.associated_names();
    if properties {
        seen.properties = slide.properties().clone();
    }
    let mpp = given.or(slide.mpp());
    seen.mpp = mpp.map(|mpp| mpp.0);
    // Without a scale the share is still worth knowing; a usual 20x scale decides only how fine the mask is.
    let mask = TissueMask::compute(&slide, mpp.unwrap_or(Mpp(0.5)), &TissueParams::default())?;
    seen.tissue_share = Some(mask.share());
    seen.no_tissue = mask.empty_reason().map(|reason| reason.to_string());
    Ok(())
}

fn print_whole(slide: &Inspection) -> Result<()> {
    say_line!("{}", slide.file)?;
    if let Some(format) = &slide.format {
        say_line!("  format         {format}")?;
    }
    match slide.mpp {
        Some(mpp) => say_line!("  scale          {mpp:.4} µm/px")?,
        None if slide.format.is_some() => {
            say_line!("  scale          unknown; give it with --mpp or in the labels csv")?
        }
        None => {}
    }
    if let Some(magnification) = slide.magnification {
        say_line!("  magnification  {magnification}x (nominal)")?;
    }
    for (index, level) in slide.levels.iter().enumerate() {
        say_line!(
            "  level {index}        {} x {} px, downsample {:.4}",
            level.size.width,
            level.size.height,
            level.downsample
        )?;
    }
    if let Some(share) = slide.tissue_share {
        let reason = slide.no_tissue.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
        say_line!("  tissue         {:.1} %{reason}", 100.0 * share)?;
    }
    if !slide.associated_images.is_empty() {
        say_line!("  also holds     {}", slide.associated_images.join(", "))?;
    }
    for (name, value) in &slide.properties {
        say_line!("  {name}: {}", value.trim().replace(['\r', '\n'], " "))?;
    }
    if let Some(error) = &slide.error {
        say_line!("  error          {error}")?;
    }
    Ok(())
}

fn print_table(slides: &[Inspection]) -> Result<()> {
    let name = |slide: &Inspection| {
        Path::new(&slide.file).file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
    };
    let width = slides.iter().map(|slide| name(slide).chars().count()).max().unwrap_or(0).max(5);
    say_line!("{:width$}  {:>15}  {:>6}  {:>9}  {:>7}  format", "slide", "level 0, px", "levels", "µm/px", "tissue")?;
    for slide in slides {
        let size =
            slide.levels.first().map_or("-".into(), |level| format!("{}x{}", level.size.width, level.size.height));
        let mpp = slide.mpp.map_or("unknown".into(), |mpp| format!("{mpp:.4}"));
        let tissue = slide.tissue_share.map_or("-".into(), |share| format!("{:.1} %", 100.0 * share));
        let last = match (&slide.error, &slide.format) {
            (Some(error), _) => format!("error: {error}"),
            (None, format) => format.clone().unwrap_or_default(),
        };
        say_line!("{:width$}  {size:>15}  {:>6}  {mpp:>9}  {tissue:>7}  {last}", name(slide), slide.levels.len())?;
    }
    Ok(())
}
