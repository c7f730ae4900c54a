//! Owns what `skiff image ...` does, without flags and without printing: the binary parses and prints.
//! Works on the store directly, whether a server runs or not; a running server sees the result at once.

use super::build::{BuildContext, BuildOptions, StepRunner, build as build_image};
use super::error::IoContext;
use super::export::export;
use super::import::{ImportOptions, import_file, import_stream};
use super::pull::{Credentials, PullEvent, Puller};
use super::registries::Registries;
use super::store::{ImageRecord, ImageStore};
use super::{ImageError, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Told lines of progress, from any thread.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// The image store of a data directory.
pub fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("agent/runtime/images")
}

/// Archives in here are imported at start ([`super::import::import_dir`]).
pub fn import_root(data_dir: &Path) -> PathBuf {
    data_dir.join("agent/images")
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(f).await.map_err(|e| {
        ImageError::io(
            "image work was interrupted",
            std::io::Error::other(e.to_string()),
        )
    })?
}

/// `skiff image build`: images of FROM lines that are not there are pulled; `runner` carries RUN out.
pub async fn build(
    data_dir: &Path,
    options: BuildOptions,
    registries: Registries,
    runner: Arc<dyn StepRunner>,
    progress: Progress,
) -> Result<Arc<ImageRecord>> {
    let root = root(data_dir);
    let runtime = tokio::runtime::Handle::current();
    blocking(move || {
        let store = ImageStore::open(&root)?;
        let puller = Puller::new(store.clone(), registries);
        let fetch = |name: &str| {
            progress(&format!("pulling {name}: it is not in the local store"));
            let pulled = runtime.block_on(puller.pull(name, Credentials::default(), None));
            pulled.map_err(|e| {
                Arc::try_unwrap(e).unwrap_or_else(|e| ImageError::Invalid(e.to_string()))
            })
        };
        build_image(
            &store,
            &options,
            &BuildContext {
                progress: &*progress,
                fetch: &fetch,
                runner: &*runner,
            },
        )
    })
    .await
}

/// `skiff image import FILE` (`-` is standard input). Imported images are never collected.
pub async fn import(
    data_dir: &Path,
    file: &Path,
    names: Vec<String>,
    progress: Progress,
) -> Result<Vec<Arc<ImageRecord>>> {
    let (root, file) = (root(data_dir), file.to_owned());
    blocking(move || {
        let store = ImageStore::open(&root)?;
        let options = ImportOptions {
            names,
            pinned: true,
        };
        match file.to_str() {
            Some("-") => import_stream(
                &store,
                std::io::stdin().lock(),
                "standard input",
                &options,
                &*progress,
            ),
            _ => import_file(&store, &file, &options, &*progress),
        }
    })
    .await
}

/// `skiff image pull NAME`.
pub async fn pull(
    data_dir: &Path,
    name: &str,
    credentials: Credentials,
    registries: Registries,
    progress: Progress,
) -> Result<Arc<ImageRecord>> {
    let root = root(data_dir);
    let store = blocking(move || ImageStore::open(&root)).await?;
    let sink = move |e: PullEvent| match e {
        PullEvent::Resolving { image, endpoint } => {
            progress(&format!("{image}: asking {endpoint}"))
        }
        PullEvent::Unpacking { digest } => progress(&format!("{digest}: unpacking")),
        PullEvent::LayerDone { digest } => progress(&format!("{digest}: done")),
        PullEvent::Layer { .. } => {}
    };
    let pulled = Puller::new(store, registries)
        .pull(name, credentials, Some(Arc::new(sink)))
        .await;
    pulled.map_err(|e| Arc::try_unwrap(e).unwrap_or_else(|e| ImageError::Invalid(e.to_string())))
}

/// `skiff image ls`.
pub fn ls(data_dir: &Path) -> Result<Vec<Arc<ImageRecord>>> {
    Ok((*ImageStore::open(&root(data_dir))?.images()?).clone())
}

/// `skiff image rm NAME...`: takes the name away, and the image with its last name; an id takes the whole image.
/// Returns the names for which an image went. An image that a container uses is refused ([`ImageError::InUse`]), whether
/// a server runs or not; with `force` it goes, and the container keeps its files.
pub fn rm(data_dir: &Path, names: &[String], force: bool) -> Result<Vec<String>> {
    let store = ImageStore::open(&root(data_dir))?;
    let mut gone = Vec::new();
    for n in names {
        if store.untag(n, force)? {
            gone.push(n.clone());
        }
    }
    Ok(gone)
}

/// `skiff image save NAME FILE` (`-` is standard output). Half-written files are removed.
pub async fn save(data_dir: &Path, name: &str, file: &Path) -> Result<()> {
    let (root, name, file) = (root(data_dir), name.to_owned(), file.to_owned());
    blocking(move || {
        let store = ImageStore::open(&root)?;
        let image = store.get(&name)?;
        if file.to_str() == Some("-") {
            return export(&store, &image, std::io::stdout().lock()).map(drop);
        }
        let out = std::fs::File::create(&file).what(|| format!("create {}", file.display()))?;
        let r = export(&store, &image, std::io::BufWriter::new(out)).map(drop);
        if r.is_err() {
            let _ = std::fs::remove_file(&file);
        }
        r
    })
    .await
}

/// Import the archives of a directory at start ([`super::import::import_dir`]). One that cannot be imported is logged
/// and does not keep the others out.
pub async fn import_directory(store: &ImageStore, dir: &Path) -> Result<()> {
    let (store, dir) = (store.clone(), dir.to_owned());
    let done = blocking(move || super::import::import_dir(&store, &dir, &|_| {})).await?;
    for (file, result) in done {
        match result {
            Ok(images) => {
                let names: Vec<&str> = images
                    .iter()
                    .flat_map(|i| i.repo_tags.iter().map(String::as_str))
                    .collect();
                tracing::info!(file = %file.display(), images = names.join(", "), "images imported");
            }
            Err(e) => tracing::error!(file = %file.display(), error = %e, "archive not imported"),
        }
    }
    Ok(())
}
