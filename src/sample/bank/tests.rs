use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use image::{Rgb, RgbImage};
use rand::RngExt;
use serde_json::json;
use slide_io::jpeg::{self, ColorModel};
use slide_io::{Patch, PatchKey, PatchSource};

use super::*;
use crate::config::{Bank, BankFormat, Interpolation};
use crate::model::random::keyed;
use crate::sample::interpolate::mix_pixels;

const SIDE: u32 = 16;

/// Labelled pictures, each of its own colours.
struct Pictures(usize);

impl PatchSource for Pictures {
    fn len(&self) -> usize {
        self.0
    }
    fn key(&self, index: usize) -> PatchKey {
        PatchKey { item: format!("picture {index}"), origin: None }
    }
    fn label(&self, index: usize) -> Option<u32> {
        Some(index as u32 % 3)
    }
    fn classes(&self) -> &[String] {
        static CLASSES: std::sync::LazyLock<[String; 3]> =
            std::sync::LazyLock::new(|| ["a", "b", "c"].map(String::from));
        &*CLASSES
    }
    fn read(&self, index: usize) -> slide_io::Result<Patch> {
        let shade = |v: u32| (v % 32 * 8) as u8;
        let pixel = |x: u32, y: u32| Rgb([shade(x + index as u32), shade(y * 2 + index as u32), (index * 9) as u8]);
        Ok(Patch { key: self.key(index), image: RgbImage::from_fn(SIDE, SIDE, pixel), label: self.label(index) })
    }
}

/// Flips and shifts the colours of the real image by the noise of the request, and mixes in the secondary one.
struct Shifts {
    source: Arc<dyn PatchSource>,
    made: AtomicUsize,
    /// Images after which it breaks.
    breaks_after: usize,
    /// Whether it makes latents.
    in_latents: bool,
}

fn pictures(count: usize) -> Arc<dyn PatchSource> {
    Arc::new(Pictures(count))
}

impl Shifts {
    fn new(source: &Arc<dyn PatchSource>) -> Self {
        Self { source: source.clone(), made: AtomicUsize::new(0), breaks_after: usize::MAX, in_latents: false }
    }

    fn image(&self, request: &Request) -> Result<RgbImage> {
        ensure!(self.made.fetch_add(1, Ordering::Relaxed) < self.breaks_after, "the power went");
        let mut rng = keyed(request.seed, "shift", &[]);
        let first = self.source.read(request.source)?.image;
        let mut image = match request.secondary {
            Some(other) => mix_pixels(&first, &self.source.read(other)?.image, f64::from(request.alpha))?,
            None => first,
        };
        if rng.random::<bool>() {
            image::imageops::flip_horizontal_in_place(&mut image);
        }
        let shift = rng.random_range(0..24u8);
        image.iter_mut().for_each(|byte| *byte = byte.saturating_add(shift));
        Ok(image)
    }
}

impl Generator for Shifts {
    fn generate(&self, requests: &[Request]) -> Result<Vec<Picture>> {
        let picture = |image: RgbImage| match self.in_latents {
            true => Picture::Latent(pooled(&image)),
            false => Picture::Image(image),
        };
        requests.iter().map(|request| Ok(picture(self.image(request)?))).collect()
    }

    fn decode(&self, latents: &[Latent]) -> Result<Vec<RgbImage>> {
        latents.iter().map(|latent| Unpool.decode(latent)).collect()
    }
}

/// Means of 2 x 2 pixels in ±1: an autoencoder without parameters.
fn pooled(image: &RgbImage) -> Latent {
    let half = SIDE as usize / 2;
    let mean = |channel: usize, x: u32, y: u32| {
        let pixel = |i: u32| f32::from(image.get_pixel(2 * x + i % 2, 2 * y + i / 2).0[channel]);
        (0..4).map(pixel).sum::<f32>() / 4.0 / 127.5 - 1.0
    };
    let at = |i: usize| mean(i / (half * half), (i % half) as u32, (i / half % half) as u32);
    Latent { shape: [3, half, half], values: (0..3 * half * half).map(at).collect() }
}

struct Unpool;

impl Decoder for Unpool {
    fn decode(&self, latent: &Latent) -> Result<RgbImage> {
        let [channels, height, width] = latent.shape;
        ensure!(channels == 3, "{channels} channels");
        let value = |c: usize, x: u32, y: u32| {
            let value = latent.values[(c * height + y as usize / 2) * width + x as usize / 2];
            ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
        };
        let pixel = |x, y| Rgb([0, 1, 2].map(|c| value(c, x, y)));
        Ok(RgbImage::from_fn(2 * width as u32, 2 * height as u32, pixel))
    }
}

fn settings() -> Bank {
    Bank { shard: 5, generative: 2, interpolated: 1, alpha: [0.3, 0.7], format: BankFormat::Png, ..Bank::default() }
}

fn origin(images: usize) -> Origin {
    Origin {
        data: json!("pictures"),
        images,
        without: vec![],
        encoder: "e1".into(),
        autoencoder: "a1".into(),
        diffusion: "d1".into(),
        sampler: json!({ "steps": 50, "guidance": 2.1 }),
        size: [SIDE, SIDE],
    }
}

fn header(images: usize) -> Header {
    Header::new(&settings(), origin(images), Interpolation::Slerp, 7).unwrap()
}

fn make(folder: &Path, header: &Header, generator: &Shifts, part: &str, batch: usize) -> Result<Made> {
    Work::new(folder, header, part.parse().unwrap())?.run(generator, batch, |_| ())
}

/// Name and bytes of every file.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    files.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn secondary_images_are_drawn_evenly_from_the_others() {
    let without = [3, 8];
    let mut seen = [0usize; 10];
    for k in 0..7000 {
        let (other, alpha) = partner(1, 4, k, 10, &without, [0.3, 0.7]);
        seen[other] += 1;
        assert!((0.3..0.7).contains(&alpha));
    }
    assert_eq!((seen[4], seen[3], seen[8]), (0, 0, 0));
    // Expected 1000 each, standard deviation 29.
    assert!(seen.iter().filter(|&&count| (880..1120).contains(&count)).count() == 7, "{seen:?}");
    // Pinned: a change here changes every bank.
    assert_eq!(partner(0, 12, 0, 1000, &[], [0.5, 0.5]), (55, 0.5));
}

#[test]
fn requests_are_those_of_the_image_whatever_the_shard() {
    let (small, large) = (header(23), Header { shard: 100, ..header(23) });
    let all: Vec<Request> = (0..small.shards()).flat_map(|shard| small.shard_requests(shard)).collect();
    assert_eq!((small.shards(), large.shards(), all.len()), (5, 1, 23 * 3));
    assert_eq!(all, large.shard_requests(0));
    let seeds: HashSet<u64> = all.iter().map(|request| request.seed).collect();
    assert_eq!(seeds.len(), all.len(), "every image has noise of its own");
    assert_eq!(
        all[3..6].iter().map(|r| (r.source, r.kind, r.k)).collect::<Vec<_>>(),
        [(1, Kind::Generative, 0), (1, Kind::Generative, 1), (1, Kind::Interpolated, 0)]
    );
    assert!(
        all.iter().all(|r| r.secondary.is_some() == (r.kind == Kind::Interpolated) && r.secondary != Some(r.source))
    );
    let other_seed = Header { seed: 8, ..small };
    assert_ne!(other_seed.requests(3), large.requests(3));
}

#[test]
fn parts_are_disjoint_and_merge_to_the_bank_made_at_once() {
    let (header, source) = (header(23), pictures(23));
    let (whole, merged) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let made = make(whole.path(), &header, &Shifts::new(&source), "1/1", 4).unwrap();
    assert_eq!(made.images, 69);
    let mut count = 0;
    for part in ["1/2", "2/2"] {
        // Two machines with folders of their own.
        let folder = tempfile::tempdir().unwrap();
        count += make(folder.path(), &header, &Shifts::new(&source), part, 7).unwrap().images;
        for (name, bytes) in files(folder.path()) {
            let to = merged.path().join(name);
            assert!(!to.exists(), "{} is in both parts", to.display());
            std::fs::write(to, bytes).unwrap();
        }
    }
    assert_eq!((count, files(whole.path()).len()), (69, 10));
    assert!(files(merged.path()) == files(whole.path()));
    let work = Work::new(merged.path(), &header, Part::WHOLE).unwrap();
    assert_eq!((work.done, work.images), (69, 69));
    assert!(["0/2", "3/2", "2", "a/b", "1/0"].iter().all(|text| text.parse::<Part>().is_err()));
}

#[test]
fn a_killed_run_continues_at_the_shard_it_was_in() {
    let (header, source) = (header(23), pictures(23));
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(whole.path(), &header, &Shifts::new(&source), "1/1", 4).unwrap();
    // 15 images a shard: it breaks in the third.
    let first = Shifts { breaks_after: 37, ..Shifts::new(&source) };
    let error = make(killed.path(), &header, &first, "1/1", 4).unwrap_err();
    assert_eq!(error.to_string(), "the power went");
    let left: Vec<String> = files(killed.path()).into_keys().collect();
    assert_eq!(left, ["00000.json", "00000.tar", "00001.json", "00001.tar"]);
    // As a kill leaves it: a tar without its index, and half of another.
    std::fs::write(killed.path().join("00002.tar"), b"half").unwrap();
    let work = Work::new(killed.path(), &header, Part::WHOLE).unwrap();
    assert_eq!((work.done, work.images), (30, 69));
    let second = Shifts::new(&source);
    work.run(&second, 4, |_| ()).unwrap();
    assert_eq!(second.made.load(Ordering::Relaxed), 39, "finished shards are not made again");
    assert!(files(killed.path()) == files(whole.path()));
}

#[test]
fn a_bank_of_another_encoder_data_set_or_setting_is_refused_with_both_values() {
    let (ours, source) = (header(12), pictures(12));
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), &ours, &Shifts::new(&source), "1/1", 8).unwrap();
    let before = files(folder.path());
    let of = |change: &dyn Fn(&mut Header)| {
        let mut other = ours.clone();
        change(&mut other);
        let opened = SyntheticBank::open(folder.path(), &other, source.clone(), None).err().unwrap().to_string();
        let made = make(folder.path(), &other, &Shifts::new(&source), "1/1", 8).unwrap_err().to_string();
        assert_eq!(opened, made);
        opened
    };
    for (message, parts) in [
        (of(&|h| h.encoder = "e2".into()), ["encoder = \"e1\"", "has \"e2\""]),
        (of(&|h| h.data = json!("other pictures")), ["data = \"pictures\"", "has \"other pictures\""]),
        (of(&|h| h.diffusion = "d2".into()), ["diffusion = \"d1\"", "has \"d2\""]),
        (of(&|h| h.alpha = [0.5, 0.5]), ["alpha = [0.3,0.7]", "has [0.5,0.5]"]),
        (of(&|h| h.interpolation = Interpolation::Lerp), ["interpolation = \"slerp\"", "has \"lerp\""]),
        (of(&|h| h.sampler["steps"] = json!(20)), ["\"steps\":50", "\"steps\":20"]),
        (of(&|h| h.storage = Storage::Jpeg { quality: 90 }), ["storage = {\"format\":\"png\"}", "\"quality\":90"]),
    ] {
        assert!(parts.iter().all(|part| message.contains(part)) && message.contains("00000.json"), "{message}");
    }
    assert!(files(folder.path()) == before, "nothing was touched");
    let fewer = SyntheticBank::open(folder.path(), &ours, pictures(11), None).err().unwrap().to_string();
    assert!(fewer.contains("of 12 images, and there are 11"), "{fewer}");
}

#[test]
fn what_is_read_is_what_was_generated() {
    let source = pictures(12);
    // Latents become images on their way into a bank of images, or lie in it as they are.
    for (format, in_latents) in [
        (BankFormat::Png, false),
        (BankFormat::Webp, false),
        (BankFormat::Jpeg, false),
        (BankFormat::Png, true),
        (BankFormat::Latents, true),
    ] {
        let generator = Shifts { in_latents, ..Shifts::new(&source) };
        let header = Header::new(&Bank { format, ..settings() }, origin(12), Interpolation::Slerp, 7).unwrap();
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), &header, &generator, "1/1", 8).unwrap();
        let decoder: Option<Arc<dyn Decoder>> = (format == BankFormat::Latents).then(|| Arc::new(Unpool) as _);
        let bank = SyntheticBank::open(folder.path(), &header, source.clone(), decoder).unwrap();
        assert_eq!((bank.len(), bank.images().len()), (36, 36));
        for source in 0..12 {
            for request in header.requests(source) {
                let found = bank.get(source, request.kind, request.k).unwrap();
                assert_eq!((found.secondary, found.alpha), (request.secondary, request.alpha));
                let made = generator.image(&request).unwrap();
                let made = if in_latents { Unpool.decode(&pooled(&made)).unwrap() } else { made };
                let expected = match format {
                    BankFormat::Png | BankFormat::Webp | BankFormat::Latents => made,
                    BankFormat::Jpeg => jpeg::decode(&jpeg::encode(&made, 90, ColorModel::YCbCr).unwrap()).unwrap(),
                };
                // Half precision has 11 bits, pixels have 8: a byte may round the other way.
                let most = u8::from(format == BankFormat::Latents);
                let worst = found.image.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                assert!(worst <= most, "{format:?}: a byte differs by {worst}");
                let index = bank.find(source, request.kind, request.k).unwrap();
                let patch = bank.read(index).unwrap();
                assert_eq!((patch.image, patch.label), (found.image, Some(source as u32 % 3)));
                assert_eq!(patch.key.item, format!("picture {source} ({} {})", request.kind.name(), request.k));
            }
        }
        assert_eq!(bank.classes().len(), 3);
        assert!(bank.find(3, Kind::Generative, 2).is_none() && bank.find(12, Kind::Generative, 0).is_none());
        let message = bank.get(3, Kind::Interpolated, 1).unwrap_err().to_string();
        assert_eq!(message, "the bank has no interpolated image 1 of picture 3");
    }
}

#[test]
fn images_without_an_embedding_have_no_synthetic_ones() {
    let source = pictures(12);
    let origin = Origin { without: vec![2, 11], ..origin(12) };
    let header = Header::new(&settings(), origin.clone(), Interpolation::Slerp, 7).unwrap();
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(make(folder.path(), &header, &Shifts::new(&source), "1/1", 8).unwrap().images, 30);
    let bank = SyntheticBank::open(folder.path(), &header, source, None).unwrap();
    assert!(bank.images().iter().all(|s| ![2, 11].contains(&s.source) && ![Some(2), Some(11)].contains(&s.secondary)));
    assert!(bank.find(2, Kind::Generative, 0).is_none() && bank.find(3, Kind::Generative, 0) == Some(6));
    let lonely = Origin { images: 3, without: vec![0, 2], ..origin };
    let message = Header::new(&settings(), lonely, Interpolation::Slerp, 7).unwrap_err().to_string();
    assert!(message.starts_with("1 image(s) can be read"), "{message}");
}

#[test]
fn missing_and_damaged_files_are_told() {
    let (header, source) = (header(23), pictures(23));
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), &header, &Shifts::new(&source), "1/2", 8).unwrap();
    let open = || SyntheticBank::open(folder.path(), &header, source.clone(), None);
    let message = open().err().unwrap().to_string();
    assert!(message.starts_with("2 of the 5 shard files") && message.contains("00001.tar"), "{message}");
    make(folder.path(), &header, &Shifts::new(&source), "1/1", 8).unwrap();
    let bank = open().unwrap();
    let tar = folder.path().join("00003.tar");
    let mut bytes = std::fs::read(&tar).unwrap();
    std::fs::write(&tar, &bytes[..bytes.len() - 512]).unwrap();
    assert!(open().err().unwrap().to_string().contains("1 of the 5 shard files"));
    bytes[600..640].fill(0);
    std::fs::write(&tar, &bytes).unwrap();
    let at = bank.find(15, Kind::Generative, 0).unwrap();
    let message = bank.read(at).unwrap_err().to_string();
    assert!(message.contains("00003.tar") && message.contains("picture 15 (generative 0)"), "{message}");
}

/// Makes whatever it is told to.
struct Says(u32, usize);

impl Generator for Says {
    fn generate(&self, requests: &[Request]) -> Result<Vec<Picture>> {
        std::thread::sleep(std::time::Duration::from_millis(40));
        Ok(vec![Picture::Image(RgbImage::new(self.0, self.0)); requests.len() - self.1])
    }

    fn decode(&self, _: &[Latent]) -> Result<Vec<RgbImage>> {
        Ok(vec![])
    }
}

#[test]
fn a_generator_that_makes_something_else_is_told_and_the_bottleneck_named() {
    let folder = tempfile::tempdir().unwrap();
    let work = |bank: Bank| {
        let header = Header::new(&bank, origin(12), Interpolation::Slerp, 7).unwrap();
        Work::new(folder.path(), &header, Part::WHOLE).unwrap()
    };
    let message = work(settings()).run(&Says(8, 0), 4, |_| ()).unwrap_err().to_string();
    assert_eq!(message, "the generator made an image of 8 x 8 px, and the bank is of 16 x 16 px");
    let message = work(settings()).run(&Says(SIDE, 1), 4, |_| ()).unwrap_err().to_string();
    assert_eq!(message, "the generator made 3 images of the 4 asked for");
    let latents = Bank { format: BankFormat::Latents, ..settings() };
    let message = work(latents).run(&Says(SIDE, 0), 4, |_| ()).unwrap_err().to_string();
    assert!(message.contains("bank.format"), "{message}");
    assert!(files(folder.path()).is_empty());
    let mut heard = vec![];
    let made = work(settings()).run(&Says(SIDE, 0), 4, |count| heard.push(count)).unwrap();
    assert_eq!((heard.iter().sum::<usize>(), heard[..4].to_vec()), (36, vec![4, 4, 4, 3]));
    // It sleeps 40 ms a batch, which is far more than these blank images take to encode and write, on a busy machine too.
    let text = made.to_string();
    assert!(text.starts_with("36 images, ") && text.ends_with("the bottleneck is generating"), "{text}");
    assert!(made.busy.generating <= made.seconds && made.rate() > 0.0);
}
