//! The server's heartbeats do not cost the client its connection.

use std::io::Write;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use super::peers::by_hand;
use super::{Counted, fixed, patient};
use crate::support::{DEADLINE, raw};

/// The server answers a request only after some work. The client answers the PINGs that the server
/// sends meanwhile.
#[tokio::test]
async fn a_server_that_sends_pings_while_it_works_keeps_its_connection_and_answers_all() {
    const WORK: Duration = Duration::from_millis(700);
    let endpoint = by_hand(|mut stream| {
        thread::spawn(move || {
            raw::welcome(&mut stream).unwrap();
            let writer = Arc::new(Mutex::new(stream.try_clone().unwrap()));
            let pings = Arc::clone(&writer);
            thread::spawn(move || {
                // Its TTL is that of libzmq, which is never shorter than the interval.
                let ping = raw::command(b"\x04PING\0\x64beat");
                while pings.lock().unwrap().write_all(&ping).is_ok() {
                    thread::sleep(Duration::from_millis(100));
                }
            });
            let (work, requests) = mpsc::channel::<[Vec<u8>; 3]>();
            let (answered, pongs) = mpsc::channel();
            thread::spawn(move || {
                for frames in requests {
                    thread::sleep(WORK);
                    // A PING sent during the work is answered.
                    pongs.try_iter().count();
                    pongs
                        .recv_timeout(DEADLINE)
                        .expect("the client answers a PING during the work");
                    writer.lock().unwrap().write_all(&raw::echo(&frames)).unwrap();
                }
            });
            loop {
                let (flags, body) = raw::read_frame(&mut stream);
                if flags & 4 != 0 {
                    assert_eq!(body, b"\x04PONGbeat");
                    let _ = answered.send(());
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
