//! The guests' network against a host and a far side in network namespaces of the tests' own.

// A skip is said aloud, and so is what was measured.
#![allow(clippy::print_stdout)]

mod far;
mod guest;
mod lab;
mod life;
mod limits;
mod names;
mod passt;
mod sys;
mod walls;
