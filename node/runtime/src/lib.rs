//! One driver task per sandbox, the warm pool, adoption and reconciliation on one node.
