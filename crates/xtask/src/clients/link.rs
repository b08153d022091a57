//! A TCP proxy between a client and a fleet that breaks each of the first connections at a given place; later connections get
//! through.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

/// Bytes that are passed on at a time, at most.
const CHUNK_BYTES: usize = 64 << 10;
/// How the name of a job begins, and how long it is.
const JOB: &[u8] = b"jobs/";
const JOB_BYTES: usize = JOB.len() + 32;

/// Where a connection breaks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cut {
    /// Once more than so many bytes went to the fleet.
    Sent(usize),
    /// Before an answer that names a job comes back: it is lost.
    Answer,
    /// When the fleet has sent these bytes, right after them.
    After(&'static [u8]),
}

/// What happened on a link.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) cuts: usize,
    /// The job that the lost answer named.
    pub(super) lost: String,
}

/// A link, until it is dropped.
pub(super) struct Link {
    /// Where clients connect.
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    fleet: String,
    cuts: Vec<Cut>,
    seen: Mutex<Seen>,
    ended: AtomicBool,
}

impl Link {
    /// Listens for the fleet at `host:port`; the first connection breaks at the first cut, the second at the second.
    pub(super) fn start(fleet: &str, cuts: &[Cut]) -> Result<Self> {
        let listener =
            TcpListener::bind("127.0.0.1:0").context("listen between client and fleet")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            fleet: fleet.to_owned(),
            cuts: cuts.to_vec(),
            seen: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Self {
            address,
            shared,
            accepting: Some(accepting),
        })
    }

    /// What has happened so far.
    pub(super) fn seen(&self) -> Seen {
        let seen = self.shared.seen.lock();
        seen.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // The accepting thread notices the end at the next connection.
        if TcpStream::connect(self.address).is_ok()
            && let Some(accepting) = self.accepting.take()
            && accepting.join().is_err()
        {
            eprintln!("xtask: the link between client and fleet panicked");
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for (index, client) in listener.incoming().enumerate() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let cut = shared.cuts.get(index).copied();
        let joined = client.and_then(|client| join(client, cut, shared));
        if let Err(error) = joined {
            eprintln!("xtask: a connection between client and fleet did not come about: {error}");
        }
    }
}

/// Passes bytes on in both directions; both threads end with the connection.
fn join(client: TcpStream, cut: Option<Cut>, shared: &Arc<Shared>) -> std::io::Result<()> {
    let fleet = TcpStream::connect(&shared.fleet)?;
    let (up, down) = match cut {
        Some(Cut::Sent(_)) => (cut, None),
        _ => (None, cut),
    };
    let ways = [
        (client.try_clone()?, fleet.try_clone()?, up),
        (fleet, client, down),
    ];
    for (from, to, cut) in ways {
        let shared = Arc::clone(shared);
        thread::spawn(move || pass(from, to, Gate::new(cut), &shared));
    }
    Ok(())
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut gate: Gate, shared: &Shared) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let chunk = &buffer[..count];
        let cut = gate.cut_at(chunk);
        let passed = to.write_all(&chunk[..cut.unwrap_or(count)]);
        if cut.is_some() {
            let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.cuts += 1;
            seen.lost.push_str(&gate.lost);
        }
        if cut.is_some() || passed.is_err() {
            break;
        }
    }
    for end in [from, to] {
        // Fails where the other direction, or the peer, has closed it already.
        let _ = end.shutdown(Shutdown::Both);
    }
}

/// One direction of a connection: looks where it breaks.
struct Gate {
    cut: Option<Cut>,
    passed: usize,
    /// The end of what was passed on, in which what is looked for may have begun.
    tail: Vec<u8>,
    lost: String,
}

impl Gate {
    fn new(cut: Option<Cut>) -> Self {
        Self {
            cut,
            passed: 0,
            tail: Vec::new(),
            lost: String::new(),
        }
    }

    /// How many bytes of this piece still pass where the connection breaks in it.
    fn cut_at(&mut self, chunk: &[u8]) -> Option<usize> {
        match self.cut? {
            Cut::Sent(most) => {
                self.passed += chunk.len();
                (self.passed > most).then_some(0)
            }
            Cut::Answer => {
                let (joined, at) = self.find(JOB, chunk)?;
                let name = joined[at..].iter().take(JOB_BYTES).copied();
                self.lost = String::from_utf8_lossy(&name.collect::<Vec<_>>()).into_owned();
                Some(0)
            }
            Cut::After(text) => {
                let before = self.tail.len();
                let (_, at) = self.find(text, chunk)?;
                Some((at + text.len()).saturating_sub(before))
            }
        }
    }

    /// The end of what was passed on with this piece, and where in it the text is.
    fn find(&mut self, text: &[u8], chunk: &[u8]) -> Option<(Vec<u8>, usize)> {
        let joined = [self.tail.as_slice(), chunk].concat();
        let at = joined.windows(text.len()).position(|window| window == text);
        let kept = joined.len().saturating_sub(text.len() - 1);
        self.tail = joined[kept..].to_vec();
        at.map(|at| (joined, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cut: Cut, chunks: &[&str], expected: &[Option<usize>]) -> Gate {
        let mut gate = Gate::new(Some(cut));
        let found: Vec<_> = chunks.iter().map(|c| gate.cut_at(c.as_bytes())).collect();
        assert_eq!(found, expected, "{cut:?}");
        gate
    }

    #[test]
    fn a_connection_breaks_where_it_is_told_also_between_two_pieces() {
        check(Cut::Sent(4), &["abc", "d", "e"], &[None, None, Some(0)]);
        check(Cut::After(b"word"), &["a wo", "rd."], &[None, Some(2)]);
        check(Cut::After(b"word"), &["a word."], &[Some(6)]);
        check(Cut::After(b"word"), &["a w", "ord"], &[None, Some(3)]);
        let name = format!("jobs/{}", "0".repeat(32));
        let gate = check(Cut::Answer, &["jo", &name[2..]], &[None, Some(0)]);
        assert_eq!(gate.lost, name);
        assert_eq!(Gate::new(None).cut_at(b"jobs/"), None);
    }

    #[test]
    fn what_is_beyond_the_cuts_gets_through() {
        let fleet = TcpListener::bind("127.0.0.1:0").expect("a port");
        let to = fleet.local_addr().expect("an address").to_string();
        let link = Link::start(&to, &[Cut::After(b"one")]).expect("listens");
        let said = |text: &[u8]| {
            let mut client = TcpStream::connect(link.address).expect("connects");
            let (mut served, _) = fleet.accept().expect("is passed on");
            served.write_all(text).expect("takes it");
            drop(served);
            let mut got = Vec::new();
            // A connection that breaks may also end in an error; what came before counts.
            let _ = client.read_to_end(&mut got);
            got
        };
        assert_eq!(said(b"one two"), b"one");
        assert_eq!(said(b"one two"), b"one two");
        assert_eq!(link.seen().cuts, 1);
    }
}
