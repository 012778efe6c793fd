//! Clones of one machine, whose interpreters were parked before it was cloned.

use std::collections::BTreeSet;

use super::{Host, ahead};
use crate::guest::{Guest, identity, image, json, plain};
use guest_proto::surface::{Identity, IdentityAck};

/// Programs that print what is random, a line each.
const RANDOM: &[(&str, &str)] = &[
    (
        "python",
        "import random, uuid, secrets, tempfile, os, ssl\n\
         print(random.random(), random.getrandbits(64)); print(uuid.uuid4()); print(secrets.token_hex(8))\n\
         print(os.urandom(8).hex()); print(ssl.RAND_bytes(8).hex()); print(tempfile.mktemp()); print(random.Random().random())",
    ),
    (
        "javascript",
        "const c = require('crypto'); console.log(Math.random()); console.log(c.randomBytes(8).toString('hex'));\n\
         console.log(c.randomUUID()); console.log(c.webcrypto.getRandomValues(new Uint8Array(8)).join());\n\
         console.log(c.generateKeyPairSync('ed25519').publicKey.export({ format: 'der', type: 'spki' }).toString('hex'));\n\
         c.randomBytes(8, (e, b) => console.log(b.toString('hex'), Math.random()));",
    ),
];

/// What a machine's programs draw, two times each.
async fn drawn(host: &Host) -> Vec<String> {
    let mut lines = Vec::new();
    for (language, code) in RANDOM.iter().chain(RANDOM) {
        let reply = ahead(host, language, code).await;
        assert_eq!(reply.exit_code, 0, "{}", plain(&reply.stderr));
        lines.extend(plain(&reply.stdout).lines().map(str::to_owned));
    }
    lines
}

async fn become_other(host: &Host, id: &str) {
    let identity = Identity { sandbox_id: id.to_owned(), ..identity(1, "fedcba9876543210fedcba9876543210") };
    let _: IdentityAck = json(host.post("/v1/identity", &identity).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_clones_of_one_machine_draw_nothing_alike() {
    let image = image();
    let folder = tempfile::tempdir().unwrap();
    let template = Guest::start(&image);
    let mut host = template.session(template.channel().await).await;
    host.generation = 0;
    // As a template: parked, exercised once, parked again.
    let rehearsal = Identity { rehearsal: true, generation: 0, ..identity(1, "0123456789abcdef0123456789abcdef") };
    let _: IdentityAck = json(host.post("/v1/identity", &rehearsal).await);
    ahead(&host, "python", "print(1)").await;
    ahead(&host, "javascript", "console.log(Math.random())").await;
    let _: IdentityAck = json(host.post("/v1/identity", &rehearsal).await);
    host.sh("sync").await;
    drop(host);
    let saved = folder.path().join("template");
    template.save(&saved).await;

    let mut all = Vec::new();
    let mut kept = Vec::new();
    for id in ["one", "two"] {
        let clone = template.another(&image, &saved);
        let host = clone.session(clone.channel().await).await;
        become_other(&host, id).await;
        all.extend(drawn(&host).await);
        kept.push((clone, host));
    }
    // And a machine that has lived, in two lives at once.
    let (lived, host) = kept.remove(0);
    drop((host, kept));
    let forked = folder.path().join("forked");
    lived.save(&forked).await;
    for id in ["three", "four"] {
        let clone = lived.another(&image, &forked);
        let host = clone.session(clone.channel().await).await;
        become_other(&host, id).await;
        all.extend(drawn(&host).await);
    }
    let distinct: BTreeSet<&String> = all.iter().collect();
    assert_eq!(all.len(), 4 * 2 * 13);
    assert_eq!(distinct.len(), all.len(), "{all:#?}");
}
