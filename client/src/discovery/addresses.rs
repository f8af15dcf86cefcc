//! Which addresses a source may list: only those that can belong to one host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tracing::warn;

/// Whether an address can belong to one host. Multicast, broadcast and unspecified addresses
/// cannot, nor can their IPv4-mapped IPv6 forms. A connection to `0.0.0.0` or `::` would reach this
/// host itself. Loopback and link-local addresses are allowed because sidecars and tests use them.
pub(super) fn is_of_a_host(address: IpAddr) -> bool {
    match address.to_canonical() {
        // RFC 1122, section 3.2.1.3: 0.0.0.0/8 is "this host on this network".
        IpAddr::V4(address) => {
            address.octets()[0] != 0 && !address.is_multicast() && address != Ipv4Addr::BROADCAST
        }
        IpAddr::V6(address) => address != Ipv6Addr::UNSPECIFIED && !address.is_multicast(),
    }
}

/// Warns about ignored addresses, once when it starts.
#[derive(Debug)]
pub(super) struct LeftOut {
    source: String,
    reported: bool,
}

impl LeftOut {
    pub(super) fn new(source: String) -> Self {
        Self { source, reported: false }
    }

    /// `address` is one of the addresses that were ignored this time, if any.
    pub(super) fn report(&mut self, address: Option<IpAddr>) {
        if let Some(address) = address
            && !self.reported
        {
            warn!(source = self.source, %address, "ignoring an address that cannot belong to a host");
        }
        self.reported = address.is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multicast_broadcast_and_unspecified_addresses_are_refused() {
        for refused in [
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "::",
            "ff02::1",
            "ff0e::1",
            "::ffff:0.0.0.0",
            "::ffff:224.0.0.1",
            "::ffff:255.255.255.255",
        ] {
            assert!(!is_of_a_host(refused.parse().unwrap()), "{refused}");
        }
    }

    #[test]
    fn loopback_and_link_local_addresses_are_allowed() {
        for allowed in [
            "127.0.0.1",
            "127.255.255.255",
            "169.254.1.1",
            "10.0.0.1",
            "223.255.255.255",
            "240.0.0.1",
            "::1",
            "fe80::1",
            "fd00::1",
            "2001:db8::",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_of_a_host(allowed.parse().unwrap()), "{allowed}");
        }
    }
}
