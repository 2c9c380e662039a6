//! manifest
/// The slides of a study.
pub struct Cohort;
/// One slide of a study.
pub struct SlideRecord;
