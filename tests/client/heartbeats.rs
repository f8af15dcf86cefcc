//! A server's heartbeats do not cost its connection.

use std::io::Write;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::peers::by_hand;
use super::{Counted, fixed, patient};
use crate::support::raw;

/// As libzmq's ROUTER with ZMQ_HEARTBEAT_IVL, but more patient: so many PINGs may lack a PONG.
const MISSING: i32 = 50;

#[tokio::test]
async fn a_server_that_sends_pings_while_it_works_keeps_its_connection_and_answers_all() {
    const WORK: Duration = Duration::from_millis(700);
    let endpoint = by_hand(|mut stream| {
        thread::spawn(move || {
            raw::welcome(&mut stream).unwrap();
            let writer = Arc::new(Mutex::new(stream.try_clone().unwrap()));
            let missing = Arc::new(AtomicI32::new(0));
            let (pings, lacks) = (Arc::clone(&writer), Arc::clone(&missing));
            thread::spawn(move || {
                while lacks.fetch_add(1, SeqCst) < MISSING {
                    // Its TTL is that of libzmq, which is never shorter than the interval.
                    let ping = raw::command(b"\x04PING\0\x64beat");
                    if pings.lock().unwrap().write_all(&ping).is_err() {
                        return;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
                let _ = pings.lock().unwrap().shutdown(std::net::Shutdown::Both);
            });
            let (work, requests) = std::sync::mpsc::channel();
            thread::spawn(move || {
                for frames in requests {
                    let frames: [Vec<u8>; 3] = frames;
                    thread::sleep(WORK);
                    writer.lock().unwrap().write_all(&raw::echo(&frames)).unwrap();
                }
            });
            loop {
                let (flags, body) = raw::read_frame(&mut stream);
                if flags & 4 != 0 {
                    assert_eq!(body, b"\x04PONGbeat");
                    missing.fetch_sub(1, SeqCst);
                    continue;
                }
                let [delimiter, payload] = [(); 2].map(|()| raw::read_frame(&mut stream).1);
                let _ = work.send([body, delimiter, payload]);
            }
        });
    });
    let client = Counted::new(patient(), fixed(&[&endpoint]));
    let asked: Vec<_> = (0..5).map(|_| client.spawn("work")).collect();
    for asked in asked {
        let reply = asked.await.unwrap().unwrap();
        assert_eq!((reply.payload, reply.attempts), ("work".into(), 1));
    }
    let made = client.metric("zmq_echo_client_connections_total{outcome=\"established\"}");
    assert_eq!(made, 1.0);
}
