//! Servers that speak TLS with certificates of a private authority, and users that may not do everything.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

mod disk_support;
mod remote_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use disk_support::{Shape, header, namespace};
use kvlab_core::Error;
use kvlab_core::clock::Clock;
use kvlab_core::run::RunHeader;
use kvlab_core::tier::remote::{BreakerState, RemoteConfig, RemoteTier};
use kvlab_core::tier::{Put, Refusal, SharedTier};
use remote_support::{RedisServer, errors, eventually, free_port, read_back, remote, share, tier};
use tempfile::TempDir;

fn run(seed: u32) -> RunHeader {
    header(namespace("m"), namespace("m"), seed, 3, &[5000, 70_000])
}

/// An authority, and what it signed.
struct Authority(TempDir);

impl Authority {
    fn new() -> Self {
        let authority = Self(tempfile::tempdir().expect("a directory"));
        let subject = ["-subj", "/CN=an authority", "-days", "2"];
        authority.openssl(&[
            &["req", "-x509", "-nodes", "-newkey", "ec"][..],
            &["-pkeyopt", "ec_paramgen_curve:P-256"],
            &["-keyout", "ca.key", "-out", "ca.crt"],
            &subject,
        ]);
        authority
    }

    fn openssl(&self, words: &[&[&str]]) {
        let done = Command::new("openssl")
            .args(words.concat())
            .current_dir(self.0.path())
            .output()
            .expect("openssl is there");
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    /// Signs a certificate for names such as `IP:127.0.0.1`: `NAME.crt`, with `NAME.key`.
    fn sign(&self, name: &str, names: &str) {
        let file = |kind: &str| format!("{name}.{kind}");
        let (key, request, certificate) = (file("key"), file("csr"), file("crt"));
        let extensions = format!("subjectAltName={names}\nbasicConstraints=CA:FALSE\n");
        fs::write(self.path("extensions"), extensions).expect("written");
        self.openssl(&[
            &["req", "-nodes", "-newkey", "ec"][..],
            &["-pkeyopt", "ec_paramgen_curve:P-256"],
            &["-subj", "/CN=a server", "-keyout", &key, "-out", &request],
        ]);
        self.openssl(&[
            &["x509", "-req", "-in", &request, "-out", &certificate][..],
            &["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"],
            &["-days", "2", "-extfile", "extensions"],
        ]);
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }
}

/// A server that also listens for TLS, and at which URL.
fn server(authority: &Authority, certificate: &str, options: &[&str]) -> (RedisServer, String) {
    let port = free_port();
    let path = |file: &str| authority.path(file).to_str().expect("text").to_owned();
    let (own, key) = (
        path(&format!("{certificate}.crt")),
        path(&format!("{certificate}.key")),
    );
    let (port_text, ca) = (port.to_string(), path("ca.crt"));
    let mut all = vec!["--tls-port", &port_text, "--tls-cert-file", &own];
    all.extend(["--tls-key-file", &key, "--tls-ca-cert-file", &ca]);
    all.extend(options);
    let server = RedisServer::start(&all);
    (server, format!("rediss://127.0.0.1:{port}"))
}

fn trusting(url: &str, authority: &Authority) -> RemoteConfig {
    RemoteConfig {
        ca_file: Some(authority.path("ca.crt")),
        ..remote(&[url.to_owned()])
    }
}

fn showing(url: &str, authority: &Authority) -> RemoteConfig {
    RemoteConfig {
        certificate_file: Some(authority.path("client.crt")),
        private_key_file: Some(authority.path("client.key")),
        ..trusting(url, authority)
    }
}

/// It is not used, says why, and nobody notices but for misses.
fn unavailable(config: &RemoteConfig, words: &[&str]) {
    let tier = tier(config);
    let health = tier.health().remove(0);
    let error = health.error.expect("it is not well");
    for word in words {
        assert!(error.contains(word), "{word} is not in: {error}");
    }
    assert!(tier.stats().errors.auth >= 1, "{:?}", tier.stats());
    assert_eq!(tier.stats().servers[0].state, BreakerState::Open);
    assert_eq!(read_back(&tier, &run(1).keys, Shape::Odd).0, 0);
    assert_eq!(
        share(&tier, &[run(1)]),
        [Put::Refused(Refusal::Unavailable)]
    );
}

#[test]
fn who_is_trusted_on_both_sides_shares_and_nobody_else() {
    let (authority, other) = (Authority::new(), Authority::new());
    authority.sign("server", "IP:127.0.0.1");
    authority.sign("elsewhere", "DNS:cache.example.com");
    authority.sign("client", "DNS:client");
    other.sign("client", "DNS:client");
    let (plain, url) = server(&authority, "server", &[]);
    let writer = tier(&showing(&url, &authority));
    assert_eq!(writer.stats().servers[0].trouble, None);
    share(&writer, &[run(1)]);
    let reader = tier(&showing(&url, &authority));
    assert_eq!(
        read_back(&reader, &run(1).keys, Shape::Odd),
        (3, Vec::new())
    );
    assert_eq!(
        read_back(&reader, &run(1).keys, Shape::Odd),
        (3, Vec::new())
    );
    assert_eq!(errors(&reader.stats()) + errors(&writer.stats()), 0);
    assert!(reader.health()[0].memory.is_some());
    // Without a certificate of its own, and with one that somebody else signed.
    unavailable(&trusting(&url, &authority), &["remote_certificate_file"]);
    let stranger = RemoteConfig {
        ca_file: Some(authority.path("ca.crt")),
        ..showing(&url, &other)
    };
    unavailable(&stranger, &["remote_certificate_file"]);
    // Servers that are not who they should be.
    let wrong = RemoteConfig {
        ca_file: Some(other.path("ca.crt")),
        ..showing(&url, &authority)
    };
    unavailable(&wrong, &["remote_ca_file"]);
    let (_elsewhere, url) = server(&authority, "elsewhere", &["--tls-auth-clients", "no"]);
    unavailable(
        &trusting(&url, &authority),
        &["127.0.0.1", "host name in the URL"],
    );
    // TLS to who does not speak it, and the reverse.
    let config = trusting(&plain.url().replace("redis:", "rediss:"), &authority);
    let told = tier(&config)
        .health()
        .remove(0)
        .error
        .expect("no TLS there");
    assert!(told.contains("does it speak TLS"), "{told}");
    let told = tier(&remote(&[url.replace("rediss:", "redis:")]));
    assert!(told.health()[0].error.is_some());
}

#[test]
fn a_server_that_asks_for_no_certificate_needs_none() {
    let authority = Authority::new();
    authority.sign("server", "IP:127.0.0.1,DNS:localhost");
    let options = ["--tls-auth-clients", "no", "--requirepass", "s3cret"];
    let (_server, url) = server(&authority, "server", &options);
    let url = url.replace("127.0.0.1", ":s3cret@localhost");
    let tier = tier(&trusting(&url, &authority));
    // Longer than a TLS record, and than what is sent from where it lies.
    let long = header(namespace("m"), namespace("m"), 1, 3, &[1, 3 << 20, 70_000]);
    share(&tier, std::slice::from_ref(&long));
    assert_eq!(read_back(&tier, &long.keys, Shape::Odd), (3, Vec::new()));
    assert_eq!(errors(&tier.stats()), 0);
}

#[test]
fn files_that_cannot_be_used_are_told_by_name() {
    let (authority, other) = (Authority::new(), Authority::new());
    authority.sign("client", "DNS:client");
    other.sign("client", "DNS:client");
    let refused = |config: &RemoteConfig, setting: &str, word: &str| {
        let error = RemoteTier::open(config, Clock::default()).expect_err("refused");
        let Error::Config { name, remedy, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(*name, setting);
        assert!(remedy.contains(word), "{remedy}");
        assert!(!error.to_string().contains("PRIVATE KEY-----"), "{error}");
    };
    let url = "rediss://localhost:1";
    let nothing = |path: &Path| RemoteConfig {
        ca_file: Some(path.to_owned()),
        ..showing(url, &authority)
    };
    refused(
        &nothing("/nonexistent".as_ref()),
        "remote_ca_file",
        "cannot be read",
    );
    refused(
        &nothing(&authority.path("client.key")),
        "remote_ca_file",
        "no certificate",
    );
    fs::write(authority.path("noise"), [0xff; 100]).expect("written");
    refused(
        &nothing(&authority.path("noise")),
        "remote_ca_file",
        "BEGIN CERTIFICATE",
    );
    let broken = "-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n";
    fs::write(authority.path("broken"), broken).expect("written");
    refused(
        &nothing(&authority.path("broken")),
        "remote_ca_file",
        "certificate",
    );
    let key = |path: PathBuf| RemoteConfig {
        private_key_file: Some(path),
        ..showing(url, &authority)
    };
    refused(
        &key(authority.path("client.crt")),
        "remote_private_key_file",
        "no private key",
    );
    refused(
        &key(other.path("client.key")),
        "remote_private_key_file",
        "remote_certificate_file",
    );
    let half = RemoteConfig {
        private_key_file: None,
        ..showing(url, &authority)
    };
    refused(&half, "remote_certificate_file", "remote_private_key_file");
    refused(
        &showing("redis://localhost:1", &authority),
        "remote_ca_file",
        "rediss://",
    );
}

#[test]
fn users_do_what_they_may() {
    let rights = |user: &str, rest: &[&str]| {
        let mut all = vec!["--user".to_owned(), user.to_owned(), "on".to_owned()];
        all.push(">pw".to_owned());
        all.extend(rest.iter().map(ToString::to_string));
        all
    };
    let reading = rights("reader", &["~kvlab:*", "-@all", "+getrange"]);
    let tenant = rights(
        "tenant",
        &["~kvlab:tenant*", "-@all", "+getrange", "+set", "+unlink"],
    );
    let options = [reading, tenant].concat();
    let options = options.iter().map(String::as_str).collect::<Vec<_>>();
    let server = RedisServer::start(&options);
    let url = |user: &str| format!("redis://{user}:pw@127.0.0.1:{}", server.port);
    let all = tier(&remote(&[server.url()]));
    share(&all, &[run(1)]);
    // Who may only read reads, and goes on to do so while what it writes is refused.
    let reader = tier(&remote(&[url("reader")]));
    for seed in 2..5 {
        share(&reader, &[run(seed)]);
        assert_eq!(
            read_back(&reader, &run(1).keys, Shape::Odd),
            (3, Vec::new())
        );
    }
    let stats = reader.stats();
    assert_eq!(stats.servers[0].state, BreakerState::Closed, "{stats:?}");
    assert_eq!(stats.servers[0].writing, BreakerState::Open);
    assert_eq!((stats.errors.auth, errors(&stats)), (1, 1), "{stats:?}");
    assert_eq!(stats.refusals.write_failed + stats.refusals.unavailable, 3);
    let trouble = stats.servers[0].trouble.clone().expect("it is told");
    assert!(trouble.contains("NOPERM"), "{trouble}");
    assert!(reader.health()[0].memory.is_none(), "it may not ask");
    // A tenant of its own names.
    let own = RemoteConfig {
        prefix: "kvlab:tenant-7".to_owned(),
        ..remote(&[url("tenant")])
    };
    let tenant = tier(&own);
    share(&tenant, &[run(1)]);
    assert_eq!(
        read_back(&tenant, &run(1).keys, Shape::Odd),
        (3, Vec::new())
    );
    assert_eq!(tenant.remove(&run(1).keys).expect("it may"), 3);
    assert_eq!(errors(&tenant.stats()), 0);
    unavailable(
        &remote(&[url("tenant")]),
        &["NOPERM", "what the user may do"],
    );
    unavailable(&remote(&[url("nobody")]), &["WRONGPASS"]);
    // What a server that knows no AUTH repeats is not repeated.
    let told = "-ERR unknown command 'AUTH', with args beginning with: 's3cret' \r\n";
    let port = remote_support::strange_server(move |_| told.into());
    let config = remote(&[format!("redis://:s3cret@127.0.0.1:{port}")]);
    let error = tier(&config).health().remove(0).error.expect("not well");
    assert!(
        error.contains("AUTH") && !error.contains("s3cret"),
        "{error}"
    );
}

#[test]
fn a_cluster_with_tls() {
    let authority = Authority::new();
    authority.sign("server", "IP:127.0.0.1");
    authority.sign("client", "DNS:client");
    let cluster = ["--cluster-enabled", "yes", "--tls-cluster", "yes"];
    let (node, url) = server(&authority, "server", &cluster);
    node.command(&[b"CLUSTER", b"ADDSLOTSRANGE", b"0", b"16383"]);
    eventually("the cluster is one", || {
        let info = node.command(&[b"CLUSTER", b"INFO"]);
        String::from_utf8_lossy(&info).contains("cluster_state:ok")
    });
    let config = RemoteConfig {
        cluster: true,
        ..showing(&url, &authority)
    };
    let (writer, reader) = (tier(&config), tier(&config));
    share(&writer, &[run(1)]);
    assert_eq!(
        read_back(&reader, &run(1).keys, Shape::Odd),
        (3, Vec::new())
    );
    assert_eq!(errors(&reader.stats()), 0, "{:?}", reader.stats());
}
