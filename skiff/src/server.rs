//! `skiff server`: starts the parts in order and ends them. Owns the order and nothing else.

use crate::cli::ServerArgs;
use crate::glue::BridgeNetwork;
use crate::{config, manifests, paths};
use anyhow::{Context, Result, anyhow, bail};
use skiff_apiserver::auth::UserInfo;
use skiff_client::Informers;
use skiff_network as network;
use skiff_supervise::Supervisor;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The Kubernetes version whose API is served.
pub const KUBERNETES: &str = "v1.36.0";

const PARTS: [&str; 4] = ["dns", "service-proxy", "scheduler", "controllers"];

/// Runs a cluster until a signal ends it. Containers keep running then.
///
/// # Errors
/// What hindered the start, with its mend.
pub async fn run(args: ServerArgs) -> Result<()> {
    let begun = Instant::now();
    if !args.disable_agent && !rustix::process::geteuid().is_root() {
        bail!(
            "containers need root: run it again with sudo, or give --disable-agent for a control plane alone"
        );
    }
    for part in &args.disable {
        if !PARTS.contains(&part.as_str()) {
            bail!(
                "--disable {part}: there is no such part; there are {}",
                PARTS.join(", ")
            );
        }
    }
    let mode = config::file_mode(&args.write_kubeconfig_mode)?;
    if !args.disable_agent {
        holds_containers_back(args.allow_missing_isolation)?;
    }
    let (cluster_cidr, service_cidr, dns) = networks(&args)?;
    let node_name = node_name(&args)?;
    let dir = config::data_dir(&args.data_dir)?;
    let _lock = lock(&dir)?;
    config::private_agent(&dir)?;
    let stop = CancellationToken::new();
    let supervisor = Supervisor::new(stop.clone());
    end_on_signals(stop.clone())?;
    raise_open_files();

    // The pod network comes first: it gives a machine without any address one that pods can reach the API at.
    let pods = if args.disable_agent {
        None
    } else {
        Some(pod_network(&dir, cluster_cidr, service_cidr)?)
    };
    let node_ip = match (args.node_ip, &pods) {
        (Some(ip), _) => ip,
        (None, Some(p)) => detected(Some(p.gateway()))?,
        (None, None) => detected(Some(Ipv4Addr::LOCALHOST))?,
    };

    let bridge = pods.clone().map(|p| Arc::new(BridgeNetwork::new(p)));
    let started_runtime = bridge.clone().map(|b| {
        tokio::spawn(skiff_runtime::start(
            runtime_config(&dir, &args, b),
            stop.clone(),
        ))
    });

    let api = skiff_apiserver::serve(
        skiff_apiserver::Config {
            data_dir: dir.clone(),
            bind_address: args.bind_address,
            https_listen_port: args.https_listen_port,
            advertise_address: args.advertise_address.unwrap_or(node_ip),
            tls_san: tls_names(&args, &node_name, node_ip),
            cluster_cidr: args.cluster_cidr.clone(),
            service_cidr: args.service_cidr.clone(),
            cluster_dns: dns,
            cluster_domain: args.cluster_domain.clone(),
            service_node_port_range: port_range(&args.service_node_port_range)?,
            token: args.token.clone(),
            datastore_quota: skiff_apiserver::store::space::Quota {
                bytes: args.datastore_quota_bytes,
                memory: args.datastore_memory_quota_bytes,
            },
            supervisor: Some(supervisor.clone()),
            ..skiff_apiserver::Config::new(&dir)
        },
        stop.clone(),
    )
    .await?;
    let pki = &api.app().auth.pki;
    write_kubeconfig(
        &args.write_kubeconfig,
        mode,
        &pki.admin_kubeconfig(&format!("https://127.0.0.1:{}", api.address().port()))?,
    )?;
    tracing::info!(port = api.address().port(), after = ?begun.elapsed(), "the API answers");

    // One set of caches for everything in this process, read as the administrator. Whatever else a part does, it does
    // under its own name and with upstream's rights: the kubelet as its node, through the node authorizer.
    let client = |user: &str, groups: &[&str]| {
        kube::Client::new(api.service(UserInfo::new(user, groups)), "default")
    };
    let informers = Informers::new(
        client("system:skiff", &["system:masters"]),
        supervisor.clone(),
    );
    let on = |part: &str| !args.disable.iter().any(|d| d == part);
    if on("controllers") {
        let settings = skiff_controllers::Config {
            cluster_cidr: args.cluster_cidr.clone(),
            root_ca_pem: pki.server_ca_pem().to_string(),
            workers: 5,
        };
        let (i, s) = (
            informers.acting_as(client("system:kube-controller-manager", &[])),
            stop.clone(),
        );
        supervisor.spawn("controllers", move || {
            until_stop(skiff_controllers::run(
                i.clone(),
                settings.clone(),
                s.clone(),
            ))
        });
    }
    if on("scheduler") {
        let (i, s) = (
            informers.acting_as(client("system:kube-scheduler", &[])),
            stop.clone(),
        );
        supervisor.spawn("scheduler", move || {
            until_stop(skiff_scheduler::run(
                i.clone(),
                skiff_scheduler::Config::default(),
                s.clone(),
            ))
        });
    }
    let (c, s) = (informers.client().clone(), stop.clone());
    let (files, own) = (paths::manifests(&dir), addons(dns, &args));
    supervisor.spawn("manifests", move || {
        until_stop(manifests::run(
            c.clone(),
            files.clone(),
            own.clone(),
            s.clone(),
        ))
    });

    if let (Some(pods), Some(bridge), Some(started)) = (pods, bridge, started_runtime) {
        let runtime = started.await.context("the runtime's start was cut off")??;
        bridge.forget_the_dead().await?;
        if on("service-proxy") {
            let settings = proxy_config(&node_name, cluster_cidr, service_cidr, dns)?;
            supervisor.spawn_essential(
                "service-proxy",
                network::proxy::run(informers.clone(), settings, stop.clone()),
            );
        }
        if on("dns") {
            pods.add_address(v4(dns)?)
                .context("the address of the cluster's DNS")?;
            let settings = dns_config(&args, cluster_cidr, service_cidr, dns);
            supervisor.spawn_essential(
                "dns",
                network::dns::run(informers.clone(), settings, stop.clone()),
            );
        }
        let serving = pki.server(
            "serving-kubelet",
            &format!("system:node:{node_name}"),
            std::slice::from_ref(&node_name),
            &[node_ip, IpAddr::V4(Ipv4Addr::LOCALHOST)],
        )?;
        let settings = kubelet_config(
            &dir,
            &args,
            &node_name,
            node_ip,
            dns,
            &serving,
            pki.client_ca_pem(),
        )?;
        supervisor.spawn_essential(
            "kubelet",
            skiff_kubelet::run(
                informers.acting_as(client(
                    &format!("system:node:{node_name}"),
                    &["system:nodes"],
                )),
                settings,
                stop.clone(),
            ),
        );
        let images = runtime.images().clone();
        let archives = paths::images(&dir);
        supervisor.spawn_transient("images", "import", move || {
            let (images, archives) = (images.clone(), archives.clone());
            tokio::task::spawn_blocking(move || import(&images, &archives))
        });
        supervisor.spawn_essential("container-runtime", runtime.join());
    }
    stop.cancelled().await;
    tracing::info!("stopping; containers keep running");
    if tokio::time::timeout(Duration::from_secs(10), supervisor.ended())
        .await
        .is_err()
    {
        tracing::warn!("some parts did not end within 10 s");
    }
    api.stopped().await;
    match supervisor.failure() {
        Some(why) => bail!("{why}"),
        None => Ok(()),
    }
}

/// Refuses a machine on which containers would run with more than they were given.
pub(crate) fn holds_containers_back(allow_missing: bool) -> Result<()> {
    match crate::check::refusal(&crate::check::isolation()) {
        None => Ok(()),
        Some(why) if allow_missing => {
            tracing::warn!("--allow-missing-isolation: {why}");
            Ok(())
        }
        Some(why) => bail!(
            "this machine cannot hold containers back: {why} (--allow-missing-isolation goes on all the same)"
        ),
    }
}

/// Most files that the server opens; what container hosts commonly have, and containers inherit.
const OPEN_FILES: u64 = 1 << 20;

/// Raises the soft limit of open files: each connection is one, and shells start programs with 1,024.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(OPEN_FILES, |m| m.min(OPEN_FILES));
    if limit.current.is_none_or(|soft| soft >= most) {
        return;
    }
    limit.current = Some(most);
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(error = %e, "the limit of open files could not be raised: few connections are taken");
    }
}

/// The networks of pods and services, and the address of the cluster's DNS, checked against each other.
fn networks(args: &ServerArgs) -> Result<(network::Cidr, network::Cidr, IpAddr)> {
    let service: network::Cidr = args
        .service_cidr
        .parse()
        .map_err(|e| anyhow!("--service-cidr {}: {e}", args.service_cidr))?;
    let cluster: network::Cidr = args
        .cluster_cidr
        .parse()
        .map_err(|e| anyhow!("--cluster-cidr {}: {e}", args.cluster_cidr))?;
    if cluster.overlaps(&service) {
        bail!(
            "--cluster-cidr {cluster} and --service-cidr {service} overlap: pods and services need addresses of their own"
        );
    }
    let dns = match args.cluster_dns {
        Some(ip) => ip,
        None => IpAddr::V4(
            service
                .nth(10)
                .context("--service-cidr is too small for a DNS address")?,
        ),
    };
    if !service.contains(v4(dns)?) || service.nth(1) == Some(v4(dns)?) {
        bail!(
            "--cluster-dns {dns} has to be one of the service addresses {service}, and not the first, which is the API's"
        );
    }
    if !is_dns_name(&args.cluster_domain) {
        bail!(
            "--cluster-domain {:?} is not a DNS name such as cluster.local",
            args.cluster_domain
        );
    }
    Ok((cluster, service, dns))
}

fn node_name(args: &ServerArgs) -> Result<String> {
    let name = match &args.node_name {
        Some(n) => n.clone(),
        None => host_name()?,
    };
    if !is_dns_name(&name) {
        bail!(
            "the node's name {name:?} is not a DNS name (lower case letters, digits, '-' and '.'): give another with --node-name"
        );
    }
    Ok(name)
}

/// RFC 1123 as Kubernetes takes it for names of nodes and domains.
fn is_dns_name(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|c| inner(c) || c == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// Imports the archives of `agent/images`. A bad one does not hinder the others.
fn import(store: &skiff_runtime::images::ImageStore, dir: &Path) {
    let say = |line: &str| tracing::debug!("{line}");
    match skiff_runtime::images::import::import_dir(store, dir, &say) {
        Ok(results) => {
            for (file, result) in results {
                if let Err(e) = result {
                    tracing::warn!(file = %file.display(), error = %e, "an image archive was not imported");
                }
            }
        }
        Err(e) => tracing::warn!(error = %e, "images were not imported at start"),
    }
}

/// A part that ends only at the stop, in the form that a supervisor takes.
async fn until_stop(part: impl Future<Output = ()>) -> Result<(), std::convert::Infallible> {
    part.await;
    Ok(())
}

/// One server for each data directory.
fn lock(dir: &Path) -> Result<std::fs::File> {
    let file = config::lock_file(dir)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
        |_| {
            anyhow!(
                "another skiff server uses {}: end it, or give another --data-dir",
                dir.display()
            )
        },
    )?;
    Ok(file)
}

fn end_on_signals(stop: CancellationToken) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        stop.cancel();
        // A second signal ends it at once.
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        std::process::exit(1);
    });
    Ok(())
}

fn host_name() -> Result<String> {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_lowercase();
    if name.is_empty() {
        bail!("this machine has no host name: give --node-name");
    }
    Ok(name)
}

fn v4(ip: IpAddr) -> Result<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(ip) => bail!("{ip}: IPv6 is not there yet in Skiff"),
    }
}

fn detected(otherwise: Option<Ipv4Addr>) -> Result<IpAddr> {
    let found =
        network::node_ip(otherwise).context("this machine's addresses could not be read")?;
    found
        .map(IpAddr::V4)
        .context("this machine has no address: give --node-ip")
}

fn pod_network(
    dir: &Path,
    cluster: network::Cidr,
    service: network::Cidr,
) -> Result<network::PodNetwork> {
    // The first node has the first /24, as the node IPAM controller gives it.
    let first = format!(
        "{}/{}",
        cluster.nth(0).context("--cluster-cidr is empty")?,
        cluster.prefix().max(24)
    );
    let settings = network::PodNetworkConfig {
        pod_cidr: first.parse().map_err(|e| anyhow!("--cluster-cidr: {e}"))?,
        cluster_cidr: cluster,
        service_cidr: service,
        ..network::PodNetworkConfig::new(paths::network(dir))
    };
    network::PodNetwork::open(settings)
        .context("the pod network; `skiff check` says what the machine lacks")
}

fn runtime_config(
    dir: &Path,
    args: &ServerArgs,
    pods: Arc<BridgeNetwork>,
) -> skiff_runtime::Config {
    skiff_runtime::Config {
        registries: args.private_registry.clone(),
        accept_missing_isolation: args.allow_missing_isolation,
        network: pods,
        ..skiff_runtime::Config::new(&paths::runtime(dir), &paths::cgroup(dir))
    }
}

fn tls_names(args: &ServerArgs, node_name: &str, node_ip: IpAddr) -> Vec<String> {
    let mut names = args.tls_san.clone();
    names.push(node_name.to_string());
    names.push(node_ip.to_string());
    names
}

fn port_range(text: &str) -> Result<(u16, u16)> {
    let parsed = text
        .split_once('-')
        .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match parsed {
        Some((a, b)) if a > 0 && a <= b => Ok((a, b)),
        _ => bail!("--service-node-port-range {text:?} is not two ports such as 30000-32767"),
    }
}

fn write_kubeconfig(path: &Path, mode: u32, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let name = || {
        format!(
            "kubeconfig {}: give another path with --write-kubeconfig",
            path.display()
        )
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(name)?;
    }
    let mut temporary = path.as_os_str().to_os_string();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .with_context(name)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))
        .with_context(name)?;
    file.write_all(text.as_bytes()).with_context(name)?;
    std::fs::rename(&temporary, path).with_context(name)
}

fn labels(args: &ServerArgs) -> Result<std::collections::BTreeMap<String, String>> {
    args.node_label
        .iter()
        .map(|l| {
            let (k, v) = l
                .split_once('=')
                .with_context(|| format!("--node-label {l:?} is not key=value"))?;
            // The API refuses them to nodes, and the node would never be there.
            if skiff_apiserver::admission::node_restriction::is_forbidden(k) {
                bail!(
                    "--node-label {l:?}: a node may not give itself labels of kubernetes.io and k8s.io, but for those of node.kubernetes.io, kubelet.kubernetes.io and a few others; set it with `skiff kubectl label node`"
                );
            }
            Ok((k.to_string(), v.to_string()))
        })
        .collect()
}

fn taints(args: &ServerArgs) -> Result<Vec<k8s_openapi::api::core::v1::Taint>> {
    args.node_taint
        .iter()
        .map(|t| {
            let (rest, effect) = t
                .rsplit_once(':')
                .with_context(|| format!("--node-taint {t:?} is not key=value:Effect"))?;
            if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
                bail!(
                    "--node-taint {t:?}: the effect is NoSchedule, PreferNoSchedule or NoExecute"
                );
            }
            let (key, value) = rest
                .split_once('=')
                .map_or((rest, None), |(k, v)| (k, Some(v.to_string())));
            Ok(k8s_openapi::api::core::v1::Taint {
                key: key.into(),
                value,
                effect: effect.into(),
                time_added: None,
            })
        })
        .collect()
}

fn proxy_config(
    node_name: &str,
    cluster: network::Cidr,
    service: network::Cidr,
    dns: IpAddr,
) -> Result<network::proxy::ProxyConfig> {
    Ok(network::proxy::ProxyConfig {
        cluster_cidr: cluster,
        service_cidr: service,
        cluster_dns: Some(v4(dns)?),
        ..network::proxy::ProxyConfig::new(node_name)
    })
}

fn dns_config(
    args: &ServerArgs,
    cluster: network::Cidr,
    service: network::Cidr,
    dns: IpAddr,
) -> network::dns::DnsConfig {
    network::dns::DnsConfig {
        domain: args.cluster_domain.clone(),
        listen: SocketAddr::new(dns, 53),
        local: vec![cluster, service],
        resolv_conf: args.resolv_conf.clone(),
    }
}

#[allow(clippy::too_many_arguments)]
fn kubelet_config(
    dir: &Path,
    args: &ServerArgs,
    node_name: &str,
    node_ip: IpAddr,
    dns: IpAddr,
    serving: &skiff_apiserver::auth::pki::Pair,
    client_ca: &str,
) -> Result<skiff_kubelet::Config> {
    let mut config = skiff_kubelet::Config {
        node_ips: vec![node_ip],
        cluster_dns: vec![dns],
        cluster_domain: args.cluster_domain.clone(),
        listen: SocketAddr::new(args.bind_address, 10250),
        tls_cert_pem: serving.cert_pem.clone().into_bytes(),
        tls_key_pem: serving.key_pem.clone().into_bytes(),
        client_ca_pem: client_ca.as_bytes().to_vec(),
        cgroup_root: paths::cgroup(dir),
        resolv_conf: args.resolv_conf.clone(),
        node_labels: labels(args)?,
        node_taints: taints(args)?,
        version: format!("{KUBERNETES}+skiff"),
        ..skiff_kubelet::Config::new(node_name, dir)
    };
    for arg in &args.kubelet_arg {
        config.set(arg).map_err(|e| anyhow!("--kubelet-arg: {e}"))?;
    }
    Ok(config)
}

/// Objects that the server applies to itself.
fn addons(dns: IpAddr, args: &ServerArgs) -> Vec<(String, String)> {
    if args.disable.iter().any(|d| d == "dns") {
        return Vec::new();
    }
    vec![(
        "skiff-dns".into(),
        include_str!("../../manifests/addons/dns.yaml").replace("${CLUSTER_DNS}", &dns.to_string()),
    )]
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn checked(flags: &[&str]) -> Result<()> {
        let all = ["skiff", "server"].iter().chain(flags);
        let crate::cli::Command::Server(args) = crate::cli::Cli::try_parse_from(all)?.command
        else {
            bail!("not the server's flags")
        };
        networks(&args)?;
        node_name(&args).map(|_| ())
    }

    #[test]
    fn flags_that_cannot_be_right_are_refused_by_name() {
        checked(&["--node-name=a.b-1"]).unwrap();
        for (flag, part) in [
            ("--node-name=Bad_Name", "--node-name"),
            ("--service-cidr=10.42.0.0/16", "overlap"),
            ("--cluster-dns=1.2.3.4", "--cluster-dns 1.2.3.4"),
            ("--cluster-dns=10.43.0.1", "--cluster-dns 10.43.0.1"),
            ("--cluster-domain=bad domain", "--cluster-domain"),
        ] {
            let e = checked(&[
                flag,
                if flag.starts_with("--node") {
                    "-v"
                } else {
                    "--node-name=n"
                },
            ])
            .unwrap_err()
            .to_string();
            assert!(e.contains(part), "{flag}: {e}");
        }
    }
}
