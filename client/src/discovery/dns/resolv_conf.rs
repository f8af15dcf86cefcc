//! Reads `/etc/resolv.conf` as glibc does: see resolv.conf(5).
//!
//! Lines that cannot be parsed are skipped, and values outside their range are moved into it.
//! Nothing in the file can stop the client from asking. Without a usable `nameserver` line, or
//! without the file, the server at 127.0.0.1 is asked, as in glibc and musl.
//!
//! Some options make no difference here. `attempts`: a question is repeated until the round is
//! over. `rotate`: the servers that answer best are preferred. `single-request` and
//! `single-request-reopen`: each question has its own socket.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use hickory_resolver::proto::rr::Name;
use zmtp::printable;

/// glibc's `MAXNS`: further servers are ignored.
const MAX_SERVERS: usize = 3;

/// The most that kubelet writes for a pod.
const MAX_SEARCH_DOMAINS: usize = 32;

/// glibc's `RES_MAXNDOTS`.
const MAX_NDOTS: i64 = 15;

/// glibc's `RES_TIMEOUT` and `RES_MAXRETRANS`, in seconds.
const DEFAULT_TIMEOUT: i64 = 5;
const MAX_TIMEOUT: i64 = 30;

/// The port of every server in the file.
const PORT: u16 = 53;

/// The parts of the file that the client uses.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    /// The servers to ask; at least one.
    pub servers: Vec<SocketAddr>,
    /// Domains to append to names that are not fully qualified.
    pub search: Vec<Name>,
    /// A name with at least this many dots is first tried as it is.
    pub ndots: usize,
    /// How long to wait for one server's answer.
    pub timeout: Duration,
    /// `use-vc`: ask over TCP only.
    pub tcp_only: bool,
    /// `no-aaaa`: do not ask for IPv6 addresses.
    pub no_aaaa: bool,
    pub edns0: bool,
    /// What is wrong with each line that was skipped.
    pub left_out: Vec<String>,
}

impl ResolvConf {
    /// An empty file: the server on this host, and no search domains.
    fn empty() -> Self {
        Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(DEFAULT_TIMEOUT as u64),
            tcp_only: false,
            no_aaaa: false,
            edns0: false,
            left_out: Vec::new(),
        }
    }

    /// Reads the text of a file.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::empty();
        for (number, line) in (1..).zip(text.lines()) {
            let content = line.split(['#', ';']).next().unwrap_or_default();
            // A carriage return at the end of a line counts as white space.
            let mut words = content.split_whitespace();
            let left_out = match words.next() {
                Some("nameserver") => conf.add_server(words.next()),
                Some("domain") => conf.set_search(words.take(1)),
                Some("search") => conf.set_search(words),
                Some("options") => {
                    words.for_each(|option| conf.set_option(option));
                    None
                }
                // `sortlist` and unknown keywords.
                _ => None,
            };
            conf.left_out.extend(left_out.map(|why| format!("line {number}: {why}")));
        }
        if conf.servers.is_empty() {
            conf.servers.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        conf
    }

    /// Returns what is wrong with the line, if it is skipped.
    fn add_server(&mut self, word: Option<&str>) -> Option<String> {
        let word = word.unwrap_or_default();
        if self.servers.len() == MAX_SERVERS {
            return Some(format!("more than {MAX_SERVERS} name servers"));
        }
        match server(word) {
            Some(server) => self.servers.push(server),
            None => return Some(format!("`{}` is not an IP address", printable(word))),
        }
        None
    }

    /// The last `domain` or `search` line wins.
    fn set_search<'a>(&mut self, words: impl Iterator<Item = &'a str>) -> Option<String> {
        self.search.clear();
        let mut left_out = None;
        for word in words {
            match Name::from_str_relaxed(word) {
                Ok(domain) if self.search.len() < MAX_SEARCH_DOMAINS => self.search.push(domain),
                Ok(_) => left_out = Some(format!("more than {MAX_SEARCH_DOMAINS} search domains")),
                Err(_) => left_out = Some(format!("`{}` is not a domain", printable(word))),
            }
        }
        left_out
    }

    /// Unknown options are meant for other resolvers and are ignored.
    fn set_option(&mut self, option: &str) {
        let (name, value) = option.split_once(':').unwrap_or((option, ""));
        match (name, leading_number(value)) {
            ("ndots", Some(dots)) => self.ndots = dots.clamp(0, MAX_NDOTS) as usize,
            // glibc waits one second if the value is 0 or less.
            ("timeout", Some(seconds)) => {
                self.timeout = Duration::from_secs(seconds.clamp(1, MAX_TIMEOUT) as u64);
            }
            ("use-vc", _) => self.tcp_only = true,
            ("no-aaaa", _) => self.no_aaaa = true,
            ("edns0", _) => self.edns0 = true,
            _ => {}
        }
    }
}

/// The number at the start of a text, as C's `atoi` reads it. Without digits, `atoi` would return
/// 0; here the default stays.
fn leading_number(text: &str) -> Option<i64> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let digits = unsigned.len() - unsigned.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let magnitude = match unsigned[..digits].parse::<i64>() {
        Ok(magnitude) => magnitude,
        Err(_) if digits == 0 => return None,
        // Too many digits for an `i64`.
        Err(_) => i64::MAX,
    };
    Some(if text.starts_with('-') { -magnitude } else { magnitude })
}

/// An address with an optional scope: `fe80::1%eth0`.
fn server(text: &str) -> Option<SocketAddr> {
    let (address, scope) = match text.split_once('%') {
        Some((address, scope)) => (address, Some(scope)),
        None => (text, None),
    };
    match (address.parse().ok()?, scope) {
        // The unspecified address means this host, whose answers come from loopback.
        (IpAddr::V4(Ipv4Addr::UNSPECIFIED), None) => Some((Ipv4Addr::LOCALHOST, PORT).into()),
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), None) => Some((Ipv6Addr::LOCALHOST, PORT).into()),
        (IpAddr::V4(address), None) => Some((address, PORT).into()),
        (IpAddr::V4(_), Some(_)) => None,
        (IpAddr::V6(address), scope) => {
            let scope = scope.map_or(0, interface_index);
            Some(SocketAddrV6::new(address, PORT, 0, scope).into())
        }
    }
}

/// The index of an interface that is given by name or number. Returns 0, which is no interface, if
/// the name is unknown.
fn interface_index(scope: &str) -> u32 {
    let named = || {
        // A name with a slash would be another file.
        let name = Some(scope).filter(|name| !name.contains('/'))?;
        fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok()
    };
    scope.parse().ok().or_else(named).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str) -> Vec<String> {
        ResolvConf::parse(text).servers.iter().map(SocketAddr::to_string).collect()
    }

    fn with_options(options: &str) -> ResolvConf {
        ResolvConf::parse(&format!("nameserver 10.0.0.1\noptions {options}\n"))
    }

    #[test]
    fn without_a_usable_server_line_this_host_is_asked() {
        for text in ["", "search lan\n", "nameserver\n", "nameserver dns.example.com\n", "\u{fffd}"]
        {
            assert_eq!(servers(text), ["127.0.0.1:53"], "{text:?}");
        }
        assert_eq!(servers("nameserver 0.0.0.0\n"), ["127.0.0.1:53"]);
        assert_eq!(servers("nameserver ::\n"), ["[::1]:53"]);
    }

    #[test]
    fn only_the_first_three_servers_are_used() {
        let text = "nameserver 10.0.0.1\nnameserver bad\nnameserver fd00::1\n\
                    nameserver 10.0.0.3\nnameserver 10.0.0.4\n";
        assert_eq!(servers(text), ["10.0.0.1:53", "[fd00::1]:53", "10.0.0.3:53"]);
        let left_out = ResolvConf::parse(text).left_out;
        assert_eq!(
            left_out,
            ["line 2: `bad` is not an IP address", "line 5: more than 3 name servers"]
        );
    }

    #[test]
    fn comments_carriage_returns_and_white_space_are_ignored() {
        let text = "# nameserver 10.6.6.6\r\n; nameserver 10.6.6.6\r\n\r\n \
                    nameserver\t10.0.0.1 # the first\r\nsearch a.example b.example\r\n\
                    options  ndots:3\ttimeout:7 \r\n";
        let conf = ResolvConf::parse(text);
        assert_eq!(conf.servers, [SocketAddr::from(([10, 0, 0, 1], 53))]);
        assert_eq!(
            conf.search.iter().map(Name::to_string).collect::<Vec<_>>(),
            ["a.example", "b.example"]
        );
        assert_eq!((conf.ndots, conf.timeout), (3, Duration::from_secs(7)));
        assert_eq!(conf.left_out, [""; 0]);
    }

    #[test]
    fn the_timeout_is_between_one_and_thirty_seconds() {
        for (option, seconds) in [
            ("timeout:0", 1),
            ("timeout:-3", 1),
            ("timeout:1", 1),
            ("timeout:2s", 2),
            ("timeout:31", 30),
            ("timeout:99999999999999999999", 30),
            ("timeout:", 5),
            ("timeout:soon", 5),
            ("timeout", 5),
        ] {
            assert_eq!(with_options(option).timeout, Duration::from_secs(seconds), "{option}");
        }
    }

    #[test]
    fn ndots_is_between_zero_and_fifteen() {
        for (option, ndots) in [
            ("ndots:0", 0),
            ("ndots:-1", 0),
            ("ndots:5", 5),
            ("ndots:4000000000", 15),
            ("ndots:x", 1),
        ] {
            assert_eq!(with_options(option).ndots, ndots, "{option}");
        }
    }

    #[test]
    fn other_options_are_ignored() {
        let plain = ResolvConf::parse("nameserver 10.0.0.1\n");
        let ignored = "attempts:0 attempts:99 rotate single-request single-request-reopen trust-ad \
                       no-reload inet6 debug future-option:7 : :: -";
        assert_eq!(with_options(ignored), plain);
        let heeded = with_options("use-vc no-aaaa edns0");
        assert!(heeded.tcp_only && heeded.no_aaaa && heeded.edns0);
    }

    #[test]
    fn the_last_search_or_domain_line_wins() {
        let search = |text| -> Vec<_> {
            ResolvConf::parse(text).search.iter().map(Name::to_string).collect()
        };
        assert_eq!(search("search a.example\ndomain b.example c.example\n"), ["b.example"]);
        assert_eq!(search("domain b.example\nsearch a.example\n"), ["a.example"]);
        assert_eq!(search("search a..example b.example\n"), ["b.example"]);
        let many: Vec<_> = (0..40).map(|at| format!("d{at}.example")).collect();
        assert_eq!(search(&format!("search {}\n", many.join(" "))).len(), MAX_SEARCH_DOMAINS);
    }

    #[test]
    fn a_link_local_server_keeps_its_scope() {
        let scope_of = |text| match ResolvConf::parse(text).servers[..] {
            [SocketAddr::V6(server)] => (*server.ip(), server.scope_id()),
            ref servers => panic!("{servers:?}"),
        };
        let address = "fe80::1".parse().unwrap();
        assert_eq!(scope_of("nameserver fe80::1%7\n"), (address, 7));
        // Every network namespace has a loopback interface.
        assert_ne!(scope_of("nameserver fe80::1%lo\n"), (address, 0));
        assert_eq!(scope_of("nameserver fe80::1%none-such\n"), (address, 0));
        assert_eq!(scope_of("nameserver fe80::1%../../net/lo\n"), (address, 0));
        assert_eq!(scope_of("nameserver fe80::1\n"), (address, 0));
        assert_eq!(servers("nameserver 10.0.0.1%eth0\n"), ["127.0.0.1:53"]);
    }
}
