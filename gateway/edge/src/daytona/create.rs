//! What a client may ask for when it creates a sandbox.

use fabric_api::daytona as wire;
use fabric_api::node::{NewSandbox, Origin};
use fabric_types::{NetworkPolicy, OrganizationId};

use crate::intake;
use crate::refusal::{Answer, Refusal};

/// The wire's request as the mesh's own, or what is wrong with it.
pub(super) fn parse(body: wire::CreateSandbox, organization: OrganizationId) -> Answer<NewSandbox> {
    refuse_unbuilt(&body)?;
    if let Some(minutes) = body.auto_archive_interval {
        // Nothing is archived here: a stopped sandbox costs only its disk, so any interval is kept to.
        intake::whole_minutes("the auto-archive interval", minutes)?;
    }
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
        network: NetworkPolicy { block_all: body.network_block_all.unwrap_or(false), ..NetworkPolicy::default() },
        intervals: intake::intervals(body.auto_stop_interval, never_if_negative(body.auto_delete_interval))?,
    })
}

/// The wire says never with any negative number.
pub(super) fn never_if_negative(minutes: Option<i64>) -> Option<i64> {
    minutes.map(|minutes| minutes.max(-1))
}

/// Whether a client gave a list of networks or domains. An empty one asks for nothing.
pub(super) fn refuse_lists(networks: Option<&str>, domains: Option<&str>) -> Answer<()> {
    for (field, list) in [("networkAllowList", networks), ("domainAllowList", domains)] {
        if list.is_some_and(|list| !list.trim().is_empty()) {
            let message = format!("{field}: guests have no network yet, so nothing can be allowed; leave it out");
            return Err(Refusal::not_built(message));
        }
    }
    Ok(())
}

fn refuse_unbuilt(body: &wire::CreateSandbox) -> Answer<()> {
    refuse_lists(body.network_allow_list.as_deref(), body.domain_allow_list.as_deref())?;
    if body.gpu.is_some_and(|gpus| gpus < 0) {
        return Err(Refusal::bad("gpu must be 0 or more"));
    }
    let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let any = |list: &Option<Vec<serde_json::Value>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let more = |minutes: Option<i64>| minutes.is_some_and(|minutes| minutes > 0);
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
        (given(&body.outbound_proxy_url), "outboundProxyUrl", "guests have no network yet"),
        (given(&body.linked_sandbox), "linkedSandbox", "sandboxes can't be linked"),
        (more(body.auto_pause_interval), "autoPauseInterval", "nothing is paused by itself; use autoStopInterval"),
        (
            more(body.ttl_minutes),
            "ttlMinutes",
            "there is no age limit yet; use autoStopInterval and autoDeleteInterval",
        ),
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
        assert!(new.network.block_all);
    }

    #[test]
    fn what_is_not_built_is_said_with_its_field() {
        for (json, field) in [
            (r#"{"buildInfo":{"dockerfileContent":"FROM x"}}"#, "buildInfo"),
            (r#"{"volumes":[{"volumeId":"v"}]}"#, "volumes"),
            (r#"{"networkAllowList":"10.0.0.0/8"}"#, "networkAllowList"),
            (r#"{"domainAllowList":"example.org"}"#, "domainAllowList"),
            (r#"{"gpu":1}"#, "gpu"),
        ] {
            let (code, message) = parsed(json).expect_err("refused");
            assert_eq!(code, ErrorCode::NotImplemented, "{message}");
            assert!(message.starts_with(field), "{message}");
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
