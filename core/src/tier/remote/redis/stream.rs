//! Bytes to and from a server, by TCP, TLS or a socket of the machine; nothing takes longer than its deadline.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use redis::ConnectionAddr;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::failure::{failed, left, of_io};
use crate::tier::remote::values::{Answer, Failure, time_of};

/// A connection.
pub(super) enum Stream {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

impl Stream {
    pub(super) fn open(
        place: &ConnectionAddr,
        tls: Option<&Arc<ClientConfig>>,
        by: Instant,
    ) -> Answer<Self> {
        let socket = match place {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                Socket::Tcp(connect(host, *port, by)?)
            }
            ConnectionAddr::Unix(path) => Socket::Unix(connect_here(path, by)?),
            other => {
                let message = format!("{other}: no way to connect");
                return Err(failed(Failure::Other, message));
            }
        };
        let timed = Timed { socket, by };
        let (ConnectionAddr::TcpTls { host, .. }, Some(tls)) = (place, tls) else {
            return Ok(Self::Plain(timed));
        };
        let other = |error: String| failed(Failure::Other, format!("TLS: {error}"));
        let name = ServerName::try_from(host.clone()).map_err(|error| other(error.to_string()))?;
        let session = ClientConnection::new(Arc::clone(tls), name)
            .map_err(|error| other(error.to_string()))?;
        Ok(Self::Tls(Box::new(StreamOwned::new(session, timed))))
    }

    /// Whether TLS was begun and is not agreed on.
    pub(super) fn is_handshaking(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.conn.is_handshaking())
    }

    /// From now on everything has to be done by then.
    pub(super) fn until(&mut self, by: Instant) {
        match self {
            Self::Plain(timed) => timed.by = by,
            Self::Tls(tls) => tls.sock.by = by,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(timed) => timed.read(into),
            Self::Tls(tls) => tls.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(timed) => timed.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(timed) => timed.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

/// A socket whose every read and write ends by a deadline, however many of them one answer takes. Bytes put it off as they come.
pub(super) struct Timed {
    socket: Socket,
    by: Instant,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Timed {
    fn arm(&self, direction: Timeout) -> io::Result<()> {
        let left = self.by.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match &self.socket {
            Socket::Tcp(stream) => set_socket_timeout(stream, direction, Some(left))?,
            Socket::Unix(stream) => set_socket_timeout(stream, direction, Some(left))?,
        }
        Ok(())
    }
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.arm(Timeout::Recv)?;
        let count = match &mut self.socket {
            Socket::Tcp(stream) => stream.read(into),
            Socket::Unix(stream) => stream.read(into),
        }?;
        self.by += time_of(count as u64);
        Ok(count)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.arm(Timeout::Send)?;
        match &mut self.socket {
            Socket::Tcp(stream) => stream.write(bytes),
            Socket::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects to the first address of a host that answers; each has its part of the time that is left.
fn connect(host: &str, port: u16, by: Instant) -> Answer<TcpStream> {
    let addresses = resolve(host, port, by)?;
    let mut outcome = Err(failed(
        Failure::Refused,
        format!("the name {host} has no address"),
    ));
    for (index, address) in addresses.iter().enumerate() {
        let part = left(by)? / (addresses.len() - index) as u32;
        let connected = TcpStream::connect_timeout(address, part);
        let connected = connected.and_then(|stream| {
            stream.set_nodelay(true)?;
            Ok(stream)
        });
        outcome = connected.map_err(|error| of_io(&error));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// The addresses of a host. The system's resolver knows no deadline: it is asked by a thread, which is left to itself if it takes
/// too long and ends when the resolver does. A server that did not answer is not asked again at once, so that there are few of them.
fn resolve(host: &str, port: u16, by: Instant) -> Answer<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (tell, told) = mpsc::channel();
    let name = host.to_owned();
    let thread = thread::Builder::new().name("kvlab-resolve".to_owned());
    let started = thread.spawn(move || {
        let addresses = (name.as_str(), port).to_socket_addrs();
        // Nobody listens any more if that took too long.
        drop(tell.send(addresses.map(Iterator::collect)));
    });
    started.map_err(|error| of_io(&error))?;
    match told.recv_timeout(left(by)?) {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(failed(
            Failure::Refused,
            format!("the name {host} cannot be resolved: {error}"),
        )),
        Err(_) => Err(failed(
            Failure::Timeout,
            format!("the name {host} was not resolved"),
        )),
    }
}

/// Connects to a socket of the machine. A server whose queue is full is waited for like a write.
fn connect_here(path: &Path, by: Instant) -> Answer<UnixStream> {
    let connected = || -> io::Result<UnixStream> {
        let family = AddressFamily::UNIX;
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        let left = by.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        set_socket_timeout(&socket, Timeout::Send, Some(left))?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(UnixStream::from(socket))
    };
    connected().map_err(|error| of_io(&error))
}
