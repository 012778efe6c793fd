//! The client of Atoll's own API, for the command line and for programs.
