//! A guest under QEMU's own emulation, for the tests of this folder: started with the recommended command line, talked to
//! through its virtio-serial port.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use guest_image::{ImageDir, ImageInputs, ensure, find_or_build_agent};
use guest_proto::boot::{KERNEL_ARGS, KERNEL_ARGS_CONSOLE, KERNEL_ARGS_TCG, PORT_NAME};
use guest_proto::session::host;
use guest_proto::surface::{ExecReply, ExecRequest, GENERATION_HEADER, Identity};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// How long a guest may take to boot on a machine that builds and tests beside it.
pub(crate) const BOOT: Duration = Duration::from_secs(120);

/// The image of this source tree, built if it must be.
pub(crate) fn image() -> ImageDir {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.atoll/image");
    let inputs = ImageInputs::new(find_or_build_agent().unwrap()).unwrap();
    ensure(&root, &inputs, &mut |progress| eprintln!("{}: {}", progress.step.name(), progress.detail)).unwrap()
}

/// A running guest. Dropped, it is killed.
pub(crate) struct Guest {
    qemu: Child,
    folder: tempfile::TempDir,
}

impl Guest {
    /// Starts a guest with a fresh disk.
    pub(crate) fn start(image: &ImageDir) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        File::create(&disk).unwrap().set_len(1 << 30).unwrap();
        // The file system begins with half of its device.
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk).arg("512M").status().unwrap();
        assert!(made.success());
        Self::run(image, folder, &[])
    }

    /// Starts another machine from what this one has saved, with a copy of its disk.
    pub(crate) fn another(&self, image: &ImageDir, saved: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(self.folder.path().join("disk"), folder.path().join("disk")).unwrap();
        Self::run(image, folder, &["-incoming".to_owned(), format!("exec:cat {}", saved.display())])
    }

    /// Saves this machine's memory and devices; it is stopped then.
    pub(crate) async fn save(&self, to: &Path) {
        let mut monitor = UnixStream::connect(self.folder.path().join("monitor")).await.unwrap();
        monitor.write_all(format!("migrate \"exec:cat > {}\"\ninfo migrate\n", to.display()).as_bytes()).await.unwrap();
        let mut told = Vec::new();
        let completed = async {
            while !String::from_utf8_lossy(&told).contains("Migration status: completed") {
                let mut bytes = [0; 4096];
                let read = monitor.read(&mut bytes).await.unwrap();
                assert!(read > 0);
                told.extend_from_slice(&bytes[..read]);
            }
        };
        assert!(tokio::time::timeout(BOOT, completed).await.is_ok(), "{}", String::from_utf8_lossy(&told));
    }

    fn run(image: &ImageDir, folder: tempfile::TempDir, more: &[String]) -> Self {
        let path = |name: &str| folder.path().join(name);
        let drive = |name: &str, file: &Path, options: &str| {
            format!("file={},if=none,id={name},format=raw,file.locking=off,{options}", file.display())
        };
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1024"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(image.kernel())
            .arg("-initrd")
            .arg(image.initramfs())
            .arg("-append")
            .arg(format!("{KERNEL_ARGS} {KERNEL_ARGS_TCG} {KERNEL_ARGS_CONSOLE}"))
            .arg("-drive")
            .arg(drive("root", &image.root(), "readonly=on"))
            .args(["-device", "virtio-blk-pci,drive=root"])
            .arg("-drive")
            .arg(drive("disk", &path("disk"), "discard=unmap"))
            .args(["-device", "virtio-blk-pci,drive=disk"])
            .arg("-serial")
            .arg(format!("file:{}", path("console").display()))
            .arg("-chardev")
            .arg(format!("socket,path={},server=on,wait=off,id=channel", path("channel").display()))
            .args(["-netdev", "hubport,hubid=0,id=net", "-device", "virtio-net-pci,netdev=net,mac=02:00:00:00:00:01"])
            .arg("-monitor")
            .arg(format!("unix:{},server=on,wait=off", path("monitor").display()))
            .args(["-device", "virtio-serial-pci"])
            .args(["-device", &format!("virtserialport,chardev=channel,name={PORT_NAME}")])
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { qemu, folder }
    }

    /// Everything the guest has written to its console.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.path().join("console")).unwrap_or_default()).into_owned()
    }

    /// The raw channel.
    pub(crate) async fn channel(&self) -> UnixStream {
        let path: PathBuf = self.folder.path().join("channel");
        let start = Instant::now();
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => return stream,
                Err(error) if start.elapsed() > BOOT => panic!("no channel: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// A session over a channel.
    pub(crate) async fn session(&self, channel: UnixStream) -> Host {
        let session = match host::open(channel, rand::random(), BOOT).await {
            Ok(session) => session,
            Err(error) => panic!("{error}; its console:\n{}", self.console()),
        };
        let (client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(session)).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        Host { client, connection, generation: 1 }
    }

    /// Whether the monitor has ended within the limit.
    pub(crate) async fn ends_within(&mut self, limit: Duration) -> bool {
        let start = Instant::now();
        while start.elapsed() < limit {
            if self.qemu.try_wait().unwrap().is_some() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The host's side of one session.
pub(crate) struct Host {
    client: SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
    pub(crate) generation: u64,
}

impl Host {
    /// Ends the host as `kill -9` would: its socket closes, and the guest hears nothing of it.
    pub(crate) fn cut(self) {
        self.connection.abort();
    }

    /// Begins a request and reads nothing of its answer's body.
    pub(crate) async fn begin(&self, method: Method, uri: &str, body: impl Into<Bytes>) -> Response<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://guest{uri}"))
            .header(GENERATION_HEADER, self.generation)
            .body(Full::new(body.into()))
            .unwrap();
        self.client.clone().send_request(request).await.unwrap()
    }

    pub(crate) async fn send(&self, method: Method, uri: &str, body: impl Into<Bytes>) -> (StatusCode, Bytes) {
        let response = self.begin(method, uri, body).await;
        (response.status(), response.into_body().collect().await.unwrap().to_bytes())
    }

    pub(crate) async fn post(&self, uri: &str, body: &impl Serialize) -> (StatusCode, Bytes) {
        self.send(Method::POST, uri, serde_json::to_vec(body).unwrap()).await
    }

    pub(crate) async fn exec(&self, request: &ExecRequest) -> ExecReply {
        json(self.post("/v1/exec", request).await)
    }

    /// Standard output of a command that succeeds.
    pub(crate) async fn sh(&self, command: &str) -> String {
        let reply = self.exec(&ExecRequest { command: command.to_owned(), ..ExecRequest::default() }).await;
        assert_eq!(reply.exit_code, 0, "{command}: {}", plain(&reply.stderr));
        plain(&reply.stdout)
    }
}

pub(crate) fn json<T: DeserializeOwned>((status, body): (StatusCode, Bytes)) -> T {
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

pub(crate) fn plain(base64: &str) -> String {
    String::from_utf8(STANDARD.decode(base64).unwrap()).unwrap()
}

pub(crate) fn identity(generation: u64, machine_id: &str) -> Identity {
    let entropy: [u8; 32] = rand::random();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Identity {
        sandbox_id: "box".to_owned(),
        generation,
        hostname: format!("box-{generation}"),
        machine_id: machine_id.to_owned(),
        mac: None,
        network: None,
        limits: guest_proto::surface::GuestLimits::default(),
        entropy: STANDARD.encode([entropy, entropy].concat()),
        wall_clock_ns: u64::try_from(now.as_nanos()).unwrap(),
        env: [("FROM".to_owned(), "identity".to_owned())].into(),
        rehearsal: false,
    }
}
