//! `gensis doctor`: what this machine and this build have; with `--selftest`, proof that a device computes rightly.

use anyhow::Result;
use serde::Serialize;

use super::Outcome;
use super::output::say_line;
use crate::cli::DoctorArgs;
use crate::device::{self, Backend};

#[derive(Serialize)]
struct Diagnosis {
    version: &'static str,
    backends: Vec<Described>,
    openslide: Option<String>,
    hdf5: bool,
    threads: usize,
    free_disk_gb: Option<f64>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Described {
    name: &'static str,
    built: bool,
    devices: Vec<String>,
    refused: Vec<String>,
}

pub(super) fn doctor(args: &DoctorArgs) -> Result<Outcome> {
    if args.selftest {
        return super::selftest::selftest(args);
    }
    // One that was asked for and is not there is an error, not a line among others.
    device::open(args.compute.device)?;
    let diagnosis = diagnose();
    if args.json {
        say_line!("{}", serde_json::to_string_pretty(&diagnosis)?)?;
    } else {
        print(&diagnosis)?;
    }
    Ok(Outcome::Done)
}

fn diagnose() -> Diagnosis {
    let openslide = slide_io::format::openslide_version();
    let mut warnings = Vec::new();
    match openslide.as_deref() {
        None => warnings.push(
            "built without OpenSlide (cargo feature openslide): only TIFF and SVS slides with JPEG, JPEG 2000, deflate, LZW, \
             PackBits or raw tiles, and PNG and JPEG files, open"
                .to_owned(),
        ),
        Some(version) if older_than_4_0_1(version) => warnings.push(format!(
            "OpenSlide {version} is older than 4.0.1: it cannot read DICOM, and 4.0.1 fixes CVE-2026-48977 and CVE-2026-54604 \
             (open only slides you trust, or install a newer libopenslide)"
        )),
        Some(_) => {}
    }
    if !cfg!(feature = "hdf5") {
        warnings.push(
            "built without HDF5 (cargo feature hdf5): tile, embed and slide-level evaluation cannot store files".into(),
        );
    }
    Diagnosis {
        version: env!("CARGO_PKG_VERSION"),
        backends: device::backends().into_iter().map(described).collect(),
        openslide,
        hdf5: cfg!(feature = "hdf5"),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        free_disk_gb: free_disk_gb(),
        warnings,
    }
}

fn described(backend: Backend) -> Described {
    let Backend { name, built, devices, refused } = backend;
    Described { name, built, devices, refused }
}

/// Whether a version such as `3.4.1` comes before 4.0.1. An unreadable one counts as old.
fn older_than_4_0_1(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version: [u32; 3] = std::array::from_fn(|_| numbers.next().unwrap_or(0));
    version < [4, 0, 1]
}

/// Free space where the command runs, GB.
fn free_disk_gb() -> Option<f64> {
    let disk = rustix::fs::statvfs(".").ok()?;
    Some(disk.f_bavail as f64 * disk.f_frsize as f64 / 1e9)
}

fn print(diagnosis: &Diagnosis) -> Result<()> {
    say_line!("gensis {}", diagnosis.version)?;
    for backend in &diagnosis.backends {
        let state = match (backend.built, backend.devices.is_empty()) {
            (false, _) => "not in this build".to_owned(),
            (true, true) => "built in, no device found".to_owned(),
            (true, false) => backend.devices.join(", "),
        };
        say_line!("  --device {:<5} {state}", backend.name)?;
        for reason in &backend.refused {
            say_line!("                 refused: {reason}")?;
        }
    }
    say_line!("  OpenSlide      {}", diagnosis.openslide.as_deref().unwrap_or("not in this build"))?;
    say_line!("  HDF5           {}", if diagnosis.hdf5 { "yes" } else { "not in this build" })?;
    say_line!("  threads        {}", diagnosis.threads)?;
    match diagnosis.free_disk_gb {
        Some(free) => say_line!("  free disk      {free:.1} GB here")?,
        None => say_line!("  free disk      unknown")?,
    }
    diagnosis.warnings.iter().try_for_each(|warning| say_line!("  warning: {warning}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openslide_versions_compare() {
        assert!(older_than_4_0_1("3.4.1") && older_than_4_0_1("4.0.0") && older_than_4_0_1(""));
        assert!(!older_than_4_0_1("4.0.1") && !older_than_4_0_1("4.1.0") && !older_than_4_0_1("10.0"));
    }
}
