//! What consensus asks of a state machine. It knows nothing of logs, votes or terms.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Schema;

/// A deterministic state machine: equal commands in equal order give equal states on every replica.
pub trait Machine: Send + Sync + 'static {
    /// What a leader decided. Its `Display` is one line for logs, without secrets.
    type Command: Schema + fmt::Display + fmt::Debug + Clone + PartialEq + Send + Sync;
    /// Why a command was refused.
    type Refusal: std::error::Error + Clone + PartialEq + Serialize + DeserializeOwned + Send + Sync;
    /// What the commands have built. A copy must be cheap: one is published after every batch of commands.
    type State: Schema + Default + fmt::Debug + Clone + PartialEq + Send + Sync;

    /// The kind of group, for logs and folders.
    const NAME: &'static str;

    /// Applies a command, or refuses it and changes nothing.
    fn apply(state: &mut Self::State, command: &Self::Command) -> Result<Outcome, Self::Refusal>;
}

/// What an accepted command did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The state's revision after it.
    pub revision: u64,
    /// False if the state was already as the command wants it: a repetition.
    pub changed: bool,
}
