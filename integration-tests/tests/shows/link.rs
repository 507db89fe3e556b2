//! The way between the agents: a proxy that counts what the source sends, and cuts or holds the connection where it is told.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

#[derive(Default)]
struct State {
    /// Bytes that the source has sent through.
    bytes: u64,
    /// Every time that so many more have gone through, the connection is cut.
    cut_every: Option<u64>,
    next_cut: u64,
    cuts: u64,
    /// When so many have gone through, the connection is cut, once.
    cut_at: Option<u64>,
    /// When so many have gone through, nothing more does in either direction, and nobody is told.
    dead_at: Option<u64>,
    /// So many more bytes go through one by one.
    trickle: u64,
    /// When so many have gone through, nothing more does.
    hold_at: Option<u64>,
    /// True while something waits.
    held: bool,
}

/// A proxy in threads of its own.
pub(crate) struct Link {
    port: u16,
    state: Mutex<State>,
    changed: Condvar,
}

impl Link {
    /// Forwards to a port on this host.
    pub(crate) fn start(target: u16) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let link = Arc::new(Self { port, state: Mutex::default(), changed: Condvar::new() });
        let serving = Arc::clone(&link);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                // A target that is not there looks like a connection that ends at once.
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", target))) else {
                    continue;
                };
                let (from_client, from_server) = (client.try_clone(), server.try_clone());
                let link = Arc::clone(&serving);
                std::thread::spawn(move || link.forward(from_client.expect("clone"), server));
                std::thread::spawn(move || back(from_server.expect("clone"), client));
            }
        });
        link
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that the source has sent.
    pub(crate) fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// Cuts the connection each time that the source has sent so many more bytes.
    pub(crate) fn cut_every(&self, bytes: u64) {
        let mut state = self.state();
        (state.cut_every, state.next_cut) = (Some(bytes), state.bytes + bytes);
    }

    /// Cuts the connection once, within the block that makes so many more bytes.
    pub(crate) fn cut_after(&self, bytes: u64) {
        let mut state = self.state();
        state.cut_at = Some(state.bytes + bytes);
    }

    /// Lets the connections that there are die when so many more bytes have gone through, as when a firewall forgets them: they
    /// stay open, and nothing arrives any more.
    pub(crate) fn die_after(&self, bytes: u64) {
        let mut state = self.state();
        state.dead_at = Some(state.bytes + bytes);
    }

    /// Sends the next bytes of the source one at a time.
    pub(crate) fn trickle(&self, bytes: u64) {
        self.state().trickle = bytes;
    }

    /// How often it was cut.
    pub(crate) fn cuts(&self) -> u64 {
        self.state().cuts
    }

    /// Lets so many more bytes of the source's through, and no more.
    pub(crate) fn hold_after(&self, bytes: u64) {
        let mut state = self.state();
        state.hold_at = Some(state.bytes + bytes);
    }

    /// Waits until something is held.
    pub(crate) fn wait_until_held(&self) {
        let state = self.state();
        drop(self.changed.wait_while(state, |state| !state.held).unwrap_or_else(PoisonError::into_inner));
    }

    /// Lets everything through again.
    pub(crate) fn go_on(&self) {
        self.state().hold_at = None;
        self.changed.notify_all();
    }

    fn forward(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count) = from.read(&mut buffer)
            && count > 0
        {
            let (cut, single) = {
                let mut state = self.state();
                while state.hold_at.is_some_and(|at| state.bytes >= at) {
                    // Once: two that wait would otherwise wake each other for ever.
                    if !state.held {
                        state.held = true;
                        self.changed.notify_all();
                    }
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                state.held = false;
                state.bytes += count as u64;
                let cut = state.cut_every.filter(|_| state.bytes >= state.next_cut);
                if let Some(every) = cut {
                    state.next_cut = state.bytes + every;
                    state.cuts += 1;
                }
                let bytes = state.bytes;
                let once = state.cut_at.take_if(|at| bytes >= *at).is_some();
                state.cuts += u64::from(once);
                if state.dead_at.take_if(|at| bytes >= *at).is_some() {
                    state.cuts += 1;
                    drop(state);
                    // Both ends stay open for as long as this process lives.
                    std::mem::forget((from, to));
                    return;
                }
                let single = (count as u64).min(state.trickle);
                state.trickle -= single;
                (cut.is_some() || once, single as usize)
            };
            let (slow, fast) = buffer[..count].split_at(single);
            let mut one_by_one = || slow.iter().try_for_each(|byte| to.write_all(&[*byte]));
            // What was read when the connection is cut is lost.
            if cut || one_by_one().and_then(|()| to.write_all(fast)).is_err() {
                drop(from.shutdown(Shutdown::Both));
                drop(to.shutdown(Shutdown::Both));
                return;
            }
        }
        drop(to.shutdown(Shutdown::Write));
    }
}

fn back(mut from: TcpStream, mut to: TcpStream) {
    drop(std::io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}
