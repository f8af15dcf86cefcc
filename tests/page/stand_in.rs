//! A side port that returns whatever the test wants.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::Server;

/// Serves the page of a real server with its headers, and a registry that the test writes.
pub struct StandIn {
    pub address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

/// The n-th response to `/metrics`.
type Script = Box<dyn FnMut() -> String + Send>;

impl StandIn {
    pub fn new(script: impl FnMut() -> String + Send + 'static) -> Self {
        let page = page_as_sent();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(script)));
        let shared = Arc::clone(&script);
        thread::spawn(move || {
            for stream in listener.incoming() {
                // Browsers open connections that they do not use.
                let (page, script) = (page.clone(), Arc::clone(&shared));
                thread::spawn(move || answer(&stream.unwrap(), &page, &script));
            }
        });
        Self { address, script }
    }

    /// Changes the response to `/metrics` from now on.
    pub fn respond_with(&self, script: impl FnMut() -> String + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }
}

fn page_as_sent() -> Vec<u8> {
    let server = Server::start(&[]);
    let mut stream = TcpStream::connect(server.http).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: here\r\nAccept: text/html\r\n\r\n").unwrap();
    let mut page = Vec::new();
    stream.read_to_end(&mut page).expect("the side port closes the connection");
    page
}

fn answer(stream: &TcpStream, page: &[u8], script: &Mutex<Script>) {
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let mut stream = stream;
    let _ = match head.first().map(String::as_str) {
        Some(line) if line.starts_with("GET / ") => stream.write_all(page),
        Some(line) if line.starts_with("GET /metrics ") => {
            let body = (*script.lock().unwrap())();
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/plain";
            let length = body.len();
            write!(stream, "{head}\r\ncontent-length: {length}\r\n\r\n{body}")
        }
        Some(_) => write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
        None => Ok(()),
    };
}
