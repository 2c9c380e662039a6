//! The folders of CLAM: coordinates, features as HDF5 and as PyTorch tensors, the csv of labels and the splits.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use slide_io::{SlideRecord, h5, torch};

use super::{Folder, label, open};
use crate::cli::ExportClamArgs;
use crate::commands::encoders::foreign_encoders;
use crate::commands::evaluate::{Subject, among, folds, subjects};
use crate::commands::progress::Progress;
use crate::commands::sources::{coordinates_header, coordinates_path, features_header, features_path};
use crate::commands::{Outcome, Run};

/// Writes `patches/`, `h5_files/`, `pt_files/`, `dataset.csv` and `splits/` for the slides of a run.
pub(super) fn clam(args: &ExportClamArgs) -> Result<Outcome> {
    let (run, cohort, slides) = open(&args.run, args.threads, &args.slides)?;
    // What other settings made is not exported as this run's.
    let cut = |slide: &&SlideRecord| {
        h5::is_current(&coordinates_path(&run, &slide.id), &coordinates_header(&run, slide)).unwrap_or(false)
    };
    let tiled: Vec<&SlideRecord> = slides.iter().filter(cut).collect();
    ensure!(
        !tiled.is_empty(),
        "no slide of {} has coordinates of these settings: run `gensis tile`",
        args.run.display()
    );
    // What the headers of features by [[encoders]] say of their weights.
    if run.experiment.encoders.iter().any(|encoder| encoder.name() == args.encoder) {
        foreign_encoders(&run)?;
    }
    let hash = hash_of(&run, &args.encoder)?;
    let with_features = |slide: &&SlideRecord| {
        let path = features_path(&run, &args.encoder, &slide.id);
        hash.as_ref().is_some_and(|hash| h5::is_current(&path, &features_header(&run, hash, slide)).unwrap_or(false))
    };
    let embedded: Vec<&SlideRecord> = tiled.iter().copied().filter(with_features).collect();
    if embedded.is_empty() {
        eprintln!("export: no slide has features of {}, so there are only coordinates", args.encoder);
    }
    let headers: Vec<_> = tiled
        .iter()
        .map(|slide| {
            let features = h5::read_header(&features_path(&run, &args.encoder, &slide.id)).ok().flatten();
            json!([slide.id, label(slide), slide.group, slide.split, coordinates_header(&run, slide), features])
        })
        .collect();
    let folder = Folder::open(&args.out, &json!({ "export": "clam", "encoder": args.encoder, "slides": headers }))?;

    let progress = Progress::new("export", tiled.len() as u64, "slides");
    for slide in &tiled {
        write_coordinates(&run, slide, &folder)
            .with_context(|| format!("cannot export the coordinates of {}", slide.id))?;
        if with_features(slide) {
            write_features(&run, slide, &args.encoder, &folder)
                .with_context(|| format!("cannot export the features of {}", slide.id))?;
        }
        progress.advance(1);
    }
    let known = tiled.iter().filter(|slide| slide.label.is_some()).count();
    let labelled: Vec<&SlideRecord> = embedded.iter().copied().filter(|slide| slide.label.is_some()).collect();
    let all: Vec<&SlideRecord> = cohort.slides.iter().filter(|slide| slide.label.is_some()).collect();
    let splits = write_tables(&run, &all, &labelled, &folder)?;
    progress.finish(&format!(
        "{} slides, {} with features, {known} labelled, {splits} split(s), in {}",
        tiled.len(),
        embedded.len(),
        args.out.display()
    ));
    Ok(Outcome::Done)
}

/// The hash by which `embed` knows an encoder; none where nothing was embedded.
///
/// # Errors
/// Another encoder than those that were embedded.
fn hash_of(run: &Run, encoder: &str) -> Result<Option<String>> {
    let Some(record) = run.dir.record("embed") else { return Ok(None) };
    let Some(hashes) = record.summary["hashes"].as_object() else { return Ok(None) };
    let names: Vec<&str> = hashes.keys().map(String::as_str).collect();
    let hash = hashes.get(encoder).and_then(|hash| hash.as_str());
    let hash = hash.with_context(|| format!("--encoder {encoder}: there are features of {}", names.join(", ")))?;
    Ok(Some(hash.to_owned()))
}

/// `patches/<slide>.h5`. CLAM reads squares of `patch_size` pixels of the level `patch_level`: here that is the footprint
/// in pixels of that level, rounded, and not the size at the exact µm/px.
fn write_coordinates(run: &Run, slide: &SlideRecord, folder: &Folder) -> Result<()> {
    let path = folder.file(&format!("patches/{}.h5", slide.id));
    if path.exists() {
        return Ok(());
    }
    let mut coordinates = h5::read_coordinates(&coordinates_path(run, &slide.id))?;
    if let Some(geometry) = &mut coordinates.geometry {
        let downsample = geometry.level_shape.map_or(1.0, |level| level.downsample);
        let scale = geometry.side_level0 / downsample / f64::from(geometry.size);
        geometry.size = (f64::from(geometry.size) * scale).round() as u32;
        geometry.stride = (f64::from(geometry.stride) * scale).round() as u32;
        // Without its magnification no tool takes `patch_size` for pixels of the target scale.
        geometry.mpp = None;
    }
    Ok(h5::write_coordinates(&path, &coordinates, &json!({ "export": "clam" }))?)
}

/// `h5_files/<slide>.h5` with features and coordinates, and `pt_files/<slide>.pt` with the features alone.
fn write_features(run: &Run, slide: &SlideRecord, encoder: &str, folder: &Folder) -> Result<()> {
    let [hdf, tensor] =
        [("h5_files", "h5"), ("pt_files", "pt")].map(|(name, end)| folder.file(&format!("{name}/{}.{end}", slide.id)));
    if hdf.exists() && tensor.exists() {
        return Ok(());
    }
    let mut features = h5::read_features(&features_path(run, encoder, &slide.id))?;
    torch::write_tensor(&tensor, &features.values, features.dim)?;
    features.coordinates.geometry = None;
    Ok(h5::write_features(&hdf, &features, &json!({ "export": "clam" }))?)
}

/// `dataset.csv` of the `labelled` slides that have features, and a `splits/splits_<k>.csv` for every fold on which
/// `gensis evaluate` scores them, dealt over `all` labelled slides as there; returns their number.
fn write_tables(run: &Run, all: &[&SlideRecord], labelled: &[&SlideRecord], folder: &Folder) -> Result<usize> {
    if labelled.is_empty() {
        return Ok(0);
    }
    let row = |slide: &&SlideRecord| {
        vec![slide.group.clone().unwrap_or_else(|| slide.id.clone()), slide.id.clone(), label(slide)]
    };
    let head = ["case_id", "slide_id", "label"].map(str::to_owned).to_vec();
    folder.write_table("dataset.csv", &std::iter::once(head).chain(labelled.iter().map(row)).collect::<Vec<_>>())?;
    let settings = &run.experiment.evaluate.slide;
    let split = || -> Result<_> {
        let [all, subjects] = [all, labelled].map(|slides| subjects(slides, &[], settings.by_patient));
        let (all, subjects) = (all?, subjects?);
        Ok((among(&folds(settings, &all)?.0, &all, &subjects), subjects))
    };
    let (folds, subjects) = match split() {
        Ok(split) => split,
        Err(error) => {
            eprintln!("export: no splits, since the slides cannot be split as evaluate.slide asks: {error:#}");
            return Ok(0);
        }
    };
    for (number, fold) in folds.iter().enumerate() {
        // A patient may stand for several slides.
        let slides_of = |&subject: &usize| {
            let Subject { id, group, .. } = &subjects[subject];
            let own = move |slide: &&&SlideRecord| match settings.by_patient {
                true => slide.group.as_ref().unwrap_or(&slide.id) == group,
                false => slide.id == *id,
            };
            labelled.iter().filter(own).map(|slide| slide.id.clone())
        };
        let parts = [&fold.train, &fold.validation, &fold.test]
            .map(|part| part.iter().flat_map(slides_of).collect::<Vec<String>>());
        let id = |part: &[String], row: usize| part.get(row).cloned().unwrap_or_default();
        let rows = parts.iter().map(|part| part.len()).max().unwrap_or(0);
        let head = ["", "train", "val", "test"].map(str::to_owned).to_vec();
        let body = (0..rows).map(|row| {
            std::iter::once(row.to_string()).chain(parts.iter().map(|part| id(part, row))).collect::<Vec<_>>()
        });
        let table: Vec<Vec<String>> = std::iter::once(head).chain(body).collect();
        folder.write_table(&format!("splits/splits_{number}.csv"), &table)?;
    }
    Ok(folds.len())
}
