//! Decides which address family of a name to use.
//!
//! A and AAAA records of a name cannot be paired: two addresses may be one dual-stack pod. If both
//! were used, that pod would have two connections and twice its share. So only one family is used:
//!
//! - the family that this host has a route to, if it has none to the other;
//! - otherwise the family in use, as long as it has addresses, so that nothing reconnects
//!   needlessly;
//! - at first IPv4, or IPv6 if there is no A record or if the A query is not answered within the
//!   resolution delay of RFC 8305.
//!
//! If the family in use has no addresses left and the other has some, its last addresses stay for
//! one more round beside the new ones, until these are connected. If the family in use cannot be
//! looked up, its last addresses stay. After two such rounds in a row, the addresses of the other
//! family are used as well, because the last ones may have gone unnoticed.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use hickory_resolver::proto::rr::{Name, RecordType};
use rustix::io::Errno;
use tokio::time::{Instant, sleep_until};

use super::resolver::AskError;
use super::walk::PATIENCE;

/// How long a usable answer waits for the answer of the preferred family: the "Resolution Delay" of
/// RFC 8305, section 3.
pub(super) const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// The same after the family in use has not answered for [`ROUNDS_ALONE`] rounds. It is longer
/// because that family may be slow rather than silent.
const LAST_CHANCE: Duration = Duration::from_secs(1);

/// After this many rounds without an answer of the family in use, the other family is used as well.
const ROUNDS_ALONE: u32 = 2;

/// How many addresses of a name to check for a route. Further ones usually have the same routes.
const ROUTES_TRIED: usize = 4;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    pub fn record(self) -> RecordType {
        match self {
            Self::V4 => RecordType::A,
            Self::V6 => RecordType::AAAA,
        }
    }
}

/// The addresses in one answer, and their time to live in seconds.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub addresses: BTreeSet<IpAddr>,
    pub time_to_live: Option<u32>,
}

/// The result of a round for a name that has addresses.
#[derive(Debug)]
pub(super) struct Found {
    pub verdict: Verdict,
    pub time_to_live: Option<u32>,
    /// Why the family in use did not answer.
    pub failure: Option<AskError>,
}

/// Which addresses to use from now on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Use these addresses of this family.
    Use(Family, BTreeSet<IpAddr>),
    /// Keep the last addresses, and note these of the other family.
    KeepBeside(BTreeSet<IpAddr>),
}

/// The addresses in use.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InUse {
    /// The fully qualified name that has them.
    pub name: Name,
    family: Family,
    addresses: BTreeSet<IpAddr>,
    /// Addresses of the other family, used for this round only.
    beside: BTreeSet<IpAddr>,
    /// Consecutive rounds in which only the other family answered.
    unheard: u32,
}

impl InUse {
    /// Applies the verdict of a round. The name may differ from the last one.
    pub fn update(before: Option<Self>, name: &Name, verdict: Verdict) -> Self {
        let same = before.filter(|before| before.name == *name);
        match (verdict, same) {
            (Verdict::Use(family, addresses), same) => {
                let switched = same.filter(|before| before.family != family);
                let beside = switched.map(|before| before.addresses).unwrap_or_default();
                Self { name: name.clone(), family, addresses, beside, unheard: 0 }
            }
            (Verdict::KeepBeside(other), Some(before)) => {
                let unheard = before.unheard.saturating_add(1);
                let beside = if unheard > ROUNDS_ALONE { other } else { BTreeSet::new() };
                Self { beside, unheard, ..before }
            }
            (Verdict::KeepBeside(_), None) => {
                unreachable!("only a family in use is kept")
            }
        }
    }

    /// All addresses in use.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().chain(&self.beside).copied()
    }

    /// How to ask in the next round.
    pub fn preference(&self, routed: Routed) -> Preference {
        Preference {
            family: self.family,
            in_use: true,
            alone: routed(&self.addresses),
            limit: (self.unheard >= ROUNDS_ALONE).then_some(LAST_CHANCE),
        }
    }
}

/// Whether this host has a route to any of the addresses.
pub(super) type Routed = fn(&BTreeSet<IpAddr>) -> bool;

/// Which family is preferred, and how long to wait for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Preference {
    family: Family,
    /// If it does not answer, its last addresses stay.
    in_use: bool,
    /// Ask the other family only if this one has no addresses, fails or is slow.
    alone: bool,
    /// How long to wait for it after the other family has answered. `None` means no limit.
    limit: Option<Duration>,
}

impl Preference {
    /// For a name that has not been looked up before.
    pub const FIRST: Self =
        Self { family: Family::V4, in_use: false, alone: false, limit: Some(RESOLUTION_DELAY) };
}

/// The answer to a query, or `None` while there is none.
type Heard = Option<Result<Answer, AskError>>;

/// Looks up the addresses of one name, as quickly as the preference allows. `Ok(None)` means that
/// it has none. Each query must end by itself.
pub(super) async fn ask<F>(
    preference: Preference,
    routed: Routed,
    look_up: impl Fn(Family) -> F,
) -> Result<Option<Found>, AskError>
where
    F: Future<Output = Result<Answer, AskError>>,
{
    let family = preference.family;
    let mut asking = std::pin::pin!(look_up(family));
    let mut asking_other = std::pin::pin!(look_up(family.other()));
    let (mut heard, mut other) = (None, None);
    let mut other_asked = !preference.alone;
    let mut other_since = None;
    let started = Instant::now();
    loop {
        other_asked |= heard.as_ref().is_some_and(|heard| !has_addresses(heard));
        let waited = |limit| other_since.map(|since: Instant| since + limit);
        let deadline = preference.limit.and_then(waited);
        let over = deadline.is_some_and(|deadline| deadline <= Instant::now());
        if is_decided(preference, routed, &heard, &other, over) {
            return decide(preference, routed, heard, other);
        }
        let patience = (!other_asked).then_some(started + PATIENCE);
        // Cancel-safe: the queries are pinned outside the loop, and the other arms hold no state.
        tokio::select! {
            answer = &mut asking, if heard.is_none() => heard = Some(answer),
            answer = &mut asking_other, if other_asked && other.is_none() => {
                let usable = has_addresses(&answer);
                other = Some(answer);
                other_since = usable.then(Instant::now);
            }
            () = at(patience) => other_asked = true,
            () = at(deadline) => {}
        }
    }
}

/// Waits for an optional point in time. Never completes if there is none.
pub(super) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn has_addresses(answer: &Result<Answer, AskError>) -> bool {
    answer.as_ref().is_ok_and(|answer| !answer.addresses.is_empty())
}

fn is_routed(heard: &Heard, routed: Routed) -> bool {
    matches!(heard, Some(Ok(answer)) if !answer.addresses.is_empty() && routed(&answer.addresses))
}

/// Whether the outcome is decided: missing answers could not change it, or are not worth the wait.
/// `over` means that the preferred family has had its time.
fn is_decided(
    preference: Preference,
    routed: Routed,
    heard: &Heard,
    other: &Heard,
    over: bool,
) -> bool {
    match (heard, other) {
        (Some(_), Some(_)) => true,
        (Some(_), None) => is_routed(heard, routed),
        // Addresses without a route are of no use, so waiting costs nothing.
        (None, Some(_)) => over && (preference.in_use || is_routed(other, routed)),
        (None, None) => false,
    }
}

fn decide(
    preference: Preference,
    routed: Routed,
    heard: Heard,
    other: Heard,
) -> Result<Option<Found>, AskError> {
    let to_other = !is_routed(&heard, routed) && is_routed(&other, routed);
    let (family, not_it) = (preference.family, preference.family.other());
    let usable = |heard: Heard| match heard {
        None => Err(None),
        Some(Err(error)) => Err(Some(error)),
        Some(Ok(answer)) => Ok(Some(answer).filter(|answer| !answer.addresses.is_empty())),
    };
    match (usable(heard), usable(other)) {
        (Ok(Some(answer)), Ok(Some(other))) => {
            let (family, answer) = if to_other { (not_it, other) } else { (family, answer) };
            Ok(Some(Found::used(family, answer, None)))
        }
        (Ok(Some(answer)), _) => Ok(Some(Found::used(family, answer, None))),
        (Err(failure), Ok(Some(other))) if preference.in_use => Ok(Some(Found {
            verdict: Verdict::KeepBeside(other.addresses),
            time_to_live: other.time_to_live,
            failure: Some(failure.unwrap_or(AskError::Slow(family.record()))),
        })),
        (_, Ok(Some(other))) => Ok(Some(Found::used(not_it, other, None))),
        (Err(Some(error)), _) | (_, Err(Some(error))) => Err(error),
        _ => Ok(None),
    }
}

impl Found {
    fn used(family: Family, answer: Answer, failure: Option<AskError>) -> Self {
        let verdict = Verdict::Use(family, answer.addresses);
        Self { verdict, time_to_live: answer.time_to_live, failure }
    }
}

/// Asks the kernel for a route. Connecting a UDP socket sends nothing.
pub(super) fn routed(addresses: &BTreeSet<IpAddr>) -> bool {
    addresses.iter().take(ROUTES_TRIED).any(|address| {
        let local: IpAddr = match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // Port 9 is the discard service, but nothing is sent.
        match UdpSocket::bind((local, 0)).and_then(|socket| socket.connect((*address, 9))) {
            Ok(()) => true,
            // If no socket is available, assume that there is a route.
            Err(error) => {
                let error = Errno::from_io_error(&error);
                matches!(error, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;

    use super::*;

    const NAME: &str = "echo.test.";

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// In these tests, only 127.0.0.0/8 and fd00::/8 have a route.
    fn routed(addresses: &BTreeSet<IpAddr>) -> bool {
        addresses.iter().any(|address| match address {
            IpAddr::V4(address) => address.is_loopback(),
            IpAddr::V6(address) => address.segments()[0] == 0xfd00,
        })
    }

    const V4: &[&str] = &["127.0.0.1"];
    const V6: &[&str] = &["fd00::1"];
    const V4_WITHOUT_ROUTE: &[&str] = &["192.0.2.1"];
    const V6_WITHOUT_ROUTE: &[&str] = &["2001:db8::1"];

    /// The outcome of a query.
    #[derive(Debug, Clone, Copy)]
    enum Said {
        Has(&'static [&'static str]),
        Fails,
        Nothing,
    }
    use Said::{Fails, Has, Nothing};

    const EMPTY: Said = Has(&[]);

    fn answer(said: Said, family: Family) -> BoxFuture<'static, Result<Answer, AskError>> {
        match said {
            Has(texts) => {
                let answer = Answer { addresses: addresses(texts), time_to_live: None };
                ready(Ok(answer)).boxed()
            }
            Fails => ready(Err(AskError::Slow(family.record()))).boxed(),
            Nothing => pending().boxed(),
        }
    }

    async fn asked(preference: Preference, v4: Said, v6: Said) -> Result<Option<Verdict>, String> {
        let look_up = |family| answer(if family == Family::V4 { v4 } else { v6 }, family);
        let found = ask(preference, routed, look_up).await;
        found.map(|found| found.map(|found| found.verdict)).map_err(|error| error.to_string())
    }

    fn used(family: Family, texts: &[&str]) -> Verdict {
        Verdict::Use(family, addresses(texts))
    }

    fn in_use(family: Family, texts: &[&str]) -> InUse {
        InUse::update(None, &NAME.parse().unwrap(), used(family, texts))
    }

    fn after(before: InUse, verdict: Verdict) -> InUse {
        InUse::update(Some(before), &NAME.parse().unwrap(), verdict)
    }

    fn all(in_use: &InUse) -> BTreeSet<IpAddr> {
        in_use.addresses().collect()
    }

    #[tokio::test]
    async fn ipv4_is_used_at_first_unless_it_has_no_address_or_no_route() {
        for (v4, v6, family, used_addresses) in [
            (Has(V4), Has(V6), Family::V4, V4),
            (Has(V4), Nothing, Family::V4, V4),
            (Has(V4), Fails, Family::V4, V4),
            (EMPTY, Has(V6), Family::V6, V6),
            (Fails, Has(V6), Family::V6, V6),
            (Nothing, Has(V6), Family::V6, V6),
            (Has(V4_WITHOUT_ROUTE), Has(V6), Family::V6, V6),
            (Has(V4), Has(V6_WITHOUT_ROUTE), Family::V4, V4),
            (Has(V4_WITHOUT_ROUTE), Has(V6_WITHOUT_ROUTE), Family::V4, V4_WITHOUT_ROUTE),
            (Has(V4_WITHOUT_ROUTE), Fails, Family::V4, V4_WITHOUT_ROUTE),
            (EMPTY, Has(V6_WITHOUT_ROUTE), Family::V6, V6_WITHOUT_ROUTE),
        ] {
            let verdict = asked(Preference::FIRST, v4, v6).await.unwrap();
            assert_eq!(verdict, Some(used(family, used_addresses)), "{v4:?}, {v6:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_without_a_route_waits_for_the_other_family() {
        for (v4, v6) in [(Has(V4_WITHOUT_ROUTE), Nothing), (Nothing, Has(V6_WITHOUT_ROUTE))] {
            let waits =
                tokio::time::timeout(2 * RESOLUTION_DELAY, asked(Preference::FIRST, v4, v6));
            assert!(waits.await.is_err(), "{v4:?}, {v6:?}");
        }
    }

    #[tokio::test]
    async fn the_family_in_use_stays_while_it_has_addresses() {
        let preference = in_use(Family::V6, V6).preference(routed);
        for (v4, v6, expected) in [
            (Has(V4), Has(V6), used(Family::V6, V6)),
            (Nothing, Has(V6), used(Family::V6, V6)),
            (Has(V4), Fails, Verdict::KeepBeside(addresses(V4))),
            (Has(V4), EMPTY, used(Family::V4, V4)),
        ] {
            let verdict = asked(preference, v4, v6).await.unwrap();
            assert_eq!(verdict, Some(expected), "{v4:?}, {v6:?}");
        }
        let without_route = in_use(Family::V6, V6_WITHOUT_ROUTE).preference(routed);
        let verdict = asked(without_route, Has(V4), Has(V6_WITHOUT_ROUTE)).await.unwrap();
        assert_eq!(verdict, Some(used(Family::V4, V4)));
    }

    #[tokio::test]
    async fn a_name_without_addresses_yields_none_or_the_failure() {
        for preference in [Preference::FIRST, in_use(Family::V4, V4).preference(routed)] {
            assert_eq!(asked(preference, EMPTY, EMPTY).await, Ok(None));
            for (v4, v6, kind) in [
                (Fails, EMPTY, "A query:"),
                (EMPTY, Fails, "AAAA query:"),
                (Fails, Fails, "A query:"),
            ] {
                let error = asked(preference, v4, v6).await.unwrap_err();
                assert!(error.starts_with(kind), "{v4:?}, {v6:?}: {error}");
            }
        }
    }

    #[tokio::test]
    async fn a_family_that_is_silent_for_two_rounds_no_longer_delays_the_other() {
        let mut known = in_use(Family::V4, V4);
        for round in 1..=ROUNDS_ALONE {
            assert_eq!(known.preference(routed).limit, None, "round {round}");
            known = after(known, Verdict::KeepBeside(addresses(V6)));
            assert_eq!(all(&known), addresses(V4), "round {round}");
        }
        let verdict = asked(known.preference(routed), Nothing, Has(V6)).await.unwrap().unwrap();
        assert_eq!(verdict, Verdict::KeepBeside(addresses(V6)));
        known = after(known, verdict);
        assert_eq!(all(&known), addresses(&[V4, V6].concat()));
        known = after(known, used(Family::V4, V4));
        assert_eq!(all(&known), addresses(V4));
        assert_eq!(known.preference(routed).limit, None);
    }

    #[test]
    fn the_last_addresses_stay_for_one_round_after_a_change_of_family() {
        let known = after(in_use(Family::V4, V4), used(Family::V6, V6));
        assert_eq!(all(&known), addresses(&[V4, V6].concat()));
        assert_eq!(all(&after(known, used(Family::V6, V6))), addresses(V6));
    }

    #[test]
    fn addresses_of_another_name_are_dropped() {
        let known = in_use(Family::V4, V4);
        let other = InUse::update(Some(known), &"b.test.".parse().unwrap(), used(Family::V6, V6));
        assert_eq!(all(&other), addresses(V6));
    }
}
