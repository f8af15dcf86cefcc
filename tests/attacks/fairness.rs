//! A flood from one peer does not starve the others.

use std::net::Shutdown;
use std::thread;

use super::Attacked;
use crate::support::raw;

#[test]
fn a_flood_from_one_peer_does_not_starve_the_others() {
    let mut attacked = Attacked::start(&[]);
    let flood = raw::dealer(attacked.address(), 0, b"");
    let writing = raw::flood(&flood, raw::frame(&[1; 64], false).repeat(1000));
    let mut replies = flood.try_clone().unwrap();
    let reading = thread::spawn(move || raw::read_until_closed(&mut replies));
    attacked.assert_serves_others();
    flood.shutdown(Shutdown::Both).unwrap();
    writing.join().unwrap();
    reading.join().unwrap();
    attacked.assert_unharmed();
}
