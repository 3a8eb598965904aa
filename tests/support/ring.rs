//! Where ranks of a test find each other.

use std::net::TcpListener;
use std::path::Path;

/// Writes a host file of `count` free addresses of this machine.
pub fn write_hosts(path: &Path, count: usize) {
    // Held together, so that no two are the same.
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let list: Vec<[String; 1]> = held.iter().map(|of| [of.local_addr().unwrap().to_string()]).collect();
    std::fs::write(path, serde_json::to_string(&list).unwrap()).unwrap();
}
