//! A laboratory: a node (one network namespace) with pods (others), made for one test and gone after it. The root
//! namespace of the machine is never touched.
#![allow(unsafe_code)] // unshare(2): safe wrappers are deprecated, for it changes what descriptors mean.

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use skiff_network::netlink::{self, Messages, Socket, route};
use skiff_network::{PodNetwork, PodNetworkConfig};
use std::future::Future;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

pub struct Lab {
    pub dir: tempfile::TempDir,
    node: OwnedFd,
}

fn own_netns() -> OwnedFd {
    std::fs::File::open("/proc/thread-self/ns/net")
        .expect("the namespace of this thread")
        .into()
}

/// A new network namespace with its loopback down, held open by the descriptor only.
pub fn new_netns() -> Result<OwnedFd, rustix::io::Errno> {
    std::thread::scope(|s| {
        s.spawn(|| {
            // SAFETY: only the network namespace of this short thread changes; no descriptor's meaning does.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
            Ok(own_netns())
        })
        .join()
        .expect("the thread")
    })
}

impl Lab {
    /// None (with a word about it) without the rights for namespaces.
    pub fn new() -> Option<Self> {
        match new_netns() {
            Ok(node) => {
                let lab = Self {
                    dir: tempfile::tempdir().expect("a directory"),
                    node,
                };
                lab.enter(|| {
                    let mut s = Socket::route().expect("socket");
                    let mut m = Messages::new();
                    route::set_up(&mut m, 1);
                    s.send_all(m).expect("lo");
                });
                Some(lab)
            }
            Err(e) => {
                eprintln!("SKIPPED: network namespaces need root ({e})");
                None
            }
        }
    }

    /// Runs a test on the node, with a runtime all of whose threads are in its namespace.
    pub fn run<F: Future<Output = ()>>(self, test: impl FnOnce(std::sync::Arc<Lab>) -> F + Send) {
        let lab = std::sync::Arc::new(self);
        std::thread::scope(|s| {
            let inside = lab.clone();
            let done = s
                .spawn(move || {
                    enter(&inside.node);
                    tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .expect("runtime")
                        .block_on(test(inside));
                })
                .join();
            if let Err(panic) = done {
                std::panic::resume_unwind(panic);
            }
        });
    }

    /// Runs something on a thread in the node's namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.node, work)
    }

    pub fn config(&self) -> PodNetworkConfig {
        PodNetworkConfig::new(self.dir.path().join("network"))
    }

    /// Must be called inside [`Lab::run`].
    pub fn pod_network(&self) -> PodNetwork {
        PodNetwork::open(self.config()).expect("open the pod network")
    }

    pub fn pod_netns(&self) -> OwnedFd {
        new_netns().expect("a namespace")
    }

    /// Another machine on the node's outer network: the node gets 192.0.2.1/24 and the default route, it 192.0.2.2.
    pub fn outside(&self) -> OwnedFd {
        use std::os::fd::AsRawFd;
        let outside = new_netns().expect("a namespace");
        self.enter(|| {
            let mut s = Socket::route().expect("socket");
            let mut m = Messages::new();
            let (a, b) = (
                route::VethEnd {
                    name: "eth0",
                    mac: [2, 0, 0, 0, 0, 1],
                },
                route::VethEnd {
                    name: "eth0",
                    mac: [2, 0, 0, 0, 0, 2],
                },
            );
            route::add_veth(&mut m, &a, &b, outside.as_raw_fd(), 1500);
            s.send_all(m).expect("veth");
            let index = s.index("eth0").expect("eth0");
            let mut m = Messages::new();
            route::add_address(&mut m, index, Ipv4Addr::new(192, 0, 2, 1), 24);
            route::set_up(&mut m, index);
            route::default_route(&mut m, Ipv4Addr::new(192, 0, 2, 2), index);
            s.send_all(m).expect("address");
        });
        within(&outside, || {
            let mut s = Socket::route().expect("socket");
            let index = s.index("eth0").expect("eth0");
            let mut m = Messages::new();
            route::set_up(&mut m, 1);
            route::add_address(&mut m, index, Ipv4Addr::new(192, 0, 2, 2), 24);
            route::set_up(&mut m, index);
            s.send_all(m).expect("address");
        });
        self.enter(|| {
            let mut s = Socket::route().expect("socket");
            s.wait_operational("eth0").expect("carrier");
        });
        outside
    }
}

pub fn enter(netns: &OwnedFd) {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
}

/// Runs something on a thread in a namespace.
pub fn within<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    netlink::inside(netns, || Ok::<_, netlink::Error>(work())).expect("enter the namespace")
}

/// Sends one UDP datagram as an Ethernet frame through a pod's eth0, whatever its routes say.
pub fn send_udp_frame(netns: &OwnedFd, from: Ipv4Addr, to: Ipv4Addr, port: u16) {
    let mut ip = vec![0x45, 0, 0, 29, 0, 1, 0, 0, 64, 17, 0, 0];
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum: u32 = ip
        .chunks(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c[1]])))
        .sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0xee; 6];
    frame.extend([2, 0, 0, 0, 0, 9, 0x08, 0x00]);
    frame.extend(ip);
    frame.extend(7u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([0, 9, 0, 0, b'!']);
    within(netns, || {
        let index = Socket::route()
            .expect("socket")
            .index("eth0")
            .expect("eth0");
        // SAFETY: plain system calls; the address and the frame outlive them, with their true lengths.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            assert!(fd >= 0, "a packet socket");
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_ifindex = index as i32;
            let sent = libc::sendto(
                fd,
                frame.as_ptr().cast(),
                frame.len(),
                0,
                std::ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            );
            assert_eq!(sent, frame.len() as isize);
            libc::close(fd);
        }
    });
}

pub mod talk {
    //! Small servers and clients that say who they are.
    use super::within;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    const WAIT: Duration = Duration::from_millis(1500);

    /// Answers each TCP connection in a namespace with `name` and the peer's address, until the test process ends.
    pub fn tcp_server(netns: &OwnedFd, port: u16, name: &str) {
        let name = name.to_string();
        let listener = within(netns, || {
            TcpListener::bind(("0.0.0.0", port)).expect("listen")
        });
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let peer = stream
                    .peer_addr()
                    .map(|p| p.ip().to_string())
                    .unwrap_or_default();
                let _ = stream.write_all(format!("{name} {peer}").as_bytes());
            }
        });
    }

    /// The same over UDP.
    pub fn udp_server(netns: &OwnedFd, port: u16, name: &str) {
        let name = name.to_string();
        let socket = within(netns, || UdpSocket::bind(("0.0.0.0", port)).expect("bind"));
        std::thread::spawn(move || {
            let mut buf = [0; 100];
            while let Ok((_, from)) = socket.recv_from(&mut buf) {
                let _ = socket.send_to(format!("{name} {}", from.ip()).as_bytes(), from);
            }
        });
    }

    /// What a TCP server says.
    pub fn tcp(netns: &OwnedFd, to: &str) -> std::io::Result<String> {
        let to: SocketAddr = to.parse().expect("an address");
        within(netns, || {
            let mut stream = TcpStream::connect_timeout(&to, WAIT)?;
            stream.set_read_timeout(Some(WAIT))?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            Ok(said)
        })
    }

    /// A UDP socket in a namespace, connected.
    pub fn udp_socket(netns: &OwnedFd, to: &str) -> UdpSocket {
        let to: SocketAddr = to.parse().expect("an address");
        within(netns, || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
            socket.connect(to).expect("connect");
            socket.set_read_timeout(Some(WAIT)).expect("timeout");
            socket
        })
    }

    /// Asks over a socket.
    pub fn ask(socket: &UdpSocket) -> std::io::Result<String> {
        socket.send(b"?")?;
        let mut buf = [0; 100];
        let n = socket.recv(&mut buf)?;
        Ok(String::from_utf8_lossy(&buf[..n]).into_owned())
    }
}
