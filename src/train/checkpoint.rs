//! Checkpoints: one safetensors file with student, teacher, optimiser and centre, and in its metadata the step and the
//! configuration. Random numbers are hashes of seed, step and index, so the step is all that is kept of them.

use super::dino::{NOT_FINITE, Trainer};
use crate::model::parameters::{self, Named, Values};
use crate::model::weights::{read_safetensors, write_safetensors};
use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Keys that may differ between a run and its continuation: they do not change what is computed.
const FREE: [&str; 2] = ["pretrain.checkpoint_every", "pretrain.knn_every"];

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    kind: String,
    version: String,
    /// The step to do next.
    step: usize,
    steps_per_epoch: usize,
    settings: Value,
    /// Updates of every parameter so far; a frozen one has fewer.
    updates: BTreeMap<String, u64>,
}

const KIND: &str = "dino checkpoint";

/// Writes the state before `step`, atomically.
///
/// # Errors
/// A folder that cannot be written to; weights that are not finite, which no run could continue from.
pub fn save(path: &Path, trainer: &Trainer, step: usize) -> Result<()> {
    let mut tensors = Named::new();
    for (part, network) in [("student", &trainer.student), ("teacher", &trainer.teacher)] {
        tensors.extend(parameters::export(network).into_iter().map(|(name, v)| (format!("{part}.{name}"), v)));
    }
    for state in &trainer.optimizer.states {
        for (i, moment) in state.moments.iter().flatten().enumerate() {
            tensors.insert(format!("optimizer.{}.{}", MOMENTS[i], state.name), flat(moment)?);
        }
    }
    tensors.insert("center".into(), flat(&trainer.center.clone().reshape([-1]))?);
    if let Some((name, _)) = tensors.iter().find(|(_, values)| !values.data.iter().all(|value| value.is_finite())) {
        bail!("{name} is not finite after step {step}, so the checkpoint before is kept. {NOT_FINITE}");
    }
    let header = Header {
        kind: KIND.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        step,
        steps_per_epoch: trainer.schedule().steps_per_epoch(),
        settings: serde_json::to_value(trainer.settings())?,
        updates: trainer.optimizer.states.iter().map(|state| (state.name.clone(), state.steps)).collect(),
    };
    write_safetensors(path, &tensors, &serde_json::to_value(header)?)
}

/// Puts the state of the file into `trainer` and returns the step to do next.
///
/// # Errors
/// A file that is no checkpoint, is incomplete, or belongs to another configuration: the first differing key is named.
pub fn load(path: &Path, trainer: &mut Trainer) -> Result<usize> {
    let context = || format!("cannot resume from {}", path.display());
    let (tensors, metadata) = read_safetensors(path)?;
    let header: Header = metadata
        .context("it is not a checkpoint of this program")
        .and_then(|json| Ok(serde_json::from_value(json)?))
        .with_context(context)?;
    ensure!(header.kind == KIND, "{}: it is a {}", context(), header.kind);
    same_run(&header, trainer).with_context(context)?;
    restore(trainer, tensors, &header).with_context(context)?;
    Ok(header.step)
}

const MOMENTS: [&str; 2] = ["mean", "square"];

fn same_run(header: &Header, trainer: &Trainer) -> Result<()> {
    let ours = serde_json::to_value(trainer.settings())?;
    if let Some((key, then, now)) = first_difference("", &header.settings, &ours) {
        bail!("it was made with {key} = {then}, and this run has {now}: use its configuration, or another run folder");
    }
    let (then, now) = (header.steps_per_epoch, trainer.schedule().steps_per_epoch());
    ensure!(
        then == now,
        "it was made with {then} steps an epoch, and this run has {now}: the patches are not the same"
    );
    Ok(())
}

/// The first key, in name order, at which two configurations differ, and the two values.
fn first_difference(path: &str, a: &Value, b: &Value) -> Option<(String, Value, Value)> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            keys.into_iter().find_map(|key| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                first_difference(&path, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null))
            })
        }
        _ if a == b || FREE.contains(&path) => None,
        _ => Some((path.into(), a.clone(), b.clone())),
    }
}

fn restore(trainer: &mut Trainer, mut tensors: Named, header: &Header) -> Result<()> {
    let mut part = |prefix: &str| -> Named {
        let names: Vec<_> = tensors.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        names.iter().filter_map(|name| Some((name[prefix.len()..].to_string(), tensors.remove(name)?))).collect()
    };
    let student = parameters::import(trainer.student.clone(), &part("student.")).context("student")?;
    let teacher = parameters::import(trainer.teacher.clone(), &part("teacher.")).context("teacher")?;
    let mut moments = MOMENTS.map(|moment| part(&format!("optimizer.{moment}.")));
    let center = tensors.remove("center").context("there is no centre")?;
    ensure!(tensors.is_empty(), "left over: {:?}", tensors.keys());
    let device = trainer.center.device();
    let tensor = |values: Values| {
        let length = values.data.len();
        Tensor::<1>::from_data(TensorData::new(values.data, [length]), &device)
    };
    for state in &mut trainer.optimizer.states {
        state.steps = *header.updates.get(&state.name).with_context(|| format!("no updates of {}", state.name))?;
        state.moments = match [0, 1].map(|i| moments[i].remove(&state.name)) {
            [Some(mean), Some(square)] => Some([mean, square].map(&tensor)),
            [None, None] if state.steps == 0 => None,
            _ => bail!("the optimiser's moments of {} are missing", state.name),
        };
    }
    trainer.center = tensor(center).reshape(trainer.center.dims());
    trainer.student = student;
    trainer.teacher = teacher;
    Ok(())
}

fn flat(tensor: &Tensor<1>) -> Result<Values> {
    let data = tensor.try_to_vec_as::<f32>().map_err(|e| anyhow::anyhow!("{e:?}"))?;
    Ok(Values { shape: vec![data.len()], data })
}
