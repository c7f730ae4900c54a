//! Owns everything about images: names, the content store, pull, import, export, build and the CRI image service.
//! Must not know containers, sandboxes or the kubelet: it only hands out [`rootfs::ImageRootfs`].
//!
//! Map: [`store`] keeps what is there, [`ingest`] adds to it; [`unpack`] turns a layer tar into an overlay directory and [`diff`] does the
//! reverse; [`pull`] and [`import`] bring images in; [`build`] makes them from a Dockerfile; [`rootfs`] is what
//! container creation uses; [`cri`] is the gRPC face and [`cmd`] the face for `skiff image ...`.

pub mod build;
pub mod cmd;
pub mod config;
pub mod copy;
pub mod cri;
pub mod diff;
pub mod digest;
pub mod dockerfile;
pub mod dockerignore;
pub mod error;
pub mod export;
pub mod healthcheck;
pub mod import;
pub mod ingest;
pub mod layer;
pub mod limits;
pub mod lower;
pub mod pull;
pub mod reference;
pub mod registries;
mod registry;
pub mod rootfs;
pub mod store;
pub mod tree;
pub mod unpack;

pub use error::ImageError;
pub use reference::Reference;
pub use rootfs::{ImageRootfs, OverlayOptions, ResolvedUser};
pub use store::{ImageRecord, ImageStore};

/// Result of everything in this module.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;
