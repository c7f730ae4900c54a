//! Owns running commands in containers: ExecSync, and what the streaming server needs for exec, attach, port-forward.

use super::{Runtime, internal};
use crate::container::spec::ProcessSpec;
use crate::shim::client::{ExecHandle, ShimError, read_limited};
use crate::sys;
use k8s_cri::v1;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tonic::Status;

/// CRI: the output of ExecSync is cut here (CVE-2022-1708).
const OUTPUT_LIMIT: usize = 16 << 20;

/// What a shim's refusal of an exec is to the caller.
pub(crate) fn exec_error(e: ShimError) -> Status {
    match e {
        ShimError::Failed(m) => Status::unknown(format!(
            "failed to exec in container: OCI runtime exec failed: exec failed: unable to start container process: {m}"
        )),
        ShimError::NotRunning(m) => Status::failed_precondition(m),
        e => Status::unavailable(e.to_string()),
    }
}

impl Runtime {
    /// The process that an exec runs as: the container's own with another command line.
    pub(crate) fn exec_process(
        &self,
        c: &super::Container,
        cmd: &[String],
        tty: bool,
    ) -> ProcessSpec {
        let own = c.record.lock().spec.process.clone();
        let mut env = own.env.clone();
        if tty && !env.iter().any(|e| e.starts_with("TERM=")) {
            env.push("TERM=xterm".into());
        }
        ProcessSpec {
            args: cmd.to_vec(),
            env,
            tty,
            ..own
        }
    }

    /// Starts a command in a running container; None is /dev/null.
    pub(crate) async fn exec(
        &self,
        id: &str,
        cmd: &[String],
        tty: bool,
        stdio: [Option<OwnedFd>; 3],
    ) -> Result<ExecHandle, Status> {
        if cmd.is_empty() {
            return Err(Status::invalid_argument("the command is empty"));
        }
        let (c, sandbox) = self.running(id)?;
        let process = self.exec_process(&c, cmd, tty);
        sandbox
            .shim
            .exec(&c.id, &process, stdio)
            .await
            .map_err(exec_error)
    }

    pub(super) async fn exec_sync(
        &self,
        r: v1::ExecSyncRequest,
    ) -> Result<v1::ExecSyncResponse, Status> {
        let pipe = || sys::pipe().map_err(internal("make a pipe"));
        let ((out, out_w), (err, err_w)) = (pipe()?, pipe()?);
        for fd in [&out, &err] {
            use std::os::fd::AsFd;
            sys::set_nonblocking(fd.as_fd(), true).map_err(internal("set up a pipe"))?;
        }
        let limit = if r.timeout > 0 {
            Duration::from_secs(r.timeout as u64)
        } else {
            Duration::MAX
        };
        let late = || {
            Status::deadline_exceeded(format!(
                "failed to exec in container: timeout {}s exceeded: context deadline exceeded",
                r.timeout
            ))
        };
        let end = tokio::time::Instant::now().checked_add(limit);
        let left = || {
            end.map_or(Duration::MAX, |e| {
                e.saturating_duration_since(tokio::time::Instant::now())
            })
        };
        // A shim that is stuck must not make a probe longer than it may be.
        let stdio = [None, Some(out_w), Some(err_w)];
        let begun = self.exec(&r.container_id, &r.cmd, false, stdio);
        let mut handle = tokio::time::timeout(left(), begun)
            .await
            .map_err(|_| late())??;
        let mut readers = tokio::spawn(async move {
            tokio::join!(
                read_limited(out, OUTPUT_LIMIT),
                read_limited(err, OUTPUT_LIMIT)
            )
        });
        let waited = tokio::time::timeout(left(), handle.wait()).await;
        let Ok(code) = waited else {
            let _ = tokio::time::timeout(Duration::from_secs(1), handle.kill(libc::SIGKILL)).await;
            readers.abort();
            return Err(late());
        };
        let exit_code = code.map_err(exec_error)?;
        // A daemon that the command left behind may hold the pipes for ever; its output is not the command's.
        let output = match tokio::time::timeout(Duration::from_secs(2), &mut readers).await {
            Ok(Ok(output)) => output,
            _ => {
                readers.abort();
                return Ok(v1::ExecSyncResponse {
                    stdout: vec![],
                    stderr: vec![],
                    exit_code,
                });
            }
        };
        let text = |r: std::io::Result<Vec<u8>>| r.map_err(internal("read the command's output"));
        Ok(v1::ExecSyncResponse {
            stdout: text(output.0)?,
            stderr: text(output.1)?,
            exit_code,
        })
    }
}
