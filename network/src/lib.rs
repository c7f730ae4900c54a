//! What packets need: the pod network of this node ([`pod`]), the Service proxy ([`proxy`]), cluster DNS ([`dns`]) and
//! the way out of image builds ([`egress`]), all by netlink and without any other program. Owns interfaces, addresses, routes and nft tables of its
//! own names; must not touch those of others, nor decide what pods and Services there are.

pub mod cidr;
pub mod dns;
pub mod egress;
pub mod netlink;
pub mod pod;
pub mod probe;
pub mod proxy;

pub use cidr::Cidr;
pub use pod::{HostPort, PodNetwork, PodNetworkConfig, Protocol, node_ip};
