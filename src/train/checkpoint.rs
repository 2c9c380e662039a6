//! Checkpoints: one safetensors file with networks, optimisers and other state, and in its metadata the step and the
//! configuration. Random numbers are hashes of seed, step and index, so the step is all that is kept of them.

use super::optimizer::AdamW;
use crate::model::parameters::{self, Named, Values};
use crate::model::weights::{read_safetensors, write_safetensors};
use anyhow::{Context, Result, bail, ensure};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Last parts of keys that may differ between a run and its continuation: they do not change what is computed. Weights are
/// known by their hash, wherever they lie.
const FREE: [&str; 5] = [".checkpoint_every", ".knn_every", ".sample_every", ".judged", ".lpips_weights"];

/// What a checkpoint has to agree with to be continued.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What is trained.
    pub kind: &'static str,
    /// Steps of an epoch.
    pub steps_per_epoch: usize,
    /// The configuration.
    pub settings: Value,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    kind: String,
    version: String,
    /// The step to do next.
    step: usize,
    steps_per_epoch: usize,
    settings: Value,
    /// Updates of every parameter so far, under its optimiser's name; a frozen one has fewer.
    updates: BTreeMap<String, u64>,
}

/// The names of the two moments.
const MOMENTS: [&str; 2] = ["mean", "square"];

/// State on its way to a file.
#[derive(Default)]
pub struct Writer {
    tensors: Named,
    updates: BTreeMap<String, u64>,
}

impl Writer {
    /// Adds the parameters of `network` under `name`.
    pub fn network<M: Module>(mut self, name: &str, network: &M) -> Self {
        let parameters = parameters::export(network).into_iter();
        self.tensors.extend(parameters.map(|(parameter, values)| (format!("{name}.{parameter}"), values)));
        self
    }

    /// Adds the moments of `optimizer` under `name`.
    ///
    /// # Errors
    /// A device that cannot be read.
    pub fn optimizer(mut self, name: &str, optimizer: &AdamW) -> Result<Self> {
        for state in &optimizer.states {
            for (moment, values) in MOMENTS.iter().zip(state.moments.iter().flatten()) {
                self.tensors.insert(format!("{name}.{moment}.{}", state.name), flat(values)?);
            }
            self.updates.insert(format!("{name}.{}", state.name), state.steps);
        }
        Ok(self)
    }

    /// Adds a tensor that is no parameter.
    ///
    /// # Errors
    /// A device that cannot be read.
    pub fn tensor<const D: usize>(mut self, name: &str, tensor: &Tensor<D>) -> Result<Self> {
        self.tensors.insert(name.into(), flat(&tensor.clone().reshape([-1]))?);
        Ok(self)
    }

    /// Writes the state before `step`, atomically.
    ///
    /// # Errors
    /// A folder that cannot be written to; numbers that are not finite, which no run could continue from: then `advice`
    /// is added to the message, and the file is as it was.
    pub fn write(self, path: &Path, identity: Identity, step: usize, advice: &str) -> Result<()> {
        let broken = self.tensors.iter().find(|(_, values)| !values.data.iter().all(|value| value.is_finite()));
        if let Some((name, _)) = broken {
            bail!("{name} is not finite after step {step}, so the checkpoint before is kept. {advice}");
        }
        let header = Header {
            kind: identity.kind.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            step,
            steps_per_epoch: identity.steps_per_epoch,
            settings: identity.settings,
            updates: self.updates,
        };
        write_safetensors(path, &self.tensors, &serde_json::to_value(header)?)
    }
}

/// State on its way out of a file: every part is asked for by name, and nothing may be left over.
pub struct Reader {
    header: Header,
    tensors: Named,
}

impl Reader {
    /// Opens a checkpoint of the run called `identity`.
    ///
    /// # Errors
    /// A file that is no checkpoint or belongs to another configuration: the first differing key is named.
    pub fn open(path: &Path, identity: &Identity) -> Result<Self> {
        let damaged = "it is damaged: remove it, and the training begins anew";
        let (tensors, metadata) = read_safetensors(path).context(damaged)?;
        let header: Header = metadata
            .context("it is not a checkpoint of this program")
            .and_then(|json| Ok(serde_json::from_value(json)?))?;
        ensure!(header.kind == identity.kind, "it is a {}, not a {}", header.kind, identity.kind);
        if let Some((key, then, now)) = first_difference("", &header.settings, &identity.settings) {
            bail!(
                "it was made with {key} = {then}, and this run has {now}: use its configuration, or another run folder"
            );
        }
        let (then, now) = (header.steps_per_epoch, identity.steps_per_epoch);
        ensure!(
            then == now,
            "it was made with {then} steps an epoch, and this run has {now}: the patches are not the same"
        );
        Ok(Self { header, tensors })
    }

    /// The step to do next.
    pub fn step(&self) -> usize {
        self.header.step
    }

    fn part(&mut self, prefix: &str) -> Named {
        let names: Vec<_> = self.tensors.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        names.iter().filter_map(|name| Some((name[prefix.len()..].to_string(), self.tensors.remove(name)?))).collect()
    }

    /// `like` with the parameters stored under `name`.
    ///
    /// # Errors
    /// Parameters that are missing, left over or of another shape.
    pub fn network<M: Module>(&mut self, name: &str, like: &M) -> Result<M> {
        parameters::import(like.clone(), &self.part(&format!("{name}."))).with_context(|| name.to_owned())
    }

    /// The moments stored under `name`, for `like`.
    ///
    /// # Errors
    /// Moments that are missing.
    pub fn optimizer(&mut self, name: &str, like: &AdamW, device: &Device) -> Result<AdamW> {
        let mut optimizer = like.clone();
        let mut moments = MOMENTS.map(|moment| self.part(&format!("{name}.{moment}.")));
        for state in &mut optimizer.states {
            let updates = self.header.updates.get(&format!("{name}.{}", state.name));
            state.steps = *updates.with_context(|| format!("no updates of {}", state.name))?;
            state.moments = match [0, 1].map(|i| moments[i].remove(&state.name)) {
                [Some(mean), Some(square)] => Some([mean, square].map(|values| unflat(values, device))),
                [None, None] if state.steps == 0 => None,
                _ => bail!("the optimiser's moments of {} are missing", state.name),
            };
        }
        Ok(optimizer)
    }

    /// The tensor stored as `name`, flat.
    ///
    /// # Errors
    /// One that is not there.
    pub fn tensor(&mut self, name: &str, device: &Device) -> Result<Tensor<1>> {
        let values = self.tensors.remove(name).with_context(|| format!("there is no {name}"))?;
        Ok(unflat(values, device))
    }

    /// Everything has been asked for; the step to do next.
    ///
    /// # Errors
    /// Tensors nobody asked for.
    pub fn finish(self) -> Result<usize> {
        ensure!(self.tensors.is_empty(), "left over: {:?}", self.tensors.keys());
        Ok(self.header.step)
    }
}

/// The first key, in name order, at which two configurations differ, and the two values.
pub(crate) fn first_difference(path: &str, a: &Value, b: &Value) -> Option<(String, Value, Value)> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            keys.into_iter().find_map(|key| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                first_difference(&path, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null))
            })
        }
        _ if a == b || FREE.iter().any(|free| path.ends_with(free)) => None,
        _ => Some((path.into(), a.clone(), b.clone())),
    }
}

fn flat(tensor: &Tensor<1>) -> Result<Values> {
    let data = tensor.try_to_vec_as::<f32>().map_err(|e| anyhow::anyhow!("{e:?}"))?;
    Ok(Values { shape: vec![data.len()], data })
}

fn unflat(values: Values, device: &Device) -> Tensor<1> {
    let length = values.data.len();
    Tensor::from_data(TensorData::new(values.data, [length]), device)
}
