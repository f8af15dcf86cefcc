//! The part of a cluster's API that a pod needs to ask for EndpointSlices. It uses TLS with the
//! certificate in the account's `ca.crt`, and checks the account's token.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use crate::unique;

/// The name in the certificate.
pub const API: &str = "kubernetes.default.svc";

/// Where kubelet mounts a pod's service account.
pub const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

const TOKEN: &str = "of-the-service-account";

/// The API, on all interfaces of this host, until the test ends.
pub struct Api {
    pub port: u16,
    /// The directory to mount at [`ACCOUNT`].
    pub account: Account,
}

/// A directory with a service account in it.
pub struct Account(pub PathBuf);

impl Drop for Account {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Api {
    /// An API that knows one Service with one endpoint at this address.
    pub fn start(endpoint: IpAddr) -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed([API.to_owned()]).expect("a certificate can be made");
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let config =
            ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
                .with_safe_default_protocol_versions()
                .expect("the default TLS versions are supported")
                .with_no_client_auth()
                .with_single_cert(vec![cert.der().clone()], key)
                .expect("the key belongs to the certificate");
        let (config, slices) = (Arc::new(config), Arc::new(slices(endpoint)));

        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port is free");
        let port = listener.local_addr().expect("the listener has an address").port();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, slices) = (Arc::clone(&config), Arc::clone(&slices));
                thread::spawn(move || serve(stream, config, &slices));
            }
        });
        Self { port, account: account(&cert.pem()) }
    }
}

fn account(certificate: &str) -> Account {
    let account = Account(std::env::temp_dir().join(unique("account")));
    fs::create_dir(&account.0).expect("the directory can be created");
    for (file, text) in [("ca.crt", certificate), ("token", TOKEN), ("namespace", "default")] {
        fs::write(account.0.join(file), text).expect("the file can be written");
    }
    account
}

/// The response to a list.
fn slices(endpoint: IpAddr) -> String {
    let slice = json!({
        "metadata": {"name": "zmq-echo-1", "namespace": "default", "resourceVersion": "1"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [endpoint], "conditions": {"ready": true}}],
        "ports": [{"name": "zeromq", "port": 5555, "protocol": "TCP"}],
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSliceList",
        "metadata": {"resourceVersion": "1"},
        "items": [slice],
    })
    .to_string()
}

/// Answers lists. A watch is held open and gets no events.
fn serve(stream: TcpStream, config: Arc<ServerConfig>, slices: &str) -> io::Result<()> {
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    loop {
        let request = head(&mut stream)?;
        if !request.contains(&format!("authorization: bearer {TOKEN}")) {
            return stream.write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n");
        }
        if request.contains("watch=true") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
            return io::copy(&mut stream, &mut io::sink()).map(drop);
        }
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{slices}", slices.len())?;
    }
}

/// Reads a request's head, in lower case. There is no body.
fn head(stream: &mut impl Read) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).to_lowercase())
}
