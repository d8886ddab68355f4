//! Several servers, and a cluster of three nodes.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

mod disk_support;
mod remote_support;

use std::process::Command;

use disk_support::{Shape, header, namespace};
use kvlab_core::key::BlockKey;
use kvlab_core::run::RunHeader;
use kvlab_core::tier::SharedTier;
use kvlab_core::tier::remote::{BreakerState, RemoteConfig};
use remote_support::{RedisServer, errors, eventually, read_back, remote, share, tier};

/// A chain of runs.
fn runs() -> (Vec<RunHeader>, Vec<BlockKey>) {
    let namespace = namespace("m");
    let mut parent = namespace;
    let runs = (0..12).map(|seed| {
        let run = header(namespace, parent, seed, 4, &[4000, 9000]);
        parent = run.keys[3];
        run
    });
    let runs = runs.collect::<Vec<_>>();
    let keys = runs.iter().flat_map(|run| run.keys.clone()).collect();
    (runs, keys)
}

#[test]
fn one_of_three_servers_is_killed_and_comes_back() {
    let mut servers = [(); 3].map(|()| RedisServer::start(&[]));
    let urls = servers.each_ref().map(RedisServer::url);
    let config = remote(&urls);
    let (writer, reader) = (tier(&config), tier(&config));
    let (runs, keys) = runs();
    share(&writer, &runs);
    assert_eq!(read_back(&reader, &keys, Shape::Odd), (48, Vec::new()));
    for server in &servers {
        assert!(
            !server.names_of('r').is_empty() && !server.names_of('b').is_empty(),
            "all have some"
        );
    }
    // Another order of the same servers is the same.
    let turned = remote(&[urls[2].clone(), urls[0].clone(), urls[1].clone()]);
    assert_eq!(
        read_back(&tier(&turned), &keys, Shape::Odd),
        (48, Vec::new())
    );
    servers[1].kill();
    let (left, failures) = read_back(&reader, &keys, Shape::Odd);
    assert!(left < 48, "a third of entries and runs is lost");
    assert!(failures.is_empty());
    eventually("it is passed over", || {
        read_back(&reader, &keys, Shape::Odd);
        reader.stats().servers[1].state != BreakerState::Closed
    });
    let (left, _) = read_back(&reader, &keys, Shape::Odd);
    assert!(left > 0, "the others go on");
    // Who has it shares it again: the others stand in.
    let second = tier(&config);
    share(&second, &runs);
    assert_eq!(second.stats().servers[1].state, BreakerState::Open);
    assert_eq!(read_back(&reader, &keys, Shape::Odd), (48, Vec::new()));
    servers[1].restart();
    eventually("it is asked again", || {
        reader.stats().servers[1].state == BreakerState::Closed
    });
    let (found, failures) = read_back(&reader, &keys, Shape::Odd);
    assert!(found < 48 && failures.is_empty(), "it is empty");
    share(&reader, &runs);
    assert_eq!(read_back(&reader, &keys, Shape::Odd), (48, Vec::new()));
    // What is removed goes from wherever it is.
    assert_eq!(reader.remove(&keys).expect("all answer"), 48);
    assert!(servers.iter().all(|server| {
        server
            .names()
            .iter()
            .all(|name| name.starts_with("kvlab:r:"))
    }));
    servers[0].kill();
    assert!(reader.remove(&keys).is_err(), "one did not do it");
}

#[test]
fn a_cluster_of_three_nodes() {
    let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
    let mut nodes = [(); 3].map(|()| RedisServer::start(&options));
    let hosts = nodes
        .each_ref()
        .map(|node| format!("127.0.0.1:{}", node.port));
    let made = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(&hosts)
        .arg("--cluster-yes")
        .output()
        .expect("redis-cli is there");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stdout)
    );
    let is_ok = |node: &RedisServer| {
        let info = node.command(&[b"CLUSTER", b"INFO"]);
        String::from_utf8_lossy(&info).contains("cluster_state:ok")
    };
    eventually("the cluster is one", || nodes.iter().all(is_ok));
    let urls = nodes.each_ref().map(RedisServer::url);
    let config = RemoteConfig {
        cluster: true,
        ..remote(&urls)
    };
    let (writer, reader) = (tier(&config), tier(&config));
    let (runs, keys) = runs();
    share(&writer, &runs);
    assert_eq!(writer.stats().writes, 12, "{:?}", writer.stats());
    assert_eq!(read_back(&reader, &keys, Shape::Odd), (48, Vec::new()));
    assert!(
        nodes.iter().all(|node| !node.names_of('b').is_empty()),
        "all have some"
    );
    // Its memory is that of its nodes.
    let memory = reader.health().remove(0).memory.expect("all nodes say");
    assert!(memory.used > 3 << 19 && memory.limit == 0, "{memory:?}");
    // One node is enough to find the others.
    let one = RemoteConfig {
        cluster: true,
        ..remote(&urls[..1])
    };
    let one = tier(&one);
    assert_eq!(read_back(&one, &keys, Shape::Odd), (48, Vec::new()));
    // Something else under a name is a miss, and the others are found.
    let run = nodes
        .iter()
        .find_map(|node| Some((node, node.names_of('b').pop()?)));
    let (node, name) = run.expect("entries");
    node.command(&[b"DEL", name.as_bytes()]);
    node.command(&[b"RPUSH", name.as_bytes(), b"x"]);
    assert_eq!(read_back(&reader, &keys, Shape::Odd), (47, Vec::new()));
    assert_eq!(reader.stats().errors.wrong_type, 1);
    // Without cluster mode it is redirected, and says so.
    let single = tier(&remote(&urls[..1]));
    read_back(&single, &keys, Shape::Odd);
    let stats = single.stats();
    assert!(stats.errors.redirects > 0, "{stats:?}");
    assert!(
        stats.servers[0]
            .trouble
            .as_ref()
            .is_some_and(|trouble| trouble.contains("remote_cluster"))
    );
    assert_eq!(reader.remove(&keys).expect("it does"), 48);
    assert_eq!(read_back(&writer, &keys, Shape::Odd).0, 0);
    // A node goes: misses, and no wrong byte.
    share(&writer, &runs);
    nodes[2].kill();
    let (found, _) = read_back(&reader, &keys, Shape::Odd);
    assert!(found < 48 && errors(&reader.stats()) > 1);
}
