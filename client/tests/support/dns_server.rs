//! A small authoritative name server on loopback, over UDP and TCP.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// How long a negative answer may be cached: longer than any test, so that a client that caches it
/// fails.
const NEGATIVE_TTL: u32 = 600;

/// The largest answer in a datagram. The client has not announced that it accepts more.
const DATAGRAM: usize = 512;

/// What happens to a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Answer,
    ServerFailure,
    Silence,
    /// Answers after this time, over UDP.
    Late(Duration),
}

/// An SRV record.
#[derive(Debug, Clone, Copy)]
pub struct Service<'a> {
    pub priority: u16,
    pub port: u16,
    pub target: &'a str,
}

/// A query that the server received.
#[derive(Debug, Clone)]
pub struct Question {
    pub name: String,
    pub kind: RecordType,
    pub tcp: bool,
    pub at: Instant,
}

/// What the server knows, and the queries that it received.
struct Zone {
    names: BTreeMap<Name, (Vec<IpAddr>, u32)>,
    services: BTreeMap<Name, (Vec<SRV>, u32)>,
    /// Whether SRV answers include the addresses of their targets.
    additional: bool,
    modes: BTreeMap<RecordType, Mode>,
    modes_of_names: BTreeMap<Name, Mode>,
    questions: Vec<Question>,
    stopped: bool,
}

/// The server. Dropping it stops it.
pub struct DnsServer {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    threads: Vec<JoinHandle<()>>,
}

impl DnsServer {
    pub fn start() -> Self {
        let (udp, tcp) = bind();
        let address = udp.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone {
            names: BTreeMap::new(),
            services: BTreeMap::new(),
            additional: true,
            modes: BTreeMap::new(),
            modes_of_names: BTreeMap::new(),
            questions: Vec::new(),
            stopped: false,
        }));
        let (of_udp, of_tcp) = (Arc::clone(&zone), Arc::clone(&zone));
        let threads = vec![
            thread::spawn(move || serve_udp(&udp, &of_udp)),
            thread::spawn(move || serve_tcp(&tcp, &of_tcp)),
        ];
        Self { address, zone, threads }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL with which a client asks this server for `name`.
    pub fn url(&self, name: &str, port: u16) -> String {
        format!("dns://{name}:{port}?server={}", self.address)
    }

    /// Gives a name these addresses, with this time to live. Without addresses the name exists, but
    /// the answer is empty.
    pub fn set(&self, name: &str, addresses: &[&str], ttl: u32) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.zone.lock().unwrap().names.insert(complete(name), (addresses, ttl));
    }

    /// Gives a name these SRV records, with this time to live.
    pub fn set_services(&self, name: &str, services: &[Service<'_>], ttl: u32) {
        let records = services.iter().map(|Service { priority, port, target }| {
            SRV::new(*priority, 0, *port, complete(target))
        });
        self.zone.lock().unwrap().services.insert(complete(name), (records.collect(), ttl));
    }

    /// Sets whether SRV answers include the addresses of their targets. By default they do.
    pub fn set_additional(&self, additional: bool) {
        self.zone.lock().unwrap().additional = additional;
    }

    /// Removes a name: queries for it get NXDOMAIN.
    pub fn remove(&self, name: &str) {
        let mut zone = self.zone.lock().unwrap();
        zone.names.remove(&complete(name));
        zone.services.remove(&complete(name));
    }

    /// Sets what happens to all queries from now on.
    pub fn set_mode(&self, mode: Mode) {
        self.set_mode_of(RecordType::A, mode);
        self.set_mode_of(RecordType::AAAA, mode);
        self.set_mode_of(RecordType::SRV, mode);
    }

    /// Sets what happens to queries for one record type.
    pub fn set_mode_of(&self, kind: RecordType, mode: Mode) {
        self.zone.lock().unwrap().modes.insert(kind, mode);
    }

    /// Sets what happens to queries for one name; this takes precedence over the record type.
    pub fn set_mode_of_name(&self, name: &str, mode: Mode) {
        self.zone.lock().unwrap().modes_of_names.insert(complete(name), mode);
    }

    pub fn questions(&self) -> Vec<Question> {
        self.zone.lock().unwrap().questions.clone()
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        // A test may have failed while it held the lock.
        self.zone.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).stopped = true;
        // Wakes both threads, so that they notice.
        let _ = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|socket| socket.send_to(&[], self.address));
        let _ = TcpStream::connect(self.address);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Binds one port for both. The port that the kernel chose for UDP may be taken for TCP.
fn bind() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
    panic!("no port is free for both UDP and TCP");
}

fn complete(name: &str) -> Name {
    let mut name = Name::from_str_relaxed(name).unwrap().to_lowercase();
    name.set_fqdn(true);
    name
}

fn serve_udp(socket: &UdpSocket, zone: &Mutex<Zone>) {
    let mut buffer = [0; 4096];
    while let Ok((size, client)) = socket.recv_from(&mut buffer) {
        if zone.lock().unwrap().stopped {
            return;
        }
        let Some((answer, delay)) = answer(&buffer[..size], zone, false) else { continue };
        let socket = socket.try_clone().unwrap();
        let send = move || {
            thread::sleep(delay);
            let _ = socket.send_to(&answer, client);
        };
        if delay.is_zero() { send() } else { drop(thread::spawn(send)) }
    }
}

fn serve_tcp(listener: &TcpListener, zone: &Arc<Mutex<Zone>>) {
    for stream in listener.incoming().map_while(Result::ok) {
        if zone.lock().unwrap().stopped {
            return;
        }
        let zone = Arc::clone(zone);
        thread::spawn(move || {
            // Ends when the client closes the connection or stops sending queries.
            let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
            let _ = serve_stream(stream, &zone);
        });
    }
}

fn serve_stream(mut stream: TcpStream, zone: &Mutex<Zone>) -> io::Result<()> {
    loop {
        let mut size = [0; 2];
        stream.read_exact(&mut size)?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(size))];
        stream.read_exact(&mut question)?;
        if let Some((answer, _)) = answer(&question, zone, true) {
            let size = u16::try_from(answer.len())
                .expect("the answer fits into a DNS message")
                .to_be_bytes();
            stream.write_all(&[&size, &answer[..]].concat())?;
        }
    }
}

/// The answer to a query and the delay before it, or `None` for no answer.
fn answer(question: &[u8], zone: &Mutex<Zone>, tcp: bool) -> Option<(Vec<u8>, Duration)> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?.clone();
    let (name, kind) = (query.name().to_lowercase(), query.query_type());
    let mut zone = zone.lock().unwrap();
    zone.questions.push(Question { name: name.to_string(), kind, tcp, at: Instant::now() });
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.authoritative = true;
    answer.add_query(query);
    let of_name = zone.modes_of_names.get(&name).or(zone.modes.get(&kind));
    let mode = of_name.copied().unwrap_or(Mode::Answer);
    let mut delay = Duration::ZERO;
    match mode {
        Mode::Silence => return None,
        Mode::ServerFailure => answer.metadata.response_code = ResponseCode::ServFail,
        Mode::Answer => fill(&mut answer, &name, kind, &zone),
        Mode::Late(late) => {
            delay = late;
            fill(&mut answer, &name, kind, &zone);
        }
    }
    let bytes = answer.to_vec().unwrap();
    if tcp || bytes.len() <= DATAGRAM {
        return Some((bytes, delay));
    }
    answer.answers.clear();
    answer.additionals.clear();
    answer.metadata.truncation = true;
    Some((answer.to_vec().unwrap(), delay))
}

fn fill(answer: &mut Message, name: &Name, kind: RecordType, zone: &Zone) {
    if !zone.names.contains_key(name) && !zone.services.contains_key(name) {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    if kind == RecordType::SRV {
        fill_services(answer, name, zone);
    } else {
        let records = addresses(name, zone).filter(|record| record.record_type() == kind);
        answer.add_answers(records);
    }
    if answer.answers.is_empty() {
        let soa = SOA::new(name.clone(), name.clone(), 1, 3600, 600, 86400, NEGATIVE_TTL);
        answer.add_authority(Record::from_rdata(name.clone(), NEGATIVE_TTL, RData::SOA(soa)));
    }
}

fn fill_services(answer: &mut Message, name: &Name, zone: &Zone) {
    let Some((services, ttl)) = zone.services.get(name) else { return };
    for service in services {
        if zone.additional {
            answer.add_additionals(addresses(&service.target, zone));
        }
        let data = RData::SRV(service.clone());
        answer.add_answer(Record::from_rdata(name.clone(), *ttl, data));
    }
}

fn addresses(name: &Name, zone: &Zone) -> impl Iterator<Item = Record> {
    let known = zone.names.get(name).into_iter();
    known.flat_map(|(addresses, ttl)| addresses.iter().map(move |address| (address, ttl))).map(
        |(address, ttl)| {
            let data = match address {
                IpAddr::V4(address) => RData::A(A(*address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
            };
            Record::from_rdata(name.clone(), *ttl, data)
        },
    )
}
