//! Requests to guests that are under way, from their head to their answer's last byte: what runs silently for long is in
//! use all the same, and isn't stopped or paused for being idle.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fabric_types::SandboxId;

/// How many requests each sandbox has; those without any are left out. The lock is held only for a look.
#[derive(Debug, Clone, Default)]
pub(super) struct UnderWay(Arc<Mutex<BTreeMap<SandboxId, u32>>>);

/// One request, until it is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    counts: UnderWay,
    id: SandboxId,
}

impl UnderWay {
    /// Counts a request until the value is dropped.
    pub(super) fn begin(&self, id: &SandboxId) -> Counted {
        *self.lock().entry(id.clone()).or_default() += 1;
        Counted { counts: self.clone(), id: id.clone() }
    }

    /// Whether a sandbox has any.
    pub(super) fn any(&self, id: &SandboxId) -> bool {
        self.lock().contains_key(id)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SandboxId, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_is_in_use_until_its_last_request_ends() {
        let counts = UnderWay::default();
        let id = SandboxId::new(&"fra".parse().expect("a region"), [1; 16]);
        let (first, second) = (counts.begin(&id), counts.begin(&id));
        drop(first);
        assert!(counts.any(&id));
        drop(second);
        assert!(!counts.any(&id) && counts.lock().is_empty());
    }
}
