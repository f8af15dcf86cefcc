//! What the kernel knows about a TCP connection: whether the other host still acknowledges data.
//!
//! While replies are waiting, this is the only way to tell a slow reader from a lost host. Linux
//! sends no keepalive while data is unacknowledged. `TCP_USER_TIMEOUT` also kills a live reader
//! whose window stays closed. libzmq answers no PING while its pipe is full. But as long as data
//! is waiting, the kernel retransmits it or probes the closed window, and a host that is up
//! acknowledges that, whatever its application does (RFC 9293, section 3.8.6.1).

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// The length of the kernel's `struct tcp_info` (`linux/tcp.h`) up to `tcpi_notsent_bytes`,
/// available since Linux 4.6. The struct only ever grows at its end.
const BYTES: usize = 148;

/// After this long without an acknowledgement, several unanswered packets mean that the host is
/// lost. Rerouting networks and migrating virtual machines recover sooner.
const SEVERAL_UNANSWERED: Duration = Duration::from_secs(60);

/// After this long, a single unanswered packet is enough. The kernel probes a closed window less
/// and less often, up to two minutes apart, so waiting for a second probe would take too long.
const ONE_UNANSWERED: Duration = Duration::from_secs(90);

/// What the kernel says about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpInfo {
    /// Consecutive retransmissions or window probes without an acknowledgement.
    pub unanswered: u8,
    /// Time since the last acknowledgement.
    pub last_ack: Duration,
    /// Bytes that the other host has acknowledged since the connection was made.
    pub acknowledged: u64,
}

impl TcpInfo {
    /// Asks the kernel.
    ///
    /// # Errors
    ///
    /// The kernel's error, or [`io::ErrorKind::Unsupported`] on kernels older than Linux 4.6.
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

    /// Whether the other host has left several packets unanswered and acknowledged nothing for at
    /// least `limit`. The kernel needs 1.4 s to send three retransmissions.
    pub fn is_unanswered_for(&self, limit: Duration) -> bool {
        self.unanswered > 2 && self.last_ack >= limit
    }

    /// Whether the other host seems to be lost: it has not answered the kernel for a long time.
    pub fn host_is_lost(&self) -> bool {
        match self.unanswered {
            0 => false,
            1 | 2 => self.last_ack >= ONE_UNANSWERED,
            _ => self.last_ack >= SEVERAL_UNANSWERED,
        }
    }
}

/// The longest keepalive time that Linux accepts.
const LONGEST: Duration = Duration::from_secs(32_767);

/// Makes the kernel probe a peer that has been silent for `interval`, and twice more. This covers
/// peers without PING: those of ZMTP 3.0, and some that announce 3.1. The kernel counts in whole
/// seconds.
pub fn keep_alive(stream: &TcpStream, interval: Duration) {
    let interval = interval.clamp(Duration::from_secs(1), LONGEST);
    let keepalive = TcpKeepalive::new().with_time(interval).with_interval(interval).with_retries(2);
    // If the connection is already broken, the next read will say so.
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// `getsockopt(TCP_INFO)`. No maintained crate wraps it without a C compiler or bindgen, so this
/// is the project's only unsafe block.
#[expect(unsafe_code, reason = "see above")]
fn read(socket: impl AsFd) -> io::Result<[u8; BYTES]> {
    let mut raw = [0u8; BYTES];
    let mut length = BYTES as libc::socklen_t;
    // SAFETY: the descriptor is open because it is borrowed. The kernel writes at most `length`
    // bytes to `raw`, which has that length and for which any bytes are valid.
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
    fn acknowledged_bytes_count_what_the_other_host_received() {
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
    fn a_host_is_lost_only_after_a_long_silence_with_unanswered_packets() {
        let lost = |unanswered, seconds| {
            let last_ack = Duration::from_secs(seconds);
            TcpInfo { unanswered, last_ack, acknowledged: 0 }.host_is_lost()
        };
        assert!(!lost(0, 100_000));
        assert!(!lost(1, 89) && lost(1, 90));
        assert!(!lost(5, 59) && lost(5, 60));
    }
}
