//! HTTP probes as the kubelet makes them: a status from 200 to 399 counts as success.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use super::bundle::Placed;
use super::pod::Probe;

/// Whether the pod passes it now.
pub(super) fn passes(pod: &Placed, probe: &Probe) -> Result<bool> {
    let port = pod.spec.container().port(&probe.http_get.port)?;
    let address: SocketAddr = format!("{}:{port}", pod.address)
        .parse()
        .context("the pod's address")?;
    let wait = Duration::from_secs(probe.timeout_seconds);
    // Whatever keeps a page from being answered is a probe that fails.
    Ok(status(address, &probe.http_get.path, wait).is_ok_and(|status| is_well(&status)))
}

/// How long a pod may fail it before the kubelet acts.
pub(super) fn patience(probe: &Probe) -> Duration {
    Duration::from_secs(probe.period_seconds * probe.failure_threshold)
}

fn is_well(status: &str) -> bool {
    status.len() == 3 && (status.starts_with('2') || status.starts_with('3'))
}

/// The status of a page, such as `200`.
fn status(address: SocketAddr, path: &str, wait: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, wait)?;
    stream.set_read_timeout(Some(wait))?;
    stream.set_write_timeout(Some(wait))?;
    let asked = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(asked.as_bytes())?;
    // The first line is all that counts, and it is short.
    let mut answer = Vec::new();
    stream.take(64).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).context("an answer in HTTP")?;
    Ok(status.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_page_is_well_by_its_status() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\nbody", true),
            ("HTTP/1.1 302 Found\r\n\r\n", true),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", false),
            ("nonsense", false),
            ("", false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = listener.local_addr().expect("its address");
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut asked = [0; 512];
                let count = stream.read(&mut asked).expect("a question");
                stream.write_all(answer.as_bytes()).expect("an answer");
                String::from_utf8_lossy(&asked[..count]).into_owned()
            });
            let status = status(address, "/readyz", Duration::from_secs(30));
            assert_eq!(
                status.is_ok_and(|status| is_well(&status)),
                expected,
                "{answer}"
            );
            let asked = server.join().expect("no panic");
            assert!(asked.starts_with("GET /readyz HTTP/1.1\r\n"), "{asked}");
        }
    }
}
