//! gensis
fn main() {}
