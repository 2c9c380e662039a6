//! Making a bank: one thread generates, another decodes latents, a third encodes (on all cores), a fourth writes. The channels
//! between them hold one batch each, so memory is bounded by a few batches whatever the size of the bank.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rayon::prelude::*;

use super::{Generator, Header, Part, Picture, Storage, shard};

/// The shards of a bank that are still to be made.
#[derive(Clone, Debug)]
pub struct Work {
    folder: PathBuf,
    header: Header,
    shards: Vec<usize>,
    /// Images in finished shards of this part.
    pub done: usize,
    /// Images of this part.
    pub images: usize,
}

/// What was made, and where the time went.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    /// Images.
    pub images: usize,
    /// From the first request to the last file.
    pub seconds: f64,
    /// How much of that each part of the pipeline was at work.
    pub busy: Busy,
}

/// Seconds at work.
#[derive(Clone, Copy, Debug, Default)]
pub struct Busy {
    /// The generator.
    pub generating: f64,
    /// The autoencoder, from latents to images.
    pub decoding: f64,
    /// The encoder of images, on all cores.
    pub encoding: f64,
    /// The disk.
    pub writing: f64,
}

impl Made {
    /// Images per second.
    pub fn rate(&self) -> f64 {
        self.images as f64 / self.seconds.max(1e-9)
    }

    /// The parts, the busiest first, with the share of the time that each was at work.
    pub fn shares(&self) -> [(&'static str, f64); 4] {
        let Busy { generating, decoding, encoding, writing } = self.busy;
        let mut parts =
            [("generating", generating), ("decoding", decoding), ("encoding", encoding), ("writing", writing)];
        parts.iter_mut().for_each(|(_, seconds)| *seconds /= self.seconds.max(1e-9));
        parts.sort_by(|a, b| b.1.total_cmp(&a.1));
        parts
    }
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let shares = self.shares().map(|(name, share)| format!("{name} {:.0} %", 100.0 * share));
        let slowest = self.shares()[0].0;
        write!(
            f,
            "{} images, {:.1} images/s; at work: {}; the bottleneck is {slowest}",
            self.images,
            self.rate(),
            shares.join(", ")
        )
    }
}

impl Work {
    /// What is missing of `part` of the bank in `folder`.
    ///
    /// # Errors
    /// A folder that holds shards of another bank: what differs, with both values.
    pub fn new(folder: &Path, header: &Header, part: Part) -> Result<Self> {
        let mut work = Self { folder: folder.to_owned(), header: header.clone(), shards: vec![], done: 0, images: 0 };
        for number in 0..header.shards() {
            // Shards that others made count too: a folder holds one bank.
            let finished = shard::index(folder, header, number)?.is_some();
            if part.holds(number) {
                let images = header.shard_images(number);
                work.images += images;
                if finished { work.done += images } else { work.shards.push(number) }
            }
        }
        Ok(work)
    }

    /// Makes the missing shards, `batch` images at a time; `on_images` hears of every batch generated.
    ///
    /// # Errors
    /// Those of the generator, images of another size than the header's, a folder that cannot be written to. Shards
    /// finished before stay.
    pub fn run(self, generator: &dyn Generator, batch: usize, mut on_images: impl FnMut(usize)) -> Result<Made> {
        let started = Instant::now();
        let Self { folder, header, shards, .. } = &self;
        let mut busy = Busy::default();
        let mut images = 0;
        thread::scope(|scope| -> Result<()> {
            let (to_decoder, made) = sync_channel::<Vec<Picture>>(1);
            let (to_encoder, pictures) = sync_channel::<Vec<Picture>>(1);
            let (to_writer, encoded) = sync_channel::<Vec<Vec<u8>>>(1);
            let decoder = scope.spawn(move || decode(generator, header, &made, &to_encoder));
            let encoder = scope.spawn(move || encode(header.storage, &pictures, &to_writer));
            let writer = scope.spawn(move || write(folder, header, shards, &encoded));
            let mut generate = || -> Result<()> {
                // A batch ends with its shard, so that it is the same whoever makes the shard.
                for &number in shards {
                    for requests in header.shard_requests(number).chunks(batch.max(1)) {
                        let begun = Instant::now();
                        let pictures = generator.generate(requests)?;
                        ensure!(
                            pictures.len() == requests.len(),
                            "the generator made {} images of the {} asked for",
                            pictures.len(),
                            requests.len()
                        );
                        busy.generating += begun.elapsed().as_secs_f64();
                        if to_decoder.send(pictures).is_err() {
                            // A later part stopped; its error is told below.
                            return Ok(());
                        }
                        images += requests.len();
                        on_images(requests.len());
                    }
                }
                Ok(())
            };
            let generated = generate();
            drop(to_decoder);
            let panicked = |_| anyhow!("a thread of the bank panicked");
            let written = writer.join().map_err(panicked)?;
            let encoded = encoder.join().map_err(panicked)?;
            let decoded = decoder.join().map_err(panicked)?;
            // The first cause, not what it did to the others.
            generated?;
            busy.decoding = decoded?.as_secs_f64();
            busy.encoding = encoded?.as_secs_f64();
            busy.writing = written?.as_secs_f64();
            Ok(())
        })?;
        Ok(Made { images, seconds: started.elapsed().as_secs_f64(), busy })
    }
}

/// Makes of every picture what the bank stores, until no more come; returns the time at work.
fn decode(
    generator: &dyn Generator,
    header: &Header,
    made: &Receiver<Vec<Picture>>,
    to_encoder: &SyncSender<Vec<Picture>>,
) -> Result<Duration> {
    let mut busy = Duration::ZERO;
    for pictures in made {
        let begun = Instant::now();
        let pictures = as_stored(generator, header, pictures)?;
        busy += begun.elapsed();
        if to_encoder.send(pictures).is_err() {
            // The encoder stopped with an error of its own.
            break;
        }
    }
    Ok(busy)
}

fn as_stored(generator: &dyn Generator, header: &Header, pictures: Vec<Picture>) -> Result<Vec<Picture>> {
    let (mut images, mut latents) = (Vec::new(), Vec::new());
    for picture in pictures {
        match picture {
            Picture::Image(image) => images.push(image),
            Picture::Latent(latent) => latents.push(latent),
        }
    }
    ensure!(images.is_empty() || latents.is_empty(), "the generator made images and latents at a time");
    if header.storage == Storage::Latents {
        let lacking = "this generator has no latents: choose bank.format = \"jpeg\", \"png\" or \"webp\"";
        ensure!(images.is_empty(), lacking);
        return Ok(latents.into_iter().map(Picture::Latent).collect());
    }
    if !latents.is_empty() {
        images = generator.decode(&latents)?;
    }
    let [width, height] = header.size;
    for image in &images {
        ensure!(
            image.dimensions() == (width, height),
            "the generator made an image of {} x {} px, and the bank is of {width} x {height} px",
            image.width(),
            image.height()
        );
    }
    Ok(images.into_iter().map(Picture::Image).collect())
}

/// Encodes batches until no more come; returns the time at work.
fn encode(
    storage: Storage,
    pictures: &Receiver<Vec<Picture>>,
    to_writer: &SyncSender<Vec<Vec<u8>>>,
) -> Result<Duration> {
    let mut busy = Duration::ZERO;
    for batch in pictures {
        let begun = Instant::now();
        let encoded = batch.par_iter().map(|picture| storage.encode(picture)).collect::<Result<Vec<_>>>();
        busy += begun.elapsed();
        if to_writer.send(encoded.context("an image of the bank could not be encoded")?).is_err() {
            // The writer stopped with an error of its own.
            break;
        }
    }
    Ok(busy)
}

/// Writes shard after shard from the encoded batches; returns the time at work.
fn write(folder: &Path, header: &Header, shards: &[usize], encoded: &Receiver<Vec<Vec<u8>>>) -> Result<Duration> {
    let begun = Instant::now();
    let mut waited = Duration::ZERO;
    let mut ready = Vec::new().into_iter();
    for &number in shards {
        let next = || loop {
            if let Some(bytes) = ready.next() {
                return Some(bytes);
            }
            let asked = Instant::now();
            let batch = encoded.recv();
            waited += asked.elapsed();
            ready = batch.ok()?.into_iter();
        };
        if !shard::write(folder, header, number, &header.shard_requests(number), next)? {
            break;
        }
    }
    Ok(begun.elapsed().saturating_sub(waited))
}
