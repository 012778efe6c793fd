//! A range of free ports.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::bail;

/// Where ranges are looked for: above what services use, below what the kernel gives out by itself (32768).
const FIRST: u16 = 20_000;
const LAST: u16 = 31_000;
/// A node's fabric port (UDP) is so far from its HTTP port (TCP).
const FABRIC_OFFSET: u16 = 1000;
/// Distance of two tries: no mesh of the tests has more nodes.
const STRIDE: u16 = 16;

/// A port from which `nodes` ports are free, and so many UDP ports 1000 above. Between this and the mesh's own bind
/// another process may take one; the mesh then says so, and the test fails with its words.
pub fn free_port_base(nodes: u16) -> anyhow::Result<u16> {
    if nodes > STRIDE {
        bail!("{nodes} nodes are more than a mesh of the tests may have: {STRIDE}");
    }
    let ranges = (LAST - FIRST) / STRIDE;
    // Test processes that run at once begin at different places.
    let begin = (std::process::id() % u32::from(ranges)) as u16;
    for step in 0..ranges {
        let base = FIRST + ((begin + step) % ranges) * STRIDE;
        if (base..base + nodes).all(is_free) {
            return Ok(base);
        }
    }
    bail!("no {nodes} ports in a row are free between {FIRST} and {LAST}")
}

fn is_free(port: u16) -> bool {
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, port + FABRIC_OFFSET));
    tcp.is_ok() && udp.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_passed_over() {
        let base = free_port_base(3).expect("ports");
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, base + 1)).expect("free a moment ago");
        let other = free_port_base(3).expect("ports");
        assert!(other != base && other.is_multiple_of(STRIDE), "{base} {other}");
    }
}
