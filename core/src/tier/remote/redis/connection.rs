//! A connection to a single server.

use std::sync::Arc;
use std::time::Instant;

use redis::ConnectionInfo;
use rustls::ClientConfig;

use super::failure::{failed, of_io, of_reading, said, saying};
use super::protocol::{Command, ReadError, Reader, Reply};
use super::stream::Stream;
use super::{Link, Take, Target};
use crate::tier::remote::values::{Answer, Failure, ValuesError};

/// A single server.
pub(super) struct Single {
    pub(super) info: ConnectionInfo,
    pub(super) tls: Option<Arc<ClientConfig>>,
}

struct Connection {
    stream: Stream,
    reader: Reader,
}

impl Target for Single {
    fn connect(&self, by: Instant) -> Answer<Box<dyn Link>> {
        let mut connection = Connection {
            stream: Stream::open(self.info.addr(), self.tls.as_ref(), by)?,
            reader: Reader::default(),
        };
        self.greet(&mut connection, by)?;
        Ok(Box::new(connection))
    }
}

impl Single {
    /// Says who this is, and which database is meant.
    fn greet(&self, connection: &mut Connection, by: Instant) -> Answer<()> {
        let settings = self.info.redis_settings();
        let database = settings.db().to_string();
        let mut commands = Vec::new();
        let password = settings.password();
        if let Some(password) = password {
            commands.push(match settings.username() {
                Some(user) => Command::new([b"AUTH", user.as_bytes(), password.as_bytes()], 0),
                None => Command::new([b"AUTH", password.as_bytes()], 0),
            });
        }
        if settings.db() != 0 {
            commands.push(Command::new([b"SELECT", database.as_bytes()], 0));
        }
        if commands.is_empty() {
            return Ok(());
        }
        connection.talk(&commands, by, &mut |index, reply| match reply {
            Reply::Status(b"OK") => Ok(()),
            Reply::Error(line) if index == 0 => Err(match password {
                Some(password) => refused(line, password),
                None => said(line),
            }),
            Reply::Error(line) => Err(said(line)),
            _ => Err(failed(
                Failure::Protocol,
                "a strange answer to AUTH or SELECT",
            )),
        })
    }
}

/// A server that does not know AUTH repeats what it was told.
fn refused(line: &[u8], password: &str) -> ValuesError {
    let text = String::from_utf8_lossy(line);
    if text.contains("unknown command") || text.contains(password) {
        return failed(Failure::Auth, "it does not know AUTH");
    }
    failed(Failure::Auth, saying(line))
}

impl Link for Connection {
    fn talk(&mut self, commands: &[Command<'_>], by: Instant, take: &mut Take<'_>) -> Answer<()> {
        self.stream.until(by);
        if let Err(error) = Command::send(commands, &mut self.stream) {
            let why = self.why(&of_io(&error));
            return Err(in_handshake(&self.stream, why));
        }
        for (index, command) in commands.iter().enumerate() {
            let reply = self.reader.reply(&mut self.stream, command.most);
            let reply = reply.map_err(|error| in_handshake(&self.stream, of_reading(error)));
            take(index, reply?)?;
        }
        self.reader.trim();
        Ok(())
    }
}

impl Connection {
    /// A server that turns someone away says why, and then closes the connection.
    fn why(&mut self, error: &ValuesError) -> ValuesError {
        if error.failure == Failure::Refused {
            match self.reader.reply(&mut self.stream, 0) {
                Ok(Reply::Error(line)) => return said(line),
                Err(ReadError::Io(said)) if of_io(&said).failure == Failure::Auth => {
                    return of_io(&said);
                }
                _ => {}
            }
        }
        error.clone()
    }
}

/// What knows no TLS closes the connection, or waits for more.
fn in_handshake(stream: &Stream, error: ValuesError) -> ValuesError {
    if stream.is_handshaking() && matches!(error.failure, Failure::Timeout | Failure::Refused) {
        let message = format!("TLS: {error}; does it speak TLS at this port?");
        return ValuesError::new(error.failure, message);
    }
    error
}
