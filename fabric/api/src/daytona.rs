//! The Daytona wire, as its published clients speak it (see docs/wire in the repository for the sources).
