//! Uploads and downloads: streamed through the gateway, never held whole.

use std::collections::HashMap;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use fabric_api::daytona as wire;
use fabric_api::{ApiError, ErrorCode};
use futures::{Stream, StreamExt};
use guest_proto::surface::FileInfo;
use http::{HeaderValue, header};
use http_body_util::BodyStream;
use multer::{Constraints, Field, Multipart, SizeLimit};
use rand::RngCore;

use crate::body::{BodyError, Named, file};
use crate::edge::Edge;
use crate::front::drain::drain;
use crate::guest::{Guest, Upload};
use crate::intake::clip;
use crate::refusal::{Answer, Refusal};
use crate::request::{Caller, JsonBody, Params, Segments};

/// Most files of one bulk request.
const FILES_MAX: usize = 1000;
/// Longest path in a form, in bytes; Linux takes 4,096.
const PATH_BYTES_MAX: usize = 4096;
/// How long an upload may take: what the stock client waits.
const TRANSFER: std::time::Duration = std::time::Duration::from_secs(30 * 60);

/// `POST /files/upload?path=` and `/files/upload-v2?path=`: a form with one file, or the bytes themselves.
pub(super) async fn upload(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    params: Params,
    request: Request,
) -> Response {
    let limits = edge.config().limits.clone();
    let path = match params.required("path") {
        Ok(path) => path.to_owned(),
        Err(refusal) => {
            drain(request.into_body(), &limits).await;
            return refusal.into_response();
        }
    };
    let guest = transfer(&edge, &caller, &key);
    let written = match boundary(&request) {
        Some(boundary) => {
            one_of_form(&guest, &path, form(request, &boundary, limits.upload_bytes), limits.upload_bytes).await
        }
        None => write(&guest, &path, Upload::of_body(request.into_body(), limits.upload_bytes)).await,
    };
    match written {
        Ok(info) => Json(uploaded(info)).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// `POST /files/bulk-upload`: a form of `files[N].path` and `files[N].file`.
pub(super) async fn bulk_upload(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    request: Request,
) -> Answer<Json<wire::UploadedFiles>> {
    let limits = edge.config().limits.clone();
    let Some(boundary) = boundary(&request) else {
        drain(request.into_body(), &limits).await;
        return Err(Refusal::bad("the body must be multipart/form-data with files[N].path and files[N].file"));
    };
    let guest = transfer(&edge, &caller, &key);
    let mut form = form(request, &boundary, limits.upload_bytes);
    let answer = each_of_form(&guest, &mut form, limits.upload_bytes).await;
    if answer.is_err() {
        // What the client still sends is read on, so that it hears why.
        rest_of_form(form, &limits).await;
    }
    answer.map(Json)
}

async fn each_of_form(guest: &Guest<'_>, form: &mut Multipart<'static>, limit: u64) -> Answer<wire::UploadedFiles> {
    let mut paths: HashMap<String, String> = HashMap::new();
    let mut answer = wire::UploadedFiles::default();
    while let Some(field) = form.next_field().await.map_err(broken)? {
        let name = field.name().unwrap_or_default().to_owned();
        if let Some(index) = name.strip_suffix(".path") {
            let path = text_of(field).await?;
            paths.insert(index.to_owned(), path);
        } else if let Some(index) = name.strip_suffix(".file") {
            // The path comes first; a file before its path says it itself, as the clients do.
            let path = paths.get(index).cloned().or_else(|| field.file_name().map(str::to_owned));
            let path = path.filter(|path| !path.is_empty() && !path.contains('\0'));
            let path = path.ok_or_else(|| Refusal::bad(format!("'{}' has no path before it", clip(&name))))?;
            answer.files.push(uploaded(write(guest, &path, Upload::of_field(field, limit)).await?));
        } else {
            return Err(Refusal::bad(format!(
                "unknown field '{}': files[N].path and files[N].file are taken",
                clip(&name)
            )));
        }
        if answer.files.len() > FILES_MAX || paths.len() > FILES_MAX {
            return Err(Refusal::bad(format!("at most {FILES_MAX} files are taken at once")));
        }
    }
    if answer.files.is_empty() {
        return Err(Refusal::bad("the form holds no file: send files[N].path and files[N].file"));
    }
    Ok(answer)
}

async fn one_of_form(guest: &Guest<'_>, path: &str, mut form: Multipart<'static>, limit: u64) -> Answer<FileInfo> {
    while let Some(field) = form.next_field().await.map_err(broken)? {
        if field.name() == Some("file") {
            return write(guest, path, Upload::of_field(field, limit)).await;
        }
    }
    Err(Refusal::bad("the form holds no field 'file'"))
}

/// `GET /files/download?path=`
pub(super) async fn download(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    params: Params,
) -> Answer<Response> {
    let mut response = file(transfer(&edge, &caller, &key).content(params.required("path")?).await?);
    response.headers_mut().insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    Ok(response)
}

/// `POST /files/bulk-download`: answers a form, one part a file; a file that can't be read is a part named `error`.
pub(super) async fn bulk_download(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<wire::FilesDownload>,
) -> Answer<Response> {
    if body.paths.is_empty() || body.paths.len() > FILES_MAX {
        return Err(Refusal::bad(format!("field 'paths' must hold 1 to {FILES_MAX} paths")));
    }
    // Tells an unknown sandbox by the status, before the form begins.
    edge.mesh().route(&key, &caller.scope(TRANSFER)).await?;
    let mut chance = [0; 16];
    rand::rng().fill_bytes(&mut chance);
    let boundary = hex::encode(chance);
    let kind = format!("multipart/form-data; boundary={boundary}");
    let parts = parts(edge, caller, key, body.paths, boundary);
    let mut response = Response::new(Body::from_stream(parts));
    if let Ok(kind) = HeaderValue::from_str(&kind) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    Ok(response)
}

/// The parts of a download, made one after another as the client reads.
fn parts(
    edge: Edge,
    caller: Caller,
    key: String,
    paths: Vec<String>,
    boundary: String,
) -> impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static {
    let end = format!("--{boundary}--\r\n");
    let files = futures::stream::iter(paths).then(move |path| {
        let (edge, caller, key, boundary) = (edge.clone(), caller.clone(), key.clone(), boundary.clone());
        async move { part(&transfer(&edge, &caller, &key), &path, &boundary).await }
    });
    files.flatten().chain(futures::stream::once(async move { Ok(Bytes::from(end)) }))
}

type Chunks = futures::stream::BoxStream<'static, Result<Bytes, BodyError>>;

async fn part(guest: &Guest<'_>, path: &str, boundary: &str) -> Chunks {
    let content = if path.is_empty() || path.contains('\0') {
        Err(ApiError::new(ErrorCode::BadRequest, "the path is empty or holds the NUL character"))
    } else {
        guest.content(path).await
    };
    let disposition = |name: &str| format!("Content-Disposition: form-data; name=\"{name}\"; {}", filename(path));
    let (head, body): (String, Chunks) = match content {
        Ok(content) => {
            let length = content.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
            let length = length.map(|length| format!("Content-Length: {length}\r\n")).unwrap_or_default();
            let head = format!("{}\r\nContent-Type: application/octet-stream\r\n{length}\r\n", disposition("file"));
            let chunks = BodyStream::new(Named(content.into_body()))
                .filter_map(|frame| async { frame.map(|frame| frame.into_data().ok()).transpose() });
            (head, chunks.boxed())
        }
        Err(error) => {
            let status = error.code.status();
            let code = match error.code {
                ErrorCode::NotFound => "FILE_NOT_FOUND",
                ErrorCode::Forbidden => "FILE_ACCESS_DENIED",
                ErrorCode::BadRequest => "INVALID_FILE_PATH",
                _ => "FILE_READ_FAILED",
            };
            let told = serde_json::json!({ "message": error.message, "statusCode": status, "code": code });
            let head = format!("{}\r\nContent-Type: application/json\r\n\r\n", disposition("error"));
            (head, futures::stream::once(async move { Ok(Bytes::from(told.to_string())) }).boxed())
        }
    };
    let head = futures::stream::once(futures::future::ready(Ok(Bytes::from(format!("--{boundary}\r\n{head}")))));
    head.chain(body).chain(futures::stream::once(async { Ok(Bytes::from_static(b"\r\n")) })).boxed()
}

/// The parameter with the path. The extended form (RFC 5987) says what the path is. Clients before it read only the
/// plain one, through a parser that takes each character for a byte: so each byte is written there as a character.
fn filename(path: &str) -> String {
    let mut plain = String::new();
    for byte in path.bytes() {
        match byte {
            b'"' | b'\\' => plain.extend(['\\', char::from(byte)]),
            0..=31 | 127 => plain.push_str(&format!("%{byte:02X}")),
            byte => plain.push(char::from(byte)),
        }
    }
    if path.bytes().all(|byte| matches!(byte, 32..=126)) {
        return format!("filename=\"{plain}\"");
    }
    let mut extended = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            extended.push(char::from(byte));
        } else {
            extended.push_str(&format!("%{byte:02X}"));
        }
    }
    format!("filename=\"{plain}\"; filename*=UTF-8''{extended}")
}

fn transfer<'request>(edge: &'request Edge, caller: &Caller, key: &'request str) -> Guest<'request> {
    Guest { mesh: edge.mesh(), key, scope: caller.scope(TRANSFER) }
}

async fn write(guest: &Guest<'_>, path: &str, bytes: Upload) -> Answer<FileInfo> {
    guest.write(path, None, bytes).await.map_err(Refusal)
}

/// The boundary of a form, if the request is one.
fn boundary(request: &Request) -> Option<String> {
    let kind = request.headers().get(header::CONTENT_TYPE)?.to_str().ok()?;
    multer::parse_boundary(kind).ok()
}

fn form(request: Request, boundary: &str, limit: u64) -> Multipart<'static> {
    let constraints = Constraints::new().size_limit(SizeLimit::new().whole_stream(limit));
    Multipart::with_constraints(request.into_body().into_data_stream(), boundary, constraints)
}

/// A short field as text.
async fn text_of(mut field: Field<'static>) -> Answer<String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > PATH_BYTES_MAX {
            return Err(Refusal::bad(format!("a path in the form is longer than {PATH_BYTES_MAX} bytes")));
        }
    }
    String::from_utf8(bytes).map_err(|_| Refusal::bad("a path in the form is not UTF-8"))
}

async fn rest_of_form(mut form: Multipart<'static>, limits: &crate::EdgeLimits) {
    let reading = async {
        let mut read = 0;
        while let Ok(Some(mut field)) = form.next_field().await {
            while let Ok(Some(chunk)) = field.chunk().await {
                read += chunk.len() as u64;
                if read > limits.drained_bytes {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(limits.drained_for, reading).await.unwrap_or_default();
}

fn broken(error: multer::Error) -> Refusal {
    match error {
        multer::Error::StreamSizeExceeded { limit } | multer::Error::FieldSizeExceeded { limit, .. } => {
            Refusal(ApiError::new(ErrorCode::TooLarge, format!("the upload is over {limit} bytes")))
        }
        error => Refusal::bad(format!("the form can't be read: {error}")),
    }
}

fn uploaded(info: FileInfo) -> wire::UploadedFile {
    wire::UploadedFile { name: info.name, path: info.path, kind: "file" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_would_break_a_header_is_encoded() {
        assert_eq!(filename("/root/a b.txt"), "filename=\"/root/a b.txt\"");
        assert_eq!(filename("a\"b"), "filename=\"a\\\"b\"");
        assert_eq!(filename("/ä\r\n"), "filename=\"/Ã¤%0D%0A\"; filename*=UTF-8''/%C3%A4%0D%0A");
    }
}
