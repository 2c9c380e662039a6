//! Reading an experiment: file, then `--set key=value`, then checks. Errors name the file, the line and the nearest key.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use toml::{Table, Value};

use super::{Baseline, Experiment, ForeignEncoder};
use crate::data::augment;

/// The commented defaults, as `gensis config default` prints them. A test keeps them equal to `Experiment::default()`.
pub const DEFAULT_TOML: &str = include_str!("../../configs/default.toml");

impl Experiment {
    /// Reads `file` (or nothing but the defaults), applies `key=value` settings in order, and checks the result.
    pub fn load(file: Option<&Path>, settings: &[String]) -> Result<Self> {
        match file {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                Self::parse(&text, &path.display().to_string(), settings)
            }
            None => Self::parse("", "defaults", settings),
        }
    }

    /// Like [`Self::load`], from text that errors call `name`.
    pub fn parse(text: &str, name: &str, settings: &[String]) -> Result<Self> {
        toml::from_str::<Self>(text).map_err(|error| anyhow!("{name}: {}", with_nearest_key(&error.to_string())))?;
        let mut table = toml::from_str::<Table>(text)?;
        let of_file = table.clone();
        for setting in settings {
            apply(&mut table, setting).with_context(|| format!("--set {setting}"))?;
            Self::from_table(&table)
                .map_err(|error| anyhow!("--set {setting}: {}", with_nearest_key(error.message())))?;
        }
        let experiment = Self::from_table(&table).map_err(|error| anyhow!(with_nearest_key(error.message())))?;
        experiment.check().map_err(|error| {
            let in_file = !text.is_empty() && Self::from_table(&of_file).is_ok_and(|file| file.check().is_err());
            if in_file { error.context(name.to_owned()) } else { error }
        })?;
        Ok(experiment)
    }

    fn from_table(table: &Table) -> Result<Self, toml::de::Error> {
        Value::Table(table.clone()).try_into()
    }

    /// The whole experiment as TOML, every key present.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("cannot write the experiment as TOML")
    }

    /// Keys whose values differ, as `key: ours -> theirs`.
    pub fn differences(&self, other: &Self) -> Result<Vec<String>> {
        let resolved = |experiment: &Self| Self { grid: experiment.grid.resolved(), ..experiment.clone() };
        let (ours, theirs) = (Value::try_from(resolved(self))?, Value::try_from(resolved(other))?);
        let mut lines = Vec::new();
        collect_differences("", &ours, &theirs, &mut lines);
        Ok(lines)
    }

    /// Refuses settings that parse but make no sense, naming the key and what would.
    fn check(&self) -> Result<()> {
        let rules: &[(bool, &str)] = &[
            (
                self.data.mpp == 0.0 || slide_io::PLAUSIBLE_MPP.contains(&self.data.mpp),
                "data.mpp must be 0.02 to 50 µm/px, as slides have, or 0 to believe the files",
            ),
            (
                self.data.slides.is_empty() || self.data.images.as_os_str().is_empty(),
                "give data.slides or data.images, not both",
            ),
            (
                self.crops.global_size as usize >= self.model.patch,
                "crops.global_size must be at least model.patch: a crop needs a token",
            ),
            (
                self.crops.local_count == 0 || self.crops.local_size as usize >= self.model.patch,
                "crops.local_size must be at least model.patch: a crop needs a token",
            ),
            (
                scale_range(self.crops.global_scale),
                "crops.global_scale is [smallest, largest] share of the area, 0 to 1",
            ),
            (scale_range(self.crops.local_scale), "crops.local_scale is [smallest, largest] share of the area, 0 to 1"),
            (self.head.out > 1, "head.out must be above 1"),
            (self.head.hidden > 0 && self.head.bottleneck > 0, "head.hidden and head.bottleneck must be above 0"),
            (
                !self.pretrained_only || !self.encoders.is_empty(),
                "pretrained_only leaves nothing to embed with: name [[encoders]]",
            ),
            (
                !self.pretrained_only || !self.gen_dino.enabled,
                "gen_dino.enabled trains encoders, which pretrained_only rules out",
            ),
            (
                (1..self.encoders.len())
                    .all(|i| self.encoders[..i].iter().all(|e| e.name() != self.encoders[i].name())),
                "two of [[encoders]] have one name: give each its own",
            ),
            (self.embed.batch > 0, "embed.batch must be above 0"),
            (
                self.embed.resize == 0 || self.embed.crop <= self.embed.resize,
                "embed.crop must not exceed embed.resize: the crop is cut out of the resized image",
            ),
            (
                self.embed.crop == 0 || self.embed.crop as usize >= self.model.patch,
                "embed.crop must be at least model.patch: an image needs a token",
            ),
            (
                [&self.evaluate.video.baselines, &self.evaluate.retrieval.baselines, &self.evaluate.copies.baselines]
                    .iter()
                    .all(|baselines| !baselines.contains(&Baseline::Pixels)),
                "baselines of evaluate.video, retrieval and copies have \"random\" only: raw pixels have no patch tokens",
            ),
            (
                self.evaluate.video.resize as usize >= self.model.patch,
                "evaluate.video.resize must be at least model.patch: a frame needs a token",
            ),
            (self.evaluate.video.top_k > 0, "evaluate.video.top_k must be at least 1"),
            (self.evaluate.video.temperature > 0.0, "evaluate.video.temperature must be above 0"),
            (
                self.evaluate.retrieval.image_size as usize >= self.model.patch
                    && self.evaluate.copies.image_size as usize >= self.model.patch,
                "evaluate.retrieval.image_size and evaluate.copies.image_size must be at least model.patch",
            ),
            (self.evaluate.copies.gem_power > 0.0, "evaluate.copies.gem_power must be above 0"),
        ];
        all_hold(rules).context("configuration")?;
        // Each part knows its own rules best.
        self.tissue.check().context("configuration: [tissue]")?;
        self.grid.check().context("configuration: [grid]")?;
        self.quality.check().context("configuration: [quality]")?;
        self.pack.check().context("configuration: [pack]")?;
        self.stain.check().context("configuration: [stain]")?;
        self.model.resolve().context("configuration: [model]")?;
        self.encoders.iter().try_for_each(ForeignEncoder::check).context("configuration: [[encoders]]")?;
        self.pretrain.check().context("configuration: [pretrain]")?;
        self.autoencoder.resolve().context("configuration: [autoencoder]")?;
        augment::check(&self.crops).context("configuration: [crops]")?;
        self.diffusion.check().context("configuration: [diffusion]")?;
        if self.gen_dino.enabled {
            self.check_generated_sizes().context("configuration")?;
        }
        self.sample.check(&self.diffusion.noise).context("configuration: [sample]")?;
        self.bank.check().context("configuration: [bank]")?;
        self.gen_dino.check(&self.bank).context("configuration: [gen_dino]")?;
        self.evaluate.knn.check().context("configuration: [evaluate.knn]")?;
        self.evaluate.fid.check().context("configuration: [evaluate.fid]")?;
        self.evaluate.linear.check().context("configuration: [evaluate.linear]")?;
        self.evaluate.robustness.check().context("configuration: [evaluate.robustness]")?;
        self.evaluate.slide.check().context("configuration: [evaluate.slide]")?;
        self.heatmap.check().context("configuration: [heatmap]")
    }

    /// That the diffusion model can take the latents, and that generated images are embedded at the size of real ones.
    fn check_generated_sizes(&self) -> Result<()> {
        let side = self.autoencoder.image_size;
        // A file of weights has a kind of its own.
        if self.autoencoder.weights.as_os_str().is_empty() {
            self.diffusion.unet.check_latents(side / self.autoencoder.kind.factor())?;
        }
        ensure!(
            self.data.slides.is_empty() || self.embed.resize > 0 || side == self.grid.size as usize,
            "autoencoder.image_size is {side}, and with embed.resize = 0 patches of {} px are embedded as they are: generated \
             images would be seen at another size. Set autoencoder.image_size = {0}, or embed.resize",
            self.grid.size
        );
        Ok(())
    }
}

/// Refuses with the message of the first rule that does not hold.
pub(super) fn all_hold(rules: &[(bool, &str)]) -> Result<()> {
    rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, message)| Err(anyhow!("{message}")))
}

fn scale_range([low, high]: [f64; 2]) -> bool {
    low > 0.0 && low <= high && high <= 1.0
}

/// Puts `a.b.c=value` into the table; the value is TOML, or a bare string.
fn apply(table: &mut Table, setting: &str) -> Result<()> {
    let (path, text) = setting.split_once('=').context("expected key=value, for example pretrain.epochs=5")?;
    let value = match format!("value = {text}").parse::<Table>() {
        Ok(mut parsed) => parsed.remove("value").context("empty value")?,
        Err(_) => Value::String(text.to_owned()),
    };
    let keys: Vec<&str> = path.trim().split('.').collect();
    let (last, parents) = keys.split_last().context("empty key")?;
    let mut place = table;
    for key in parents {
        place = place
            .entry(key.to_string())
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .with_context(|| format!("`{key}` is a value, not a section"))?;
    }
    place.insert(last.to_string(), value);
    Ok(())
}

/// Adds "did you mean" to serde's "unknown field `x`, expected one of `a`, `b`", and drops the list behind it.
fn with_nearest_key(message: &str) -> String {
    let Some((before, rest)) = message.split_once("unknown field `") else { return message.trim_end().to_owned() };
    let Some((unknown, expected)) = rest.split_once('`') else { return message.trim_end().to_owned() };
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    let nearest = known.iter().min_by_key(|key| strsim::damerau_levenshtein(key, unknown));
    match nearest {
        Some(nearest) if strsim::normalized_damerau_levenshtein(nearest, unknown) > 0.3 => {
            format!("{before}unknown key `{unknown}`; did you mean `{nearest}`?")
        }
        _ => format!("{before}unknown key `{unknown}`; known here: {}", known.join(", ")),
    }
}

fn collect_differences(path: &str, ours: &Value, theirs: &Value, lines: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Table(ours), Value::Table(theirs)) => {
            let keys: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let none = Value::String("(absent)".into());
                collect_differences(&path, ours.get(key).unwrap_or(&none), theirs.get(key).unwrap_or(&none), lines);
            }
        }
        _ if ours == theirs => {}
        _ => lines.push(format!("{path}: {ours} -> {theirs}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(file: &str, settings: &[&str]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        std::fs::write(&path, file).unwrap();
        let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
        format!("{:#}", Experiment::load(Some(&path), &settings).unwrap_err())
    }

    #[test]
    fn printed_defaults_are_the_defaults() {
        let printed: Experiment = toml::from_str(DEFAULT_TOML).unwrap();
        assert_eq!(printed, Experiment::default());
        let (printed, whole) =
            (DEFAULT_TOML.parse::<Table>().unwrap(), Table::try_from(Experiment::default()).unwrap());
        fn keys(prefix: &str, table: &Table, out: &mut Vec<String>) {
            for (key, value) in table {
                let path = format!("{prefix}.{key}");
                match value {
                    Value::Table(inner) => keys(&path, inner, out),
                    _ => out.push(path),
                }
            }
        }
        let (mut a, mut b) = (vec![], vec![]);
        keys("", &printed, &mut a);
        keys("", &whole, &mut b);
        a.sort();
        b.sort();
        assert_eq!(a, b, "configs/default.toml must hold every key");
    }

    /// What a model without a trace of the image at its last step needs: a velocity, and sampling that begins there.
    #[test]
    fn zero_terminal_snr_asks_for_velocity_and_the_last_step() {
        let noise = "[diffusion.noise]\nzero_terminal_snr = true\n";
        assert!(error(noise, &[]).contains("prediction = \"velocity\""));
        let velocity = "diffusion.noise.prediction=velocity";
        assert!(error(noise, &[velocity]).contains("sample.spacing = \"trailing\" or \"quadratic\""));
        assert!(
            error(noise, &[velocity, "sample.spacing=trailing", "sample.steps=0"])
                .contains("sample.steps = 0 is not between")
        );
    }

    #[test]
    fn every_shipped_configuration_loads() {
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/configs")).unwrap();
        let files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= 5, "{files:?}");
        for file in files {
            Experiment::load(Some(&file), &[]).unwrap();
        }
    }

    #[test]
    fn configurations_of_gen_sis_add_nothing_but_the_generative_part() {
        let shipped = |name: &str| {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name);
            Experiment::load(Some(&file), &[]).unwrap()
        };
        for set in ["panda", "bright"] {
            let (plain, with) = (shipped(&format!("{set}.toml")), shipped(&format!("{set}_gensis.toml")));
            let added = ["gen_dino.", "autoencoder.", "diffusion."];
            let other = |line: &String| !added.iter().any(|section| line.starts_with(section));
            let differences = plain.differences(&with).unwrap();
            assert!(!differences.is_empty());
            assert_eq!(differences.into_iter().filter(other).collect::<Vec<_>>(), Vec::<String>::new(), "{set}");
        }
    }

    #[test]
    fn sizes_that_fail_after_hours_of_training_are_refused_before() {
        let generative = |text: &str| error(&format!("[gen_dino]\nenabled = true\n{text}"), &[]);
        let message = generative("[autoencoder]\nimage_size = 100\n");
        assert!(message.contains("latents of 25 x 25 cannot be halved"), "{message}");
        let slides = "[data]\nslides = \"slides\"\n[grid]\nsize = 224\n[embed]\nresize = 0\ncrop = 0\n";
        let message = generative(slides);
        assert!(message.contains("Set autoencoder.image_size = 224, or embed.resize"), "{message}");
        for stage in ["pretrain", "autoencoder", "diffusion"] {
            let message = error(&format!("[{stage}]\npatches_per_epoch = 3\nbatch = 4\n"), &[]);
            assert!(
                message.contains(&format!("{stage}.patches_per_epoch must be 0 (all) or fill a batch")),
                "{message}"
            );
        }
    }

    #[test]
    fn mistyped_keys_name_file_line_and_nearest_key() {
        let message = error("seed = 1\n[pretrain]\nepoch = 3\n", &[]);
        assert!(message.contains("x.toml") && message.contains("line 3"), "{message}");
        assert!(message.contains("unknown key `epoch`; did you mean `epochs`?"), "{message}");
        let message = error("[pretrain]\nepochs = \"ten\"\n", &[]);
        assert!(message.contains("line 2") && message.contains("invalid type"), "{message}");
        let message = error("", &["pretrain.epcohs=2"]);
        assert!(message.contains("--set pretrain.epcohs=2") && message.contains("did you mean `epochs`?"), "{message}");
        let message = error("", &["gen_dino.variants=[\"ful\"]"]);
        assert!(message.contains("unknown variant `ful`") && message.contains("without_generative"), "{message}");
        let message = error("[gen_dino]\nenabled = true\n[bank]\ninterpolated = 0\n", &[]);
        assert!(message.contains("the variant full needs interpolated images"), "{message}");
        let message = error("[[encoders]]\npreset = \"unni\"\nweights = \"x.bin\"\n", &[]);
        assert!(message.contains("did you mean \"uni\"?"), "{message}");
        let message = error("[[encoders]]\npreset = \"uni\"\nweights = \"x.bin\"\n[encoders.network]\nhead = 3\n", &[]);
        assert!(message.contains("line 5") && message.contains("did you mean `heads`?"), "{message}");
        let message = error("pretrained_only = true\n", &[]);
        assert!(message.contains("name [[encoders]]"), "{message}");
        let message = error("", &["encoders=[{preset=\"uni\", weights=\"a\"}, {preset=\"uni\", weights=\"b\"}]"]);
        assert!(message.contains("one name"), "{message}");
        let message = error("", &["grid.mpp=-1"]);
        assert!(message.contains("grid.mpp is -1"), "{message}");
    }

    #[test]
    fn settings_override_the_file_and_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        std::fs::write(&path, "[pretrain]\nepochs = 12\n").unwrap();
        let settings = ["pretrain.epochs=17".into(), "data.slides=a/*.tiff".into(), "evaluate.knn.k=[5]".into()];
        let experiment = Experiment::load(Some(&path), &settings).unwrap();
        assert_eq!((experiment.pretrain.epochs, experiment.data.slides.as_str()), (17, "a/*.tiff"));
        assert_eq!(experiment.evaluate.knn.k, [5]);
        assert_eq!(toml::from_str::<Experiment>(&experiment.to_toml().unwrap()).unwrap(), experiment);
        let differences = experiment.differences(&Experiment::default()).unwrap();
        assert!(differences.contains(&"pretrain.epochs: 17 -> 100".to_owned()), "{differences:?}");
    }
}
