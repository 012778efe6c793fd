//! `cp`: one file, streamed, into a sandbox or out of it.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use gateway_sdk::{ByteStream, Client};
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use crate::args::{CopyArgs, CopyEnd};
use crate::exit::{EXIT_OK, Failure};
use crate::output::Output;
use crate::progress::byte_bar;
use crate::stdin;

/// Bytes read from a local file at once: a few reads fill the connection's window.
const READ_BYTES: usize = 256 << 10;

/// What `cp --json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Copied {
    sandbox: String,
    path: String,
    bytes: u64,
}

pub(super) async fn copy(args: CopyArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let copied = match (args.from, args.to) {
        (CopyEnd::Sandbox { .. }, CopyEnd::Sandbox { .. }) => {
            return Err(Failure::Usage(
                "one end must be local: `atoll cp A:/x - | atoll cp - B:/x` copies between sandboxes".to_owned(),
            ));
        }
        (from, CopyEnd::Sandbox { sandbox, path }) => upload(from, sandbox, path, client, output).await?,
        (CopyEnd::Sandbox { sandbox, path }, to) => download(sandbox, path, to, client, output).await?,
        (CopyEnd::Local(_) | CopyEnd::Standard, CopyEnd::Local(_) | CopyEnd::Standard) => {
            return Err(Failure::Usage("one end must be in a sandbox, as in worker:/root/file".to_owned()));
        }
    };
    if let Some(copied) = copied {
        output.result(&copied, String::new)?;
    }
    Ok(EXIT_OK)
}

async fn upload(
    from: CopyEnd,
    sandbox: String,
    path: String,
    client: &Client,
    output: &Output,
) -> Result<Option<Copied>, Failure> {
    let (path, bytes) = match from {
        CopyEnd::Local(local) => {
            let failed = |source| Failure::Local { path: local.clone(), verb: "read", source };
            let file = tokio::fs::File::open(&local).await.map_err(failed)?;
            let about = file.metadata().await.map_err(failed)?;
            if about.is_dir() {
                return Err(Failure::Usage(format!(
                    "{0} is a folder: `tar c {0} | atoll cp - {sandbox}:/root/folder.tar`, then unpack it there",
                    local.display()
                )));
            }
            let path = named_in_folder(path, local.file_name().and_then(|name| name.to_str()));
            let bytes = ReaderStream::with_capacity(file, READ_BYTES);
            let sent = send(client, &sandbox, &path, bytes, Some(about.len()), output).await?;
            (path, sent)
        }
        _ => {
            let sent = send(client, &sandbox, &path, stdin::pieces(), None, output).await?;
            (path, sent)
        }
    };
    Ok(Some(Copied { sandbox, path, bytes }))
}

async fn send(
    client: &Client,
    sandbox: &str,
    path: &str,
    bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    total: Option<u64>,
    output: &Output,
) -> Result<u64, Failure> {
    let bar = byte_bar(output.is_interactive(), total);
    let counted = counted(bytes, bar.clone());
    let done = client.upload(sandbox, path, counted).await;
    let sent = bar.position();
    bar.finish_and_clear();
    done?;
    Ok(sent)
}

fn counted(
    stream: impl Stream<Item = io::Result<Bytes>>,
    bar: indicatif::ProgressBar,
) -> impl Stream<Item = io::Result<Bytes>> {
    stream.inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            bar.inc(chunk.len() as u64);
        }
    })
}

async fn download(
    sandbox: String,
    path: String,
    to: CopyEnd,
    client: &Client,
    output: &mut Output,
) -> Result<Option<Copied>, Failure> {
    let stream = client.download(&sandbox, &path).await?;
    let CopyEnd::Local(local) = to else {
        to_standard_output(stream, output).await?;
        return Ok(None);
    };
    let name = path.rsplit('/').next().filter(|name| !name.is_empty());
    let local = if local.is_dir() { local.join(name.unwrap_or("file")) } else { local };
    let bytes = to_file(stream, &local, output).await?;
    Ok(Some(Copied { sandbox, path, bytes }))
}

async fn to_standard_output(mut stream: ByteStream, output: &mut Output) -> Result<(), Failure> {
    while let Some(chunk) = stream.chunks.next().await {
        output.bytes(&chunk?)?;
    }
    Ok(())
}

/// Writes beside the file and renames, so that a broken download leaves what was there.
async fn to_file(stream: ByteStream, local: &Path, output: &Output) -> Result<u64, Failure> {
    let part = beside(local);
    let written = write_part(stream, &part, output).await;
    let failed = |source| Failure::Local { path: local.to_owned(), verb: "written", source };
    match written {
        Ok(bytes) => {
            tokio::fs::rename(&part, local).await.map_err(failed)?;
            Ok(bytes)
        }
        Err(failure) => {
            // The first failure is the one to tell.
            let _ = tokio::fs::remove_file(&part).await;
            Err(failure)
        }
    }
}

async fn write_part(mut stream: ByteStream, part: &Path, output: &Output) -> Result<u64, Failure> {
    let failed = |source| Failure::Local { path: part.to_owned(), verb: "written", source };
    let bar = byte_bar(output.is_interactive(), stream.size_bytes);
    let mut file = tokio::fs::File::create(part).await.map_err(failed)?;
    while let Some(chunk) = stream.chunks.next().await {
        let chunk = chunk?;
        file.write_all(&chunk).await.map_err(failed)?;
        bar.inc(chunk.len() as u64);
    }
    file.flush().await.map_err(failed)?;
    let bytes = bar.position();
    bar.finish_and_clear();
    Ok(bytes)
}

fn beside(local: &Path) -> PathBuf {
    let mut name = local.file_name().unwrap_or_default().to_owned();
    name.push(format!(".atoll-part-{}", std::process::id()));
    local.with_file_name(name)
}

/// A path that ends with a slash is a folder: the local name goes into it.
fn named_in_folder(path: String, local_name: Option<&str>) -> String {
    match local_name {
        Some(name) if path.ends_with('/') => format!("{path}{name}"),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_takes_the_local_name() {
        assert_eq!(named_in_folder("/root/".into(), Some("a.txt")), "/root/a.txt");
        assert_eq!(named_in_folder("/root/b".into(), Some("a.txt")), "/root/b");
    }

    #[test]
    fn the_part_lies_beside_the_file() {
        let part = beside(Path::new("/somewhere/a.txt"));
        assert_eq!(part.parent(), Some(Path::new("/somewhere")));
        assert_ne!(part, Path::new("/somewhere/a.txt"));
    }
}
