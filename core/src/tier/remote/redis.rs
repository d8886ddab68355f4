//! Redis and Valkey as servers of values: single ones, and clusters.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::cluster::{ClusterClient, ClusterConnection, cluster_pipe};
use redis::{
    Client, Connection, ConnectionAddr, ConnectionInfo, ConnectionLike, ErrorKind,
    IntoConnectionInfo, ProtocolVersion, RedisError, Value,
};

use super::config::RemoteConfig;
use super::values::{Answer, Asked, Failure, Got, ServerMemory, Values, ValuesError};
use crate::error::{Error, Result};

/// Arguments of so many bytes are sent from where they lie.
const SENT_ALONE: usize = 16 << 10;

/// One command: its name and arguments.
type Command<'a> = Vec<Cow<'a, [u8]>>;

/// What becomes of each answer, in the order of the commands.
type Take<'a> = dyn FnMut(usize, Answer<Value>) -> Answer<()> + 'a;

enum Target {
    Server(Client),
    Cluster(ClusterClient),
}

enum Link {
    Server(Connection),
    Cluster(Box<ClusterConnection>),
}

/// A server, or a cluster, and the connections to it that nobody uses.
pub struct RedisValues {
    address: String,
    target: Target,
    idle: Mutex<Vec<Link>>,
    /// How many are kept.
    connections: usize,
}

impl fmt::Debug for RedisValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisValues")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl RedisValues {
    /// The servers that a configuration names, or its cluster. Connects to none of them.
    ///
    /// # Errors
    /// [`Error::Config`] for a URL that cannot be used, or two of the same server.
    pub fn all(config: &RemoteConfig) -> Result<Vec<Self>> {
        let infos = config.urls.iter().map(|url| parse(url));
        let infos = infos.collect::<Result<Vec<_>>>()?;
        let mut addresses = infos.iter().map(address).collect::<Vec<_>>();
        let of = |address: String, target| Self {
            address,
            target,
            idle: Mutex::default(),
            connections: config.connections,
        };
        let invalid = |value: String, error: &RedisError| Error::Config {
            name: "remote",
            value,
            remedy: error.to_string(),
        };
        if config.cluster {
            let address = addresses.join(",");
            let client = ClusterClient::builder(infos)
                .connection_timeout(config.timeout)
                .response_timeout(config.timeout)
                .retries(1)
                .build()
                .map_err(|error| invalid(address.clone(), &error))?;
            return Ok(vec![of(address, Target::Cluster(client))]);
        }
        let servers = infos.into_iter().zip(&addresses).map(|(info, address)| {
            let client = Client::open(info).map_err(|error| invalid(address.clone(), &error))?;
            Ok(of(address.clone(), Target::Server(client)))
        });
        let servers = servers.collect::<Result<Vec<_>>>()?;
        addresses.sort_unstable();
        match addresses.windows(2).find(|two| two[0] == two[1]) {
            Some(two) => Err(Error::Config {
                name: "remote",
                value: two[0].clone(),
                remedy: "name each server once".to_owned(),
            }),
            None => Ok(servers),
        }
    }

    fn connect(&self, by: Instant) -> Answer<Link> {
        let link = match &self.target {
            Target::Server(client) => client
                .get_connection_with_timeout(left(by)?)
                .map(Link::Server),
            Target::Cluster(client) => client
                .get_connection()
                .map(|connection| Link::Cluster(Box::new(connection))),
        };
        link.map_err(|error| self.error(&error))
    }

    /// Sends commands and hands out their answers. A connection that turns out to have been closed while nobody used it is replaced
    /// once.
    fn talk(&self, commands: &[Command<'_>], by: Instant, take: &mut Take<'_>) -> Answer<()> {
        if commands.is_empty() {
            return Ok(());
        }
        let idle = self.idle.lock().pop();
        if let Some(mut link) = idle {
            let mut answered = false;
            let outcome = self.talk_over(&mut link, commands, by, &mut |index, answer| {
                answered = true;
                take(index, answer)
            });
            match outcome {
                Err(error) if error.failure == Failure::Refused && !answered => {
                    // The others are as old.
                    let stale = std::mem::take(&mut *self.idle.lock());
                    drop(stale);
                }
                outcome => return self.settle(link, outcome),
            }
        }
        let mut link = self.connect(by)?;
        let outcome = self.talk_over(&mut link, commands, by, take);
        self.settle(link, outcome)
    }

    /// Keeps a connection on which all was answered.
    fn settle(&self, link: Link, outcome: Answer<()>) -> Answer<()> {
        outcome?;
        let mut idle = self.idle.lock();
        if idle.len() < self.connections {
            idle.push(link);
        }
        Ok(())
    }

    fn talk_over(
        &self,
        link: &mut Link,
        commands: &[Command<'_>],
        by: Instant,
        take: &mut Take<'_>,
    ) -> Answer<()> {
        match link {
            Link::Server(connection) => self.talk_to_server(connection, commands, by, take),
            Link::Cluster(connection) => self.talk_to_cluster(connection, commands, by, take),
        }
    }

    fn talk_to_server(
        &self,
        connection: &mut Connection,
        commands: &[Command<'_>],
        by: Instant,
        take: &mut Take<'_>,
    ) -> Answer<()> {
        let failed = |error: RedisError| self.error(&error);
        connection
            .set_write_timeout(Some(left(by)?))
            .map_err(failed)?;
        let mut packed = Vec::new();
        for command in commands {
            packed.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
            for argument in command {
                packed.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
                if argument.len() < SENT_ALONE {
                    packed.extend_from_slice(argument);
                } else {
                    connection.send_packed_command(&packed).map_err(failed)?;
                    connection.send_packed_command(argument).map_err(failed)?;
                    packed.clear();
                }
                packed.extend_from_slice(b"\r\n");
            }
        }
        connection.send_packed_command(&packed).map_err(failed)?;
        for index in 0..commands.len() {
            connection
                .set_read_timeout(Some(left(by)?))
                .map_err(failed)?;
            let value = connection.recv_response().map_err(failed)?;
            take(index, self.checked(value))?;
        }
        Ok(())
    }

    fn talk_to_cluster(
        &self,
        connection: &mut ClusterConnection,
        commands: &[Command<'_>],
        by: Instant,
        take: &mut Take<'_>,
    ) -> Answer<()> {
        let failed = |error: RedisError| self.error(&error);
        connection
            .set_write_timeout(Some(left(by)?))
            .map_err(failed)?;
        connection
            .set_read_timeout(Some(left(by)?))
            .map_err(failed)?;
        let mut pipe = cluster_pipe();
        for command in commands {
            pipe.add_command(packed(command));
        }
        match pipe.query::<Vec<Value>>(connection) {
            Ok(values) if values.len() == commands.len() => {
                let mut values = values.into_iter().enumerate();
                values.try_for_each(|(index, value)| take(index, self.checked(value)))
            }
            Ok(values) => Err(ValuesError::new(
                Failure::Protocol,
                format!("{} answers to {} commands", values.len(), commands.len()),
            )),
            // One name with something else under it fails them all.
            Err(error) if self.error(&error).failure == Failure::WrongType => {
                for (index, command) in commands.iter().enumerate() {
                    connection
                        .set_read_timeout(Some(left(by)?))
                        .map_err(failed)?;
                    let answer = connection.req_command(&packed(command));
                    take(index, answer.map_err(failed))?;
                }
                Ok(())
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn checked(&self, value: Value) -> Answer<Value> {
        match value {
            Value::ServerError(error) => Err(self.error(&error.into())),
            value => Ok(value),
        }
    }

    /// What kind of failure an error is, and what to say of it.
    fn error(&self, error: &RedisError) -> ValuesError {
        let failure = failure_of(error);
        let hint = match failure {
            Failure::Auth => "; check user, password and what the user may do",
            Failure::Redirect => "; this is a cluster, open the store with remote_cluster",
            Failure::OutOfMemory => "; give the server more maxmemory, or an eviction policy",
            Failure::Protocol => "; is this a Redis or Valkey server?",
            Failure::Timeout => "; it did not answer in time",
            _ => "",
        };
        ValuesError::new(failure, format!("{}: {error}{hint}", self.address))
    }

    /// One answer to each name.
    fn each<T>(
        &self,
        command: &'static [u8],
        names: &[Vec<u8>],
        by: Instant,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Answer<Vec<T>> {
        let commands = names.iter().map(|name| vec![command.into(), name.into()]);
        let mut out = Vec::with_capacity(names.len());
        self.talk(&commands.collect::<Vec<_>>(), by, &mut |_, answer| {
            out.push(read(&answer?).ok_or_else(|| self.strange(command))?);
            Ok(())
        })?;
        Ok(out)
    }

    fn strange(&self, command: &[u8]) -> ValuesError {
        let command = String::from_utf8_lossy(command);
        let message = format!("{}: a strange answer to {command}", self.address);
        ValuesError::new(Failure::Protocol, message)
    }
}

impl Values for RedisValues {
    fn address(&self) -> &str {
        &self.address
    }

    fn get(
        &self,
        asked: &[Asked],
        by: Instant,
        take: &mut dyn FnMut(usize, Got<'_>),
    ) -> Answer<()> {
        let commands = asked.iter().map(|asked| -> Command<'_> {
            let name = Cow::from(&asked.name);
            match &asked.range {
                None => vec![b"GET".into(), name],
                Some(range) => {
                    // Both ends are included.
                    let [first, last] = [range.start, range.end.saturating_sub(1)]
                        .map(|at| Cow::from(at.to_string().into_bytes()));
                    vec![b"GETRANGE".into(), name, first, last]
                }
            }
        });
        let commands = commands.collect::<Vec<_>>();
        self.talk(&commands, by, &mut |index, answer| {
            match answer {
                Ok(Value::BulkString(bytes)) if !bytes.is_empty() => {
                    take(index, Got::Bytes(&bytes));
                }
                Ok(Value::BulkString(_) | Value::Nil) => take(index, Got::Missing),
                Ok(_) => return Err(self.strange(&commands[index][0])),
                Err(error) if error.failure == Failure::WrongType => take(index, Got::WrongType),
                Err(error) => return Err(error),
            }
            Ok(())
        })
    }

    fn put(&self, entries: &[(&[u8], &[u8])], ttl: Duration, by: Instant) -> Answer<()> {
        let ttl = ttl.as_millis().max(1).to_string().into_bytes();
        let commands = entries.iter().map(|(name, value)| -> Command<'_> {
            vec![
                b"SET".into(),
                Cow::Borrowed(name),
                Cow::Borrowed(value),
                b"PX".into(),
                Cow::Borrowed(&ttl),
            ]
        });
        self.talk(
            &commands.collect::<Vec<_>>(),
            by,
            &mut |_, answer| match answer? {
                Value::Okay => Ok(()),
                _ => Err(self.strange(b"SET")),
            },
        )
    }

    fn exists(&self, names: &[Vec<u8>], by: Instant) -> Answer<Vec<bool>> {
        self.each(b"EXISTS", names, by, flag)
    }

    fn remove(&self, names: &[Vec<u8>], by: Instant) -> Answer<Vec<bool>> {
        self.each(b"UNLINK", names, by, flag)
    }

    fn ping(&self, by: Instant) -> Answer<()> {
        // A read, which a user that may not read is refused, and a cluster redirects.
        self.exists(&[b"kvlab:ping".to_vec()], by).map(|_| ())
    }

    fn memory(&self, by: Instant) -> Answer<Option<ServerMemory>> {
        if matches!(self.target, Target::Cluster(_)) {
            return Ok(None);
        }
        let mut memory = None;
        let info: Command<'_> = vec![b"INFO".into(), b"memory".into()];
        self.talk(&[info], by, &mut |_, answer| {
            let Value::BulkString(text) = answer? else {
                return Err(self.strange(b"INFO"));
            };
            let text = String::from_utf8_lossy(&text);
            let number = |name| {
                let line = text.lines().find_map(|line| line.strip_prefix(name))?;
                line.parse::<u64>().ok()
            };
            memory = number("used_memory:").map(|used| ServerMemory {
                used,
                limit: number("maxmemory:").unwrap_or(0),
            });
            Ok(())
        })?;
        Ok(memory)
    }
}

fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Int(count) => Some(*count > 0),
        _ => None,
    }
}

fn packed(command: &Command<'_>) -> redis::Cmd {
    let mut packed = redis::Cmd::new();
    for argument in command {
        packed.arg(&**argument);
    }
    packed
}

/// The time until `by`.
fn left(by: Instant) -> Answer<Duration> {
    let left = by.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ValuesError::new(Failure::Timeout, "the time was over"));
    }
    Ok(left)
}

fn failure_of(error: &RedisError) -> Failure {
    if error.is_timeout() {
        return Failure::Timeout;
    }
    let code = error.code().map(str::to_owned).or_else(|| {
        let errors = error.clone().into_server_errors()?;
        errors.first().map(|(_, error)| error.code().to_owned())
    });
    match (code.as_deref(), error.kind()) {
        (Some("WRONGTYPE"), _) => Failure::WrongType,
        (Some("OOM"), _) => Failure::OutOfMemory,
        (Some("NOAUTH" | "WRONGPASS" | "NOPERM"), _) | (_, ErrorKind::AuthenticationFailed) => {
            Failure::Auth
        }
        (Some("MOVED" | "ASK"), _) => Failure::Redirect,
        (_, ErrorKind::Parse | ErrorKind::UnexpectedReturnType) => Failure::Protocol,
        (_, ErrorKind::Io) => Failure::Refused,
        _ => Failure::Other,
    }
}

fn parse(url: &str) -> Result<ConnectionInfo> {
    let refuse = |why: String| Error::Config {
        name: "remote",
        value: without_password(url),
        remedy: format!(
            "{why}; write redis://[user:password@]host[:port][/database], rediss:// for TLS, or redis+unix:///path"
        ),
    };
    let info = url
        .into_connection_info()
        .map_err(|error| refuse(error.to_string()))?;
    if let ConnectionAddr::TcpTls { insecure: true, .. } = info.addr() {
        return Err(refuse(
            "TLS without a check of the certificate protects nothing".to_owned(),
        ));
    }
    if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        // Fails if the process has chosen another one already, which does as well.
        let chosen = rustls::crypto::ring::default_provider().install_default();
        if chosen.is_err() {
            log::debug!("TLS uses the cryptography that the process chose");
        }
    }
    let settings = info.redis_settings().clone();
    let settings = settings
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name();
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    Ok(info.set_redis_settings(settings).set_tcp_settings(tcp))
}

/// The name of a server: where it is, and which of its databases.
fn address(info: &ConnectionInfo) -> String {
    match info.redis_settings().db() {
        0 => info.addr().to_string(),
        database => format!("{}/{database}", info.addr()),
    }
}

/// A URL without user and password.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    let place = place.split_once('?').map_or(place, |(place, _)| place);
    if scheme.is_empty() {
        place.to_owned()
    } else {
        format!("{scheme}://{place}")
    }
}
