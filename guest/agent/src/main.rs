//! The first process of every guest: `guest_agent` and nothing else.

fn main() {
    guest_agent::run()
}
