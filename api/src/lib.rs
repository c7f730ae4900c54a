//! Kubernetes kinds and their pure rules: the resource table, schema facts, defaulting, validation, selectors,
//! quantities, patches, printer columns, Status errors. No I/O, no clock, no randomness, no async.
//!
//! Objects here are `serde_json::Value`; a kind is a row of [`resource::Resource`], so that a
//! CustomResourceDefinition can become a row at run time.

pub mod bearer;
pub mod decode;
pub mod field;
pub mod inert;
pub mod jsonpath;
pub mod kinds;
pub mod meta;
pub mod names;
pub mod node_api;
pub mod openapi;
pub mod patch;
pub mod pod_security;
pub mod protobuf;
pub mod quantity;
pub mod resource;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
pub mod time;

pub use serde_json::Value;
