//! Servers that are down, hang, lose everything, have no memory, or are something else: never a wrong byte, nothing raised on the
//! data path, one wait at most, all of it counted.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

mod disk_support;
mod remote_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use disk_support::{Shape, header, namespace, source};
use kvlab_core::Error;
use kvlab_core::clock::Clock;
use kvlab_core::run::RunHeader;
use kvlab_core::tier::remote::{BreakerState, EncryptionKey, RemoteConfig, RemoteTier};
use kvlab_core::tier::{Put, ReadFailure, Refusal, SharedTier};
use remote_support::{
    RedisServer, errors, eventually, find, free_port, read_back, remote, share, strange_server,
    tier,
};

fn run(seed: u32) -> RunHeader {
    header(namespace("m"), namespace("m"), seed, 3, &[5000, 70_000])
}

/// Settings that give up soon: what hangs here hangs for good.
fn hasty(url: String) -> RemoteConfig {
    RemoteConfig {
        timeout: Duration::from_millis(300),
        ..remote(&[url])
    }
}

fn state(tier: &RemoteTier) -> BreakerState {
    tier.stats().servers[0].state
}

#[test]
fn a_store_opens_without_its_server_and_uses_it_once_it_answers() {
    let port = free_port();
    let tier = tier(&hasty(format!("redis://127.0.0.1:{port}")));
    assert_ne!(state(&tier), BreakerState::Closed);
    let health = tier.health().remove(0);
    assert!(
        health
            .error
            .is_some_and(|error| error.contains(&port.to_string()))
    );
    assert!(health.latency.is_none() && health.memory.is_none());
    let counted = tier.stats().errors;
    assert!(counted.refused >= 1);
    assert_eq!(
        share(&tier, &[run(1)]),
        [Put::Refused(Refusal::Unavailable)]
    );
    assert_eq!(read_back(&tier, &run(1).keys, Shape::Odd).0, 0);
    let refused = tier.remove(&run(1).keys).expect_err("nobody did it");
    assert!(
        matches!(&refused, Error::Remote { address, .. } if address.contains(&port.to_string())),
        "{refused}"
    );
    let stats = tier.stats();
    assert_eq!((stats.refusals.unavailable, stats.missed_blocks), (1, 3));
    // It comes up.
    let server = RedisServer::start_at(port, &[]);
    eventually("it is used", || state(&tier) == BreakerState::Closed);
    assert_eq!(share(&tier, &[run(1)]), [Put::Queued]);
    assert_eq!(read_back(&tier, &run(1).keys, Shape::Odd), (3, Vec::new()));
    let health = tier.health().remove(0);
    assert!(health.error.is_none() && health.latency.is_some());
    assert!(health.memory.is_some_and(|memory| memory.used > 0));
    assert!(tier.stats().servers[0].trouble.is_none());
    drop(server);
}

#[test]
fn killed_between_lookup_and_read_restarted_and_filled_again() {
    let mut server = RedisServer::start(&[]);
    let tier = tier(&hasty(server.url()));
    share(&tier, &[run(1)]);
    let (pinned, _) = find(&tier, &run(1).keys[0]).expect("it is there");
    server.kill();
    assert_eq!(
        disk_support::check(&*pinned, Shape::Odd),
        Err(ReadFailure::Io)
    );
    // Restarted while connections to the old one are kept: they are replaced, nothing fails.
    server.restart();
    eventually("it is asked", || {
        find(&tier, &run(1).keys[0]);
        state(&tier) == BreakerState::Closed
    });
    assert!(find(&tier, &run(1).keys[0]).is_none(), "it lost everything");
    assert!(!tier.knows(&run(1).keys[0]), "and that is known");
    assert_eq!(
        disk_support::check(&*pinned, Shape::Odd),
        Err(ReadFailure::Gone)
    );
    assert_eq!(share(&tier, &[run(1)]), [Put::Queued]);
    assert_eq!(read_back(&tier, &run(1).keys, Shape::Odd), (3, Vec::new()));
    // Again, without a lookup while it was down: a kept connection turns out stale, and is replaced within the call.
    server.kill();
    server.restart();
    let before = errors(&tier.stats());
    assert!(find(&tier, &run(1).keys[0]).is_none());
    assert_eq!(errors(&tier.stats()), before, "no error");
    // Everything flushed.
    share(&tier, &[run(2)]);
    server.command(&[b"FLUSHALL"]);
    assert!(tier.knows(&run(2).keys[0]), "nobody said so");
    assert_eq!(read_back(&tier, &run(2).keys, Shape::Odd).0, 0);
    assert!(!tier.knows(&run(2).keys[0]));
}

#[test]
fn a_hung_server_is_waited_for_once() {
    let server = RedisServer::start(&[]);
    let tier = tier(&hasty(server.url()));
    share(&tier, &[run(1)]);
    let (pinned, _) = find(&tier, &run(1).keys[0]).expect("it is there");
    server.hang();
    for _ in 0..50 {
        assert!(find(&tier, &run(1).keys[0]).is_none());
        assert_eq!(
            disk_support::check(&*pinned, Shape::Odd),
            Err(ReadFailure::Io)
        );
    }
    let stats = tier.stats();
    assert_eq!(stats.servers[0].opened, 1);
    // The one, and probes of the thread behind.
    assert!(
        (1..=4).contains(&stats.errors.timeouts),
        "{:?}",
        stats.errors
    );
    assert_eq!(errors(&stats), stats.errors.timeouts);
    assert!(
        stats.servers[0]
            .trouble
            .as_ref()
            .is_some_and(|trouble| trouble.contains("time"))
    );
    assert_eq!(
        share(&tier, &[run(2)]),
        [Put::Refused(Refusal::Unavailable)]
    );
    server.go_on();
    eventually("it is used again", || state(&tier) == BreakerState::Closed);
    assert_eq!(read_back(&tier, &run(1).keys, Shape::Odd), (3, Vec::new()));
}

#[test]
fn a_server_that_is_slow_at_every_step_is_waited_for_as_long_as_one_that_hangs() {
    let server = RedisServer::start(&[]);
    let runs = (0..40).map(run).collect::<Vec<_>>();
    share(&tier(&remote(&[server.url()])), &runs);
    let place = ("127.0.0.1", server.port);
    let slow = strange_server(move |asked| {
        thread::sleep(Duration::from_millis(60));
        let mut stream = TcpStream::connect(place).expect("it listens");
        stream.write_all(asked).expect("sent");
        let quiet = Some(Duration::from_millis(30));
        stream.set_read_timeout(quiet).expect("a time-out");
        let mut answer = Vec::new();
        // Until nothing more comes.
        drop(stream.read_to_end(&mut answer));
        answer
    });
    let tier = tier(&RemoteConfig {
        timeout: Duration::from_millis(1500),
        ..remote(&[format!("redis://127.0.0.1:{slow}")])
    });
    let keys = runs.iter().map(|run| run.keys[0]).collect::<Vec<_>>();
    let found = tier.find(&keys);
    // Each of them comes within the time-out, but not all of them together.
    let mut reads = found
        .iter()
        .flatten()
        .map(|(run, _)| disk_support::check(&**run, Shape::Odd));
    assert_eq!(
        reads.by_ref().find(Result::is_err),
        Some(Err(ReadFailure::Io))
    );
    assert!(reads.all(|read| read == Err(ReadFailure::Io)));
    let stats = tier.stats();
    assert!(stats.errors.timeouts >= 1, "{:?}", stats.errors);
    assert!(stats.servers[0].opened >= 1);
}

#[test]
fn a_server_without_memory_is_read_and_written_to_when_it_has_some() {
    let server = RedisServer::start(&["--maxmemory-policy", "noeviction"]);
    let tier = tier(&remote(&[server.url()]));
    share(&tier, &[run(1)]);
    server.command(&[b"CONFIG", b"SET", b"maxmemory", b"1"]);
    assert_eq!(share(&tier, &[run(2)]), [Put::Queued]);
    let stats = tier.stats();
    assert_eq!(
        (stats.errors.out_of_memory, stats.refusals.no_space),
        (1, 1)
    );
    assert_eq!(stats.servers[0].state, BreakerState::Closed, "it answers");
    assert_eq!(stats.servers[0].writing, BreakerState::Open);
    assert!(
        stats.servers[0]
            .trouble
            .as_ref()
            .is_some_and(|trouble| trouble.contains("maxmemory"))
    );
    assert_eq!(
        tier.admits(&run(2)),
        Put::Refused(Refusal::Unavailable),
        "not at once again"
    );
    assert_eq!(read_back(&tier, &run(1).keys, Shape::Odd), (3, Vec::new()));
    assert_eq!(
        read_back(&tier, &run(2).keys, Shape::Odd).0,
        0,
        "no entry leads to nothing"
    );
    server.command(&[b"CONFIG", b"SET", b"maxmemory", b"0"]);
    eventually("it is written to", || {
        share(&tier, &[run(2)]);
        read_back(&tier, &run(2).keys, Shape::Odd).0 == 3
    });
    assert_eq!(tier.stats().servers[0].writing, BreakerState::Closed);
}

#[test]
fn whatever_listens_there_is_a_miss() {
    let commands = |bytes: &[u8]| {
        bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| line.starts_with(b"*"))
            .count()
    };
    let each =
        |answer: &'static str| move |bytes: &[u8]| answer.repeat(commands(bytes)).into_bytes();
    let once = |answer: &'static [u8]| move |_: &[u8]| answer.to_vec();
    let ports = [
        ("moved", strange_server(each("-MOVED 42 127.0.0.1:1\r\n"))),
        (
            "wrong",
            strange_server(each("-WRONGTYPE not what you want\r\n")),
        ),
        ("err", strange_server(each("-ERR no\r\n"))),
        ("ok", strange_server(each("+OK\r\n"))),
        ("number", strange_server(each(":1\r\n"))),
        ("bytes", strange_server(each("$5\r\nhello\r\n"))),
        ("array", strange_server(each("*3\r\n:1\r\n+x\r\n$-1\r\n"))),
        (
            "http",
            strange_server(once(
                b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
            )),
        ),
        (
            "noise",
            strange_server(once(b"\x00\xff\x13\x37 noise \x80\r\n\r\n")),
        ),
        ("long", strange_server(once(b"$9223372036854775807\r\nabc"))),
        ("many", strange_server(once(b"*9223372036854775807\r\n"))),
        ("negative", strange_server(once(b"$-7\r\n*-9\r\n%-3\r\n"))),
        (
            "map",
            strange_server(once(b"%4611686018427387905\r\n+a\r\n")),
        ),
        ("nested", strange_server(|_| b"*1\r\n".repeat(5000))),
        ("nothing", strange_server(once(b""))),
    ];
    for (name, port) in ports {
        let tier = tier(&hasty(format!("redis://127.0.0.1:{port}")));
        for seed in 0..3 {
            assert_eq!(read_back(&tier, &run(seed).keys, Shape::Odd).0, 0, "{name}");
            share(&tier, &[run(seed)]);
        }
        let stats = tier.stats();
        assert!(errors(&stats) > 0, "{name}: {stats:?}");
        match name {
            "moved" => assert!(stats.errors.redirects > 0, "{stats:?}"),
            "wrong" => assert!(stats.errors.wrong_type > 0, "{stats:?}"),
            "nothing" => assert!(stats.errors.timeouts > 0, "{stats:?}"),
            "http" | "noise" | "long" | "many" | "nested" | "map" | "array" => {
                assert!(stats.errors.protocol > 0, "{name}: {stats:?}");
            }
            _ => {}
        }
        assert_eq!((stats.writes, stats.reads), (0, 0), "{name}");
    }
}

/// A byte now and then is life, but no answer.
#[test]
fn a_server_that_drips_is_waited_for_no_longer_than_one_that_is_silent() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                while stream.write_all(b"+").is_ok() {
                    thread::sleep(Duration::from_millis(20));
                }
            });
        }
    });
    let start = Instant::now();
    let tier = tier(&hasty(format!("redis://127.0.0.1:{port}")));
    assert_eq!(tier.stats().errors.timeouts, 1);
    // A line without end would take more than 20 minutes.
    assert!(start.elapsed() < remote_support::PATIENCE);
    assert_eq!(state(&tier), BreakerState::Open);
}

#[test]
fn names_that_nobody_knows_are_told() {
    let tier = tier(&hasty("redis://nobody.invalid:6379".to_owned()));
    let error = tier.health().remove(0).error.expect("nobody answers");
    assert!(error.contains("nobody.invalid"), "{error}");
    assert_eq!(read_back(&tier, &run(1).keys, Shape::Odd).0, 0);
}

#[test]
fn passwords_and_users() {
    let server = RedisServer::start(&[
        "--requirepass",
        "s3cret",
        "--user",
        "cache",
        "on",
        ">pw",
        "~kvlab:*",
        "+@all",
    ]);
    let url = |who: &str| format!("redis://{who}127.0.0.1:{}", server.port);
    for wrong in ["", ":wrong@", "nobody:s3cret@", "cache:wrong@"] {
        let tier = tier(&remote(&[url(wrong)]));
        assert_eq!(state(&tier), BreakerState::Open, "{wrong}");
        let health = tier.health().remove(0).error.expect("it is not well");
        assert!(
            health.contains("password") && !health.contains("wrong@"),
            "{health}"
        );
        assert!(tier.stats().errors.auth >= 1, "{wrong}");
        assert_eq!(read_back(&tier, &run(1).keys, Shape::Odd).0, 0);
        let shown = format!("{tier:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }
    for right in [":s3cret@", "default:s3cret@", "cache:pw@"] {
        let tier = tier(&remote(&[url(right)]));
        assert_eq!(state(&tier), BreakerState::Closed, "{right}");
        share(&tier, &[run(1)]);
        assert_eq!(read_back(&tier, &run(1).keys, Shape::Odd), (3, Vec::new()));
        assert_eq!(errors(&tier.stats()), 0);
    }
    // A user that may not read names with another beginning.
    let elsewhere = RemoteConfig {
        prefix: "other".to_owned(),
        ..remote(&[url("cache:pw@")])
    };
    let tier = tier(&elsewhere);
    share(&tier, &[run(1)]);
    assert_eq!(read_back(&tier, &run(1).keys, Shape::Odd).0, 0);
    assert!(tier.stats().errors.auth >= 1);
}

#[test]
fn a_socket_of_the_machine_and_databases_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("redis.sock");
    let server = RedisServer::start(&["--unixsocket", socket.to_str().expect("text")]);
    let local = tier(&remote(&[format!("redis+unix://{}", socket.display())]));
    share(&local, &[run(1)]);
    assert_eq!(read_back(&local, &run(1).keys, Shape::Odd), (3, Vec::new()));
    let network = tier(&remote(&[server.url()]));
    assert_eq!(
        read_back(&network, &run(1).keys, Shape::Odd),
        (3, Vec::new())
    );
    let other = tier(&remote(&[format!("{}/3", server.url())]));
    assert_eq!(
        read_back(&other, &run(1).keys, Shape::Odd).0,
        0,
        "another database"
    );
    assert_eq!(errors(&other.stats()), 0);
}

#[test]
fn settings_that_cannot_be_are_told_by_name() {
    let open = |config: &RemoteConfig| RemoteTier::open(config, Clock::default());
    let refused = |config: RemoteConfig, setting: &str, word: &str| match open(&config) {
        Err(Error::Config {
            name,
            value,
            remedy,
        }) => {
            assert_eq!(name, setting);
            let message = format!("{value}: {remedy}");
            assert!(
                message.contains(word) && !message.contains("s3cret"),
                "{message}"
            );
        }
        other => panic!("{config:?} gave {other:?}"),
    };
    for url in [
        "",
        "localhost",
        "http://localhost:6379",
        "redis://",
        "redis://user:s3cret@host:notaport",
        "redis://user:s3cret@host:99999",
        "redis://:s3cret@localhost/database",
        "redis://0.0.0.0:6379",
        "rediss://:s3cret@localhost#insecure",
    ] {
        refused(RemoteConfig::new(url), "remote", "redis://");
    }
    let base = || RemoteConfig::new("redis://127.0.0.1:1");
    let none = RemoteConfig {
        urls: Vec::new(),
        ..base()
    };
    refused(none, "remote", "redis://localhost");
    let twice = RemoteConfig {
        urls: vec![
            "redis://127.0.0.1:1".to_owned(),
            "redis://:s3cret@127.0.0.1:1".to_owned(),
        ],
        ..base()
    };
    refused(twice, "remote", "127.0.0.1:1");
    for ttl_seconds in [0, u64::from(u32::MAX) + 1, u64::MAX] {
        let config = RemoteConfig {
            ttl_seconds,
            ..base()
        };
        refused(config, "remote_ttl", &ttl_seconds.to_string());
    }
    for timeout in [Duration::ZERO, Duration::from_secs(3600)] {
        let config = RemoteConfig { timeout, ..base() };
        refused(config, "remote_timeout", "1 ms");
    }
    for prefix in ["", "with space", "ünicode", &"x".repeat(65)] {
        let config = RemoteConfig {
            prefix: prefix.to_owned(),
            ..base()
        };
        refused(config, "remote_prefix", "ASCII");
    }
    for key in ["", "abc", &"g".repeat(64), &"a".repeat(63), &"ä".repeat(32)] {
        let error = EncryptionKey::parse(key).expect_err("no key").to_string();
        assert!(error.contains("64 hexadecimal digits"), "{error}");
        assert!(key.is_empty() || !error.contains(&format!("={key}")));
    }
    assert!(matches!(
        EncryptionKey::from_file("/nonexistent".as_ref()),
        Err(Error::Io { .. })
    ));
    assert_eq!(
        format!("{:?}", EncryptionKey::parse(&"a".repeat(64))),
        "Ok(EncryptionKey(..))"
    );
}

#[test]
fn leases_end_when_runs_are_given_up() {
    let server = RedisServer::start(&[]);
    let tier = tier(&hasty(server.url()));
    server.hang();
    let lease = std::sync::Arc::new(());
    for seed in 0..3 {
        let mut source = source(&run(seed));
        source.lease = Some(std::sync::Arc::clone(&lease) as _);
        tier.share(run(seed), source).expect("a valid header");
    }
    assert!(tier.flush(remote_support::PATIENCE), "given up");
    assert_eq!(std::sync::Arc::strong_count(&lease), 1);
    let stats = tier.stats();
    let refusals = stats.refusals;
    assert_eq!(refusals.write_failed + refusals.unavailable, 3, "{stats:?}");
    assert_eq!(
        (stats.queue_runs, stats.queue_bytes, stats.writes),
        (0, 0, 0)
    );
    server.go_on();
}
