//! Answers on health check node ports: outside load balancers ask there which nodes have endpoints of a Service whose
//! externalTrafficPolicy is Local. Owns these listeners only.
//!
//! Upstream: pkg/proxy/healthcheck/service_health.go.

use skiff_client::ObjectKey;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// A balancer may take so long for its question.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions that are answered at once on a port.
const AT_ONCE: usize = 64;

/// What one port answers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Health {
    service: ObjectKey,
    local: usize,
}

struct Listening {
    health: watch::Sender<Health>,
    task: AbortHandle,
}

/// The listeners, by port. Dropping it ends them.
#[derive(Default)]
pub struct HealthPorts {
    listening: HashMap<u16, Listening>,
    wanted: BTreeMap<ObjectKey, (u16, usize)>,
}

impl HealthPorts {
    /// A Service wants a port (None: not any more) and has so many ready endpoints on this node. Must be called inside
    /// a tokio runtime.
    pub fn set(&mut self, service: &ObjectKey, wanted: Option<(u16, usize)>) {
        let before = match wanted {
            Some(w) => self.wanted.insert(service.clone(), w),
            None => self.wanted.remove(service),
        };
        if before == wanted {
            return;
        }
        if let Some((port, _)) = before
            && wanted.is_none_or(|(p, _)| p != port)
            && let Some(old) = self.listening.remove(&port)
        {
            old.task.abort();
        }
        let Some((port, local)) = wanted else { return };
        let health = Health {
            service: service.clone(),
            local,
        };
        match self.listening.get(&port) {
            Some(l) => {
                l.health.send_replace(health);
            }
            None => {
                let (tx, rx) = watch::channel(health);
                let task = tokio::spawn(listen(port, rx)).abort_handle();
                self.listening.insert(port, Listening { health: tx, task });
            }
        }
    }
}

impl Drop for HealthPorts {
    fn drop(&mut self) {
        for l in self.listening.values() {
            l.task.abort();
        }
    }
}

async fn listen(port: u16, health: watch::Receiver<Health>) {
    let listener = loop {
        match TcpListener::bind(("0.0.0.0", port)).await {
            Ok(l) => break l,
            Err(e) => {
                let service = health.borrow().service.to_string();
                tracing::warn!(port, %service, error = %e, "a health check node port cannot be listened on; trying again in 30 s");
                tokio::time::sleep(Duration::from_secs(30)).await;
            }
        }
    };
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let health = health.borrow().clone();
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(PATIENCE, answer(stream, &health)).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// The whole HTTP answer.
fn body(health: &Health) -> String {
    let code = if health.local > 0 {
        "200 OK"
    } else {
        "503 Service Unavailable"
    };
    let json = serde_json::json!({
        "service": {"namespace": health.service.namespace, "name": health.service.name},
        "localEndpoints": health.local,
        "serviceProxyHealthy": true,
    })
    .to_string();
    format!(
        "HTTP/1.1 {code}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{json}",
        health.local,
        json.len()
    )
}

async fn answer(mut stream: TcpStream, health: &Health) -> std::io::Result<()> {
    // The request does not matter; it is read to its end, so that closing does not reset the connection.
    let mut head = Vec::new();
    let mut buf = [0; 1024];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < 8192 {
        let n = stream.read(&mut buf).await?;
        if n == 0 {
            return Ok(());
        }
        head.extend_from_slice(&buf[..n]);
    }
    stream.write_all(body(health).as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_with_endpoints_are_healthy() {
        let health = |local| Health {
            service: ObjectKey::new("d", "s"),
            local,
        };
        assert!(body(&health(2)).starts_with("HTTP/1.1 200 "));
        assert!(body(&health(2)).contains("\"localEndpoints\":2"));
        assert!(body(&health(0)).starts_with("HTTP/1.1 503 "));
    }

    #[tokio::test]
    async fn a_port_is_opened_changed_and_closed_as_the_service_wants() {
        // A free port, found by binding one.
        let port = {
            let l = std::net::TcpListener::bind("0.0.0.0:0").expect("bind");
            l.local_addr().expect("address").port()
        };
        let ask = || async move {
            let mut s = TcpStream::connect(("127.0.0.1", port)).await?;
            s.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await?;
            let mut text = String::new();
            s.read_to_string(&mut text).await?;
            Ok::<_, std::io::Error>(text)
        };
        let key = ObjectKey::new("d", "s");
        let mut ports = HealthPorts::default();
        ports.set(&key, Some((port, 1)));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(ask().await.expect("answer").contains("200 OK"));
        ports.set(&key, Some((port, 0)));
        assert!(ask().await.expect("answer").contains("503"));
        ports.set(&key, None);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(ask().await.is_err());
    }
}
