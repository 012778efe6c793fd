//! A network of the test's own: a namespace in which a whole mesh runs, and a far side full of decoys.
//!
//! ```text
//!   near namespace (the mesh, its guests' uplink)       far namespace (the internet, as the guests see it)
//!   11.22.33.2, 2600:11:22::2  ===== veth pair ======   11.22.33.1, and every decoy's address
//! ```
//! The far side holds addresses that would be reached if nothing filtered: metadata, private ranges, CGNAT, IPv6. The thread
//! that makes the lab is inside the near namespace from then on, and so is whatever it starts.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// How long a decoy waits for the next visitor before it looks whether it should end.
const LOOK: Duration = Duration::from_millis(20);
/// The near side's address.
pub const NEAR: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 2);
/// The far side's, which may be reached.
pub const FAR: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 1);
/// Another far address, which a policy may forbid.
pub const FAR_TOO: Ipv4Addr = Ipv4Addr::new(11, 22, 44, 1);
/// The far side's resolver.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 53);

/// One address and port that counts its visitors.
#[derive(Debug, Clone)]
pub struct Decoy {
    /// Where.
    pub at: SocketAddr,
    visitors: Arc<AtomicU32>,
}

impl Decoy {
    /// Connections and datagrams that came.
    pub fn visitors(&self) -> u32 {
        self.visitors.load(Ordering::SeqCst)
    }
}

/// The lab. Dropped, its namespaces go with its last process.
#[derive(Debug)]
pub struct Lab {
    home: File,
    far: File,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Lab {
    /// Whether this machine lets one be made; if not, why.
    pub fn lacks() -> Option<String> {
        if !nix::unistd::geteuid().is_root() {
            return Some("network namespaces of a test's own need root".to_owned());
        }
        let there = |program: &str| Command::new(program).arg("-V").output().is_ok();
        if there("ip") { None } else { Some("the program ip is not installed (package iproute2)".to_owned()) }
    }

    /// Makes both namespaces and enters the near one with this thread.
    pub fn enter() -> anyhow::Result<Self> {
        let home = own_namespace()?;
        unshare(CloneFlags::CLONE_NEWNET).context("can't make a network namespace")?;
        ip("link set lo up")?;
        let near = own_namespace()?;
        let (send, receive) = mpsc::channel();
        // Its namespace lives as long as the file that is sent.
        let far = std::thread::spawn(move || -> anyhow::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).context("can't make a network namespace")?;
            ip("link set lo up")?;
            send.send(own_namespace()?).context("nobody waits")
        });
        let far_file = receive.recv().context("the far side was not made")?;
        far.join().map_err(|_| anyhow::anyhow!("the far side's thread ended"))??;
        let lab = Self { home, far: far_file, ended: Arc::new(AtomicBool::new(false)), threads: Vec::new() };
        lab.wire(&near)?;
        Ok(lab)
    }

    fn wire(&self, near: &File) -> anyhow::Result<()> {
        use std::os::fd::AsRawFd as _;
        // `ip` takes a namespace by path; the descriptor is open in this process, and `ip` is its child.
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.far.as_raw_fd());
        ip(&format!("link add near0 type veth peer name far0 netns {path}"))?;
        ip(&format!("addr add {NEAR}/24 dev near0"))?;
        ip("addr add 2600:11:22::2/64 dev near0 nodad")?;
        ip("link set near0 up")?;
        self.in_far(|| {
            ip(&format!("addr add {FAR}/24 dev far0"))?;
            ip("addr add 2600:11:22::1/64 dev far0 nodad")?;
            ip("link set far0 up")?;
            ip("route add default via 11.22.33.2")?;
            ip("-6 route add default via 2600:11:22::2")
        })?;
        setns(near.as_fd(), CloneFlags::CLONE_NEWNET).context("can't enter a namespace")?;
        ip("route add default via 11.22.33.1")?;
        ip("-6 route add default via 2600:11:22::1")?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("can't forward")
    }

    /// Runs something in the far namespace.
    fn in_far<T: Send>(&self, body: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.far.as_fd(), CloneFlags::CLONE_NEWNET).context("can't enter the far side")?;
                body()
            });
            inside.join().map_err(|_| anyhow::anyhow!("the far side's thread ended"))?
        })
    }

    /// A decoy on the far side: TCP and UDP on one port of an address that is made for it.
    pub fn far_decoy(&mut self, address: IpAddr, port: u16) -> anyhow::Result<Decoy> {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let (tcp, udp) = self.in_far(|| {
            if !local_addresses()?.contains(&address.to_string()) {
                let nodad = if address.is_ipv4() { "" } else { " nodad" };
                ip(&format!("addr add {address}/{prefix} dev lo{nodad}"))?;
            }
            listen(address, port)
        })?;
        self.serve(tcp, udp)
    }

    /// A decoy on the near side, where the mesh runs: the host itself.
    pub fn near_decoy(&mut self, address: IpAddr, port: u16) -> anyhow::Result<Decoy> {
        let (tcp, udp) = listen(address, port)?;
        self.serve(tcp, udp)
    }

    fn serve(&mut self, tcp: TcpListener, udp: UdpSocket) -> anyhow::Result<Decoy> {
        let decoy = Decoy { at: tcp.local_addr()?, visitors: Arc::new(AtomicU32::new(0)) };
        let (seen, ended) = (decoy.visitors.clone(), self.ended.clone());
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        self.threads.push(std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !ended.load(Ordering::SeqCst) {
                let mut idle = true;
                if let Ok((mut stream, _)) = tcp.accept() {
                    idle = false;
                    seen.fetch_add(1, Ordering::SeqCst);
                    let _ = stream.set_nonblocking(false);
                    let _ = stream.set_read_timeout(Some(LOOK));
                    let _ = stream.read(&mut buffer);
                    let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\ndecoy");
                }
                if let Ok((_, from)) = udp.recv_from(&mut buffer) {
                    idle = false;
                    seen.fetch_add(1, Ordering::SeqCst);
                    let _ = udp.send_to(b"decoy", from);
                }
                if idle {
                    std::thread::sleep(LOOK);
                }
            }
        }));
        Ok(decoy)
    }

    /// A resolver on the far side that knows these names (A records, TTL of a minute) and counts who asks.
    pub fn resolver(&mut self, names: Vec<(&'static str, Ipv4Addr)>) -> anyhow::Result<()> {
        let socket = self.in_far(|| {
            ip(&format!("addr add {RESOLVER}/32 dev lo"))?;
            Ok(UdpSocket::bind((RESOLVER, 53))?)
        })?;
        socket.set_read_timeout(Some(LOOK))?;
        let ended = self.ended.clone();
        self.threads.push(std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while !ended.load(Ordering::SeqCst) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                if let Some(answer) = answer(&buffer[..length], &names) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        }));
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // A decoy that panicked has been told of by the counts.
            let _ = thread.join();
        }
        let _ = setns(self.home.as_fd(), CloneFlags::CLONE_NEWNET);
    }
}

/// Answers one question of type A (RFC 1035, section 4.1); others get an empty answer, unknown names NXDOMAIN.
fn answer(query: &[u8], names: &[(&str, Ipv4Addr)]) -> Option<Vec<u8>> {
    let mut at = 12;
    let mut name = String::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        name.push_str(&String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        name.push('.');
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question = query.get(12..at + 4)?;
    let known: Vec<Ipv4Addr> =
        names.iter().filter(|(known, _)| format!("{known}.") == name).map(|(_, address)| *address).collect();
    let answers = if kind == 1 { known.len() as u8 } else { 0 };
    let code = if known.is_empty() { 3 } else { 0 };
    let mut reply = vec![query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0];
    reply.extend_from_slice(question);
    for address in known.iter().take(usize::from(answers)) {
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend_from_slice(&address.octets());
    }
    Some(reply)
}

fn listen(address: IpAddr, port: u16) -> anyhow::Result<(TcpListener, UdpSocket)> {
    let tcp = TcpListener::bind((address, port)).with_context(|| format!("can't listen on {address}:{port}"))?;
    let udp = UdpSocket::bind((address, tcp.local_addr()?.port()))?;
    Ok((tcp, udp))
}

fn own_namespace() -> anyhow::Result<File> {
    File::open("/proc/thread-self/ns/net").context("can't see this thread's namespace")
}

fn local_addresses() -> anyhow::Result<String> {
    let output = Command::new("ip").args(["-o", "addr", "show"]).output().context("can't run ip")?;
    Ok(String::from_utf8_lossy(&output.stdout).replace('/', " "))
}

/// Runs `ip` in this thread's namespace.
fn ip(words: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words.split(' ').filter(|word| !word.is_empty())).output();
    let output = output.context("can't run ip")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`ip {words}` ended with {}: {errors}", output.status);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn a_decoy_that_nothing_guards_is_reached_and_counts() {
        if let Some(why) = Lab::lacks() {
            crate::skip("a_decoy_that_nothing_guards_is_reached_and_counts", &why).expect("told");
            return;
        }
        let mut lab = Lab::enter().expect("a lab");
        let metadata = IpAddr::from([169, 254, 169, 254]);
        let decoy = lab.far_decoy(metadata, 80).expect("a decoy");
        let six = lab.far_decoy("2600:99::1".parse().expect("an address"), 80).expect("a decoy");
        lab.resolver(vec![("good.test", FAR)]).expect("a resolver");
        for at in [decoy.at, six.at] {
            let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(30)).expect("reached");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("read");
            assert!(text.ends_with("decoy"), "{text}");
        }
        assert_eq!((decoy.visitors(), six.visitors()), (1, 1));
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04good\x04test\0\0\x01\0\x01";
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        socket.send_to(query, (RESOLVER, 53)).expect("sent");
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).expect("answered");
        assert_eq!(buffer[length - 4..length], FAR.octets());
    }
}
