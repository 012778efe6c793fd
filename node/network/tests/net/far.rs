//! The far side: servers on every address, two resolvers, and counts of what arrived for whom.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::lab::{DECOYS, FORGED, Space, packets};

/// Echoes what it gets.
pub(crate) const ECHO: u16 = 80;
/// Sends without end.
pub(crate) const SOURCE: u16 = 5001;
/// Takes without end.
pub(crate) const SINK: u16 = 5002;

pub(crate) struct Far {
    space: Space,
    sunk: Arc<AtomicU64>,
    slow: Arc<Slow>,
}

/// The name whose answer waits for the test.
#[derive(Default)]
struct Slow {
    asked: AtomicBool,
    answered: AtomicBool,
}

impl Far {
    pub(crate) fn new(space: Space) -> Self {
        Self { space, sunk: Arc::default(), slow: Arc::default() }
    }

    pub(crate) fn start(&self) {
        let mut rules =
            "add table inet watch\nadd chain inet watch in { type filter hook prerouting priority -400; }\n".to_owned();
        for decoy in DECOYS.iter().chain(&[FORGED]) {
            rules += &format!("add rule inet watch in ip daddr {decoy} counter\n");
        }
        rules += "add rule inet watch in ip6 daddr 2001:db8::1 counter\n";
        rules += "add rule inet watch in ip daddr 1.1.1.78 counter\n";
        let path = std::env::temp_dir().join(format!("atoll-far-{}", std::process::id()));
        std::fs::write(&path, rules).expect("written");
        self.space.run(&["nft", "-f", path.to_str().expect("a path")]);
        std::fs::remove_file(&path).expect("removed");
        let (sunk, slow) = (self.sunk.clone(), self.slow.clone());
        self.space.inside(move || {
            for port in [ECHO, SOURCE, SINK] {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bound");
                let sunk = sunk.clone();
                thread::spawn(move || serve(&listener, port, &sunk));
            }
            for at in ["11.0.0.2", "8.8.8.8"] {
                let socket = UdpSocket::bind((at, 53)).expect("bound");
                let slow = slow.clone();
                thread::spawn(move || resolve(&socket, &slow));
            }
        });
    }

    /// Packets that arrived for each decoy, forged ones and IPv6 among them: all but the last of what is watched.
    pub(crate) fn reached(&self) -> Vec<u64> {
        let mut all = packets(&self.space.run(&["nft", "list chain inet watch in"]));
        assert_eq!(all.len(), DECOYS.len() + 3);
        all.pop();
        all
    }

    /// Bytes that the sink took.
    pub(crate) fn sunk(&self) -> u64 {
        self.sunk.load(Ordering::Relaxed)
    }

    /// Whether the slow name was asked for.
    pub(crate) fn slow_is_asked(&self) -> bool {
        self.slow.asked.load(Ordering::Relaxed)
    }

    /// Answers for the slow name, from now on.
    pub(crate) fn answer_slow(&self) {
        self.slow.answered.store(true, Ordering::Relaxed);
    }

    /// Packets that arrived for the address that a flood goes to.
    pub(crate) fn flooded(&self) -> u64 {
        packets(&self.space.run(&["nft", "list chain inet watch in"])).pop().expect("a counter")
    }
}

fn serve(listener: &TcpListener, port: u16, sunk: &Arc<AtomicU64>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let sunk = sunk.clone();
        thread::spawn(move || {
            let mut bytes = vec![0u8; 64 * 1024];
            loop {
                let done = match port {
                    SOURCE => stream.write_all(&bytes).is_err(),
                    SINK => stream.read(&mut bytes).map_or(true, |length| {
                        sunk.fetch_add(length as u64, Ordering::Relaxed);
                        length == 0
                    }),
                    _ => match stream.read(&mut bytes) {
                        Ok(length) if length > 0 => stream.write_all(&bytes[..length]).is_err(),
                        _ => true,
                    },
                };
                if done {
                    return;
                }
            }
        });
    }
}

fn resolve(socket: &UdpSocket, slow: &Slow) {
    let mut bytes = [0u8; 2048];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
        let Ok(asked) = Message::from_vec(&bytes[..length]) else { continue };
        let query = asked.queries[0].clone();
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        answer.add_query(query.clone());
        let records: &[&str] = match query.name().to_ascii().as_str() {
            "good.test." | "also.good.test." => &["1.1.1.1"],
            "other.test." => &["9.9.9.9"],
            "rebind.test." => &["1.1.1.1", "10.1.2.3"],
            "loop.test." => &["127.0.0.1"],
            "slow.test." => {
                slow.asked.store(true, Ordering::Relaxed);
                while !slow.answered.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(5));
                }
                &["9.9.9.9"]
            }
            _ => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                &[]
            }
        };
        if query.query_type() == RecordType::A {
            for record in records {
                let data = RData::A(A(Ipv4Addr::from_str(record).expect("an address")));
                answer.add_answer(Record::from_rdata(
                    Name::from_str(&query.name().to_ascii()).expect("a name"),
                    1,
                    data,
                ));
            }
        }
        let _ = socket.send_to(&answer.to_vec().expect("bytes"), from);
    }
}
