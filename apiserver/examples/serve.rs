//! Starts an API server on a directory, to try kubectl by hand: `cargo run -p skiff-apiserver --example serve -- DIR [PORT]`.

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: serve DIR [PORT]")?;
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut config = skiff_apiserver::Config::new(dir);
    config.bind_address = [127, 0, 0, 1].into();
    // Endpoints may not be loopback addresses; nobody connects to this one.
    config.advertise_address = [192, 0, 2, 1].into();
    config.https_listen_port = args.next().map_or(Ok(0), |p| p.parse())?;
    let cancel = tokio_util::sync::CancellationToken::new();
    let handle = skiff_apiserver::serve(config, cancel.clone()).await?;
    let url = format!("https://{}", handle.address());
    let kubeconfig = handle.app().config.data_dir.join("kubeconfig.yaml");
    std::fs::write(&kubeconfig, handle.app().auth.pki.admin_kubeconfig(&url)?)?;
    println!("{url}\nexport KUBECONFIG={}", kubeconfig.display());
    tokio::signal::ctrl_c().await?;
    cancel.cancel();
    handle.stopped().await;
    Ok(())
}
