//! A guest: a kernel stack of its own behind a port's tap, and a hand that forges frames beside it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use node_network::{GuestAddress, Port};

use crate::far::ECHO;
use crate::lab::{Lab, Space, eventually};
use crate::sys;

/// How long a guest waits for what may never come: a local round trip takes less than a millisecond.
const WAIT: Duration = Duration::from_millis(400);
/// How long it waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Guest {
    pub(crate) port: Port,
    pub(crate) space: Space,
    tap: File,
}

/// What a question came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Nothing,
    Code(ResponseCode),
    Addresses(Vec<Ipv4Addr>, u32),
}

impl Guest {
    /// Plugs a guest into a port: its frames flow from now on.
    pub(crate) fn plug(lab: &mut Lab, port: Port) -> Self {
        let space = lab.guest_space();
        let card = port.guest().clone();
        let tap = open(&port);
        let own = space.inside(|| sys::open_tap("eth0").expect("the guest's card"));
        space.ip(&["link", "set", "eth0", "address", &card.mac, "mtu", &card.mtu.to_string()]);
        space.ip(&["addr", "add", &format!("{}/{}", card.address, card.prefix), "dev", "eth0"]);
        space.ip(&["link", "set", "eth0", "up"]);
        space.ip(&["route", "add", "default", "via", &card.gateway.to_string()]);
        for (mut from, mut to) in [
            (tap.try_clone().expect("a copy"), own.try_clone().expect("a copy")),
            (own, tap.try_clone().expect("a copy")),
        ] {
            thread::spawn(move || {
                let mut frame = vec![0u8; 70_000];
                while let Ok(length) = from.read(&mut frame) {
                    // A device that is not up yet takes nothing.
                    let _ = to.write(&frame[..length]);
                }
            });
        }
        // The kernel wakes a tap's way out a while after it is opened, and until then loses what goes there.
        let Port::Tap { device, .. } = &port else { panic!("a tap") };
        let state = || lab.node().ip(&["-br", "link", "show", device]);
        eventually("the tap is awake", || state().split_whitespace().nth(1) == Some("UP"));
        Self { port, space, tap }
    }

    pub(crate) fn card(&self) -> &GuestAddress {
        self.port.guest()
    }

    /// Sends a frame as it is.
    pub(crate) fn forge(&self, frame: &[u8]) {
        (&self.tap).write_all(frame).expect("the tap takes a frame");
    }

    /// A connection, or none because it was refused, or because nothing came back for long.
    pub(crate) fn connect(&self, to: &str, port: u16) -> Option<TcpStream> {
        self.connect_within(to, port, PATIENCE)
    }

    fn connect_within(&self, to: &str, port: u16, wait: Duration) -> Option<TcpStream> {
        let to = SocketAddr::new(to.parse::<IpAddr>().expect("an address"), port);
        self.space.inside(move || TcpStream::connect_timeout(&to, wait).ok())
    }

    pub(crate) fn reaches(&self, to: &str) -> bool {
        self.connect(to, ECHO).is_some_and(|mut stream| lives(&mut stream))
    }

    /// The opposite, without the patience.
    pub(crate) fn misses(&self, to: &str) -> bool {
        self.connect_within(to, ECHO, WAIT).is_none()
    }

    pub(crate) fn send_udp(&self, to: &str, port: u16) {
        let to = SocketAddr::new(to.parse::<IpAddr>().expect("an address"), port);
        self.space.inside(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
            let _ = socket.send_to(b"anyone there?", to);
        });
    }

    /// A datagram of three packets.
    pub(crate) fn send_large_udp(&self, to: &str) {
        let to = SocketAddr::new(to.parse::<IpAddr>().expect("an address"), 7777);
        self.space.inside(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
            socket.send_to(&[0x61; 4000], to).expect("sent");
        });
    }

    /// Asks a resolver for a name's addresses.
    pub(crate) fn ask(&self, resolver: Ipv4Addr, name: &str) -> Said {
        let mut asked = Message::query();
        asked.metadata.recursion_desired = true;
        asked.add_query(Query::query(Name::from_str(name).expect("a name"), RecordType::A));
        let (bytes, gateway) = (asked.to_vec().expect("bytes"), self.card().gateway);
        let answer = self.space.inside(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
            let wait = if resolver == gateway { PATIENCE } else { WAIT };
            socket.set_read_timeout(Some(wait)).expect("set");
            socket.send_to(&bytes, (resolver, 53)).ok()?;
            let mut answer = [0u8; 2048];
            let length = socket.recv(&mut answer).ok()?;
            Message::from_vec(&answer[..length]).ok()
        });
        let Some(answer) = answer else { return Said::Nothing };
        let addresses: Vec<(Ipv4Addr, u32)> = answer
            .answers
            .iter()
            .filter_map(|record| match &record.data {
                RData::A(address) => Some((address.0, record.ttl)),
                _ => None,
            })
            .collect();
        match addresses.first() {
            Some((_, ttl)) => Said::Addresses(addresses.iter().map(|(address, _)| *address).collect(), *ttl),
            None => Said::Code(answer.metadata.response_code),
        }
    }

    /// The same over TCP, from the guest's own gateway.
    pub(crate) fn ask_over_tcp(&self, name: &str) -> Option<Message> {
        let mut asked = Message::query();
        asked.add_query(Query::query(Name::from_str(name).expect("a name"), RecordType::A));
        let (bytes, gateway) = (asked.to_vec().expect("bytes"), self.card().gateway);
        self.space.inside(move || {
            let mut stream = TcpStream::connect_timeout(&(gateway, 53).into(), PATIENCE).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).expect("set");
            let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
            stream.write_all(&[&length[..], &bytes].concat()).ok()?;
            let mut length = [0u8; 2];
            stream.read_exact(&mut length).ok()?;
            let mut answer = vec![0u8; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut answer).ok()?;
            Message::from_vec(&answer).ok()
        })
    }

    pub(crate) fn resolve(&self, name: &str) -> Said {
        self.ask(self.card().gateway, name)
    }
}

/// Opens a port's tap as a keeper does.
pub(crate) fn open(port: &Port) -> File {
    let Port::Tap { device, netns, .. } = port.clone() else { panic!("a tap") };
    let name = netns.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    Space::of(&name).inside(move || sys::open_tap(&device).expect("the port's tap"))
}

/// Whether a connection lives: what is written comes back.
pub(crate) fn lives(stream: &mut TcpStream) -> bool {
    echoes_within(stream, PATIENCE)
}

/// The opposite, without the patience.
pub(crate) fn is_dead(stream: &mut TcpStream) -> bool {
    !echoes_within(stream, WAIT)
}

fn echoes_within(stream: &mut TcpStream, wait: Duration) -> bool {
    stream.set_read_timeout(Some(wait)).expect("set");
    let mut back = [0u8; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut back).is_ok()
}

/// A frame's parts, right or forged.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) to_mac: [u8; 6],
    pub(crate) from_mac: [u8; 6],
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
}

impl Frame {
    fn ethernet(&self, kind: u16) -> Vec<u8> {
        [&self.to_mac[..], &self.from_mac[..], &kind.to_be_bytes()[..]].concat()
    }

    fn ipv4(&self, protocol: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
        let mut header = vec![0x45, 0];
        header.extend((20 + body.len() as u16).to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(fragment.to_be_bytes());
        header.extend([64, protocol, 0, 0]);
        header.extend(self.from.octets());
        header.extend(self.to.octets());
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [header, body.to_vec()].concat()
    }

    /// A datagram without a checksum, which IPv4 allows.
    fn datagram() -> Vec<u8> {
        let mut body = Vec::new();
        for field in [4000u16, 7777, 8 + 24, 0] {
            body.extend(field.to_be_bytes());
        }
        body.extend([0x61; 24]);
        body
    }

    pub(crate) fn udp(&self) -> Vec<u8> {
        [self.ethernet(0x0800), self.ipv4(17, 0, &Self::datagram())].concat()
    }

    /// With a tag for a network that there is none of, or for no network at all.
    pub(crate) fn tagged(&self, network: u16) -> Vec<u8> {
        let mut frame = self.ethernet(0x8100);
        frame.extend(network.to_be_bytes());
        frame.extend(0x0800u16.to_be_bytes());
        [frame, self.ipv4(17, 0, &Self::datagram())].concat()
    }

    /// The same in two pieces, the first too short for the ports.
    pub(crate) fn fragments(&self) -> [Vec<u8>; 2] {
        let body = Self::datagram();
        [
            [self.ethernet(0x0800), self.ipv4(17, 0x2000, &body[..8])].concat(),
            [self.ethernet(0x0800), self.ipv4(17, 1, &body[8..])].concat(),
        ]
    }

    /// An IPv6 datagram between two addresses.
    pub(crate) fn udp6(&self, from: &str, to: &str) -> Vec<u8> {
        let address = |text: &str| text.parse::<std::net::Ipv6Addr>().expect("an address").octets();
        let body = Self::datagram();
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((body.len() as u16).to_be_bytes());
        packet.extend([17, 64]);
        packet.extend(address(from));
        packet.extend(address(to));
        [self.ethernet(0x86dd), packet, body].concat()
    }

    /// Asks who has `self.to`.
    pub(crate) fn arp_question(&self) -> Vec<u8> {
        let mut frame = self.ethernet(0x0806);
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(self.from_mac);
        frame.extend(self.from.octets());
        frame.extend([0; 6]);
        frame.extend(self.to.octets());
        frame
    }

    /// Opens a TCP connection.
    pub(crate) fn tcp_open(&self, port: u16) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(40_000u16.to_be_bytes());
        segment.extend(port.to_be_bytes());
        segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        let length = u16::try_from(segment.len()).expect("short").to_be_bytes();
        let pseudo = [&self.from.octets()[..], &self.to.octets()[..], &[0, 6], &length[..], &segment[..]].concat();
        let sum = checksum(&pseudo);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        [self.ethernet(0x0800), self.ipv4(6, 0, &segment)].concat()
    }

    /// Says that `self.from` is at `self.from_mac`.
    pub(crate) fn arp(&self) -> Vec<u8> {
        let mut frame = self.ethernet(0x0806);
        frame.extend([0, 1, 8, 0, 6, 4, 0, 2]);
        frame.extend(self.from_mac);
        frame.extend(self.from.octets());
        frame.extend(self.to_mac);
        frame.extend(self.to.octets());
        frame
    }
}

fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A card's address from its text.
pub(crate) fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect();
    bytes.try_into().expect("six bytes")
}
