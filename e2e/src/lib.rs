//! End to end: a real server, real containers, a real kubectl, each cluster in a network namespace of its own.
//! [`framework`] makes clusters; [`functional`] and [`chaos`] are the tests, as flat lists of functions.

pub mod chaos;
pub mod framework;
pub mod functional;
