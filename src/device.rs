//! `--device cpu | cuda[:N] | wgpu[:N]` becomes a burn device. The only file that knows which backends were built.
//!
//! A device is probed before it is used: burn panics on a missing driver, and crashes on software Vulkan adapters.
//! There is no silent fallback: asking for a GPU where there is none is an error.

use anyhow::{Result, bail};
use burn::tensor::Device;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use burn::tensor::DeviceType;

/// What `--device` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// burn's pure-Rust CPU backend, flex.
    #[default]
    Cpu,
    /// The N-th NVIDIA GPU.
    Cuda(usize),
    /// The N-th GPU reached through Vulkan.
    Wgpu(usize),
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, index) = text.split_once(':').unwrap_or((text, "0"));
        let index = index.parse().map_err(|_| format!("`{index}` is not a device number, as in cuda:0"))?;
        match kind {
            "cpu" if !text.contains(':') => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(index)),
            "wgpu" => Ok(Self::Wgpu(index)),
            _ => Err("expected cpu, cuda, cuda:N, wgpu or wgpu:N".into()),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Wgpu(index) => write!(f, "wgpu:{index}"),
        }
    }
}

/// One backend of this build and the devices it finds on this machine.
#[derive(Clone, Debug)]
pub struct Backend {
    /// `cpu`, `cuda` or `wgpu`.
    pub name: &'static str,
    /// Whether the cargo feature was on.
    pub built: bool,
    /// Usable devices, described.
    pub devices: Vec<String>,
    /// Devices that were found and refused, with the reason.
    pub refused: Vec<String>,
}

/// All backends gensis knows, with what they find here.
pub fn backends() -> Vec<Backend> {
    let cpu = if cfg!(feature = "flex") { vec!["flex (pure Rust)".to_owned()] } else { vec![] };
    let (wgpu, software) = wgpu_devices();
    vec![
        Backend { name: "cpu", built: cfg!(feature = "flex"), devices: cpu, refused: vec![] },
        Backend {
            name: "cuda",
            built: cfg!(feature = "cuda"),
            devices: (0..cuda_devices()).map(|i| format!("cuda:{i}")).collect(),
            refused: vec![],
        },
        Backend {
            name: "wgpu",
            built: cfg!(feature = "wgpu"),
            devices: wgpu.iter().map(|device| format!("{device:?}")).collect(),
            refused: (0..software).map(|_| "a software Vulkan adapter; use --device cpu".to_owned()).collect(),
        },
    ]
}

/// Opens the device, or says in one line why it cannot be had.
pub fn open(choice: DeviceChoice) -> Result<Device> {
    match choice {
        DeviceChoice::Cpu => open_cpu(),
        DeviceChoice::Cuda(index) => open_cuda(index),
        DeviceChoice::Wgpu(index) => open_wgpu(index),
    }
}

/// Whether the device computes in the host's memory.
pub fn is_host(device: &Device) -> bool {
    crate::model::lies_in_host_memory(device)
}

/// Bytes this program holds: on the device where the backend reports it, the process's own for the CPU.
pub fn memory_in_use(device: &Device) -> Option<u64> {
    if let Some(usage) = device.memory_pool_usage() {
        return Some(usage.bytes_reserved);
    }
    let status = is_host(device).then(|| std::fs::read_to_string("/proc/self/status").ok()).flatten()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?.trim();
    kib.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(feature = "flex")]
fn open_cpu() -> Result<Device> {
    Ok(Device::flex())
}

#[cfg(not(feature = "flex"))]
fn open_cpu() -> Result<Device> {
    bail!("this build has no CPU backend; build with `--features flex`, or choose --device cuda or wgpu")
}

#[cfg(feature = "cuda")]
fn cuda_devices() -> usize {
    Device::enumerate(DeviceType::Cuda).len()
}

#[cfg(not(feature = "cuda"))]
fn cuda_devices() -> usize {
    0
}

#[cfg(feature = "cuda")]
fn open_cuda(index: usize) -> Result<Device> {
    match cuda_devices() {
        0 => bail!("--device cuda: no NVIDIA GPU with a working driver was found; `gensis doctor` lists the devices"),
        count if index >= count => bail!("--device cuda:{index}: this machine has {count} NVIDIA GPU(s), from cuda:0"),
        _ => Ok(Device::cuda(index)),
    }
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize) -> Result<Device> {
    bail!("--device cuda: this build has no CUDA; build with `cargo build --release --features cuda`")
}

/// Hardware adapters, and the number of software ones.
#[cfg(feature = "wgpu")]
fn wgpu_devices() -> (Vec<Device>, usize) {
    let all: Vec<Device> = Device::enumerate(DeviceType::Vulkan).iter().cloned().collect();
    let count = all.len();
    // burn names the adapter's kind only in its debug text: `Wgpu(WgpuDevice { kind: Cpu, .. })`.
    let hardware: Vec<Device> = all.into_iter().filter(|device| !format!("{device:?}").contains("Cpu")).collect();
    let software = count - hardware.len();
    (hardware, software)
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_devices() -> (Vec<Device>, usize) {
    (vec![], 0)
}

#[cfg(feature = "wgpu")]
fn open_wgpu(index: usize) -> Result<Device> {
    let (hardware, software) = wgpu_devices();
    match hardware.get(index) {
        Some(device) => Ok(device.clone()),
        None if hardware.is_empty() && software > 0 => {
            bail!(
                "--device wgpu: only a software Vulkan adapter was found, which is slower than --device cpu and crashes"
            )
        }
        None if hardware.is_empty() => {
            bail!("--device wgpu: no GPU with a Vulkan driver was found; `gensis doctor` lists the devices")
        }
        None => bail!("--device wgpu:{index}: this machine has {} Vulkan GPU(s), from wgpu:0", hardware.len()),
    }
}

#[cfg(not(feature = "wgpu"))]
fn open_wgpu(_: usize) -> Result<Device> {
    bail!("--device wgpu: this build has no wgpu; build with `cargo build --release --features wgpu`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_parse_and_print() {
        for (text, choice) in
            [("cpu", DeviceChoice::Cpu), ("cuda", DeviceChoice::Cuda(0)), ("wgpu:2", DeviceChoice::Wgpu(2))]
        {
            assert_eq!(text.parse::<DeviceChoice>(), Ok(choice));
        }
        assert_eq!(DeviceChoice::Cuda(1).to_string(), "cuda:1");
        for wrong in ["gpu", "cpu:1", "cuda:x", ""] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
    }
}
