//! The report as a browser shows it: no script error, nothing wider than the screen, all sections there. The pictures stay in
//! `target/tmp/screenshots` to be looked at.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cohort::REFERENCE;

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

#[test]
fn the_report_fits_desks_and_phones() {
    let Some(browser) = chromium() else {
        println!("skipped: the_report_fits_desks_and_phones: no Chromium on this machine");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let report = fs::read_to_string(REFERENCE.run.join("report.html")).unwrap();
    // A copy that says how wide it is, and what its scripts complained about.
    let probe = "<script>addEventListener('load', () => { document.title = [document.documentElement.scrollWidth, innerWidth].join(' of '); });</script>";
    let watch =
        "<script>addEventListener('error', (event) => { document.body.dataset.error = event.message; });</script>";
    let page = folder.path().join("report.html");
    fs::write(&page, report.replace("<head>", &format!("<head>{watch}{probe}"))).unwrap();
    let url = format!("file://{}", page.display());
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
    fs::create_dir_all(&pictures).unwrap();
    // A window of Chromium is at least 500 px wide; the phone is a frame in it.
    let phone = folder.path().join("phone.html");
    let frame = format!(
        "<!doctype html><title>frame</title><body style='margin:0'><iframe src='{url}' style='border:0;width:390px;height:2400px'></iframe>"
    );
    fs::write(&phone, frame).unwrap();
    for (name, width, address) in [("desk", 1280, url.clone()), ("phone", 500, format!("file://{}", phone.display()))] {
        let picture = pictures.join(format!("{name}.png"));
        let shot = format!("--screenshot={}", picture.display());
        browse(&browser, folder.path(), width, &[&shot], &address);
        let image = image::open(&picture).unwrap().to_rgb8();
        assert_eq!((image.width(), image.height()), (width, 2400), "{name}");
        let colours: std::collections::HashSet<[u8; 3]> = image.pixels().map(|pixel| pixel.0).collect();
        assert!(colours.len() > 100, "{name}: a page of {} colours is empty", colours.len());
    }
    let dump = browse(&browser, folder.path(), 1280, &["--dump-dom", "--virtual-time-budget=4000"], &url);
    let html = String::from_utf8_lossy(&dump.stdout);
    assert!(
        !html.contains("data-error="),
        "a script failed: {}",
        html.split("data-error=").nth(1).unwrap().get(..200).unwrap_or("")
    );
    let title = html.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).unwrap();
    let (content, window) = title.split_once(" of ").unwrap_or_else(|| panic!("no widths in {title:?}"));
    assert_eq!(content, window, "the page is wider than the window");
    for section in ["results", "curves", "confusion", "cohort", "heatmaps", "configuration"] {
        assert!(html.contains(&format!("<section id=\"{section}\"")), "no section {section}");
    }
    // The phone's width by the same means, in a window that is told to be one.
    let narrow = folder.path().join("narrow.html");
    let script = "<script>addEventListener('load', () => { const inner = document.querySelector('iframe').contentDocument.documentElement; document.title = inner.scrollWidth + ' in 390'; });</script>";
    fs::write(&narrow, format!("<!doctype html><title></title><body style='margin:0'><iframe src='report.html' style='border:0;width:390px;height:2400px'></iframe>{script}")).unwrap();
    let url = format!("file://{}", narrow.display());
    let flags = ["--dump-dom", "--virtual-time-budget=4000", "--allow-file-access-from-files"];
    let dump = browse(&browser, folder.path(), 800, &flags, &url);
    let html = String::from_utf8_lossy(&dump.stdout);
    assert!(html.contains("<title>390 in 390</title>"), "{}", html.get(..300).unwrap_or(&html));
}
