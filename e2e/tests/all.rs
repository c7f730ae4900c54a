//! Runs the end-to-end tests: those of one shared cluster one after another, then those that need clusters of their
//! own. Arguments are filters, as cargo test has them; `--list` lists.

use skiff_e2e::framework::Cluster;
use skiff_e2e::{chaos, functional};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()));
    let shared: Vec<_> = functional::TESTS
        .iter()
        .filter(|(n, _)| wanted(n))
        .collect();
    let own: Vec<_> = chaos::TESTS.iter().filter(|(n, _)| wanted(n)).collect();
    if args.iter().any(|a| a == "--list") {
        for name in shared
            .iter()
            .map(|(n, _)| n)
            .chain(own.iter().map(|(n, _)| n))
        {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    if shared.is_empty() && own.is_empty() {
        println!("0 passed, 0 failed");
        return ExitCode::SUCCESS;
    }
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: every end-to-end test: containers need root");
        println!("0 passed, 0 failed, {} skipped", shared.len() + own.len());
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut failed) = (0, Vec::new());
    let mut run = |name: &str, f: &mut dyn FnMut() -> anyhow::Result<()>| {
        let begun = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(f))
            .unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")));
        match result {
            Ok(()) => {
                println!(
                    "test {name} ... ok ({:.1} s)",
                    begun.elapsed().as_secs_f64()
                );
                passed += 1;
            }
            Err(e) => {
                println!(
                    "test {name} ... FAILED ({:.1} s)\n{e:#}",
                    begun.elapsed().as_secs_f64()
                );
                failed.push(name.to_string());
            }
        }
    };
    if !shared.is_empty() {
        match Cluster::start(&[]).and_then(|c| c.build_busybox(functional::IMAGE).map(|()| c)) {
            Ok(cluster) => {
                for (name, test) in shared {
                    run(name, &mut || test(&cluster));
                }
                let mut cluster = Some(cluster);
                run("a_stop_and_a_reset_leave_nothing_behind", &mut || {
                    cluster.take().map_or(Ok(()), Cluster::finish)
                });
            }
            Err(e) => run("the_shared_cluster_starts", &mut || {
                Err(anyhow::anyhow!("{e:#}"))
            }),
        }
    }
    for (name, test) in own {
        run(name, &mut || test());
    }
    if !failed.is_empty() {
        println!("\nfailures:\n    {}", failed.join("\n    "));
    }
    println!("{passed} passed, {} failed", failed.len());
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
