//! Names: what the node's resolver answers is what is let through, for as long as it says.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use fabric_types::NetworkPolicy;
use hickory_proto::op::ResponseCode;

use crate::guest::{Guest, Said, is_dead, lives};
use crate::lab::{Lab, OTHER, PUBLIC, eventually};

/// The far side says one second; the node holds an answer for thirty at least, and five more.
const HELD: Duration = Duration::from_secs(36);

fn policy(text: &str) -> NetworkPolicy {
    serde_json::from_str(text).expect("a policy")
}

#[tokio::test(flavor = "multi_thread")]
async fn allowed_names_are_let_through_while_their_answer_holds() {
    let Some(mut lab) = Lab::new() else { return };
    let networks = lab.networks().await;
    let port = networks.take().await.expect("taken").expect("a port");
    let allowed = r#"{"blockAll":false,"allowDomains":["good.test","*.good.test","rebind.test","loop.test"]}"#;
    networks.apply(&port, &policy(allowed)).await.expect("applied");
    let guest = Guest::plug(&mut lab, port);

    assert!(guest.misses(PUBLIC), "before anyone asked");
    let public: Ipv4Addr = PUBLIC.parse().expect("an address");
    assert_eq!(guest.resolve("good.test."), Said::Addresses(vec![public], 30));
    let mut stream = guest.connect(PUBLIC, 80).expect("at once after the answer");
    assert!(lives(&mut stream));
    assert!(guest.misses(OTHER));
    assert_eq!(guest.resolve("other.test."), Said::Code(ResponseCode::Refused));
    assert!(guest.misses(OTHER));

    for rebinding in ["rebind.test.", "loop.test."] {
        assert_eq!(guest.resolve(rebinding), Said::Code(ResponseCode::Refused), "{rebinding}");
    }
    // Other resolvers, and another guest's.
    for resolver in ["8.8.8.8", "11.0.0.2", "100.96.3.1"] {
        assert_eq!(guest.ask(resolver.parse().expect("an address"), "good.test."), Said::Nothing, "{resolver}");
    }
    assert!(guest.connect(PUBLIC, 853).is_none() && guest.connect(PUBLIC, 53).is_none());

    // Another policy with the same name keeps its addresses; one without it drops them.
    let more = r#"{"blockAll":false,"allowDomains":["good.test"],"denyDomains":["bad.test"]}"#;
    networks.apply(&guest.port, &policy(more)).await.expect("applied");
    assert!(lives(&mut stream) && guest.reaches(PUBLIC));
    assert_eq!(guest.resolve("bad.test."), Said::Code(ResponseCode::NXDomain));
    assert!(matches!(guest.resolve("good.test."), Said::Addresses(..)));

    thread::sleep(HELD);
    assert!(lives(&mut stream), "a connection outlives the answer that opened it");
    assert!(guest.misses(PUBLIC), "a new one needs a new answer");
    assert!(matches!(guest.resolve("good.test."), Said::Addresses(..)));
    assert!(guest.reaches(PUBLIC));

    networks.apply(&guest.port, &policy(r#"{"blockAll":false,"allowDomains":["other.test"]}"#)).await.expect("applied");
    assert!(is_dead(&mut stream) && guest.misses(PUBLIC));
    networks.stop(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_names_have_no_answer_and_there_is_no_other_resolver_to_ask() {
    let Some(mut lab) = Lab::new() else { return };
    let networks = lab.networks().await;
    let port = networks.take().await.expect("taken").expect("a port");
    networks.apply(&port, &NetworkPolicy::default()).await.expect("applied");
    let guest = Guest::plug(&mut lab, port);
    let other: Ipv4Addr = "8.8.8.8".parse().expect("an address");
    eventually("with no rule about names anyone is asked", || {
        matches!(guest.ask(other, "other.test."), Said::Addresses(..))
    });
    assert_eq!(guest.resolve("loop.test."), Said::Code(ResponseCode::Refused));

    let over_tcp = guest.ask_over_tcp("other.test.").expect("an answer over TCP");
    assert_eq!(over_tcp.answers.len(), 1);
    // Bytes that are no question are no harm.
    for bytes in [&b""[..], b"x", &[0xff; 600], &[0; 12], &[0xc0; 40]] {
        guest.space.inside({
            let (bytes, gateway) = (bytes.to_vec(), guest.card().gateway);
            move || std::net::UdpSocket::bind("0.0.0.0:0").expect("bound").send_to(&bytes, (gateway, 53)).expect("sent")
        });
    }
    assert!(matches!(guest.resolve("other.test."), Said::Addresses(..)));

    networks.apply(&guest.port, &policy(r#"{"blockAll":false,"denyDomains":["*.test"]}"#)).await.expect("applied");
    assert_eq!(guest.resolve("other.test."), Said::Code(ResponseCode::NXDomain));
    assert_eq!(guest.ask(other, "other.test."), Said::Nothing);
    assert!(guest.reaches(PUBLIC));

    networks.apply(&guest.port, &policy(r#"{"blockAll":true}"#)).await.expect("applied");
    assert_eq!(guest.resolve("other.test."), Said::Code(ResponseCode::Refused));
    networks.stop(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_after_its_policy_lets_nothing_through() {
    let Some(mut lab) = Lab::new() else { return };
    let networks = lab.networks().await;
    let port = networks.take().await.expect("taken").expect("a port");
    networks.apply(&port, &policy(r#"{"blockAll":false,"allowDomains":["slow.test"]}"#)).await.expect("applied");
    let guest = Guest::plug(&mut lab, port);
    eventually("the guest is heard", || guest.resolve("none.test.") == Said::Code(ResponseCode::Refused));
    let late = thread::scope(|scope| {
        let asking = scope.spawn(|| guest.resolve("slow.test."));
        eventually("the far side is asked", || lab.far.slow_is_asked());
        let change = policy(r#"{"blockAll":false,"allowDomains":["good.test"]}"#);
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(networks.apply(&guest.port, &change)).expect("applied");
        });
        lab.far.answer_slow();
        asking.join().expect("asked")
    });
    assert_eq!(late, Said::Code(ResponseCode::ServFail));
    assert!(guest.misses(OTHER));
    networks.stop(true).await;
}
