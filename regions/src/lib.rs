//! Region descriptors and the choice of the nearest.
