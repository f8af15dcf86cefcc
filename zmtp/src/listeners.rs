//! Opens TCP listeners.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

/// How many connections may wait in the kernel to be accepted.
///
/// If the queue is full, the kernel drops the next connection attempt, and the client retries a
/// second later, which is too late for a probe. Two things fill it: a rollout, which sends all
/// clients of the old replica here at once, and a flood, which opens thousands of connections in
/// the few milliseconds that the accepting thread waits for a CPU. The kernel caps this at
/// `net.core.somaxconn`, which defaults to 4096.
const BACKLOG: i32 = 4096;

/// How long to wait after a failed accept. Accept usually fails because the process has run out
/// of file descriptors, and retrying at once would spin.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many ports to try when the kernel chooses a port that must be free at several addresses.
const PORT_ATTEMPTS: usize = 64;

/// How an IPv6 listener treats IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ipv4 {
    /// Also accepts IPv4, if the address is the wildcard.
    Too,
    /// Leaves IPv4 to another listener.
    Elsewhere,
    /// Follows `net.ipv6.bindv6only`.
    AsConfigured,
}

/// Opens a listener on one address. With port 0 the kernel chooses a port.
///
/// # Errors
///
/// The kernel's error: no permission, address in use, no such address.
pub fn open(address: SocketAddr) -> io::Result<TcpListener> {
    listen(address, Ipv4::AsConfigured)
}

/// Opens a listener on all interfaces for IPv6 and IPv4, or for IPv4 alone if the host has no
/// IPv6.
///
/// # Errors
///
/// See [`open`].
pub fn open_on_all(port: u16) -> io::Result<TcpListener> {
    let both = listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), Ipv4::Too);
    both.or_else(|error| match error.kind() {
        // The port is the problem. Falling back to IPv4 would hide that.
        io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
        _ => open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
    })
}

/// Opens a listener on each of `addresses`, all on the same port. With port 0 the kernel chooses
/// a port that is free at all of them.
///
/// Addresses that this host does not have are skipped: a name often resolves to an IPv6 address
/// on a host where IPv6 is disabled.
///
/// # Errors
///
/// See [`open`]. It fails if any of the addresses is in use, or if this host has none of them.
pub fn open_each(addresses: &[SocketAddr]) -> io::Result<Vec<TcpListener>> {
    // A hosts file may list an address twice.
    let mut each: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        if !each.contains(address) {
            each.push(*address);
        }
    }
    match each[..] {
        [address] => open(address).map(|listener| vec![listener]),
        _ => open_several(&each, |address| listen(address, Ipv4::Elsewhere)),
    }
}

/// [`open_each`] with the given function to open one listener.
fn open_several(
    addresses: &[SocketAddr],
    mut open: impl FnMut(SocketAddr) -> io::Result<TcpListener>,
) -> io::Result<Vec<TcpListener>> {
    // Kept open until the end, so that the kernel chooses a different port each time.
    let mut given_up = Vec::new();
    loop {
        let mut listeners = Vec::new();
        match open_in_turn(addresses, &mut listeners, &mut open) {
            Ok(()) => return Ok(listeners),
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && addresses.iter().all(|address| address.port() == 0)
                    && !listeners.is_empty()
                    && given_up.len() < PORT_ATTEMPTS =>
            {
                given_up.push(listeners);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Adds listeners until an address fails. All of them use the port of the first.
fn open_in_turn(
    addresses: &[SocketAddr],
    listeners: &mut Vec<TcpListener>,
    mut open: impl FnMut(SocketAddr) -> io::Result<TcpListener>,
) -> io::Result<()> {
    let mut lacking = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        let mut address = *address;
        if let Some(first) = listeners.first() {
            address.set_port(first.local_addr()?.port());
        }
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
        match open(address) {
            Ok(listener) => listeners.push(listener),
            Err(error) if is_lacking(&error) => lacking = named(error),
            Err(error) => return Err(named(error)),
        }
    }
    if listeners.is_empty() { Err(lacking) } else { Ok(()) }
}

/// Whether this host does not have the address, or lacks its address family.
fn is_lacking(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error())
}

fn listen(address: SocketAddr, ipv4: Ipv4) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Otherwise a restarted server would have to wait for old connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() && ipv4 != Ipv4::AsConfigured {
        socket.set_only_v6(ipv4 == Ipv4::Elsewhere)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn bound(listeners: &[TcpListener]) -> Vec<SocketAddr> {
        listeners.iter().map(|listener| listener.local_addr().unwrap()).collect()
    }

    #[test]
    fn a_wildcard_listener_accepts_ipv4_and_ipv6() {
        let listener = open_on_all(0).unwrap();
        let address = listener.local_addr().unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).unwrap();
        if address.is_ipv6() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).unwrap();
        }
    }

    #[test]
    fn all_addresses_of_a_name_are_opened_on_one_port() {
        let listeners =
            open_each(&addresses(&["127.0.0.1:0", "127.0.0.2:0", "127.0.0.1:0"])).unwrap();
        let bound = bound(&listeners);
        let port = bound[0].port();
        assert_ne!(port, 0);
        assert_eq!(bound, [([127, 0, 0, 1], port).into(), ([127, 0, 0, 2], port).into()]);
        bound.iter().for_each(|address| drop(TcpStream::connect(address).unwrap()));
    }

    #[test]
    fn wildcards_of_both_families_do_not_conflict() {
        // On a host without IPv6 that address is skipped.
        let listeners = open_each(&addresses(&["[::]:0", "0.0.0.0:0"])).unwrap();
        let port = listeners[0].local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    }

    #[test]
    fn missing_addresses_are_skipped_unless_none_is_left() {
        // Addresses reserved for documentation, which no host has.
        let (lacking, lacking_too) = ("192.0.2.1:0", "[2001:db8::1]:0");
        let listeners = open_each(&addresses(&[lacking, "127.0.0.1:0", lacking_too])).unwrap();
        assert_eq!(listeners.len(), 1);
        assert!(listeners[0].local_addr().unwrap().ip().is_loopback());
        let error = open_each(&addresses(&[lacking, lacking_too])).unwrap_err();
        assert!(error.to_string().contains("[2001:db8::1]:0: "), "{error}");
        assert!(open_each(&addresses(&[lacking])).is_err());
        let error = open_each(&[]).unwrap_err();
        assert_eq!(error.to_string(), "the name has no address");
    }

    #[test]
    fn an_address_in_use_is_an_error_even_if_another_one_is_free() {
        let reports_the_taken_one = || {
            let taken = open("127.0.0.2:0".parse().unwrap()).unwrap();
            let port = taken.local_addr().unwrap().port();
            let error = open_each(&[([127, 0, 0, 1], port).into(), ([127, 0, 0, 2], port).into()]);
            let error = error.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            error.to_string().starts_with(&format!("127.0.0.2:{port}: "))
        };
        // Another program may use the same port at 127.0.0.1.
        assert!((0..20).any(|_| reports_the_taken_one()), "it blames the free address each time");
    }

    #[test]
    fn another_port_is_chosen_if_the_first_is_taken_at_one_address() {
        let each = addresses(&["127.0.0.1:0", "127.0.0.2:0"]);
        let mut in_the_way = Vec::new();
        let listeners = open_several(&each, |address| {
            // The first three ports are taken by the time they are needed.
            if address.port() != 0 && in_the_way.len() < 3 {
                in_the_way.push(open(address)?);
            }
            open(address)
        });
        let port = listeners.unwrap()[1].local_addr().unwrap().port();
        let taken = bound(&in_the_way);
        assert!(taken.len() == 3 && taken.iter().all(|taken| taken.port() != port), "{taken:?}");
        let all_taken = open_several(&each, |address| {
            let listener = open(address)?;
            if address.port() == 0 { Ok(listener) } else { open(address) }
        });
        assert_eq!(all_taken.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
