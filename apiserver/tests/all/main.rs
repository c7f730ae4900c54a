//! The API server over its tower service and over real TLS: requests in, answers out. One server for all tests, each test
//! in its own namespace.

mod access;
mod admission;
mod bodies;
mod bounds;
mod client;
mod crash;
mod credentials;
mod harness;
mod identities;
mod kubelet;
mod memory;
mod node_writes;
mod nodes;
mod perimeter;
mod pod_security;
mod proxy;
mod reads;
mod rights;
mod services;
mod shapes;
mod subresources;
mod tls;
mod typed;
mod watches;
mod writes;
