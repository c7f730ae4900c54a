//! Owns Unix sockets that are for one user alone: made with a mode that lets nobody else in, and checked on both sides by
//! the peer's credentials, which the kernel gives and no file mode can change.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Connections that wait to be taken.
const BACKLOG: i32 = 128;

/// The socket's path through its open directory: socket paths are limited to 108 bytes and directories are not.
pub fn short_path(path: &Path) -> io::Result<(std::fs::File, PathBuf)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let dir = std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?;
    let short = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name);
    Ok((dir, short))
}

/// Listens at the path, whatever was there before. Its mode is 0600 from the first moment: it is set on the socket
/// before its name exists.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let (_held, short) = short_path(path)?;
    let fd = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::fs::fchmod(&fd, rustix::fs::Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&fd, &SocketAddrUnix::new(&short)?)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(UnixListener::from(fd))
}

/// Refuses a peer of another user. For the side that connects, the peer is whoever called listen(2).
pub fn check_peer(socket: &impl AsFd) -> io::Result<()> {
    same_user(
        rustix::net::sockopt::socket_peercred(socket.as_fd())?
            .uid
            .as_raw(),
    )
}

fn same_user(peer: u32) -> io::Result<()> {
    if peer == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("the other side of the socket is user {peer}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_socket_is_private_from_its_first_moment_also_below_a_long_path() {
        let t = tempfile::tempdir().unwrap();
        let dir = t.path().join("d".repeat(120));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("s");
        let listener = listen(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (_held, short) = short_path(&path).unwrap();
        let ours = UnixStream::connect(short).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        check_peer(&ours).unwrap();
        check_peer(&theirs).unwrap();
        // Again at the same place: what a killed server left does not hinder.
        drop(listener);
        listen(&path).unwrap();
    }

    #[test]
    fn another_user_is_refused_by_the_kernel_s_word() {
        let e = same_user(rustix::process::geteuid().as_raw() + 1).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::PermissionDenied);
    }
}
