//! The report as a browser shows it: no script error, nothing wider than the screen, all sections there. The pictures stay in
//! `target/tmp/screenshots` to be looked at.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cohort::REFERENCE;
use crate::{images, probes};

fn chromium() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&paths).flat_map(|folder| names.map(|name| folder.join(name))).find(|path| path.is_file())
}

/// Runs the browser without a window on a page.
fn browse(browser: &Path, profile: &Path, width: u32, more: &[&str], page: &str) -> std::process::Output {
    Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--window-size={width},2400"))
        .args(more)
        .arg(page)
        .output()
        .unwrap()
}

/// What the page says of itself once it is loaded, as its title.
fn title(browser: &Path, profile: &Path, width: u32, page: &str) -> (String, String) {
    let flags = ["--dump-dom", "--virtual-time-budget=4000", "--allow-file-access-from-files"];
    let dump = browse(browser, profile, width, &flags, page);
    let html = String::from_utf8_lossy(&dump.stdout).into_owned();
    let title = html.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).unwrap_or_default();
    (title.to_owned(), html)
}

/// Looks at a report on a desk and on a phone: `name` is that of its pictures, `sections` those that it must have.
fn look_at(browser: &Path, report: &Path, name: &str, sections: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path();
    let report = fs::read_to_string(report).unwrap();
    // A copy that says how wide it is, and what its scripts complained about.
    let probe = "<script>addEventListener('load', () => { document.title = [document.documentElement.scrollWidth, innerWidth].join(' of '); });</script>";
    let watch =
        "<script>addEventListener('error', (event) => { document.body.dataset.error = event.message; });</script>";
    fs::write(profile.join("report.html"), report.replace("<head>", &format!("<head>{watch}{probe}"))).unwrap();
    // A window of Chromium is at least 500 px wide; the phone is a frame in it, which also says how wide the page is there.
    let script = "<script>addEventListener('load', () => { const inner = document.querySelector('iframe').contentDocument.documentElement; document.title = inner.scrollWidth + ' of 390'; });</script>";
    let frame = format!(
        "<!doctype html><title></title><body style='margin:0'><iframe src='report.html' style='border:0;width:390px;height:2400px'></iframe>{script}"
    );
    fs::write(profile.join("phone.html"), frame).unwrap();
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
    fs::create_dir_all(&pictures).unwrap();
    for (device, width, file) in [("desk", 1280, "report.html"), ("phone", 500, "phone.html")] {
        let address = format!("file://{}", profile.join(file).display());
        let picture = pictures.join(format!("{name}_{device}.png"));
        browse(browser, profile, width, &[&format!("--screenshot={}", picture.display())], &address);
        let image = image::open(&picture).unwrap().to_rgb8();
        assert_eq!((image.width(), image.height()), (width, 2400), "{name}, {device}");
        let colours: std::collections::HashSet<[u8; 3]> = image.pixels().map(|pixel| pixel.0).collect();
        assert!(colours.len() > 100, "{name}, {device}: a page of {} colours is empty", colours.len());

        let (title, html) = title(browser, profile, width, &address);
        let error = html.split("data-error=").nth(1).and_then(|rest| rest.get(..200));
        assert_eq!(error, None, "{name}, {device}: a script failed");
        let (content, window) = title.split_once(" of ").unwrap_or_else(|| panic!("no widths in {title:?}"));
        assert_eq!(content, window, "{name}, {device}: the page is wider than the window");
        if device == "desk" {
            for section in sections {
                assert!(html.contains(&format!("<section id=\"{section}\"")), "{name}: no section {section}");
            }
        }
    }
}

#[test]
fn reports_fit_desks_and_phones() {
    let Some(browser) = chromium() else {
        println!("skipped: reports_fit_desks_and_phones: no Chromium on this machine");
        return;
    };
    let slides = ["results", "curves", "confusion", "cohort", "heatmaps", "configuration"];
    look_at(&browser, &REFERENCE.run.join("report.html"), "slides", &slides);

    // Images: probes, shifts, retrieval, two encoders.
    let folder = tempfile::tempdir().unwrap();
    let [images, out] = ["images", "run"].map(|name| folder.path().join(name));
    images::draw(&images);
    let settings = ["evaluate.retrieval.enabled=true", "evaluate.retrieval.image_size=32"];
    let more = settings.iter().flat_map(|setting| ["--set", setting]);
    images::run(&images, &out, &probes::ALL.into_iter().chain(more).collect::<Vec<_>>()).with_code(0);
    let sections = ["results", "curves", "confusion", "robustness", "training", "figures", "configuration"];
    look_at(&browser, &out.join("report.html"), "images", &sections);
}
