//! The golden test of who may call whom.
