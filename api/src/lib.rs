//! Kubernetes kinds and their pure rules: the resource table, schema facts, defaulting, validation, selectors,
//! quantities, patches, printer columns, Status errors. No I/O, no clock, no randomness, no async.
//!
//! Objects here are `serde_json::Value`; a kind is a row of [`resource::Resource`], so that a
//! CustomResourceDefinition can become a row at run time.

pub mod field;
pub mod kinds;
pub mod resource;
pub mod status;

pub use serde_json::Value;
