//! A cluster, by the crate `redis`, which knows which node has which names.

use std::time::Instant;

use redis::cluster::{ClusterClient, ClusterConnection, cluster_pipe};
use redis::{Cmd, ConnectionInfo, ConnectionLike, RedisError, RedisResult, ServerError, Value};

use super::failure::{failed, left, of_crate};
use super::protocol::{Command, Reply};
use super::tls::Tls;
use super::{Link, Take, Target};
use crate::tier::remote::config::RemoteConfig;
use crate::tier::remote::values::{Answer, Failure};

pub(super) struct Cluster(ClusterClient);

impl Cluster {
    pub(super) fn new(
        config: &RemoteConfig,
        nodes: Vec<ConnectionInfo>,
        tls: Option<Tls>,
    ) -> RedisResult<Self> {
        let mut builder = ClusterClient::builder(nodes)
            .connection_timeout(config.timeout)
            .response_timeout(config.timeout)
            .retries(1);
        if let Some(tls) = tls {
            builder = builder.certs(tls.certificates);
        }
        Ok(Self(builder.build()?))
    }
}

impl Target for Cluster {
    fn connect(&self, _: Instant) -> Answer<Box<dyn Link>> {
        match self.0.get_connection() {
            Ok(connection) => Ok(Box::new(connection)),
            Err(error) => Err(of_crate(&error)),
        }
    }
}

impl Link for ClusterConnection {
    fn talk(&mut self, commands: &[Command<'_>], by: Instant, take: &mut Take<'_>) -> Answer<()> {
        let failed_with = |error: RedisError| of_crate(&error);
        self.set_write_timeout(Some(left(by)?))
            .map_err(failed_with)?;
        self.set_read_timeout(Some(left(by)?))
            .map_err(failed_with)?;
        // A command of no name, such as INFO, goes to all nodes, and not with others.
        if let [one] = commands {
            let answer = self.req_command(&packed(one));
            return give(0, answer, take);
        }
        let mut pipe = cluster_pipe();
        for command in commands {
            pipe.add_command(packed(command));
        }
        match pipe.query::<Vec<Value>>(self) {
            Ok(values) if values.len() == commands.len() => {
                let mut values = values.into_iter().enumerate();
                values.try_for_each(|(index, value)| give(index, Ok(value), take))
            }
            Ok(values) => Err(failed(
                Failure::Protocol,
                format!("{} answers to {} commands", values.len(), commands.len()),
            )),
            // One name with something else under it fails them all.
            Err(error) if of_crate(&error).failure == Failure::WrongType => {
                for (index, command) in commands.iter().enumerate() {
                    self.set_read_timeout(Some(left(by)?))
                        .map_err(failed_with)?;
                    give(index, self.req_command(&packed(command)), take)?;
                }
                Ok(())
            }
            Err(error) => Err(of_crate(&error)),
        }
    }
}

/// Hands an answer out as one of this protocol.
fn give(index: usize, answer: RedisResult<Value>, take: &mut Take<'_>) -> Answer<()> {
    let error = |error: &ServerError| {
        let line = format!("{} {}", error.code(), error.details().unwrap_or_default());
        line.into_bytes()
    };
    let value = match answer {
        Ok(value) => value,
        Err(of) => match of.clone().into_server_errors() {
            Some(errors) if !errors.is_empty() => {
                return take(index, Reply::Error(&error(&errors[0].1)));
            }
            _ => return Err(of_crate(&of)),
        },
    };
    match &value {
        Value::Okay => take(index, Reply::Status(b"OK")),
        Value::SimpleString(text) => take(index, Reply::Status(text.as_bytes())),
        Value::Int(number) => take(index, Reply::Number(*number)),
        Value::BulkString(bytes) => take(index, Reply::Bytes(bytes)),
        Value::Nil => take(index, Reply::Nil),
        Value::ServerError(of) => take(index, Reply::Error(&error(of))),
        // What each node says, one after the other.
        Value::Map(nodes) => {
            let mut all = Vec::new();
            for (_, said) in nodes {
                if let Value::BulkString(text) = said {
                    all.extend_from_slice(text);
                    all.extend_from_slice(b"\r\n");
                }
            }
            take(index, Reply::Bytes(&all))
        }
        other => Err(failed(
            Failure::Protocol,
            format!("a strange answer: {other:?}"),
        )),
    }
}

fn packed(command: &Command<'_>) -> Cmd {
    let mut packed = Cmd::new();
    for word in &command.words {
        packed.arg(&**word);
    }
    packed
}
