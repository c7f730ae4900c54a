//! Tokens of service accounts for pods: asked for with TokenRequest, kept until 80 % of their life is over (upstream
//! pkg/kubelet/token). Owns the memory of tokens; they are never written anywhere but into volumes.

use crate::pod::spec;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use std::collections::HashMap;

/// A token and when to ask for the next.
#[derive(Debug, Clone)]
pub struct Token {
    /// The JWT.
    pub token: String,
    /// 80 % of its life, at most 24 hours.
    pub refresh_at: Timestamp,
}

type Key = (String, String, i64);

/// Tokens of all pods of the node.
#[derive(Default)]
pub struct Tokens {
    known: Mutex<HashMap<Key, Token>>,
}

impl Tokens {
    /// The token for a projection of a pod.
    ///
    /// # Errors
    /// The API refused it.
    pub async fn get(
        &self,
        pod: &Pod,
        source: &ServiceAccountTokenProjection,
        client: &kube::Client,
        now: Timestamp,
    ) -> Result<Token, String> {
        let audience = source.audience.clone().unwrap_or_default();
        let seconds = source.expiration_seconds.unwrap_or(3600);
        let key = (spec::uid(pod).to_string(), audience.clone(), seconds);
        if let Some(t) = self.known.lock().get(&key).filter(|t| now < t.refresh_at) {
            return Ok(t.clone());
        }
        let account = spec::spec(pod)
            .service_account_name
            .clone()
            .filter(|n| !n.is_empty())
            .unwrap_or_else(|| "default".into());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(if audience.is_empty() {
                    Vec::new()
                } else {
                    vec![audience]
                }),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(client.clone(), spec::namespace(pod));
        let made = api
            .create_token_request(&account, &PostParams::default(), &request)
            .await
            .map_err(|e| format!("failed to fetch token: {e}"))?;
        let status = made
            .status
            .ok_or("failed to fetch token: the API gave none")?;
        let (Some(token), Some(expires)) = (status.token, status.expiration_timestamp) else {
            return Err("failed to fetch token: the API gave none".into());
        };
        let life = expires.0.duration_since(now);
        let refresh = (life * 4 / 5).min(SignedDuration::from_hours(24));
        let token = Token {
            token,
            refresh_at: now.checked_add(refresh).unwrap_or(now),
        };
        self.known.lock().insert(key, token.clone());
        Ok(token)
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &str) {
        self.known.lock().retain(|(u, _, _), _| u != uid);
    }
}
