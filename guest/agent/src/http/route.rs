//! Which request is meant, and what it may carry: the door. Pure.

use guest_proto::surface::{AgentError, AgentErrorCode, GENERATION_HEADER};
use http::{HeaderMap, Method, Uri};

use crate::facts::{LOG_LINES, LOG_LINES_MAX};
use crate::files::parse_mode;
use crate::refusal::{Answer, bad_request, refuse};

/// A request of the surface, without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Health,
    Identity,
    Exec,
    ExecStream,
    CodeRun,
    NewContext,
    Contexts,
    DeleteContext { id: String },
    Interrupt { id: String },
    Execute,
    List { path: String },
    Info { path: String },
    Download { path: String },
    Upload { path: String, mode: Option<u32> },
    MakeFolder { path: String, mode: Option<u32> },
    Remove { path: String, recursive: bool },
    GrowDisk,
    Logs { tail: usize },
    Shutdown,
}

impl Route {
    /// Reads method, path and query.
    pub(super) fn parse(method: &Method, uri: &Uri) -> Answer<Self> {
        let query = Query::parse(uri.query().unwrap_or(""))?;
        let known: &[(&str, &[Method])] = &[
            ("/v1/health", &[Method::GET]),
            ("/v1/identity", &[Method::POST]),
            ("/v1/exec", &[Method::POST]),
            ("/v1/exec/stream", &[Method::POST]),
            ("/v1/code-run", &[Method::POST]),
            (CONTEXTS, &[Method::POST, Method::GET]),
            ("/v1/interpreter/execute", &[Method::POST]),
            ("/v1/files", &[Method::GET, Method::DELETE]),
            ("/v1/files/info", &[Method::GET]),
            ("/v1/files/content", &[Method::GET, Method::PUT]),
            ("/v1/files/folder", &[Method::POST]),
            ("/v1/disk/grow", &[Method::POST]),
            ("/v1/logs", &[Method::GET]),
            ("/v1/shutdown", &[Method::POST]),
        ];
        let path = uri.path();
        if let Some(of_one) = path.strip_prefix(CONTEXTS).and_then(|rest| rest.strip_prefix('/')) {
            return Self::of_context(method, path, of_one);
        }
        let Some((_, methods)) = known.iter().find(|(known, _)| *known == path) else {
            return Err(unknown(path));
        };
        takes(path, methods, method)?;
        let is_get = method == Method::GET;
        Ok(match path {
            "/v1/health" => Self::Health,
            "/v1/identity" => Self::Identity,
            "/v1/exec" => Self::Exec,
            "/v1/exec/stream" => Self::ExecStream,
            "/v1/code-run" => Self::CodeRun,
            CONTEXTS if is_get => Self::Contexts,
            CONTEXTS => Self::NewContext,
            "/v1/interpreter/execute" => Self::Execute,
            "/v1/files" if is_get => Self::List { path: query.path.unwrap_or_else(|| "~".to_owned()) },
            "/v1/files" => Self::Remove { recursive: query.recursive, path: query.path()? },
            "/v1/files/info" => Self::Info { path: query.path()? },
            "/v1/files/content" if is_get => Self::Download { path: query.path()? },
            "/v1/files/content" => Self::Upload { mode: query.mode, path: query.path()? },
            "/v1/files/folder" => Self::MakeFolder { mode: query.mode, path: query.path()? },
            "/v1/disk/grow" => Self::GrowDisk,
            "/v1/logs" => Self::Logs { tail: query.tail },
            _ => Self::Shutdown,
        })
    }
}

/// Where contexts are made and listed; below it lies each by its id.
const CONTEXTS: &str = "/v1/interpreter/contexts";

impl Route {
    /// A request of one context: `rest` is what follows its folder.
    fn of_context(method: &Method, path: &str, rest: &str) -> Answer<Self> {
        let (id, verb) = rest.split_once('/').map_or((rest, None), |(id, verb)| (id, Some(verb)));
        if id.is_empty() {
            return Err(unknown(path));
        }
        let id = decode(id)?;
        match verb {
            None => takes(path, &[Method::DELETE], method).map(|()| Self::DeleteContext { id }),
            Some("interrupt") => takes(path, &[Method::POST], method).map(|()| Self::Interrupt { id }),
            Some(_) => Err(unknown(path)),
        }
    }
}

fn unknown(path: &str) -> AgentError {
    refuse(AgentErrorCode::NotFound, format!("the agent has no {path}"))
}

/// Refuses a method that a path doesn't take.
fn takes(path: &str, methods: &[Method], method: &Method) -> Answer<()> {
    if methods.contains(method) {
        return Ok(());
    }
    let methods: Vec<&str> = methods.iter().map(Method::as_str).collect();
    let message = format!("{path} takes {}, not {method}", methods.join(" and "));
    Err(refuse(AgentErrorCode::MethodNotAllowed, message))
}

/// The caller's generation.
pub(super) fn generation(headers: &HeaderMap) -> Answer<u64> {
    let value =
        headers.get(GENERATION_HEADER).ok_or_else(|| bad_request(format!("there is no {GENERATION_HEADER}")))?;
    value
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| bad_request(format!("{GENERATION_HEADER} is no number")))
}

/// Any bytes as a method, a path with its query, and a header, each on a line of its own.
pub(crate) fn hostile(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let mut line = || lines.next().unwrap_or("");
    let (Ok(method), Ok(uri)) = (line().parse::<Method>(), line().parse::<Uri>()) else { return };
    // Whatever it is, it is a request or a refusal.
    let _ = Route::parse(&method, &uri);
    let mut headers = HeaderMap::new();
    if let Ok(value) = line().parse() {
        headers.insert(GENERATION_HEADER, value);
    }
    let _ = generation(&headers);
}

struct Query {
    path: Option<String>,
    mode: Option<u32>,
    recursive: bool,
    tail: usize,
}

impl Query {
    fn parse(query: &str) -> Answer<Self> {
        let mut parsed = Self { path: None, mode: None, recursive: false, tail: LOG_LINES };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)?;
            match name {
                "path" if !value.is_empty() => parsed.path = Some(value),
                "mode" if !value.is_empty() => parsed.mode = Some(parse_mode(&value)?),
                "recursive" => {
                    parsed.recursive = match value.as_str() {
                        "true" | "1" => true,
                        "false" | "0" | "" => false,
                        _ => return Err(bad_request(format!("recursive is true or false, not '{value}'"))),
                    };
                }
                "tail" => {
                    parsed.tail =
                        value.parse().ok().filter(|&lines| lines <= LOG_LINES_MAX).ok_or_else(|| {
                            bad_request(format!("tail is a number up to {LOG_LINES_MAX}, not '{value}'"))
                        })?;
                }
                _ => {}
            }
        }
        Ok(parsed)
    }

    fn path(self) -> Answer<String> {
        self.path.ok_or_else(|| bad_request("the query names no path"))
    }
}

/// Percent decoding; a plus is a space, as forms write it.
fn decode(text: &str) -> Answer<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
                match (digit(rest.next()), digit(rest.next())) {
                    (Some(high), Some(low)) => u8::try_from(high * 16 + low).unwrap_or(b'?'),
                    _ => return Err(bad_request(format!("'{text}' has a % without two digits"))),
                }
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| bad_request("a query's value is no UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn hostile_queries_never_panic(query in "[a-z=&%+\u{e4}0-9./]{0,60}", name in "path|mode|tail|recursive") {
            // Whatever it is, it is a request or a refusal.
            let _ = Query::parse(&query);
            let _ = Query::parse(&format!("{name}={query}"));
        }

        #[test]
        fn any_path_survives_the_query(path in "\\PC{1,40}") {
            let encoded: String = path.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(Query::parse(&format!("path={encoded}")).unwrap().path, Some(path));
        }
    }

    fn parse(method: Method, uri: &str) -> Answer<Route> {
        Route::parse(&method, &uri.parse().unwrap())
    }

    #[test]
    fn every_request_of_the_surface_is_known() {
        let path = || "/a b/ü".to_owned();
        let encoded = "path=%2Fa+b%2F%C3%BC";
        let cases = [
            (Method::GET, "/v1/health".to_owned(), Route::Health),
            (Method::POST, "/v1/identity".to_owned(), Route::Identity),
            (Method::POST, "/v1/exec".to_owned(), Route::Exec),
            (Method::POST, "/v1/exec/stream".to_owned(), Route::ExecStream),
            (Method::POST, "/v1/code-run".to_owned(), Route::CodeRun),
            (Method::POST, "/v1/interpreter/contexts".to_owned(), Route::NewContext),
            (Method::GET, "/v1/interpreter/contexts".to_owned(), Route::Contexts),
            (
                Method::DELETE,
                "/v1/interpreter/contexts/a%2Fb".to_owned(),
                Route::DeleteContext { id: "a/b".to_owned() },
            ),
            (Method::POST, "/v1/interpreter/contexts/a/interrupt".to_owned(), Route::Interrupt { id: "a".to_owned() }),
            (Method::POST, "/v1/interpreter/execute".to_owned(), Route::Execute),
            (Method::GET, "/v1/files".to_owned(), Route::List { path: "~".to_owned() }),
            (Method::GET, format!("/v1/files?{encoded}"), Route::List { path: path() }),
            (
                Method::DELETE,
                format!("/v1/files?{encoded}&recursive=true"),
                Route::Remove { path: path(), recursive: true },
            ),
            (Method::GET, format!("/v1/files/info?{encoded}"), Route::Info { path: path() }),
            (Method::GET, format!("/v1/files/content?{encoded}"), Route::Download { path: path() }),
            (
                Method::PUT,
                format!("/v1/files/content?{encoded}&mode=755"),
                Route::Upload { path: path(), mode: Some(0o755) },
            ),
            (Method::POST, format!("/v1/files/folder?{encoded}"), Route::MakeFolder { path: path(), mode: None }),
            (Method::GET, "/v1/logs?tail=7".to_owned(), Route::Logs { tail: 7 }),
            (Method::POST, "/v1/disk/grow".to_owned(), Route::GrowDisk),
            (Method::POST, "/v1/shutdown".to_owned(), Route::Shutdown),
        ];
        for (method, uri, route) in cases {
            assert_eq!(parse(method, &uri).unwrap(), route, "{uri}");
        }
    }

    #[test]
    fn what_is_not_of_the_surface_is_refused_by_kind() {
        let cases = [
            (Method::GET, "/", AgentErrorCode::NotFound),
            (Method::GET, "/v1/exec/", AgentErrorCode::NotFound),
            (Method::GET, "/v1/exec", AgentErrorCode::MethodNotAllowed),
            (Method::POST, "/v1/interpreter/contexts/", AgentErrorCode::NotFound),
            (Method::POST, "/v1/interpreter/contexts/a/b", AgentErrorCode::NotFound),
            (Method::POST, "/v1/interpreter/contexts/a", AgentErrorCode::MethodNotAllowed),
            (Method::DELETE, "/v1/interpreter/contexts/%zz", AgentErrorCode::BadRequest),
            (Method::DELETE, "/v1/health", AgentErrorCode::MethodNotAllowed),
            (Method::DELETE, "/v1/files", AgentErrorCode::BadRequest),
            (Method::GET, "/v1/files/content?path=", AgentErrorCode::BadRequest),
            (Method::GET, "/v1/files/info?path=%2", AgentErrorCode::BadRequest),
            (Method::GET, "/v1/files/info?path=%ff", AgentErrorCode::BadRequest),
            (Method::PUT, "/v1/files/content?path=a&mode=rw", AgentErrorCode::BadRequest),
            (Method::DELETE, "/v1/files?path=a&recursive=perhaps", AgentErrorCode::BadRequest),
            (Method::GET, "/v1/logs?tail=-1", AgentErrorCode::BadRequest),
            (Method::GET, "/v1/logs?tail=10001", AgentErrorCode::BadRequest),
        ];
        for (method, uri, code) in cases {
            assert_eq!(parse(method, uri).unwrap_err().code, code, "{uri}");
        }
    }
}
