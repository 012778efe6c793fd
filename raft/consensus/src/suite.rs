//! openraft's own storage suite, on both stores.

use std::sync::Arc;

use openraft::StorageError;
use openraft::errors::ErrorSource;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::alias::ErrorSourceOf;
use raft_placement::region::Placement;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::GroupName;
use crate::keys::Keys;
use crate::log::LogStore;
use crate::snapshot::Snapshots;
use crate::state_machine::{Published, StateMachine};
use crate::store::{Store, StoreError, StoreKind};
use crate::types::Types;

struct Builder(StoreKind);

type Built = (TempDir, LogStore<Placement>, StateMachine<Placement>);

impl Builder {
    fn open(&self) -> Result<Built, StoreError> {
        let folder = TempDir::new().expect("a temporary folder");
        let store = Store::open(self.0, &folder.path().join("store"), &"tst-1".parse().expect("a node id"))?;
        let keys = Keys::of(&GroupName::catalog());
        let published = Published { state: watch::Sender::new(Arc::default()), applied_end: watch::Sender::new(0) };
        let machine = StateMachine::open(Snapshots::new(store.clone(), keys.clone()), published)?;
        Ok((folder, LogStore::new(store, keys), machine))
    }
}

impl StoreBuilder<Types<Placement>, LogStore<Placement>, StateMachine<Placement>, TempDir> for Builder {
    async fn build(&self) -> Result<Built, StorageError<Types<Placement>>> {
        self.open().map_err(|error| StorageError::read(ErrorSourceOf::<Types<Placement>>::from_error(&error)))
    }
}

#[tokio::test]
async fn sled_passes_the_storage_suite_of_openraft() {
    Suite::test_all(Builder(StoreKind::Sled)).await.expect("the suite");
}

#[tokio::test]
async fn redb_passes_the_storage_suite_of_openraft() {
    Suite::test_all(Builder(StoreKind::Redb)).await.expect("the suite");
}
