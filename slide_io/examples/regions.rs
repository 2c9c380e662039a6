//! Tissue as GeoJSON for QuPath, and what a user makes of it as a mask again:
//!
//! ```text
//! cargo run --release -p slide_io --example regions -- slide.svs tissue.geojson          writes the tissue found
//! cargo run --release -p slide_io --example regions -- slide.svs tissue.geojson edited   says what is inside now
//! ```

use std::path::PathBuf;

use slide_io::regions::{Regions, read_mask};
use slide_io::{Error, Result, Slide, TissueMask, TissueParams};

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [slide, regions, edited @ ..] = arguments.as_slice() else {
        return Err(Error::Usage("give a slide and a GeoJSON file".to_owned()));
    };
    let slide = Slide::open(slide)?;
    let mpp = slide.mpp().ok_or_else(|| Error::NoScale { path: slide.path().to_owned() })?;
    let tissue = TissueMask::compute(&slide, mpp, &TissueParams::default())?;
    if edited.is_empty() {
        let found = Regions::trace(&tissue);
        println!("{} pieces of tissue, {:.1} % of the slide", found.annotations.len(), 100.0 * tissue.share());
        return found.write(regions);
    }
    let inside = read_mask(regions, &tissue, slide.size())?.mask;
    let both = inside.data().iter().zip(tissue.data()).filter(|(inside, tissue)| **inside && **tissue).count();
    let share = both as f64 / inside.data().len() as f64;
    println!("{:.1} % of the slide is inside, {:.1} % inside and tissue", 100.0 * inside.share(), 100.0 * share);
    Ok(())
}
