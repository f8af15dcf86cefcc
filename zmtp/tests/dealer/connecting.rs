//! Several addresses, one connection.

use std::time::Instant;

use socket2::{Domain, Socket, Type};

use super::*;

/// Far longer than any of these tests takes.
const PATIENT: Duration = Duration::from_secs(20);

fn patient() -> DealerConfig {
    DealerConfig { connect_timeout: PATIENT, ..config() }
}

/// An address where connecting never completes, as if packets were lost.
struct BlackHole {
    address: SocketAddr,
    _listener: Socket,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        // On a busy machine, a single attempt may just be late. If several in a row fail, packets
        // are lost.
        let mut lost = 0;
        while lost < 3 {
            match TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
                Ok(stream) => (lost, _) = (0, queued.push(stream)),
                Err(_) => lost += 1,
            }
        }
        Self { address, _listener: listener, _queued: queued }
    }
}

/// A server that counts its connections, greets each one and sends it a message.
struct Counting {
    address: SocketAddr,
    listener: TcpListener,
}

impl Counting {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = listener.try_clone().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = accepting.accept().unwrap();
            welcome(&mut stream, 1);
            stream.write_all(&raw::frame(b"hello", false)).unwrap();
            raw::read_until_closed(&mut stream);
        });
        Self { address, listener }
    }

    /// Checks that the connection works, and that it was the only one.
    async fn assert_only_connection(self, mut dealer: Dealer) {
        assert_eq!(dealer.address(), self.address);
        assert_eq!(payload(&mut dealer).await, b"hello");
        drop(dealer);
        self.listener.set_nonblocking(true).unwrap();
        assert!(self.listener.accept().is_err(), "the DEALER opened a second connection");
    }
}

#[tokio::test]
async fn a_second_address_is_used_if_the_first_is_a_black_hole() {
    let hole = BlackHole::new();
    let good = Counting::new();
    let started = Instant::now();
    let dealer = connect_to(&[hole.address, good.address], &patient()).await.unwrap();
    assert!(started.elapsed() < PATIENT, "connecting took {:?}", started.elapsed());
    good.assert_only_connection(dealer).await;
    let config = DealerConfig { connect_timeout: Duration::from_millis(300), ..config() };
    let error = connect_to(&[hole.address], &config).await.unwrap_err();
    assert!(matches!(error, ConnectError::ConnectTimeout(_)), "{error:?}");
}

#[tokio::test]
async fn a_second_address_is_used_at_once_if_the_first_refuses() {
    let refuses = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut fastest = PATIENT;
    for _ in 0..10 {
        let good = Counting::new();
        let started = Instant::now();
        let dealer = connect_to(&[refuses, good.address], &patient()).await.unwrap();
        fastest = fastest.min(started.elapsed());
        good.assert_only_connection(dealer).await;
    }
    assert!(
        fastest < Duration::from_millis(250),
        "the second address was used only after {fastest:?}, so a timer was awaited"
    );
    let error = connect_to(&[refuses, refuses], &patient()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Connect { address, .. } if address == refuses));
}

#[tokio::test]
async fn a_second_address_is_used_if_the_first_accepts_and_does_not_greet() {
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let deaf_address = deaf.local_addr().unwrap();
    let good = Counting::new();
    let config = DealerConfig { connect_timeout: Duration::from_secs(6), ..config() };
    let dealer = connect_to(&[deaf_address, good.address], &config).await.unwrap();
    good.assert_only_connection(dealer).await;
    let config = DealerConfig { connect_timeout: Duration::from_millis(200), ..config };
    let error = connect_to(&[deaf_address], &config).await.unwrap_err();
    assert!(matches!(error, ConnectError::HandshakeTimeout { .. }), "{error:?}");
}

#[tokio::test]
async fn a_servers_refusal_is_shown_with_control_characters_escaped() {
    let (address, server) = server(|mut stream| {
        stream.write_all(&raw::greeting(1)).unwrap();
        stream.write_all(&raw::error("no\n\x1b[31mentry\"\u{e9}")).unwrap();
        raw::read_until_closed(&mut stream);
    });
    let error = connect_to(&[address], &config()).await.unwrap_err();
    assert!(error.is_of_handshake());
    let text = error.to_string();
    assert_eq!(text, r#"the server refuses the connection: no\n\u{1b}[31mentry"é"#);
    server.join().unwrap();
}
