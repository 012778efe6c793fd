//! Measurements of a running mesh, printed with their conditions.
