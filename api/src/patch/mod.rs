//! The patch formats. Pure functions over objects; each says with which Status it fails.

pub mod json;
pub mod merge;
pub mod strategic;
