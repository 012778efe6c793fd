//! The scheduler as pure functions: command, state, apply, choice and invariants.
