//! Starts a real mesh in a temporary folder for the tests, and ends it.
