//! The binary: subcommands and their exit codes. A shim is dispatched before anything else is started: it must stay
//! small and single-threaded.

mod check;
mod cli;
mod config;
mod glue;
mod image;
mod manifests;
mod paths;
mod reset;
mod server;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use std::ffi::OsString;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|a| a == "shim") {
        skiff_runtime::shim_main(&args[2..]);
    }
    match run(args) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("skiff: {}", one_line(&e));
            ExitCode::from(1)
        }
    }
}

/// An error and its causes on one line: what a text already ends with is not said again, and the API's refusals are
/// their message.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let (text, last) = match cause.downcast_ref() {
            Some(kube::Error::Api(status)) => (status.message.clone(), true),
            _ => (cause.to_string(), false),
        };
        if !line.ends_with(&text) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&text);
        }
        if last {
            break;
        }
    }
    line
}

fn run(args: Vec<OsString>) -> Result<ExitCode> {
    let flags: Vec<String> = Cli::command()
        .find_subcommand("server")
        .into_iter()
        .flat_map(clap::Command::get_arguments)
        .filter_map(|a| a.get_long().map(String::from))
        .collect();
    let args = config::with_file(args, &flags, |name| std::env::var_os(name))?;
    let cli = Cli::parse_from(args);
    match cli.command {
        Command::Server(args) => {
            log(args.v, args.log_json);
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            block_on(server::run(*args))?;
        }
        Command::Image(args) => {
            log(0, false);
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            block_on(image::run(args))?;
        }
        Command::Reset(args) => {
            log(0, false);
            block_on(reset::run(args))?;
        }
        Command::Check(args) => {
            let (text, able) = check::report(&check::look(&args.data_dir));
            print!("{text}");
            return Ok(if able {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(1)
            });
        }
        Command::Kubectl(args) => return kubectl(&args.args),
        Command::Version => println!("skiff {}", cli::VERSION),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "skiff", &mut std::io::stdout());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    // Few threads keep the memory small; blocking work has threads of its own, which end when idle.
    let workers = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(2, 4);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_stack_size(1 << 20)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .enable_all()
        .build()
        .context("start of the tasks' threads")?
        .block_on(work)
}

fn log(verbose: u8, json: bool) {
    use tracing_subscriber::EnvFilter;
    // kube's client logs whole answers that it cannot read: they are its user's, who tells what matters of them.
    let default = match verbose {
        0 => {
            "info,hickory_server=warn,hickory_proto=warn,hickory_net=warn,hickory_resolver=warn,kube_client::client=error"
        }
        1 => {
            "info,kube_client::client=error,skiff=debug,skiff_apiserver=debug,skiff_client=debug,skiff_scheduler=debug,skiff_controllers=debug,\
              skiff_kubelet=debug,skiff_runtime=debug,skiff_network=debug"
        }
        _ => "debug,kube_client::client=error",
    };
    let filter = EnvFilter::try_from_env("SKIFF_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    if json {
        builder.json().init();
    } else {
        builder
            .with_ansi(terminal)
            .with_target(false)
            .compact()
            .init();
    }
}

fn kubectl(args: &[OsString]) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new("kubectl");
    command.args(args);
    if std::env::var_os("KUBECONFIG").is_none() {
        let path = std::env::var_os("SKIFF_KUBECONFIG_OUTPUT")
            .unwrap_or_else(|| "/etc/skiff/skiff.yaml".into());
        if !std::path::Path::new(&path).exists() {
            anyhow::bail!(
                "{} is not there: start `skiff server`, or set KUBECONFIG to the file of --write-kubeconfig",
                path.to_string_lossy()
            );
        }
        command.env("KUBECONFIG", path);
    }
    let error = command.exec();
    Err(error).context(
        "kubectl is not on PATH: install it (Debian: the package kubectl of trixie or later)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once() {
        #[derive(Debug)]
        struct Outer(std::io::Error);
        impl std::fmt::Display for Outer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "open /x: {}", self.0)
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let e = anyhow::Error::new(Outer(std::io::Error::other("gone"))).context("reading");
        assert_eq!(one_line(&e), "reading: open /x: gone");
    }
}
