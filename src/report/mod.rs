//! The report of a run: one HTML file that holds everything a reader needs to judge the results, and nothing from a
//! network. It opens offline, on a desk or a phone, light or dark, and on paper.
//!
//! [`Report`] is plain data and [`Report::to_html`] a pure function of it: reading the run folder and drawing the
//! thumbnails happens elsewhere, at the very end of a run or on `gensis report`. Sections without content vanish.
//!
//! | File | What it makes |
//! |---|---|
//! | `page.rs`, `page.css`, `page.js` | the page around the sections: header, failures, summary, figures, configuration |
//! | `results.rs`, `confusion.rs` | pivot tables of the long-form results; confusion matrices |
//! | `ranking.rs`, `comparisons.rs`, `robustness.rs` | ROC and precision-recall curves; paired tests; curves over shifts |
//! | `chart.rs` | curves as SVG that follows the page's colours |
//! | `cohort.rs` | the table of slides |
//! | `html.rs`, `number.rs` | escaping and embedding; numbers as people read them |

mod chart;
mod cohort;
mod comparisons;
mod confusion;
mod html;
mod number;
mod page;
mod ranking;
mod results;
mod robustness;
#[cfg(test)]
mod tests;

pub use evaluation::comparison::Comparison;
pub use evaluation::table::ResultRow;
use serde::{Deserialize, Serialize};

/// Everything the report of a run shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Heading and window title, for example the name of the experiment.
    pub title: String,
    /// One sentence under the title.
    pub subtitle: String,
    /// Where the numbers come from, in reading order: version, configuration hash, seed, device, weights hash, started,
    /// duration.
    pub provenance: Vec<(String, String)>,
    /// The few numbers to see first.
    pub summary: Vec<Highlight>,
    /// One row per slide, failed ones too.
    pub cohort: Vec<SlideRow>,
    /// Whatever was left out of the run; shown before everything else.
    pub failures: Vec<Failure>,
    /// Slides with their grid drawn on them.
    pub thumbnails: Vec<Thumbnail>,
    /// Losses, schedules and watches of the training stages.
    pub curves: Vec<Chart>,
    /// The result table in long form; the report pivots it.
    pub results: Vec<ResultRow>,
    /// Confusion matrices, counted on test data.
    pub confusions: Vec<Confusion>,
    /// ROC and precision-recall curves on test data.
    pub ranking: Vec<RankingCurves>,
    /// Paired tests between encoders.
    pub comparisons: Vec<Comparison>,
    /// What slide-level heads attend to.
    pub heatmaps: Vec<Figure>,
    /// Any other picture: sheets of samples, attention maps.
    pub figures: Vec<Figure>,
    /// The resolved configuration, TOML.
    pub configuration: String,
}

impl Report {
    /// The whole report as one self-contained HTML document.
    pub fn to_html(&self) -> String {
        page::document(self)
    }
}

/// A number of the summary.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Highlight {
    /// What it is: `Balanced accuracy`.
    pub name: String,
    /// The value as shown, with its unit.
    pub value: String,
    /// Its interval or what it was counted over, in a few words; may be empty.
    pub interval: String,
}

/// A slide of the cohort. What is not known, because the slide failed before or was not looked at, is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlideRow {
    /// Slide id.
    pub id: String,
    /// Class, empty where the slide has none.
    pub label: String,
    /// `train`, `val`, `test` or empty.
    pub split: String,
    /// Vendor or file format, as its reader names it.
    pub format: String,
    /// Width and height of level 0, px.
    pub size: Option<(u64, u64)>,
    /// Scale of level 0, µm/px.
    pub mpp: Option<f64>,
    /// Levels of the pyramid.
    pub levels: Option<usize>,
    /// Whether only its features are known, made elsewhere.
    pub only_features: bool,
    /// Share of the slide that is tissue, 0 to 1.
    pub tissue_share: Option<f64>,
    /// Positions of the grid before the tissue rule.
    pub candidates: Option<usize>,
    /// Patches kept.
    pub kept: Option<usize>,
    /// Positions that gave no patch, by reason: `180 background, 30 pen`.
    pub dropped: String,
    /// What is wrong with a slide that was tiled all the same; may be empty.
    pub problem: String,
    /// Why the slide was left out, if it was.
    pub failure: Option<String>,
}

/// Something that was left out of the run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Failure {
    /// Stage it failed in.
    pub stage: String,
    /// Slide or file.
    pub item: String,
    /// What was wrong with it.
    pub reason: String,
}

/// A small picture of a slide with the grid drawn on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Thumbnail {
    /// Slide id.
    pub id: String,
    /// Class, empty where the slide has none.
    pub label: String,
    /// A few words: how many patches at which scale.
    pub caption: String,
    /// The picture, JPEG.
    pub jpeg: Vec<u8>,
}

/// Lines over one pair of axes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// What is shown.
    pub title: String,
    /// Quantity and unit of the horizontal axis.
    pub x_label: String,
    /// Quantity and unit of the vertical axis.
    pub y_label: String,
    /// The lines, at most six or they repeat colours.
    pub series: Vec<Series>,
    /// Whether the vertical axis is logarithmic; values of 0 and below are then left out.
    pub log_y: bool,
}

/// A line of a [`Chart`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// (x, y) by ascending x. A non-finite y is a gap.
    pub points: Vec<(f64, f64)>,
}

/// Which class was taken for which.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Confusion {
    /// Task, encoder and head.
    pub title: String,
    /// Class names, in order.
    pub classes: Vec<String>,
    /// `counts[true][predicted]`.
    pub counts: Vec<Vec<u64>>,
}

/// How well the scores of one set of predictions rank, class by class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RankingCurves {
    /// Task, encoder and head.
    pub title: String,
    /// Every class that is shown.
    pub classes: Vec<ClassCurve>,
}

/// One class against the rest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassCurve {
    /// The class.
    pub name: String,
    /// Items of the class.
    pub positives: u64,
    /// All items.
    pub items: u64,
    /// Area under the ROC curve; none where it is not defined.
    pub auc: Option<f64>,
    /// Average precision; none where it is not defined.
    pub average_precision: Option<f64>,
    /// False and true positive rate, from (0, 0) to (1, 1); empty where it is not defined.
    pub roc: Vec<(f64, f64)>,
    /// Recall and precision by ascending recall.
    pub precision_recall: Vec<(f64, f64)>,
}

/// A picture of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figure {
    /// Heading.
    pub title: String,
    /// What it shows and how to read it; also its alternative text.
    pub caption: String,
    /// The picture, PNG or JPEG.
    pub image: Vec<u8>,
}
