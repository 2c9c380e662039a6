//! `gensis evaluate copies`: which original a strongly altered copy was made of, by [CLS] and the generalised mean of the
//! encoder's patch tokens. On Copydays, or on copies that are made here of any images.

use std::borrow::Cow;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use evaluation::copies::{Whitening, average_precisions, generalised_mean};
use evaluation::table::ResultRow;
use image::RgbImage;
use slide_io::{ImageFolder, PatchSource};

use super::features::{self, Features};
use super::own_images::{Found, Judged, Place, name_of, row};
use super::retrieval::figure;
use crate::commands::Run;
use crate::config::Copies;
use crate::data::attack::Attack;
use crate::data::crop::{Rect, crop_and_resize};
use crate::data::normalize::Normalize;
use crate::device;
use crate::model::Encoder;
use crate::model::random::keyed;
use crate::run_dir::Failure;

/// Characters of a file name that a copy shares with its original in Copydays.
const SHARED: usize = 4;

/// Scores an encoder on the copies in a place, or on copies made of its images.
pub(super) fn copies(run: &Run, judged: &Judged, place: &Place, found: &mut Found) -> Result<()> {
    let before = found.rows.len();
    if place.own.is_none() && place.folder.join("original").is_dir() {
        copydays(run, judged, place, found)?;
    } else {
        attacked(run, judged, place, found)?;
    }
    ensure!(found.rows.len() > before, "there is no copy to find in {}", place.folder.display());
    Ok(())
}

/// The folders of Copydays: a copy's original is the one whose name begins as its own.
fn copydays(run: &Run, judged: &Judged, place: &Place, found: &mut Found) -> Result<()> {
    let originals = ImageFolder::open(place.folder.join("original"))?;
    let database = Database::of(run, judged, &originals, &originals, found)?;
    let start = |images: &ImageFolder, index: usize| -> String {
        let item = images.key(index).item;
        let name = item.rsplit('/').next().unwrap_or_default().to_owned();
        name.chars().take(SHARED).collect()
    };
    let sets = &run.experiment.evaluate.copies.sets;
    if let Some(set) = sets.iter().find(|set| !place.folder.join(set).is_dir()) {
        bail!("evaluate.copies.sets: there is no folder {}", place.folder.join(set).display());
    }
    for set in sets {
        let copies = ImageFolder::open(place.folder.join(set))?;
        let queries = embedded(run, judged, &copies, &copies, found)?;
        let kept = &database.originals.kept;
        let right = |query: &usize| -> Vec<usize> {
            let name = start(&copies, *query);
            (0..kept.len()).filter(|place| start(&originals, kept[*place]) == name).collect()
        };
        let right: Vec<Vec<usize>> = queries.kept.iter().map(right).collect();
        let lost = queries.kept.iter().zip(&right).filter(|(_, right)| right.is_empty());
        found.failures.extend(lost.map(|(&query, _)| Failure {
            stage: "copies".into(),
            item: format!("{}, {set}/{}", judged.name, copies.key(query).item),
            reason: format!("no readable original begins with {}: it is no query", start(&copies, query)),
        }));
        let data = format!("{}/{set}", place.name);
        found.rows.extend(database.scores(run, judged, &data, queries.values, &right)?);
    }
    Ok(())
}

/// Copies made of the images themselves, one of every kind of attack; `<data>:<attack>` in tables, since they are not those
/// of a public data set.
fn attacked(run: &Run, judged: &Judged, place: &Place, found: &mut Found) -> Result<()> {
    let (images, source) = place.images(run)?;
    let database = Database::of(run, judged, &images, &*source, found)?;
    let settings = &run.experiment.evaluate.copies;
    for attack in Attack::ALL {
        let queries = features::of(run, "copies", images.len(), |index| {
            let mut rng = keyed(run.experiment.seed, attack.name(), &[index as u64]);
            let copy = attack.apply(source.read(index)?.image, &mut rng)?;
            descriptor(&judged.encoder, copy, settings)
        })?;
        // An image that cannot be read has failed as an original already; one that cannot be attacked is told here.
        let origin = |index: usize| database.originals.kept.binary_search(&index).ok();
        found.failures.extend(queries.failures("copies", |index| {
            origin(index).map(|_| format!("{}, {} of {}", judged.name, attack.name(), images.key(index).item))
        }));
        let right: Vec<Vec<usize>> = queries.kept.iter().map(|&query| origin(query).into_iter().collect()).collect();
        let data = format!("{}:{}", place.name, attack.name());
        found.rows.extend(database.scores(run, judged, &data, queries.values, &right)?);
    }
    Ok(())
}

/// What copies are looked for in.
struct Database {
    originals: Features,
    /// Other images, with their name in tables.
    distractors: Option<(String, Features)>,
    whitening: Option<Whitening>,
}

impl Database {
    /// Of the images of a folder as `source` shows them.
    fn of(
        run: &Run,
        judged: &Judged,
        originals: &ImageFolder,
        source: &dyn PatchSource,
        found: &mut Found,
    ) -> Result<Self> {
        let settings = &run.experiment.evaluate.copies;
        let mut more = |folder: &Path| -> Result<Option<Features>> {
            if folder.as_os_str().is_empty() {
                return Ok(None);
            }
            let images = ImageFolder::open(folder)?;
            embedded(run, judged, &images, &images, found).map(Some)
        };
        let distractors = more(&settings.distractors)?;
        let learnt_from = more(&settings.whitening)?;
        let dim = 2 * judged.encoder.config.model.dim;
        let mut whitening = None;
        match learnt_from.map(|features| Whitening::learn(&features.values, dim)) {
            Some(Ok(learnt)) => whitening = Some(learnt),
            // Without whitening it can be scored all the same.
            Some(Err(error)) => found.failures.push(Failure {
                stage: "copies".into(),
                item: format!("{}, whitening", judged.name),
                reason: error.to_string(),
            }),
            None => {}
        }
        Ok(Self {
            originals: embedded(run, judged, originals, source, found)?,
            distractors: distractors.map(|features| (name_of(&settings.distractors), features)),
            whitening,
        })
    }

    /// Without distractors and whitening first, then with what there is of both.
    fn scores(
        &self,
        run: &Run,
        judged: &Judged,
        data: &str,
        queries: Vec<f32>,
        right: &[Vec<usize>],
    ) -> Result<Vec<ResultRow>> {
        let dim = 2 * judged.encoder.config.model.dim;
        let device = device::open(run.device)?;
        let plain = &self.originals.values;
        let mut databases = vec![(data.to_owned(), Cow::Borrowed(&plain[..]))];
        if let Some((name, distractors)) = &self.distractors {
            databases.push((format!("{data}+{name}"), [&plain[..], &distractors.values].concat().into()));
        }
        let mut rows = Vec::new();
        for (data, database) in databases {
            let mut heads = vec![("cls_gem", Cow::Borrowed(&queries[..]), database.clone())];
            if let Some(whitening) = &self.whitening {
                let whitened = |rows: &[f32]| Cow::Owned(whitening.apply(rows));
                heads.push(("cls_gem_whitened", whitened(&queries), whitened(&database)));
            }
            for (head, queries, database) in heads {
                let found = average_precisions(&queries, &database, dim, right, &device)?;
                let precisions: Vec<f64> = found.into_iter().flatten().collect();
                let base = row("copy_detection", data.clone(), &judged.name, head, precisions.len());
                rows.extend(figure(run, &base, "map", precisions)?);
            }
        }
        Ok(rows)
    }
}

fn embedded(
    run: &Run,
    judged: &Judged,
    images: &ImageFolder,
    source: &dyn PatchSource,
    found: &mut Found,
) -> Result<Features> {
    let settings = &run.experiment.evaluate.copies;
    let features = features::of(run, "copies", images.len(), |index| {
        descriptor(&judged.encoder, source.read(index)?.image, settings)
    })?;
    let path = |index: usize| images.root().join(images.key(index).item);
    let item = |index: usize| Some(format!("{}, {}", judged.name, path(index).display()));
    found.failures.extend(features.failures("copies", item));
    ensure!(
        !features.values.is_empty(),
        "no image of {} can be read: {}",
        images.root().display(),
        features.first_reason()
    );
    Ok(features)
}

/// [CLS] and the generalised mean of the patch tokens of an image resized to a square (Pillow's bicubic): `[2 * dim]`.
fn descriptor(encoder: &Encoder, image: RgbImage, settings: &Copies) -> Result<Vec<f32>> {
    let side = settings.image_size;
    let whole = Rect { x: 0, y: 0, width: image.width(), height: image.height() };
    let square = if image.dimensions() == (side, side) { image } else { crop_and_resize(&image, whole, (side, side))? };
    let pixels = Normalize::new(encoder.config.mean, encoder.config.std).images(&[&square]);
    let mut tokens = encoder.tokens(pixels, side as usize, side as usize)?;
    tokens.cls.extend(generalised_mean(&tokens.patches, encoder.config.model.dim, settings.gem_power));
    Ok(tokens.cls)
}
