//! Tries to get out: a program that this crate's tests run inside a seal in place of a monitor.
//!
//! ```text
//! probe out KEY=VALUE...     tries everything once, a line each: its name, then the error or `ALLOWED`
//! probe threads              starts threads until none can be started; says how many there were
//! probe memory MIB FILE      writes that much memory once the file says `begin`
//! probe hold                 says that it is there and waits
//! ```

#![expect(clippy::print_stdout, reason = "what it found is all that it is for")]

mod attempts;
mod sys;

use std::collections::HashMap;
use std::fs;
use std::thread;
use std::time::Duration;

/// Until it is killed.
fn wait() {
    thread::sleep(Duration::from_secs(3600));
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["out", pairs @ ..] => {
            let given: HashMap<&str, &str> = pairs.iter().filter_map(|pair| pair.split_once('=')).collect();
            for (name, outcome) in attempts::all(&given) {
                match outcome {
                    Ok(what) => println!("{name} ALLOWED {what}"),
                    Err(error) => println!("{name} {error}"),
                }
            }
            println!("done");
            wait();
        }
        ["threads"] => {
            let (mut count, mut why) = (0, String::new());
            // A limit that isn't there must not end the host.
            while count < 4096 {
                match thread::Builder::new().stack_size(16 << 10).spawn(wait) {
                    Ok(_) => count += 1,
                    Err(error) => {
                        why = error.to_string();
                        break;
                    }
                }
            }
            println!("threads {count} {why}");
            wait();
        }
        ["memory", mib, file] => {
            let mib: usize = mib.parse().unwrap_or(0);
            let mut held: Vec<Vec<u8>> = Vec::new();
            while !fs::read(file).is_ok_and(|text| text == b"begin") {
                thread::sleep(Duration::from_millis(5));
            }
            println!("filling");
            for _ in 0..mib {
                held.push(vec![1; 1 << 20]);
            }
            println!("memory {} MiB", held.len());
        }
        ["hold"] => {
            println!("holding");
            wait();
        }
        _ => println!("usage: probe out|threads|memory|hold"),
    }
}
