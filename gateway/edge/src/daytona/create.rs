//! What a client may ask for when it creates a sandbox.

use fabric_api::daytona as wire;
use fabric_api::node::{NewSandbox, Origin};
use fabric_types::{NetworkPolicy, OrganizationId};

use crate::intake::{self, GivenIntervals, Rules};
use crate::refusal::{Answer, Refusal};

/// The wire's request as the mesh's own, or what is wrong with it.
pub(super) fn parse(body: wire::CreateSandbox, organization: OrganizationId) -> Answer<NewSandbox> {
    refuse_unbuilt(&body)?;
    let (networks, domains) = (body.network_allow_list.as_deref(), body.domain_allow_list.as_deref());
    let given = body.network_block_all.is_some() || networks.is_some() || domains.is_some();
    let network = network(body.network_block_all.unwrap_or(false), networks, domains)?;
    let memory_mib = intake::gib_as_mib(body.memory)?;
    Ok(NewSandbox {
        name: intake::name(body.name.as_deref())?,
        organization,
        origin: body.snapshot.filter(|key| !key.is_empty()).map_or(Origin::Default, Origin::Named),
        shape: intake::shape(body.cpu, memory_mib, body.disk)?,
        labels: intake::labels(body.labels.unwrap_or_default())?,
        env: intake::env(body.env.unwrap_or_default())?,
        user: intake::user(body.user)?,
        public: body.public.unwrap_or(false),
        network: given.then_some(network),
        intervals: intake::intervals(GivenIntervals {
            stop: body.auto_stop_interval,
            pause: body.auto_pause_interval,
            archive: body.auto_archive_interval,
            delete: never_if_negative(body.auto_delete_interval),
            ttl: body.ttl_minutes,
        })?,
    })
}

/// The wire says never with any negative number.
pub(super) fn never_if_negative(minutes: Option<i64>) -> Option<i64> {
    minutes.map(|minutes| minutes.max(-1))
}

/// A policy from the wire's lists, which are written with commas. An empty list asks for nothing.
pub(super) fn network(block_all: bool, networks: Option<&str>, domains: Option<&str>) -> Answer<NetworkPolicy> {
    let none = |field| Rules { field, entries: &[] };
    let (networks, domains) = (intake::separated(networks), intake::separated(domains));
    intake::network(
        block_all,
        Rules { field: "networkAllowList", entries: &networks },
        none("networkDenyList"),
        Rules { field: "domainAllowList", entries: &domains },
        none("domainDenyList"),
    )
}

fn refuse_unbuilt(body: &wire::CreateSandbox) -> Answer<()> {
    if body.gpu.is_some_and(|gpus| gpus < 0) {
        return Err(Refusal::bad("gpu must be 0 or more"));
    }
    let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let any = |list: &Option<Vec<serde_json::Value>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let unbuilt = [
        (
            body.build_info.is_some(),
            "buildInfo",
            "images are not built here yet; use `snapshot` with a template's name",
        ),
        (any(&body.volumes), "volumes", "volumes do not exist here yet"),
        (any(&body.secrets), "secrets", "secrets do not exist here yet; `env` does"),
        (body.gpu.is_some_and(|gpus| gpus > 0), "gpu", "no node has graphics processors"),
        (body.kvm == Some(true), "kvm", "sandboxes can't run virtual machines themselves"),
        (body.spot == Some(true), "spot", "every sandbox here is kept; there is no cheaper kind"),
        (
            given(&body.outbound_proxy_url),
            "outboundProxyUrl",
            "there is no proxy on the way out; set HTTPS_PROXY in `env` and allow only the proxy by networkAllowList",
        ),
        (given(&body.linked_sandbox), "linkedSandbox", "sandboxes can't be linked"),
    ];
    match unbuilt.iter().find(|(asked, _, _)| *asked) {
        None => Ok(()),
        Some((_, field, why)) => Err(Refusal::not_built(format!("{field}: {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use fabric_api::ErrorCode;
    use fabric_types::Shape;

    use super::*;

    fn parsed(json: &str) -> Result<NewSandbox, (ErrorCode, String)> {
        let body = serde_json::from_str(json).expect("JSON of the wire");
        parse(body, OrganizationId("o".into())).map_err(|refusal| (refusal.0.code, refusal.0.message))
    }

    #[test]
    fn what_the_stock_client_sends_is_taken() {
        let new = parsed(r#"{"env":{},"labels":{"code-toolbox-language":"python"},"volumes":[]}"#).expect("taken");
        assert_eq!((new.origin, new.shape, new.name), (Origin::Default, None, None));
        let new =
            parsed(r#"{"cpu":2,"memory":4,"disk":8,"networkBlockAll":true,"gpu":0,"ttlMinutes":0}"#).expect("taken");
        assert_eq!(new.shape, Some(Shape::new(2, 4096, 8).expect("a shape")));
        assert!(new.network.expect("a policy").block_all);
        for (json, given) in
            [(r"{}", false), (r#"{"networkBlockAll":false}"#, true), (r#"{"networkAllowList":""}"#, true)]
        {
            let new = parsed(json).expect("taken");
            assert_eq!(new.network, given.then(NetworkPolicy::default), "{json}: what isn't said is the snapshot's");
        }
    }

    #[test]
    fn what_is_not_built_is_said_with_its_field() {
        for (json, field) in [
            (r#"{"buildInfo":{"dockerfileContent":"FROM x"}}"#, "buildInfo"),
            (r#"{"volumes":[{"volumeId":"v"}]}"#, "volumes"),
            (r#"{"outboundProxyUrl":"http://a"}"#, "outboundProxyUrl"),
            (r#"{"gpu":1}"#, "gpu"),
        ] {
            let (code, message) = parsed(json).expect_err("refused");
            assert_eq!(code, ErrorCode::NotImplemented, "{message}");
            assert!(message.starts_with(field), "{message}");
        }
    }

    #[test]
    fn networks_and_intervals_are_the_meshs_own_once_parsed() {
        let new = parsed(
            r#"{"networkAllowList":"203.0.113.7/24, 2001:db8::/32","domainAllowList":"*.example.com,pypi.org",
                "autoPauseInterval":5,"autoArchiveInterval":0,"autoDeleteInterval":0,"ttlMinutes":60}"#,
        )
        .expect("taken");
        let shown = |list: &[_]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let network = new.network.expect("a policy");
        let allowed: Vec<String> = network.allow.iter().map(ToString::to_string).collect();
        assert_eq!(allowed, ["203.0.113.0/24", "2001:db8::/32"]);
        assert_eq!(shown(&network.allow_domains), ["*.example.com", "pypi.org"]);
        let minutes = |minutes| Some(fabric_types::Minutes(minutes));
        let intervals = new.intervals;
        assert_eq!((intervals.auto_pause, intervals.auto_archive, intervals.ttl), (minutes(5), None, minutes(60)));
        assert_eq!(intervals.auto_delete, minutes(0), "ephemeral");
        for json in [
            r#"{"networkAllowList":"10.0.0.300"}"#,
            r#"{"domainAllowList":"http://a.com"}"#,
            r#"{"ttlMinutes":-1}"#,
            r#"{"autoPauseInterval":-1}"#,
        ] {
            assert_eq!(parsed(json).expect_err(json).0, ErrorCode::BadRequest, "{json}");
        }
    }

    #[test]
    fn negative_and_impossible_numbers_are_the_callers_fault() {
        for json in [
            r#"{"cpu":-1}"#,
            r#"{"cpu":0}"#,
            r#"{"memory":-1}"#,
            r#"{"memory":9223372036854775807}"#,
            r#"{"disk":0}"#,
            r#"{"gpu":-1}"#,
            r#"{"autoStopInterval":-5}"#,
            r#"{"autoArchiveInterval":-5}"#,
            r#"{"name":"../x"}"#,
            r#"{"user":"a b"}"#,
        ] {
            assert_eq!(parsed(json).expect_err(json).0, ErrorCode::BadRequest, "{json}");
        }
        assert_eq!(parsed(r#"{"autoDeleteInterval":-5}"#).expect("never").intervals.auto_delete, None);
    }
}
