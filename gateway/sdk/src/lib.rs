//! The client of Atoll's own API (`/v1`), for the command line and for programs.
//!
//! ```text
//! settings   endpoints and key: given, from variables, or from the file that `atoll dev` writes
//! transport  one request: the endpoints to try, deadlines, bounded answers, errors typed
//! client     a method for each operation of /v1
//! exec       a streamed command: lines of JSON in, events out
//! files      uploads and downloads, streamed
//! error      what can go wrong, by whose hand
//! ```
//!
//! It knows no consensus, no fabric and no hypervisor: only the wire types of `fabric_api::v1`, given on as [`v1`].

mod client;
mod error;
mod exec;
mod files;
mod settings;
mod transport;

pub use client::{Client, ListFilter};
pub use error::{ApiFailure, ClientError};
pub use exec::{Collected, ExecEvent, ExecStream, Exit};
pub use fabric_api::{ErrorCode, Fault, Retry, v1};
pub use fabric_types::{Isolation, Seal};
pub use files::ByteStream;
pub use settings::{ApiKey, ENV_API_KEY, ENV_ENDPOINTS, Endpoint, Endpoints, Overrides, Settings, SettingsError};
