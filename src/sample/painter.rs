//! Draws images: noise through the diffusion model's steps, guided by an embedding, then through the autoencoder.

use super::bank::{Decoder, Latent};
use super::solver::Trajectory;
use crate::config::{Interpolation, Sample};
use crate::data::loader::squares::to_images;
use crate::model::FirstStage;
use crate::model::diffusion::DiffusionModel;
use crate::model::lies_in_host_memory;
use crate::model::noise::NoiseSchedule;
use crate::model::random::{keyed, normal};
use anyhow::{Result, anyhow, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use rayon::prelude::*;

/// Images drawn by one thread at a time: small pieces in parallel are faster on a CPU than one large batch, and of a fixed
/// size they are rounded the same on any machine.
const PIECE: usize = 4;

/// What is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// What conditions it ([`Painter::condition`], [`Painter::between`]); none draws without condition.
    pub condition: Option<Vec<f32>>,
    /// Of its noise.
    pub seed: u64,
}

/// A diffusion model with its autoencoder and a way to draw.
#[derive(Clone, Debug)]
pub struct Painter {
    model: DiffusionModel,
    stage: FirstStage,
    settings: Sample,
    schedule: NoiseSchedule,
    side: usize,
    device: Device,
}

impl Painter {
    /// Draws from `model` latents of the side it was trained on, which `stage` decodes.
    ///
    /// # Errors
    /// An autoencoder or settings that do not go with the model.
    pub fn new(model: DiffusionModel, stage: FirstStage, settings: &Sample, device: &Device) -> Result<Self> {
        settings.check(&model.config.noise)?;
        let schedule = model.schedule();
        let [channels, side] = model.config.latent;
        ensure!(
            stage.latent_channels() == channels,
            "the diffusion model draws latents of {channels} channels, and the autoencoder has {}",
            stage.latent_channels()
        );
        Ok(Self { model, stage, settings: settings.clone(), schedule, side, device: device.clone() })
    }

    /// Side of an image, px.
    pub fn image_side(&self) -> usize {
        self.side * self.stage.factor()
    }

    /// What asks for an image of this embedding.
    pub fn condition(&self, embedding: &[f32]) -> Option<Vec<f32>> {
        Some(self.conditioned(embedding))
    }

    /// An embedding as it conditions.
    pub fn conditioned(&self, embedding: &[f32]) -> Vec<f32> {
        self.model.config.conditioned(embedding.to_vec())
    }

    /// What asks for an image between two embeddings; `alpha` weighs the first.
    pub fn between(&self, kind: Interpolation, first: &[f32], second: &[f32], alpha: f64) -> Option<Vec<f32>> {
        Some(self.model.config.between(kind, first, second, alpha))
    }

    /// One image for each wish, in their order. An image depends on its own wish alone.
    ///
    /// # Errors
    /// An embedding of another width than the model's, a failing device.
    pub fn images(&self, wishes: &[Wish]) -> Result<Vec<RgbImage>> {
        self.decode_all(&self.latents(wishes)?)
    }

    /// One latent for each wish, as the autoencoder decodes it.
    ///
    /// # Errors
    /// As [`images`](Self::images).
    pub fn latents(&self, wishes: &[Wish]) -> Result<Vec<Latent>> {
        let [channels, side] = self.model.config.latent;
        let shape = [channels, side, side];
        self.in_pieces(wishes, |piece| {
            let values = host(self.draw(piece)?)?;
            Ok(values.chunks(channels * side * side).map(|values| Latent { shape, values: values.to_vec() }).collect())
        })
    }

    /// The images of latents that this model has drawn.
    ///
    /// # Errors
    /// A latent of another shape than the autoencoder's, a failing device.
    pub fn decode_all(&self, latents: &[Latent]) -> Result<Vec<RgbImage>> {
        self.in_pieces(latents, |piece| {
            let [channels, height, width] = piece.first().map_or([0; 3], |latent| latent.shape);
            let fits = |latent: &Latent| {
                latent.shape == [channels, height, width] && latent.values.len() == channels * height * width
            };
            ensure!(
                channels == self.stage.latent_channels() && height == width && piece.iter().all(fits),
                "a latent of {channels} x {height} x {width} is none of the autoencoder's"
            );
            let values: Vec<f32> = piece.iter().flat_map(|latent| latent.values.iter().copied()).collect();
            let shape = [piece.len(), channels, height, width];
            let pixels = self.stage.decode(Tensor::from_data(TensorData::new(values, shape), &self.device));
            Ok(to_images(&host(pixels)?, height * self.stage.factor()))
        })
    }

    /// The images of scaled latents, as they are stored for training.
    ///
    /// # Errors
    /// A failing device.
    pub fn decoded(&self, latents: Vec<Vec<f32>>) -> Result<Vec<RgbImage>> {
        let [channels, side] = self.model.config.latent;
        let shape = [latents.len(), channels, side, side];
        let latents = Tensor::from_data(TensorData::new(latents.concat(), shape), &self.device);
        let pixels = self.stage.decode(latents.div_scalar(self.stage.config.scale));
        Ok(to_images(&host(pixels)?, self.image_side()))
    }

    fn in_pieces<W: Sync, T: Send>(
        &self,
        asked: &[W],
        make: impl Fn(&[W]) -> Result<Vec<T>> + Sync + Send,
    ) -> Result<Vec<T>> {
        if lies_in_host_memory(&self.device) {
            let made = asked.par_chunks(PIECE).map(make).collect::<Result<Vec<_>>>()?;
            return Ok(made.into_iter().flatten().collect());
        }
        let made = asked.chunks(self.settings.batch).map(make).collect::<Result<Vec<_>>>()?;
        Ok(made.into_iter().flatten().collect())
    }

    /// From noise to latents `[n, channels, side, side]`, unscaled.
    fn draw(&self, wishes: &[Wish]) -> Result<Tensor<4>> {
        let mut x = self.noise(wishes, 0);
        let unet = &self.model.unet;
        let told = unet.context(self.conditions(wishes, true)?);
        let guidance = self.settings.guidance;
        // Both answers in one pass where both are needed.
        let context = match guidance {
            1.0 => told,
            0.0 => unet.context(self.conditions(wishes, false)?),
            _ => Tensor::cat(vec![told, unet.context(self.conditions(wishes, false)?)], 0),
        };
        let passes = context.dims()[0] / wishes.len();
        let mut trajectory = Trajectory::new(&self.schedule, &self.settings);
        for i in 0..trajectory.times().len() {
            let times = vec![trajectory.times()[i]; wishes.len() * passes];
            let answer = unet.forward(x.clone().repeat_dim(0, passes), &times, context.clone());
            let answer = match passes {
                1 => answer,
                _ => {
                    let [told, untold] = [0, 1].map(|pass| answer.clone().narrow(0, pass * wishes.len(), wishes.len()));
                    untold.clone() + (told - untold).mul_scalar(guidance)
                }
            };
            x = trajectory.step(i, x, answer, || self.noise(wishes, i + 1));
        }
        Ok(x.div_scalar(self.stage.config.scale))
    }

    /// Normal noise, a function of each wish's seed and the step.
    fn noise(&self, wishes: &[Wish], step: usize) -> Tensor<4> {
        let [channels, side] = self.model.config.latent;
        let values: Vec<f32> = wishes
            .iter()
            .flat_map(|wish| normal(&mut keyed(wish.seed, "sample", &[step as u64]), 1.0, channels * side * side))
            .collect();
        Tensor::from_data(TensorData::new(values, [wishes.len(), channels, side, side]), &self.device)
    }

    /// What conditions each; zeros where nothing does, or if not `told`.
    fn conditions(&self, wishes: &[Wish], told: bool) -> Result<Tensor<2>> {
        let config = &self.model.config;
        let mut values = Vec::with_capacity(wishes.len() * config.embedding);
        for wish in wishes {
            match wish.condition.as_ref().filter(|_| told) {
                None => values.extend(vec![0.0; config.embedding]),
                Some(condition) => {
                    ensure!(
                        condition.len() == config.embedding,
                        "the diffusion model is conditioned on embeddings of width {}, and this one has {}",
                        config.embedding,
                        condition.len()
                    );
                    values.extend(condition);
                }
            }
        }
        Ok(Tensor::from_data(TensorData::new(values, [wishes.len(), config.embedding]), &self.device))
    }
}

/// The decoder of a bank of latents.
impl Decoder for Painter {
    fn decode(&self, latent: &Latent) -> Result<RgbImage> {
        let images = self.decode_all(std::slice::from_ref(latent))?;
        images.into_iter().next().ok_or_else(|| anyhow!("the autoencoder made no image"))
    }
}

/// What was drawn. Values that are not finite would become black pixels.
fn host(tensor: Tensor<4>) -> Result<Vec<f32>> {
    let values = tensor.try_into_vec_as::<f32>().map_err(|e| anyhow!("what was drawn could not be read: {e:?}"))?;
    ensure!(
        values.iter().all(|value| value.is_finite()),
        "what was drawn is not finite: a lower sample.guidance may help, or a diffusion model that was trained with a lower rate"
    );
    Ok(values)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{Autoencoder as Section, Condition, Noise, Spacing};
    use crate::model::autoencoder::Autoencoder;
    use crate::model::autoencoder::FirstStageConfig;
    use crate::model::diffusion::DiffusionConfig;
    use crate::model::unet::tests::golden_unet;

    /// Networks of random weights, for embeddings of width 5.
    pub(crate) fn painter(settings: Sample) -> Painter {
        let (unet, _) = golden_unet();
        let config = DiffusionConfig {
            unet: Default::default(),
            noise: Noise::default(),
            condition: Condition::Sphere,
            statistics: Default::default(),
            latent: [3, 8],
            embedding: 5,
            encoder: String::new(),
            autoencoder: String::new(),
            origin: serde_json::Value::Null,
        };
        let device = Device::flex();
        let network = Section { channels: 4, groups: 2, ..Section::default() }.sizes().unwrap();
        let stage = FirstStageConfig { network: network.clone(), scale: 1.0, origin: serde_json::Value::Null };
        let stage = FirstStage::new(Autoencoder::new(&network, 0, &device), stage);
        Painter::new(DiffusionModel::new(unet, config), stage, &settings, &device).unwrap()
    }

    /// The latent that a network of random weights draws for one embedding.
    fn drawn(settings: Sample) -> Vec<f32> {
        let painter = painter(settings);
        let wish = Wish { condition: painter.condition(&[0.5, -1.0, 2.0, 0.1, -0.3]), seed: 3 };
        painter.latents(&[wish]).unwrap().remove(0).values
    }

    fn apart(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// A single step, from where there is most noise, is linear in the network's answer, so that guidance g lies at g on the line from the sample without
    /// condition (0) to the one as trained (1): Ho and Salimans 2022, eq. 6, with 1 + w for g.
    #[test]
    fn guidance_goes_on_from_no_condition_through_the_condition() {
        let at = |guidance: f64| drawn(Sample { steps: 1, spacing: Spacing::Trailing, guidance, ..Sample::default() });
        let (without, with, guided) = (at(0.0), at(1.0), at(2.5));
        let line: Vec<f32> = without.iter().zip(&with).map(|(a, b)| a + 2.5 * (b - a)).collect();
        let (worst, moved) = (apart(&guided, &line), apart(&guided, &with));
        assert!(worst < 1e-3 * moved && moved > 1e-3, "{worst} of {moved}");
    }
}
