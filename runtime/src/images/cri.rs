//! Owns the CRI v1 ImageService. Must hold no logic of its own: it translates to store and puller.

use super::config::ImageConfig;
use super::pull::{Credentials, Puller};
use super::store::{ImageRecord, ImageStore};
use k8s_cri::v1::image_service_server::ImageService;
use k8s_cri::v1::{
    FilesystemIdentifier, FilesystemUsage, Image, ImageFsInfoRequest, ImageFsInfoResponse,
    ImageSpec, ImageStatusRequest, ImageStatusResponse, Int64Value, ListImagesRequest,
    ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest,
    RemoveImageResponse, UInt64Value,
};
use std::collections::HashMap;
use tonic::{Request, Response, Status};

/// The service; give it to `k8s_cri::v1::image_service_server::ImageServiceServer`.
#[derive(Clone)]
pub struct CriImageService {
    store: ImageStore,
    puller: Puller,
}

impl CriImageService {
    /// Serve this store.
    pub fn new(store: ImageStore, puller: Puller) -> Self {
        CriImageService { store, puller }
    }
}

/// The CRI's view of a record. As containerd: a numeric user is `uid`, a name is `username`.
pub fn to_cri(r: &ImageRecord) -> Image {
    let user = r.user.split(':').next().unwrap_or_default();
    let uid: Option<i64> = user.parse().ok();
    Image {
        id: r.id.to_string(),
        repo_tags: r.repo_tags.clone(),
        repo_digests: r.repo_digests.clone(),
        size: r.size,
        uid: uid.map(|value| Int64Value { value }),
        username: if uid.is_some() {
            String::new()
        } else {
            user.to_owned()
        },
        spec: Some(ImageSpec {
            image: r.id.to_string(),
            ..Default::default()
        }),
        pinned: r.pinned,
    }
}

/// containerd's `info` of a verbose status: chain id and image spec as JSON.
fn info(record: &ImageRecord, config: &ImageConfig) -> HashMap<String, String> {
    let chain = record
        .layers
        .last()
        .map(ToString::to_string)
        .unwrap_or_default();
    let v = serde_json::json!({ "chainID": chain, "imageSpec": config });
    HashMap::from([("info".to_owned(), v.to_string())])
}

async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> super::Result<T> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(f)
        .await
        .map_err(|e| Status::internal(e.to_string()))?
        .map_err(Status::from)
}

#[tonic::async_trait]
impl ImageService for CriImageService {
    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let wanted = request
            .into_inner()
            .filter
            .and_then(|f| f.image)
            .map(|i| i.image)
            .filter(|i| !i.is_empty());
        let images = match wanted {
            Some(name) => self
                .store
                .resolve(&name)?
                .iter()
                .map(|r| to_cri(r))
                .collect(),
            None => self.store.images()?.iter().map(|r| to_cri(r)).collect(),
        };
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let name = request.image.unwrap_or_default().image;
        let Some(record) = self.store.resolve(&name)? else {
            return Ok(Response::new(ImageStatusResponse::default()));
        };
        let info = if request.verbose {
            info(&record, &self.store.config(&record)?)
        } else {
            HashMap::new()
        };
        Ok(Response::new(ImageStatusResponse {
            image: Some(to_cri(&record)),
            info,
        }))
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        let request = request.into_inner();
        crate::cri::fields::pull_image(&request)?;
        let image = request.image.unwrap_or_default().image;
        let auth = request.auth.unwrap_or_default();
        let credentials = Credentials {
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            server_address: auth.server_address,
            identity_token: auth.identity_token,
            registry_token: auth.registry_token,
        };
        match self.puller.pull(&image, credentials, None).await {
            Ok(r) => Ok(Response::new(PullImageResponse {
                image_ref: r.id.to_string(),
            })),
            Err(e) => Err(Status::new(e.code(), e.to_string())),
        }
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let store = self.store.clone();
        blocking(move || store.remove(&name, false)).await?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _request: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        let store = self.store.clone();
        let usage = blocking(move || store.usage()).await?;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let fs = FilesystemUsage {
            timestamp: now.as_nanos() as i64,
            fs_id: Some(FilesystemIdentifier {
                mountpoint: self.store.root().to_string_lossy().into_owned(),
            }),
            used_bytes: Some(UInt64Value { value: usage.bytes }),
            inodes_used: Some(UInt64Value {
                value: usage.inodes,
            }),
        };
        // One file system for images and containers: the same entry twice tells the kubelet so.
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![fs.clone()],
            container_filesystems: vec![fs],
        }))
    }
}
