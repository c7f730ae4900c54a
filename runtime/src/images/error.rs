//! Owns the one error type of the image code and its mapping to gRPC codes. Must not print or log.

use std::io;

/// What went wrong with an image. Every text names the image, file, layer or path it is about.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image of that name or id in the store.
    #[error(
        "image {0:?} is not in the local image store; pull it, or add it with `skiff image import` or `skiff image build`"
    )]
    NotFound(String),
    /// Containers (or builds) hold it.
    #[error("image {image:?} is in use by {}", .by.join(", "))]
    InUse {
        image: String,
        /// Ids of containers; a suffix `-vN` is their Nth mount.
        by: Vec<String>,
    },
    /// A name, archive, manifest or argument that cannot be right whatever the machine's state is.
    #[error("{0}")]
    Invalid(String),
    /// The bytes do not have the digest they were asked for by.
    #[error("{what}: digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch {
        what: String,
        expected: String,
        actual: String,
    },
    /// A layer holds an entry that may not or cannot be applied.
    #[error("layer {layer}: entry {path:?}: {message}")]
    Layer {
        layer: String,
        path: String,
        message: String,
    },
    /// An archive given to `import` is damaged.
    #[error("archive {file}: {message}")]
    Archive { file: String, message: String },
    /// The registry answered that there is no such image, tag or blob.
    #[error("failed to pull image {image:?}: {message}")]
    RegistryNotFound { image: String, message: String },
    /// The registry wants other credentials.
    #[error("failed to pull image {image:?}: {message}")]
    Unauthorized { image: String, message: String },
    /// The registry cannot be reached or fails.
    #[error("failed to pull image {image:?}: {message}")]
    RegistryUnavailable { image: String, message: String },
    /// A Dockerfile line that is wrong or failed.
    #[error("{file}:{line}: {message}")]
    Dockerfile {
        file: String,
        line: usize,
        message: String,
    },
    /// A system call failed; `what` says on which thing.
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// An I/O error with the thing it happened to.
    pub fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        ImageError::Io {
            what: what.into(),
            source: source.into(),
        }
    }

    /// Add to the text of a failed pull; other errors stay as they are.
    pub fn with_note(mut self, note: &str) -> Self {
        if let ImageError::RegistryNotFound { message, .. }
        | ImageError::Unauthorized { message, .. }
        | ImageError::RegistryUnavailable { message, .. } = &mut self
        {
            message.push_str(note);
        }
        self
    }

    /// The gRPC code for the CRI: the kubelet prints code and text in the pod's event.
    pub fn code(&self) -> tonic::Code {
        match self {
            ImageError::NotFound(_) | ImageError::RegistryNotFound { .. } => tonic::Code::NotFound,
            ImageError::InUse { .. } => tonic::Code::FailedPrecondition,
            ImageError::Invalid(_) | ImageError::Dockerfile { .. } => tonic::Code::InvalidArgument,
            ImageError::DigestMismatch { .. }
            | ImageError::Layer { .. }
            | ImageError::Archive { .. } => tonic::Code::DataLoss,
            ImageError::Unauthorized { .. } => tonic::Code::Unauthenticated,
            ImageError::RegistryUnavailable { .. } => tonic::Code::Unavailable,
            ImageError::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    tonic::Code::ResourceExhausted
                }
                io::ErrorKind::PermissionDenied => tonic::Code::PermissionDenied,
                _ => tonic::Code::Internal,
            },
        }
    }
}

impl From<ImageError> for tonic::Status {
    fn from(e: ImageError) -> Self {
        tonic::Status::new(e.code(), e.to_string())
    }
}

/// `.what(|| ...)` on results of system calls.
pub trait IoContext<T> {
    /// Name the thing the call was about.
    fn what<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn what<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, ImageError> {
        self.map_err(|e| ImageError::io(what(), e))
    }
}
