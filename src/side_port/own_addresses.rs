//! The addresses at which this host can connect to its own listeners.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use socket2::SockRef;

/// The addresses at which this host may be able to connect to its own listeners.
///
/// [`OwnAddresses::reachable`] chooses one of them for each connection, because `lo` may have no
/// `::1`, or lose it.
#[derive(Debug, Clone)]
pub struct OwnAddresses {
    port: u16,
    candidates: Vec<SocketAddr>,
    /// Whether any IPv6 address of the host will do.
    any_ipv6: bool,
}

impl OwnAddresses {
    /// The addresses of `listeners`, of which there must be at least one.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell a listener's address.
    pub fn of(listeners: &[TcpListener]) -> io::Result<Self> {
        let mut own = Self { port: 0, candidates: Vec::new(), any_ipv6: false };
        for listener in listeners {
            let address = listener.local_addr()?;
            own.port = address.port();
            let loopback = |ip: IpAddr| SocketAddr::new(ip, address.port());
            match address.ip() {
                ip if !ip.is_unspecified() => own.candidates.push(address),
                IpAddr::V4(_) => own.candidates.push(loopback(Ipv4Addr::LOCALHOST.into())),
                IpAddr::V6(_) => {
                    own.any_ipv6 = true;
                    own.candidates.push(loopback(Ipv6Addr::LOCALHOST.into()));
                    // If the listener is for IPv6 only, another process may have this port on IPv4.
                    if !SockRef::from(listener).only_v6()? {
                        own.candidates.push(loopback(Ipv4Addr::LOCALHOST.into()));
                    }
                }
            }
        }
        Ok(own)
    }

    /// The first address that this host has now.
    pub fn reachable(&self) -> SocketAddr {
        let is_there = |address: &SocketAddr| is_own(*address);
        let mut found = self.candidates.iter().copied().find(is_there);
        if found.is_none() && self.any_ipv6 {
            let of_host = ipv6_addresses().into_iter();
            found = of_host.map(|ip| SocketAddr::from((ip, self.port))).find(is_there);
        }
        found.unwrap_or(self.candidates[0])
    }
}

/// Whether this host has the address. Trying to connect would not show that: without a `::1` on
/// `lo`, the kernel may send the connection to the default gateway.
fn is_own(address: SocketAddr) -> bool {
    let mut any_port = address;
    any_port.set_port(0);
    UdpSocket::bind(any_port).is_ok()
}

/// The host's IPv6 addresses, except link-local ones, which need an interface as well
/// (`/proc/net/if_inet6`, proc_net(5)).
fn ipv6_addresses() -> Vec<Ipv6Addr> {
    let table = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let addresses = table.lines().filter_map(|line| line.split_whitespace().next());
    let addresses = addresses.filter_map(|digits| u128::from_str_radix(digits, 16).ok());
    let addresses = addresses.map(Ipv6Addr::from_bits);
    addresses.filter(|address| !address.is_unicast_link_local()).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use socket2::{Domain, Socket, Type};
    use zmtp::listeners::{open, open_on_all};

    use super::*;

    #[test]
    fn a_listener_is_reached_at_its_own_address_or_at_loopback_if_it_is_on_all_interfaces() {
        let reached = |listener: TcpListener| {
            let reached = OwnAddresses::of(&[listener.try_clone().unwrap()]).unwrap().reachable();
            TcpStream::connect(reached).expect("the listener can be reached");
            reached.ip()
        };
        assert_eq!(reached(open("0.0.0.0:0".parse().unwrap()).unwrap()), Ipv4Addr::LOCALHOST);
        assert_eq!(
            reached(open("127.0.0.2:0".parse().unwrap()).unwrap()),
            IpAddr::from([127, 0, 0, 2])
        );
        assert!(reached(open_on_all(0).unwrap()).is_loopback());
    }

    #[test]
    fn a_listener_on_ipv6_only_is_not_reached_over_ipv4() {
        let listener = Socket::new(Domain::IPV6, Type::STREAM, None);
        let listener = listener.expect("missing: a kernel with IPv6");
        listener.set_only_v6(true).unwrap();
        listener.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).unwrap();
        listener.listen(1).unwrap();
        let listener = TcpListener::from(listener);
        let own = OwnAddresses::of(&[listener]).unwrap();
        assert!(own.candidates.iter().all(SocketAddr::is_ipv6), "{own:?}");
    }
}
