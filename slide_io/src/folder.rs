//! folder
/// Images in class folders (ImageNet layout).
pub struct ImageFolder;
