//! Requests as bytes over a plain connection, so that malformed ones can be sent and nothing is mended on the way.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// Longest wait for an answer: past it the gateway hangs, which is the failure.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 8 << 20;

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// A request without key and body.
    pub fn new(method: &str, target: &str) -> Self {
        Self { method: method.to_owned(), target: target.to_owned(), headers: Vec::new(), body: Vec::new() }
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a key.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    /// With a body that says it is JSON, whatever it is.
    #[must_use]
    pub fn json(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.header("content-type", "application/json")
    }

    /// Sends it to `http://HOST:PORT` and reads the whole answer.
    pub fn send(&self, endpoint: &str) -> anyhow::Result<Answer> {
        let address = endpoint.strip_prefix("http://").with_context(|| format!("{endpoint} is no plain endpoint"))?;
        let mut stream = TcpStream::connect(address).with_context(|| format!("can't connect to {endpoint}"))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n", self.method, self.target);
        if !self.body.is_empty() || self.method == "POST" || self.method == "PUT" {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        stream.write_all(&self.body).with_context(|| format!("{self}: the body was not taken"))?;
        let mut bytes = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).with_context(|| format!("{self}: no whole answer"))?;
        Answer::parse(&bytes).with_context(|| format!("{self}: not an answer: {:?}", String::from_utf8_lossy(&bytes)))
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown: Vec<u8> = self.body.iter().copied().take(80).collect();
        write!(f, "{} {} {:?}", self.method, self.target, String::from_utf8_lossy(&shown))
    }
}

impl Answer {
    fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").context("no end of the head")?;
        let head = std::str::from_utf8(&bytes[..end])?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?.parse()?;
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        };
        let headers: Vec<(String, String)> = lines.filter_map(header).collect();
        let is_chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let body = &bytes[end + 4..];
        let body = if is_chunked { unchunked(body)? } else { body.to_vec() };
        Ok(Self { status, headers, body })
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_str(&text).with_context(|| format!("{} with a body that isn't JSON: {text:?}", self.status))
    }

    /// Checks that it is an error in the wire's form, with one of these statuses, and gives its sentence.
    pub fn refusal(&self, statuses: &[u16]) -> anyhow::Result<String> {
        let body = self.json()?;
        ensure!(statuses.contains(&self.status), "{} instead of {statuses:?}: {body}", self.status);
        ensure!(body["statusCode"] == self.status, "statusCode differs from the status {}: {body}", self.status);
        let message = body["message"].as_str().unwrap_or_default();
        ensure!(message.len() > 8 && message.contains(' '), "no sentence: {body}");
        ensure!(body["error"].as_str().is_some_and(|error| !error.is_empty()), "no error: {body}");
        ensure!(self.header("x-request-id").is_some_and(|id| !id.is_empty()), "no request id: {:?}", self.headers);
        Ok(message.to_owned())
    }
}

fn unchunked(mut rest: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n").context("no end of a chunk's size")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end])?.trim(), 16)?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Ok(body);
        }
        ensure!(rest.len() >= size + 2, "a chunk was cut");
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_plain_and_chunked() {
        let plain = Answer::parse(b"HTTP/1.1 404 Not Found\r\nX-Request-Id: r1\r\n\r\n{}").expect("an answer");
        assert_eq!((plain.status, plain.header("x-request-id"), plain.body.as_slice()), (404, Some("r1"), &b"{}"[..]));
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(Answer::parse(chunked).expect("an answer").body, b"abcde");
        assert!(Answer::parse(b"HTTP/1.1 200 OK\r\n").is_err());
    }

    #[test]
    fn a_refusal_needs_all_of_its_fields() {
        let answer = |body: &str| {
            let text = format!("HTTP/1.1 400 Bad Request\r\nx-request-id: r\r\n\r\n{body}");
            Answer::parse(text.as_bytes()).expect("an answer")
        };
        let whole = answer(r#"{"statusCode":400,"message":"cpu -1 is not possible","error":"Bad Request"}"#);
        assert_eq!(whole.refusal(&[400]).expect("a refusal"), "cpu -1 is not possible");
        assert!(whole.refusal(&[404]).is_err());
        assert!(
            answer(r#"{"statusCode":404,"message":"cpu -1 is not possible","error":"x"}"#).refusal(&[400]).is_err()
        );
        assert!(answer(r#"{"statusCode":400,"message":"","error":"x"}"#).refusal(&[400]).is_err());
        assert!(answer("oops").refusal(&[400]).is_err());
    }
}
