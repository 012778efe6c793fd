//! Behind `passt`: the gateway, at least, is not the host's loopback. A frame forged to 127.0.0.1 does arrive there,
//! which is why it is never chosen by itself and why its reason says so.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use fabric_types::GuestNetwork;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use node_network::{NetworkChoice, Networks, Port};

use crate::guest::{Frame, mac};
use crate::lab::{Lab, PATIENCE, PUBLIC};

struct Passt {
    child: Child,
    frames: UnixStream,
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Passt {
    /// As a keeper starts it: one end of a socket pair is the guest's cable.
    fn start(lab: &Lab, port: &Port) -> Self {
        let Port::Passt { program, arguments, .. } = port.clone() else { panic!("passt") };
        let (frames, theirs) = UnixStream::pair().expect("a pair");
        frames.set_read_timeout(Some(PATIENCE)).expect("set");
        let child = lab.host.inside(move || {
            fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).expect("kept open");
            let mut command = Command::new(program);
            command.args(arguments).args(["--fd", &theirs.as_raw_fd().to_string()]).stderr(Stdio::null());
            let child = command.spawn().expect("passt starts");
            drop(theirs);
            child
        });
        Self { child, frames }
    }

    fn send(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).expect("short").to_be_bytes();
        self.frames.write_all(&[&length[..], frame].concat()).expect("passt takes a frame");
    }

    /// The next frame, if it comes.
    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut length = [0u8; 4];
        self.frames.read_exact(&mut length).ok()?;
        let mut frame = vec![0u8; u32::from_be_bytes(length).try_into().ok()?];
        self.frames.read_exact(&mut frame).ok()?;
        Some(frame)
    }
}

/// Counts who comes to a listener.
fn count(listener: TcpListener) -> Arc<AtomicUsize> {
    let counted = Arc::new(AtomicUsize::new(0));
    let counting = counted.clone();
    thread::spawn(move || {
        let none: Vec<TcpStream> = Vec::new();
        listener.incoming().flatten().fold(none, |mut held, stream| {
            counting.fetch_add(1, Ordering::Relaxed);
            held.push(stream);
            held
        });
    });
    counted
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_loopback_is_not_behind_the_gateway_and_the_rest_is_said() {
    let Some(lab) = Lab::new() else { return };
    let mut config = lab.config();
    config.choice = NetworkChoice::Passt;
    let networks = match Networks::start(config).await {
        Ok(networks) => networks,
        Err(fault) => return crate::lab::skip(&fault.to_string()),
    };
    assert_eq!(networks.kind(), GuestNetwork::Passt);
    assert!(networks.reason().contains("loopback"), "{}", networks.reason());
    let port = networks.take().await.expect("taken").expect("a port");
    let card = port.guest().clone();
    let reached = lab.host.inside(|| count(TcpListener::bind("0.0.0.0:80").expect("bound")));
    let mut passt = Passt::start(&lab, &port);

    let frame = Frame { to_mac: [0xff; 6], from_mac: mac(&card.mac), from: card.address, to: card.gateway };
    passt.send(&frame.arp_question());
    let answer = passt.receive().expect("passt answers for the gateway");
    let gateway: [u8; 6] = answer[6..12].try_into().expect("an address");

    let open = |to: Ipv4Addr| Frame { to_mac: gateway, to, ..frame.clone() }.tcp_open(80);
    passt.send(&open(card.gateway));
    passt.send(&open(PUBLIC.parse().expect("an address")));
    // The public answers, so the gateway has had its time, and some more.
    let accepted = |frame: &Vec<u8>| frame.len() > 47 && frame[26..30] == [1, 1, 1, 1] && frame[47] & 0x12 == 0x12;
    let answered = std::iter::from_fn(|| passt.receive()).take(32).any(|frame| accepted(&frame));
    assert!(answered, "a public service answers");
    thread::sleep(Duration::from_millis(500));
    assert_eq!(reached.load(Ordering::Relaxed), 0);
}
