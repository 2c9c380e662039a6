//! The tables of the Gen-SIS paper as data: which figures they show, and under which names.

/// One of them.
pub(super) struct PaperTable {
    /// The paper's number.
    pub number: u32,
    /// What it shows.
    pub title: &'static str,
    /// The tasks it takes figures of.
    pub tasks: &'static [&'static str],
    /// Whether the figures under a head belong to it.
    pub shows: fn(&str) -> bool,
    /// Metrics with their names in the paper, in its order.
    pub metrics: &'static [(&'static str, &'static str)],
    /// Whether the paper gives percent.
    pub percent: bool,
}

/// Those that were readable; the pre-training is 100 epochs of ViT-S/16 in all of them.
pub(super) const TABLES: [PaperTable; 5] = [
    PaperTable {
        number: 1,
        title: "Classification with frozen features",
        tasks: &["knn", "linear"],
        // DINO's number of neighbours, and the probes on all labels.
        shows: |head| {
            head.starts_with("20-NN") || !["-NN", "-shot", "on test"].iter().any(|other| head.contains(other))
        },
        metrics: &[("accuracy", "top-1")],
        percent: true,
    },
    PaperTable {
        number: 2,
        title: "Image retrieval",
        tasks: &["retrieval"],
        shows: |head| !head.contains("easy"),
        metrics: &[("map", "mAP")],
        percent: true,
    },
    PaperTable {
        number: 3,
        title: "Copy detection",
        tasks: &["copy_detection"],
        shows: |_| true,
        metrics: &[("map", "mAP")],
        percent: true,
    },
    PaperTable {
        number: 4,
        title: "Video object segmentation",
        tasks: &["video"],
        shows: |_| true,
        metrics: &[("j_and_f_mean", "(J&F)m"), ("j_mean", "Jm"), ("f_mean", "Fm")],
        percent: true,
    },
    PaperTable {
        number: 9,
        title: "Slide-level classification",
        tasks: &["slide"],
        shows: |_| true,
        metrics: &[("accuracy", "Acc"), ("macro_f1", "F1"), ("macro_auc", "AUC")],
        percent: false,
    },
];

/// Names of encoders for readers, the rows of the paper first.
const ENCODERS: [(&str, &str); 8] = [
    ("dino", "DINO"),
    ("gen_dino_without_disentanglement", "Gen-DINO w/o disentanglement"),
    ("gen_dino_without_generative", "Gen-DINO w/o generative pairs"),
    ("gen_dino_pixel_mixing", "Gen-DINO, pixel mixing"),
    ("gen_dino_lerp", "Gen-DINO, linear interpolation"),
    ("gen_dino", "Gen-DINO"),
    ("random", "Untrained"),
    ("pixels", "Pixels"),
];

/// Place among the rows, and the name for readers. What stands in brackets behind a name, to tell runs apart, stays.
pub(super) fn encoder(name: &str) -> (usize, String) {
    let (base, more) = name.split_once(" (").map_or((name, String::new()), |(base, more)| (base, format!(" ({more}")));
    match ENCODERS.iter().position(|(known, _)| *known == base) {
        Some(place) => (place, ENCODERS[place].1.to_owned() + &more),
        None => (ENCODERS.len(), name.to_owned()),
    }
}
