//! Files of the toolbox. What the agent has no request for is done by the guest's own programs, never by a shell.

use axum::Json;
use axum::extract::State;
use fabric_api::daytona as wire;
use guest_proto::surface::{ExecReply, ExecRequest, FileInfo};
use http::StatusCode;

use super::process::guest;
use crate::edge::Edge;
use crate::guest::{Guest, lossy};
use crate::instant::rfc3339_seconds;
use crate::intake;
use crate::refusal::{Answer, Refusal};
use crate::request::{Caller, JsonBody, Params, Segments};

/// Seconds that a program over many files may take.
const SCAN_SECONDS: u32 = 60;
/// Most files of one replace.
const REPLACE_FILES_MAX: usize = 1000;
/// Replaces a text in files, whole or not at all each, and prints what became of them as JSON.
const REPLACE_PROGRAM: &str = r#"
import json, os, sys
pattern, new = sys.argv[1].encode(), sys.argv[2].encode()
results = []
for path in sys.argv[3:]:
    try:
        with open(path, "rb") as file:
            text = file.read()
        if pattern in text:
            with open(path + ".replace~", "wb") as file:
                file.write(text.replace(pattern, new))
            os.chmod(path + ".replace~", os.stat(path).st_mode & 0o7777)
            os.replace(path + ".replace~", path)
        results.append({"file": path, "success": True})
    except OSError as error:
        results.append({"file": path, "success": False, "error": str(error)})
print(json.dumps(results))
"#;

/// `GET /files?path=`: the entries of one folder; home where no path is given.
pub(super) async fn list(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    params: Params,
) -> Answer<Json<Vec<wire::FileInfo>>> {
    if params.number("depth")?.is_some_and(|depth| depth != 1) {
        return Err(Refusal::not_built("only one folder is listed at a time; leave depth out"));
    }
    let list = guest(&edge, &caller, &key).list(params.one("path")?.unwrap_or(".")).await?;
    Ok(Json(list.entries.into_iter().map(shown).collect()))
}

/// `GET /files/info?path=`
pub(super) async fn info(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    params: Params,
) -> Answer<Json<wire::FileInfo>> {
    Ok(Json(shown(guest(&edge, &caller, &key).info(params.required("path")?).await?)))
}

/// `POST /files/folder?path=&mode=`
pub(super) async fn folder(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    params: Params,
) -> Answer<StatusCode> {
    let mode = intake::mode(params.one("mode")?)?;
    guest(&edge, &caller, &key).folder(params.required("path")?, mode).await?;
    Ok(StatusCode::CREATED)
}

/// `DELETE /files?path=&recursive=`
pub(super) async fn remove(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    params: Params,
) -> Answer<StatusCode> {
    let recursive = params.flag("recursive")?.unwrap_or(false);
    guest(&edge, &caller, &key).remove(params.required("path")?, recursive).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /files/move?source=&destination=`
pub(super) async fn rename(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    params: Params,
) -> Answer<StatusCode> {
    let (source, destination) = (params.required("source")?, params.required("destination")?);
    let guest = guest(&edge, &caller, &key);
    guest.info(source).await?;
    run(&guest, &["mv", "-T", "--", source, destination], &[0]).await?;
    Ok(StatusCode::OK)
}

/// `POST /files/permissions?path=&mode=&owner=&group=`
pub(super) async fn permissions(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    params: Params,
) -> Answer<StatusCode> {
    let (path, mode) = (params.required("path")?, intake::mode(params.one("mode")?)?);
    let owner = format!("{}:{}", params.one("owner")?.unwrap_or(""), params.one("group")?.unwrap_or(""));
    let guest = guest(&edge, &caller, &key);
    guest.info(path).await?;
    if let Some(mode) = mode {
        run(&guest, &["chmod", "--", mode, path], &[0]).await?;
    }
    if owner != ":" {
        run(&guest, &["chown", "--", &owner, path], &[0]).await?;
    }
    Ok(StatusCode::OK)
}

/// `GET /files/search?path=&pattern=`: files by name.
pub(super) async fn search(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    params: Params,
) -> Answer<Json<wire::SearchFiles>> {
    let (path, pattern) = (params.required("path")?, params.required("pattern")?);
    let guest = guest(&edge, &caller, &key);
    let found = guest.info(path).await?;
    let output = run(&guest, &["find", &found.path, "-name", pattern, "-print0"], &[0, 1]).await?;
    Ok(Json(wire::SearchFiles { files: output.split_terminator('\0').map(str::to_owned).collect() }))
}

/// `GET /files/find?path=&pattern=`: lines by their text.
pub(super) async fn find(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    params: Params,
) -> Answer<Json<Vec<wire::Match>>> {
    let (path, pattern) = (params.required("path")?, params.required("pattern")?);
    let guest = guest(&edge, &caller, &key);
    let found = guest.info(path).await?;
    let command = ["grep", "-r", "-n", "-I", "-H", "-F", "-Z", "-s", "-e", pattern, "--", &found.path];
    // 1 is no match, 2 with -s is a file that can't be read.
    let output = run(&guest, &command, &[0, 1, 2]).await?;
    Ok(Json(output.lines().filter_map(matched).collect()))
}

/// `POST /files/replace`
pub(super) async fn replace(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<wire::Replace>,
) -> Answer<Json<Vec<wire::ReplaceResult>>> {
    if body.pattern.is_empty() {
        return Err(Refusal::bad("field 'pattern' is empty"));
    }
    if body.files.len() > REPLACE_FILES_MAX {
        return Err(Refusal::bad(format!("at most {REPLACE_FILES_MAX} files are taken at once")));
    }
    let mut command = vec!["python3", "-c", REPLACE_PROGRAM, &body.pattern, &body.new_value];
    command.extend(body.files.iter().map(String::as_str));
    let output = run(&guest(&edge, &caller, &key), &command, &[0]).await?;
    serde_json::from_str(&output).map(Json).map_err(|_| Refusal::unavailable("the guest's python3 answered no JSON"))
}

/// A line of grep's: the file, NUL, the number, a colon, the line.
fn matched(line: &str) -> Option<wire::Match> {
    let (file, rest) = line.split_once('\0')?;
    let (number, content) = rest.split_once(':')?;
    Some(wire::Match { file: file.to_owned(), line: number.parse().ok()?, content: content.to_owned() })
}

/// Runs a program of the guest and answers its standard output, if its exit code is one of `expected`.
async fn run(guest: &Guest<'_>, argv: &[&str], expected: &[i32]) -> Answer<String> {
    let argv: Vec<String> = argv.iter().map(|&argument| argument.to_owned()).collect();
    let program = argv.first().cloned().unwrap_or_default();
    let request = ExecRequest { argv, timeout_seconds: Some(SCAN_SECONDS), ..ExecRequest::default() };
    let ExecReply { exit_code, stdout, stderr, .. } = guest.exec(&request).await?;
    if expected.contains(&exit_code) {
        return Ok(lossy(&stdout)?);
    }
    let told: String = lossy(&stderr)?.trim().chars().take(500).collect();
    Err(Refusal::bad(format!("{program} ended with {exit_code}: {told}")))
}

fn shown(info: FileInfo) -> wire::FileInfo {
    let modified = rfc3339_seconds(info.modified);
    wire::FileInfo {
        name: info.name,
        path: info.path,
        is_dir: info.is_dir,
        size: info.size,
        mod_time: modified.clone(),
        modified_at: modified,
        mode: info.mode,
        permissions: info.permissions,
        owner: info.owner,
        group: info.group,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matched_line_may_hold_colons() {
        let found = matched("/a:b/c.txt\u{0}12:x: y").expect("a match");
        assert_eq!((found.file.as_str(), found.line, found.content.as_str()), ("/a:b/c.txt", 12, "x: y"));
        assert_eq!(matched("Binary file matches"), None);
    }
}
