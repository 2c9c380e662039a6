//! `[gen_dino]`: DINO with synthetic images as views and the disentanglement loss, and its ablations.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Bank, Interpolation};

/// Gen-DINO. Everything that is not here is DINO's, so that the two can be compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenDino {
    /// Whether encoders are trained with synthetic images, beside the vanilla one.
    pub enabled: bool,
    /// Which; each is a new encoder, trained from scratch.
    pub variants: Vec<Variant>,
    /// Probability that the second global view shows a synthetic image.
    pub synthetic: f64,
    /// What the local crops show.
    pub locals: Locals,
    /// Weight of the disentanglement loss; 0 leaves it out.
    pub disentangle: f64,
    /// Views of the two images that the interpolated one is held against.
    pub targets: Targets,
}

/// Gen-DINO as proposed, or an ablation of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Synthetic views and the disentanglement loss.
    Full,
    /// Synthetic views only.
    WithoutDisentanglement,
    /// The disentanglement loss only.
    WithoutGenerative,
    /// Full, with embeddings interpolated on the line.
    Lerp,
    /// Full, with images mixed in pixels instead of embeddings.
    PixelMixing,
}

/// What the local crops show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Locals {
    /// Half of them the real image, half the synthetic one; the odd one is real.
    Split,
    /// The real image.
    AllReal,
    /// One of the two at random, anew for each crop.
    Random,
}

/// Views of the two images that the interpolated one is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Targets {
    /// One real view of each, as in the paper's pseudo-code.
    Single,
    /// A real and a synthetic view of each, as in its video: the mean over the two pairs.
    Four,
}

impl Variant {
    /// Its name in configurations and folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::WithoutDisentanglement => "without_disentanglement",
            Self::WithoutGenerative => "without_generative",
            Self::Lerp => "lerp",
            Self::PixelMixing => "pixel_mixing",
        }
    }

    /// Its encoder's name in tables and paths.
    pub fn encoder(self) -> String {
        match self {
            Self::Full => "gen_dino".into(),
            other => format!("gen_dino_{}", other.name()),
        }
    }

    /// Whether synthetic images are views.
    pub fn generative(self) -> bool {
        self != Self::WithoutGenerative
    }

    /// From which bank its interpolated images come; `None` where they come from none.
    pub fn interpolation(self) -> Option<Interpolation> {
        match self {
            Self::Full | Self::WithoutGenerative => Some(Interpolation::Slerp),
            Self::Lerp => Some(Interpolation::Lerp),
            Self::WithoutDisentanglement | Self::PixelMixing => None,
        }
    }
}

/// How one variant is trained: the section with what the variant leaves out set to 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Which variant.
    pub variant: Variant,
    /// Probability that the second global view shows a synthetic image.
    pub synthetic: f64,
    /// What the local crops show.
    pub locals: Locals,
    /// Weight of the disentanglement loss.
    pub disentangle: f64,
    /// Views that the interpolated image is held against.
    pub targets: Targets,
}

impl Default for GenDino {
    fn default() -> Self {
        Self {
            enabled: false,
            variants: vec![Variant::Full],
            // The paper pairs every real image with a synthetic one.
            synthetic: 1.0,
            // Number and cost of the crops stay DINO's, and the pair stays symmetric.
            locals: Locals::Split,
            // The paper's pseudo-code shows no weight.
            disentangle: 1.0,
            targets: Targets::Single,
        }
    }
}

impl GenDino {
    /// How `variant` is trained. Without synthetic images there is no second pair of targets.
    pub fn recipe(&self, variant: Variant) -> Recipe {
        Recipe {
            variant,
            synthetic: if variant.generative() { self.synthetic } else { 0.0 },
            locals: if variant.generative() { self.locals } else { Locals::AllReal },
            disentangle: if variant == Variant::WithoutDisentanglement { 0.0 } else { self.disentangle },
            targets: if variant.generative() { self.targets } else { Targets::Single },
        }
    }

    /// The recipes of all variants that are trained.
    pub fn recipes(&self) -> Vec<Recipe> {
        if !self.enabled {
            return vec![];
        }
        self.variants.iter().map(|&variant| self.recipe(variant)).collect()
    }

    /// Checks the values against themselves and the bank they need.
    ///
    /// # Errors
    /// The key that makes no sense.
    pub fn check(&self, bank: &Bank) -> Result<()> {
        ensure!((0.0..=1.0).contains(&self.synthetic), "synthetic: {} is not a probability", self.synthetic);
        ensure!(self.disentangle.is_finite() && self.disentangle >= 0.0, "disentangle is a weight of 0 or more");
        ensure!(!self.variants.is_empty(), "variants names no encoder to train");
        let twice = self.variants.iter().enumerate().find(|(i, variant)| self.variants[..*i].contains(variant));
        if let Some((_, variant)) = twice {
            anyhow::bail!("variants names {} twice", variant.name());
        }
        for recipe in self.recipes() {
            let name = recipe.variant.name();
            ensure!(
                recipe.synthetic == 0.0 || bank.generative > 0,
                "the variant {name} needs synthetic images, and bank.generative is 0"
            );
            ensure!(
                recipe.bank_of_interpolations().is_none() || bank.interpolated > 0,
                "the variant {name} needs interpolated images, and bank.interpolated is 0"
            );
            ensure!(
                recipe.synthetic > 0.0 || recipe.disentangle > 0.0,
                "the variant {name} without its part of the loss is DINO: set synthetic or disentangle above 0"
            );
        }
        Ok(())
    }

    /// That no two variants are the same training: days of it, printed as if it meant something.
    ///
    /// # Errors
    /// Two that are, by name.
    pub fn check_variants(&self) -> Result<()> {
        let recipes = self.recipes();
        for (i, one) in recipes.iter().enumerate() {
            if let Some(other) = recipes[..i].iter().find(|other| other.what_counts() == one.what_counts()) {
                let names = [other, one].map(|recipe| recipe.variant.name());
                anyhow::bail!(
                    "with disentangle = {} and synthetic = {} the variants {} and {} are the same training: leave one out",
                    self.disentangle,
                    self.synthetic,
                    names[0],
                    names[1]
                );
            }
        }
        Ok(())
    }
}

impl Recipe {
    /// What its training depends on: not its name, nor what has no weight.
    fn what_counts(&self) -> impl PartialEq + use<> {
        let seen = self.synthetic > 0.0;
        let mixed = (self.disentangle > 0.0).then(|| (self.disentangle, self.variant.interpolation(), self.targets));
        (self.synthetic, seen.then_some(self.locals), mixed)
    }

    /// The bank its interpolated images come from, where it needs any.
    pub fn bank_of_interpolations(&self) -> Option<Interpolation> {
        self.variant.interpolation().filter(|_| self.disentangle > 0.0)
    }

    /// The banks it reads, each once. Synthetic images of one image are the same whatever the line between two, so they
    /// lie with the interpolations on the great circle only.
    pub fn banks(&self) -> Vec<Interpolation> {
        let generative = (self.synthetic > 0.0).then_some(Interpolation::Slerp);
        let mut banks: Vec<_> = generative.into_iter().chain(self.bank_of_interpolations()).collect();
        banks.dedup();
        banks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_that_leave_nothing_out_are_told() {
        let all = [
            Variant::Full,
            Variant::WithoutDisentanglement,
            Variant::WithoutGenerative,
            Variant::Lerp,
            Variant::PixelMixing,
        ];
        let section =
            |variants: &[Variant]| GenDino { enabled: true, variants: variants.to_vec(), ..GenDino::default() };
        section(&all).check_variants().unwrap();
        let told = |section: GenDino| section.check_variants().unwrap_err().to_string();
        for other in [Variant::WithoutDisentanglement, Variant::Lerp, Variant::PixelMixing] {
            let same = told(GenDino { disentangle: 0.0, ..section(&[Variant::Full, other]) });
            assert!(same.contains(&format!("full and {} are the same training", other.name())), "{same}");
        }
        let views = || GenDino { synthetic: 0.0, ..section(&[Variant::WithoutGenerative, Variant::Full]) };
        assert!(told(views()).contains("without_generative and full are the same training"));
        // Four targets are two real views of each image, where without generative images one is enough.
        GenDino { targets: Targets::Four, ..views() }.check_variants().unwrap();
    }
}
