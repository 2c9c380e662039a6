//! The page: head, header, and the sections one below the other.

use slide_io::Rgb;
use slide_io::thumbnail::GridColours;

use super::html::{escape, picture, scroll_box};
use super::number::grouped;
use super::{Failure, Figure, Highlight, Report, Thumbnail};
use super::{chart, cohort, comparisons, confusion, ranking, results, robustness};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// The browser itself refuses to fetch anything, whatever ends up in the page.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Matrices and pairs of curves shown before the fold-out: several heads and seeds make dozens.
const SHOWN: usize = 6;

/// The whole document.
pub fn document(report: &Report) -> String {
    let concat = |parts: Vec<String>| parts.concat();
    let wrapped = |class: &str, inner: String| {
        if inner.is_empty() { inner } else { format!(r#"<div class="{class}">{inner}</div>"#) }
    };
    let sections = [
        ("failures", "Left out", failures(&report.failures)),
        ("summary", "Summary", summary(&report.summary)),
        ("results", "Results", results::tables(&report.results)),
        ("comparisons", "Comparisons", comparisons::table(&report.comparisons)),
        ("curves", "ROC and PR", some("charts", SHOWN, report.ranking.iter().map(ranking::figure).collect())),
        ("confusion", "Confusion", some("matrices", SHOWN, report.confusions.iter().map(confusion::table).collect())),
        (
            "robustness",
            "Robustness",
            wrapped("charts", robustness::charts(&report.results).iter().map(chart::figure).collect()),
        ),
        ("training", "Training", wrapped("charts", report.curves.iter().map(chart::figure).collect())),
        ("cohort", "Cohort", cohort::table(&report.cohort)),
        ("slides", "Slides", slides(&report.thumbnails)),
        ("heatmaps", "Heatmaps", heatmaps(&report.heatmaps)),
        ("figures", "Figures", wrapped("figures", report.figures.iter().map(figure).collect())),
        ("configuration", "Configuration", configuration(&report.configuration)),
    ];
    let shown = || sections.iter().filter(|(_, _, body)| !body.is_empty());
    let links = concat(shown().map(|(id, title, _)| format!("<a href=\"#{id}\">{title}</a>")).collect());
    let body = concat(shown().map(|(id, title, body)| section(id, title, body)).collect());
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="gensis {version}">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{title}</title>
<style>
{STYLE}</style>
</head>
<body>
<header><h1>{title}</h1>{subtitle}{provenance}</header>
<nav aria-label="Sections">{links}</nav>
<main>
{body}</main>
<footer>Made by gensis {version}. This file is complete in itself and fetches nothing.</footer>
<dialog aria-label="Enlarged picture"><form method="dialog"><button aria-label="Close">✕</button></form><figure><img alt=""><figcaption></figcaption></figure></dialog>
<script>
{SCRIPT}</script>
</body>
</html>
"#,
        version = env!("CARGO_PKG_VERSION"),
        title = escape(&report.title),
        subtitle =
            if report.subtitle.is_empty() { String::new() } else { format!("<p>{}</p>", escape(&report.subtitle)) },
        provenance = provenance(&report.provenance),
    )
}

/// The first `shown` of the `items` that are not empty, and the others behind a fold-out.
fn some(class: &str, shown: usize, items: Vec<String>) -> String {
    let items: Vec<String> = items.into_iter().filter(|item| !item.is_empty()).collect();
    let (first, rest) = items.split_at(shown.min(items.len()));
    let grid = |items: &[String]| match items {
        [] => String::new(),
        items => format!(r#"<div class="{class}">{}</div>"#, items.concat()),
    };
    match rest.len() {
        0 => grid(first),
        n => format!("{}<details><summary>{n} more</summary>{}</details>", grid(first), grid(rest)),
    }
}

/// What heads attend to, slide by slide.
fn heatmaps(pictures: &[Figure]) -> String {
    if pictures.is_empty() {
        return String::new();
    }
    let note = "Attention says what a decision rests on, not where the disease is, and it is relative to the slide: a slide with nothing to see has patches of the highest rank as well.";
    format!(r#"<p class="note">{note}</p>{}"#, some("heatmaps", 12, pictures.iter().map(figure).collect()))
}

fn section(id: &str, title: &str, body: &str) -> String {
    format!(
        "<section id=\"{id}\" aria-labelledby=\"{id}-title\"><h2 id=\"{id}-title\">{title}</h2>\n{body}\n</section>\n"
    )
}

fn provenance(pairs: &[(String, String)]) -> String {
    if pairs.is_empty() {
        return String::new();
    }
    let items: String = pairs
        .iter()
        .map(|(name, value)| format!("<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value)))
        .collect();
    format!("<dl>{items}</dl>")
}

fn failures(failures: &[Failure]) -> String {
    if failures.is_empty() {
        return String::new();
    }
    let rows: String = failures
        .iter()
        .map(|f| {
            format!(
                "<tr><td>{}</td><th scope=\"row\">{}</th><td>{}</td></tr>\n",
                escape(&f.stage),
                escape(&f.item),
                escape(&f.reason)
            )
        })
        .collect();
    let count = match failures.len() {
        1 => "One item was left out of this run; the results are".into(),
        n => format!("{} items were left out of this run; the results are", grouped(n as u64)),
    };
    let table = format!(
        r#"<table><caption class="quiet">What was left out, and why</caption><thead><tr><th scope="col">Stage</th><th scope="col">Item</th><th scope="col">Reason</th></tr></thead><tbody>{rows}</tbody></table>"#
    );
    format!("<p><strong>{count} those of the rest.</strong></p>{}", scroll_box("What was left out", &table))
}

fn summary(highlights: &[Highlight]) -> String {
    if highlights.is_empty() {
        return String::new();
    }
    let tile = |h: &Highlight| {
        let interval = match h.interval.as_str() {
            "" => String::new(),
            interval => format!(r#"<dd class="note">{}</dd>"#, escape(interval)),
        };
        format!("<div><dt>{}</dt><dd>{}</dd>{interval}</div>", escape(&h.name), escape(&h.value))
    };
    format!(r#"<dl class="tiles">{}</dl>"#, highlights.iter().map(tile).collect::<String>())
}

/// The pictures under a key of their colours.
fn slides(thumbnails: &[Thumbnail]) -> String {
    if thumbnails.is_empty() {
        return String::new();
    }
    let colours = GridColours::default();
    let named = [("tissue", colours.tissue), ("kept", colours.patch)].map(|(name, colour)| (name.to_owned(), colour));
    let dropped = colours.dropped.iter().map(|(reason, colour)| (format!("dropped: {reason}"), *colour));
    let key = |(name, Rgb([r, g, b])): (String, Rgb<u8>)| {
        format!(r#"<li><span class="key" style="--c:rgb({r},{g},{b})"></span>{name}</li>"#)
    };
    let keys: String = named.into_iter().chain(dropped).map(key).collect();
    let pictures: String = thumbnails.iter().map(thumbnail).collect();
    format!(r#"<ul class="legend">{keys}</ul><div class="thumbnails">{pictures}</div>"#)
}

fn thumbnail(thumbnail: &Thumbnail) -> String {
    let alt = format!("Slide {} with its grid", thumbnail.id);
    let label = if thumbnail.label.is_empty() {
        String::new()
    } else {
        format!(r#" <span class="tag">{}</span>"#, escape(&thumbnail.label))
    };
    format!(
        r#"<figure>{}<figcaption><b>{}</b>{label}<br>{}</figcaption></figure>"#,
        picture(&thumbnail.jpeg, &alt),
        escape(&thumbnail.id),
        escape(&thumbnail.caption),
    )
}

fn figure(figure: &Figure) -> String {
    let alt = if figure.caption.is_empty() { &figure.title } else { &figure.caption };
    format!(
        "<figure><h3>{}</h3>{}<figcaption>{}</figcaption></figure>",
        escape(&figure.title),
        picture(&figure.image, alt),
        escape(&figure.caption),
    )
}

fn configuration(toml: &str) -> String {
    if toml.trim().is_empty() {
        return String::new();
    }
    format!(
        "<details><summary>Every setting of this run, defaults included (TOML)</summary><pre tabindex=\"0\"><code>{}</code></pre></details>",
        escape(toml.trim())
    )
}
