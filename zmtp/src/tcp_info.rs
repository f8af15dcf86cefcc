//! What the kernel knows of a TCP connection: whether the other host still acknowledges.
//!
//! This is the only way to tell a slow reader from a lost host while replies wait. Linux sends
//! no keepalive while data is unacknowledged, `TCP_USER_TIMEOUT` kills a live reader whose
//! window stays closed, and libzmq answers no PING while its pipe is full. But as long as data
//! waits, the kernel retransmits it or probes the closed window, and a host that is up
//! acknowledges that, whatever its application does (RFC 9293, 3.8.6.1).

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// The start of the kernel's `struct tcp_info` (`linux/tcp.h`), up to `tcpi_notsent_bytes`, which
/// Linux has had since 4.6. Its layout only ever grows at its end.
const BYTES: usize = 148;

/// After this long without an acknowledgement, several unanswered packets mean a lost host. A
/// network that reroutes or a virtual machine that migrates is back sooner.
const SEVERAL_UNANSWERED: Duration = Duration::from_secs(60);

/// After this long, one does. The kernel's probes of a closed window come ever more rarely, up
/// to two minutes apart, so waiting for a second one would take too long.
const ONE_UNANSWERED: Duration = Duration::from_secs(90);

/// What the kernel says of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpInfo {
    /// Retransmissions or window probes in a row that were not acknowledged.
    pub unanswered: u8,
    /// How long ago the last acknowledgement came.
    pub last_ack: Duration,
    /// Bytes that the other host has acknowledged since the connection was made.
    pub acknowledged: u64,
}

impl TcpInfo {
    /// Asks the kernel.
    ///
    /// # Errors
    ///
    /// What the kernel says, or [`io::ErrorKind::Unsupported`] if it knows less than Linux 4.6.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let raw = read(socket)?;
        let word = |at: usize| u32::from_ne_bytes(raw[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_ne_bytes(raw[at..at + 8].try_into().expect("eight bytes"));
        Ok(Self {
            // tcpi_retransmits and tcpi_probes
            unanswered: raw[2].max(raw[3]),
            // tcpi_last_ack_recv, in milliseconds
            last_ack: Duration::from_millis(word(56).into()),
            // tcpi_bytes_acked
            acknowledged: long(120),
        })
    }

    /// Whether the other host has been asked repeatedly and has not acknowledged anything for
    /// at least `limit`. Three retransmissions take the kernel 1.4 s.
    pub fn is_unanswered_for(&self, limit: Duration) -> bool {
        self.unanswered > 2 && self.last_ack >= limit
    }

    /// Whether the other host seems to be lost: the kernel has asked it in vain for long.
    pub fn host_is_lost(&self) -> bool {
        match self.unanswered {
            0 => false,
            1 | 2 => self.last_ack >= ONE_UNANSWERED,
            _ => self.last_ack >= SEVERAL_UNANSWERED,
        }
    }
}

/// The longest keepalive time that Linux takes.
const LONGEST: Duration = Duration::from_secs(32_767);

/// Has the kernel probe a silent peer after `interval`, and twice more: ZMTP 3.0 knows no PING,
/// and some that announce 3.1 do not either. The kernel counts in seconds.
pub fn keep_alive(stream: &TcpStream, interval: Duration) {
    let interval = interval.clamp(Duration::from_secs(1), LONGEST);
    let keepalive = TcpKeepalive::new().with_time(interval).with_interval(interval).with_retries(2);
    // A connection that is broken already says so when it is read.
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// `getsockopt(TCP_INFO)`. No maintained crate wraps it without a C compiler or bindgen, hence
/// the only unsafe block of this project.
#[expect(unsafe_code, reason = "see above")]
fn read(socket: impl AsFd) -> io::Result<[u8; BYTES]> {
    let mut raw = [0u8; BYTES];
    let mut length = BYTES as libc::socklen_t;
    // SAFETY: the descriptor is open, as it is borrowed, and the kernel writes at most `length`
    // bytes to `raw`, which is as long and for which any bytes are valid.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            raw.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    match result {
        0 if length as usize == BYTES => Ok(raw),
        0 => Err(io::ErrorKind::Unsupported.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;

    #[test]
    fn acknowledged_bytes_are_those_that_the_other_host_has_received() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"twelve bytes").unwrap();
        let mut bytes = [0; 12];
        (&client).read_exact(&mut bytes).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpInfo::of(&server).unwrap().acknowledged != 12 {
            assert!(Instant::now() < deadline, "{:?}", TcpInfo::of(&server));
        }
        assert!(!TcpInfo::of(&server).unwrap().host_is_lost());
    }

    #[test]
    fn a_host_is_lost_only_if_it_was_asked_and_has_been_silent_for_long() {
        let lost = |unanswered, seconds| {
            let last_ack = Duration::from_secs(seconds);
            TcpInfo { unanswered, last_ack, acknowledged: 0 }.host_is_lost()
        };
        assert!(!lost(0, 100_000));
        assert!(!lost(1, 89) && lost(1, 90));
        assert!(!lost(5, 59) && lost(5, 60));
    }
}
