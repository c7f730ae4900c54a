//! Tests against the kernel, each in network namespaces of its own. They need root; without it they say that they
//! are skipped.

mod bench;
mod dns;
mod egress;
mod lab;
mod pod;
mod proxy;
