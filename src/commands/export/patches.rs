//! The patches themselves as image files, one folder a slide, with a table of where each was cut.

use std::io::Cursor;
use std::sync::Mutex;

use anyhow::Result;
use rayon::iter::{ParallelBridge, ParallelIterator};
use serde_json::json;
use slide_io::jpeg::{self, ColorModel};
use slide_io::{PatchSource, RgbImage, SlidePatches, SlideRecord, atomic_file};

use super::{Folder, label, open};
use crate::cli::{ExportPatchesArgs, ImageFormat};
use crate::commands::Outcome;
use crate::commands::progress::Progress;
use crate::commands::sources::{coordinates_header, slide_patches};

/// Writes every patch to `<slide>/<x>_<y>.<extension>`, `patches.csv`, and `failures.csv` of those that cannot be read. They are the patches as cut: stain normalisation and
/// augmentation are of the stages that use them.
pub(super) fn patches(args: &ExportPatchesArgs) -> Result<Outcome> {
    let (run, cohort, slides) = open(&args.run, args.threads, &args.slides)?;
    let slides: Vec<&SlideRecord> = slides.iter().collect();
    let patches = slide_patches(&run, &slides, &cohort.classes)?;
    let headers: Vec<_> = slides.iter().map(|slide| json!([slide.id, coordinates_header(&run, slide)])).collect();
    let (format, quality) = (args.format.extension(), args.quality);
    let header = json!({ "export": "patches", "format": format, "quality": quality, "slides": headers });
    let folder = Folder::open(&args.out, &header)?;

    let progress = Progress::new("export", patches.len() as u64, "patches");
    let mut table = vec![["file", "slide_id", "x", "y", "label"].map(str::to_owned).to_vec()];
    let mut failures = vec![["file", "slide_id", "x", "y", "reason"].map(str::to_owned).to_vec()];
    for (number, grid) in patches.slides().iter().enumerate() {
        let name = |index| patch_name(&patches, index, format);
        let missing: Vec<usize> = match patches.reading_order(number) {
            Ok(order) => order.into_iter().filter(|&index| !folder.file(&name(index)).exists()).collect(),
            // A slide that does not open gives its reason with every patch.
            Err(_) => patches.range(number).filter(|&index| !folder.file(&name(index)).exists()).collect(),
        };
        progress.advance((patches.range(number).len() - missing.len()) as u64);
        let failed: Mutex<Vec<(usize, String)>> = Mutex::default();
        missing.into_iter().par_bridge().try_for_each(|index| -> Result<()> {
            match patches.read(index) {
                Ok(patch) => {
                    atomic_file::write(&folder.file(&name(index)), &encode(&patch.image, args.format, quality)?)?
                }
                Err(error) => {
                    progress.line(&format!("export: {error}"));
                    let mut failed = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    failed.push((index, error.to_string()));
                }
            }
            progress.advance(1);
            Ok(())
        })?;
        let row = |index: usize, more: String| {
            let origin = grid.origins[index - patches.range(number).start];
            vec![name(index), grid.id.clone(), origin.x.to_string(), origin.y.to_string(), more]
        };
        let mut failed = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        failed.sort();
        failures.extend(failed.into_iter().map(|(index, reason)| row(index, reason)));
        let label = slides.iter().find(|slide| slide.id == grid.id).map_or(String::new(), |slide| label(slide));
        let there = patches.range(number).filter(|&index| folder.file(&name(index)).exists());
        table.extend(there.map(|index| row(index, label.clone())));
    }
    folder.write_table("patches.csv", &table)?;
    folder.write_table("failures.csv", &failures)?;
    let unreadable = failures.len() - 1;
    progress.finish(&format!("{} patches in {}, {unreadable} unreadable", table.len() - 1, args.out.display()));
    Ok(Outcome::of(unreadable))
}

/// A patch's file in the folder, by its corner in level-0 pixels.
fn patch_name(patches: &SlidePatches, index: usize, extension: &str) -> String {
    let key = patches.key(index);
    let corner = key.origin.map_or(String::new(), |origin| format!("{}_{}", origin.x, origin.y));
    format!("{}/{corner}.{extension}", key.item)
}

fn encode(image: &RgbImage, format: ImageFormat, quality: u8) -> Result<Vec<u8>> {
    Ok(match format {
        ImageFormat::Jpeg => jpeg::encode(image, quality, ColorModel::YCbCr)?,
        ImageFormat::Png => {
            let mut bytes = Cursor::new(Vec::new());
            image.write_to(&mut bytes, image::ImageFormat::Png)?;
            bytes.into_inner()
        }
    })
}
