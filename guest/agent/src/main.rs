//! PID 1 of every guest: mounts, reaps, and serves the host over one channel.
//!
//! ```text
//! boot       mounts, kernel modules, the root file system
//! sys        what only unsafe code can ask of the kernel
//! console    log lines on the console, and kept
//! ```

mod boot;
mod console;
mod sys;

fn main() {
    if std::process::id() != 1 {
        console::say("atoll-agent is the first process of a guest; there is nothing to do for it here");
        std::process::exit(2);
    }
    match boot::run() {
        Ok(_) => console::say("up"),
        // A first process that returns is a kernel panic, which ends the machine: nothing can be served without a root.
        Err(error) => {
            console::say(&format!("can't boot: {error}"));
            std::process::exit(1);
        }
    }
    loop {
        std::thread::park();
    }
}
