//! Lists of sandboxes, mesh-wide: filters, order, pages.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fabric_api::daytona as wire;
use fabric_types::{Phase, RegionCode};
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::view;
use crate::edge::Edge;
use crate::instant;
use crate::intake::clip;
use crate::mesh::Listed;
use crate::refusal::{Answer, Refusal};
use crate::request::{Caller, Params};
use crate::sandboxes::LOOK_UP;

/// Items of a page, where the client gives no number.
const LIMIT_DEFAULT: usize = 100;
/// Most items of a page: what the wire's own server allows.
const LIMIT_MAX: i64 = 200;
/// Names the regions that did not answer; their sandboxes are shown as last known, marked `stale`.
const UNREACHABLE: HeaderName = HeaderName::from_static("x-atoll-unreachable-regions");
/// States that a filter may name: those of the wire.
const STATES: [&str; 22] = [
    "creating",
    "restoring",
    "destroyed",
    "destroying",
    "started",
    "stopped",
    "starting",
    "stopping",
    "error",
    "build_failed",
    "pending_build",
    "building_snapshot",
    "unknown",
    "pulling_snapshot",
    "archived",
    "archiving",
    "resizing",
    "snapshotting",
    "forking",
    "pausing",
    "paused",
    "resuming",
];

/// `GET /api/sandbox`
pub(super) async fn page(State(edge): State<Edge>, caller: Caller, params: Params) -> Answer<Response> {
    let (filter, order) = (Filter::parse(&params, "regionIds")?, Order::parse(&params)?);
    let limit = limit(&params)?;
    let after = params.one("cursor")?.map(|cursor| order.open(cursor)).transpose()?;
    let (items, unreachable) = sorted(&edge, &caller, &filter, &order).await;
    let mut rest =
        items.into_iter().filter(|item| after.as_ref().is_none_or(|mark| order.compare_mark(item, mark).is_gt()));
    let items: Vec<_> = rest.by_ref().take(limit).collect();
    let next_cursor = rest.next().and(items.last()).map(|last| order.seal(last));
    Ok(with_unreachable(Json(wire::SandboxPage { items, next_cursor }), &unreachable))
}

/// `GET /api/sandbox/paginated`, as older clients ask.
pub(super) async fn numbered_page(State(edge): State<Edge>, caller: Caller, params: Params) -> Answer<Response> {
    let (filter, order) = (Filter::parse(&params, "regions")?, Order::parse(&params)?);
    let limit = limit(&params)?;
    let number = page_number(&params)?;
    let (items, unreachable) = sorted(&edge, &caller, &filter, &order).await;
    Ok(with_unreachable(Json(numbered(items, number, limit)), &unreachable))
}

/// A page by its number, from 1.
pub(super) fn numbered<T>(items: Vec<T>, number: usize, limit: usize) -> wire::Page<T> {
    let total = items.len();
    let items = items.into_iter().skip((number - 1).saturating_mul(limit)).take(limit).collect();
    wire::Page { items, total, page: number, total_pages: total.div_ceil(limit) }
}

/// The number of a page, from 1.
pub(super) fn page_number(params: &Params) -> Answer<usize> {
    match params.number("page")? {
        None => Ok(1),
        Some(number) => usize::try_from(number)
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| Refusal::bad(format!("page {number} is not possible: pages count from 1"))),
    }
}

/// How many items a page has.
pub(super) fn limit(params: &Params) -> Answer<usize> {
    match params.number("limit")? {
        None => Ok(LIMIT_DEFAULT),
        Some(limit) if (1..=LIMIT_MAX).contains(&limit) => Ok(usize::try_from(limit).unwrap_or(LIMIT_DEFAULT)),
        Some(limit) => Err(Refusal::bad(format!("limit {limit} is not possible: 1 to {LIMIT_MAX}"))),
    }
}

async fn sorted(edge: &Edge, caller: &Caller, filter: &Filter, order: &Order) -> (Vec<wire::Sandbox>, Vec<RegionCode>) {
    let Listed { items, unreachable } = edge.mesh().list(&filter.regions, &caller.scope(LOOK_UP)).await;
    let mut items: Vec<_> = items
        .into_iter()
        .filter(|(item, _)| item.phase != Phase::Gone)
        .map(|(item, stale)| view::sandbox(edge, item, stale))
        .filter(|item| filter.takes(item))
        .collect();
    items.sort_by(|a, b| order.compare(a, b));
    (items, unreachable)
}

fn with_unreachable<T: Serialize>(body: Json<T>, unreachable: &[RegionCode]) -> Response {
    let mut response = body.into_response();
    let names: Vec<_> = unreachable.iter().map(RegionCode::as_str).collect();
    if let Ok(value) = HeaderValue::from_str(&names.join(",")).map_err(drop)
        && !names.is_empty()
    {
        response.headers_mut().insert(UNREACHABLE, value);
    }
    response
}

/// What a list is narrowed to.
#[derive(Debug, Default)]
struct Filter {
    id: Option<String>,
    name: Option<String>,
    labels: BTreeMap<String, String>,
    states: Vec<String>,
    snapshots: Vec<String>,
    regions: Vec<RegionCode>,
    public: Option<bool>,
    recoverable: Option<bool>,
    cpu: Range,
    memory: Range,
    disk: Range,
    created: Instants,
    active: Instants,
}

impl Filter {
    fn parse(params: &Params, regions: &str) -> Answer<Self> {
        Ok(Self {
            id: params.one("id")?.map(str::to_owned),
            name: params.one("name")?.map(str::to_owned),
            labels: params.one("labels")?.map_or(Ok(BTreeMap::new()), labels)?,
            states: several(params, "states").map(known_state).collect::<Answer<_>>()?,
            snapshots: several(params, "snapshots").map(str::to_owned).collect(),
            // A code that is none matches no sandbox; it is kept out of the list of those to ask.
            regions: several(params, regions).map(region).collect::<Answer<_>>()?,
            public: params.flag("isPublic")?,
            recoverable: params.flag("isRecoverable")?,
            cpu: Range::parse(params, "minCpu", "maxCpu")?,
            memory: Range::parse(params, "minMemoryGiB", "maxMemoryGiB")?,
            disk: Range::parse(params, "minDiskGiB", "maxDiskGiB")?,
            created: Instants::parse(params, "createdAtAfter", "createdAtBefore")?,
            active: Instants::parse(params, "lastEventAfter", "lastEventBefore")?,
        })
    }

    fn takes(&self, item: &wire::Sandbox) -> bool {
        let prefix = |wanted: &Option<String>, text: &str| {
            wanted.as_ref().is_none_or(|wanted| text.to_lowercase().starts_with(&wanted.to_lowercase()))
        };
        let among = |wanted: &[String], text: &str| wanted.is_empty() || wanted.iter().any(|known| known == text);
        prefix(&self.id, &item.id)
            && prefix(&self.name, &item.name)
            && self.labels.iter().all(|(key, value)| item.labels.get(key) == Some(value))
            && among(&self.states, item.state)
            && among(&self.snapshots, &item.snapshot)
            && self.public.is_none_or(|public| public == item.public)
            && self.recoverable.is_none_or(|recoverable| recoverable == item.recoverable)
            && self.cpu.takes(item.cpu)
            && self.memory.takes(item.memory)
            && self.disk.takes(item.disk)
            && self.created.takes(&item.created_at)
            && self.active.takes(&item.last_activity_at)
    }
}

/// A number within two others.
#[derive(Debug, Default)]
struct Range(Option<i64>, Option<i64>);

impl Range {
    fn parse(params: &Params, least: &str, most: &str) -> Answer<Self> {
        Ok(Self(params.number(least)?, params.number(most)?))
    }

    fn takes(&self, number: u32) -> bool {
        self.0.is_none_or(|least| i64::from(number) >= least) && self.1.is_none_or(|most| i64::from(number) <= most)
    }
}

/// An instant between two others.
#[derive(Debug, Default)]
struct Instants(Option<u64>, Option<u64>);

impl Instants {
    fn parse(params: &Params, after: &str, before: &str) -> Answer<Self> {
        let read = |name: &str| {
            let Some(text) = params.one(name)? else { return Ok(None) };
            let refused = || {
                let shown = clip(text);
                Refusal::bad(format!("the query parameter '{name}' must be an RFC 3339 instant, not '{shown}'"))
            };
            // A plus in a query is a space; an offset such as +00:00 is the only place for one here.
            instant::parse(&text.replace(' ', "+")).map(|at| Some(at.0)).ok_or_else(refused)
        };
        Ok(Self(read(after)?, read(before)?))
    }

    fn takes(&self, text: &str) -> bool {
        let at = instant::parse(text).unwrap_or_default().0;
        self.0.is_none_or(|after| at >= after) && self.1.is_none_or(|before| at <= before)
    }
}

/// A parameter that may repeat, or hold several values between commas.
fn several<'params>(params: &'params Params, name: &'params str) -> impl Iterator<Item = &'params str> {
    params.all(name).flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty())
}

fn known_state(text: &str) -> Answer<String> {
    if STATES.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(Refusal::bad(format!("'{}' is not a state; known are {}", clip(text), STATES.join(", "))))
}

fn region(text: &str) -> Answer<RegionCode> {
    text.parse().map_err(|error: fabric_types::IdError| Refusal::bad(error.to_string()))
}

fn labels(text: &str) -> Answer<BTreeMap<String, String>> {
    serde_json::from_str(text).map_err(|error| {
        Refusal::bad(format!(
            "the query parameter 'labels' must be a JSON object of texts, as {{\"k\":\"v\"}}: {error}"
        ))
    })
}

/// By what a list is sorted, and which way. Equals are told apart by their ids, so that pages don't overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Order {
    field: Field,
    descending: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Field {
    Name,
    Cpu,
    MemoryGib,
    DiskGib,
    LastActivityAt,
    CreatedAt,
    State,
    Id,
}

/// What a list is sorted by: the item's value, then its id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
enum Value {
    Number(u64),
    Text(String),
}

/// Where a page ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Mark {
    field: Field,
    descending: bool,
    value: Value,
    id: String,
}

impl Order {
    fn parse(params: &Params) -> Answer<Self> {
        let field = match params.one("sort")? {
            None | Some("createdAt") => Field::CreatedAt,
            Some("name") => Field::Name,
            Some("cpu") => Field::Cpu,
            Some("memoryGib" | "memoryGiB" | "memory") => Field::MemoryGib,
            Some("diskGib" | "diskGiB" | "disk") => Field::DiskGib,
            Some("lastActivityAt" | "updatedAt" | "lastEvent") => Field::LastActivityAt,
            Some("state") => Field::State,
            Some("id") => Field::Id,
            Some(odd) => {
                let message = format!(
                    "can't sort by '{}': name, cpu, memoryGib, diskGib, lastActivityAt or createdAt",
                    clip(odd)
                );
                return Err(Refusal::bad(message));
            }
        };
        let descending = match params.one("order")? {
            None | Some("desc" | "DESC") => true,
            Some("asc" | "ASC") => false,
            Some(odd) => return Err(Refusal::bad(format!("the order '{}' is neither asc nor desc", clip(odd)))),
        };
        Ok(Self { field, descending })
    }

    fn value(self, item: &wire::Sandbox) -> Value {
        match self.field {
            Field::Name => Value::Text(item.name.clone()),
            Field::Cpu => Value::Number(item.cpu.into()),
            Field::MemoryGib => Value::Number(item.memory.into()),
            Field::DiskGib => Value::Number(item.disk.into()),
            // Fractions of a second may be left out of the text, so the number is compared.
            Field::LastActivityAt => Value::Number(instant::parse(&item.last_activity_at).unwrap_or_default().0),
            Field::CreatedAt => Value::Number(instant::parse(&item.created_at).unwrap_or_default().0),
            Field::State => Value::Text(item.state.to_owned()),
            Field::Id => Value::Text(item.id.clone()),
        }
    }

    fn directed(self, ordering: Ordering) -> Ordering {
        if self.descending { ordering.reverse() } else { ordering }
    }

    fn compare(self, a: &wire::Sandbox, b: &wire::Sandbox) -> Ordering {
        self.directed(self.value(a).cmp(&self.value(b))).then_with(|| a.id.cmp(&b.id))
    }

    /// How an item lies to the last one of the page before.
    fn compare_mark(self, item: &wire::Sandbox, mark: &Mark) -> Ordering {
        self.directed(self.value(item).cmp(&mark.value)).then_with(|| item.id.cmp(&mark.id))
    }

    fn seal(self, last: &wire::Sandbox) -> String {
        let mark =
            Mark { field: self.field, descending: self.descending, value: self.value(last), id: last.id.clone() };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&mark).unwrap_or_default())
    }

    fn open(self, cursor: &str) -> Answer<Mark> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
        let mark = bytes.and_then(|bytes| serde_json::from_slice::<Mark>(&bytes).ok());
        mark.filter(|mark| (mark.field, mark.descending) == (self.field, self.descending))
            .ok_or_else(|| Refusal::bad("the cursor belongs to another list; ask for the first page again"))
    }
}
