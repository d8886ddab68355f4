//! The remote tier on a real server: what one machine shares, another finds and reads.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

mod disk_support;
mod remote_support;

use std::time::Duration;

use disk_support::{Shape, cases, check, header, namespace, source};
use kvlab_core::codec::{Codec, Element};
use kvlab_core::key::BlockKey;
use kvlab_core::run::{RunHeader, Terms};
use kvlab_core::tier::remote::{EncryptionKey, RemoteConfig};
use kvlab_core::tier::{Put, ReadFailure, Refusal, SharedTier};
use proptest::prelude::*;
use remote_support::{PATIENCE, RedisServer, errors, find, read_back, remote, share, tier};

/// A chain of runs of so many blocks each.
fn chain(name: &str, seed: u32, cuts: &[usize], slices: &[u32]) -> Vec<RunHeader> {
    let namespace = namespace(name);
    let mut parent = namespace;
    let mut headers = Vec::new();
    for (index, blocks) in cuts.iter().enumerate() {
        let run = header(namespace, parent, seed + index as u32, *blocks, slices);
        parent = *run.keys.last().expect("a run has keys");
        headers.push(run);
    }
    headers
}

fn keys(headers: &[RunHeader]) -> Vec<BlockKey> {
    headers
        .iter()
        .flat_map(|header| header.keys.clone())
        .collect()
}

#[test]
fn what_one_machine_shares_another_finds() {
    let server = RedisServer::start(&[]);
    let config = remote(&[server.url()]);
    let (writer, reader) = (tier(&config), tier(&config));
    let runs = chain("m", 1, &[5, 1, 9], &[5000, 4096, 70_001]);
    let keys = keys(&runs);
    assert!(keys.iter().all(|key| !writer.knows(key)));
    assert_eq!(share(&writer, &runs), [Put::Queued; 3]);
    assert!(
        keys.iter()
            .all(|key| writer.knows(key) && !reader.knows(key))
    );
    for shape in [Shape::Pages, Shape::Odd, Shape::HalfSpare] {
        assert_eq!(read_back(&reader, &keys, shape), (15, Vec::new()));
    }
    assert!(keys.iter().all(|key| reader.knows(key)));
    // Blocks that nobody shared, among others.
    let strange = chain("m", 100, &[2], &[10]).remove(0).keys;
    let mixed = [strange[0], keys[7], strange[1], keys[0]];
    let found = reader
        .find(&mixed)
        .into_iter()
        .map(|found| found.map(|(_, at)| at));
    assert_eq!(found.collect::<Vec<_>>(), [None, Some(1), None, Some(0)]);
    // Slices by themselves.
    let (run, _) = find(&reader, &keys[0]).expect("it is there");
    assert_eq!(run.header(), &runs[0]);
    let target = source(&runs[0]);
    let wrong = kvlab_core::run::RunTarget {
        region: target.region,
        lease: None,
        slices: target.slices[..2].to_vec(),
    };
    assert_eq!(
        run.read_slices(0..3, &wrong),
        Err(ReadFailure::Io),
        "a target that does not fit"
    );
    let stats = writer.stats();
    assert_eq!(
        (
            stats.writes,
            stats.present,
            stats.queue_runs,
            stats.queue_bytes
        ),
        (3, 0, 0, 0)
    );
    assert_eq!(errors(&stats), 0);
    let stats = reader.stats();
    assert_eq!(
        (stats.found_blocks, stats.missed_blocks, stats.lookups),
        (48, 2, 5)
    );
    assert!(stats.reads >= 9 && stats.read_bytes > 3 * 79_000 && errors(&stats) == 0);
    assert!(
        reader.close(PATIENCE) && reader.close(PATIENCE),
        "closing is idempotent"
    );
    assert_eq!(
        share(&reader, &chain("n", 1, &[1], &[9])),
        [Put::Refused(Refusal::Unavailable)]
    );
}

#[test]
fn what_is_there_is_not_written_again() {
    let server = RedisServer::start(&[]);
    let config = remote(&[server.url()]);
    let (first, second) = (tier(&config), tier(&config));
    let runs = chain("m", 1, &[4, 4], &[3000]);
    share(&first, &runs);
    assert_eq!(share(&first, &runs), [Put::Present; 2], "known");
    assert_eq!(
        share(&second, &runs),
        [Put::Queued; 2],
        "not known here, and there"
    );
    let stats = second.stats();
    assert_eq!((stats.writes, stats.present, stats.write_bytes), (0, 2, 0));
    assert!(second.knows(&runs[0].keys[0]));
    // The same blocks, cut otherwise: all there.
    let mut whole = runs[0].clone();
    whole.keys = keys(&runs).into();
    let third = tier(&config);
    share(&third, &[whole.clone()]);
    assert_eq!(third.stats().present, 1);
    // The server loses a run that entries lead to: the whole is written.
    let lost = server.names_of('r');
    assert_eq!(lost.len(), 2);
    server.command(&[b"DEL", lost[0].as_bytes()]);
    let fourth = tier(&config);
    share(&fourth, &[whole]);
    assert_eq!(fourth.stats().writes, 1);
    assert_eq!(read_back(&first, &keys(&runs), Shape::Odd), (8, Vec::new()));
}

#[test]
fn values_live_as_long_as_their_namespace_says() {
    let server = RedisServer::start(&[]);
    let config = RemoteConfig {
        ttl_seconds: 1000,
        ..remote(&[server.url()])
    };
    let tier = tier(&config);
    let plain = chain("plain", 1, &[2], &[100]);
    let mut mortal = chain("mortal", 1, &[2], &[100]);
    let now = std::time::SystemTime::now();
    let now = now
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    mortal[0].terms = Terms {
        ttl_seconds: 500,
        born: now - 100,
        ..Terms::default()
    };
    let mut over = chain("over", 1, &[2], &[100]);
    over[0].terms = Terms {
        ttl_seconds: 50,
        born: now - 100,
        ..Terms::default()
    };
    assert_eq!(share(&tier, &plain), [Put::Queued]);
    assert_eq!(share(&tier, &mortal), [Put::Queued]);
    assert_eq!(share(&tier, &over), [Put::Refused(Refusal::Expired)]);
    for name in server.names() {
        let answer = server.command(&[b"TTL", name.as_bytes()]);
        let answer = String::from_utf8(answer).expect("text");
        let ttl: u64 = answer
            .trim_start_matches(':')
            .split('\r')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!(
            (370..=400).contains(&ttl) || (970..=1000).contains(&ttl),
            "{name}: {ttl}"
        );
    }
    // The server keeps it for too long: the header says when it ends.
    let mut short = chain("short", 1, &[2], &[100]);
    short[0].terms = Terms {
        ttl_seconds: 2,
        born: now,
        ..Terms::default()
    };
    if share(&tier, &short) == [Put::Queued] {
        for name in server.names() {
            server.command(&[b"PERSIST", name.as_bytes()]);
        }
        remote_support::eventually("it is over", || find(&tier, &short[0].keys[1]).is_none());
        assert!(tier.stats().expired >= 1);
    }
}

#[test]
fn what_must_not_or_cannot_be_shared_is_refused_and_counted() {
    let server = RedisServer::start(&[]);
    let config = RemoteConfig {
        write_queue_bytes: 10_000,
        ..remote(&[server.url()])
    };
    let tier = tier(&config);
    let run = |name: &str, terms: Terms, len| {
        let mut run = chain(name, 1, &[2], &[len]).remove(0);
        run.terms = terms;
        run
    };
    let secret = Terms {
        persist: false,
        ..Terms::default()
    };
    let decoded = Terms {
        decoded: true,
        ..Terms::default()
    };
    let runs = [
        run("a", secret, 9),
        run("b", decoded, 9),
        run("c", Terms::default(), 10_001),
    ];
    let refused = [Refusal::NotPersisted, Refusal::Decoded, Refusal::TooLarge].map(Put::Refused);
    assert_eq!(share(&tier, &runs), refused);
    assert_eq!(runs.each_ref().map(|run| tier.admits(run)), refused);
    let fits = run("d", Terms::default(), 10_000);
    assert_eq!(tier.admits(&fits), Put::Queued);
    // While the server hangs the queue fills.
    server.hang();
    assert_eq!(
        tier.share(fits.clone(), source(&fits)).unwrap(),
        Put::Queued
    );
    let more = run("e", Terms::default(), 1);
    assert_eq!(
        tier.share(more.clone(), source(&more)).unwrap(),
        Put::Refused(Refusal::QueueFull)
    );
    assert_eq!(
        tier.share(fits.clone(), source(&fits)).unwrap(),
        Put::Present,
        "it waits"
    );
    assert!(tier.knows(&fits.keys[0]) && !tier.flush(Duration::ZERO));
    server.go_on();
    assert!(tier.flush(PATIENCE));
    let refusals = tier.stats().refusals;
    assert_eq!((refusals.not_persisted, refusals.decoded), (2, 2));
    assert_eq!((refusals.too_large, refusals.queue_full), (2, 1));
    let mut invalid = fits.clone();
    invalid.slices = [9999].into();
    assert!(tier.share(invalid, source(&fits)).is_err());
    let names = server.names();
    assert_eq!(names.len(), 3, "one run, two entries: {names:?}");
}

#[test]
fn removed_is_removed_for_everybody() {
    let server = RedisServer::start(&[]);
    let config = remote(&[server.url()]);
    let (one, other) = (tier(&config), tier(&config));
    let runs = chain("m", 1, &[3, 3], &[100]);
    share(&one, &runs);
    let all = keys(&runs);
    assert_eq!(read_back(&other, &all, Shape::Odd).0, 6);
    assert_eq!(other.remove(&all[4..5]).expect("it answers"), 1);
    // The run went, and with it the other blocks in it.
    assert_eq!(read_back(&one, &all, Shape::Odd).0, 3);
    assert_eq!(server.names_of('r').len(), 1);
    assert_eq!(other.remove(&all).expect("it answers"), 5);
    assert_eq!(server.names(), [""; 0]);
    // Who was not told finds out at the next lookup.
    assert!(one.knows(&all[0]));
    assert_eq!(read_back(&one, &all, Shape::Odd).0, 0);
    assert!(!one.knows(&all[0]));
    // Forgetting is for this machine alone.
    share(&one, &runs);
    assert!(one.knows(&all[0]));
    one.forget(Some(&runs[0].namespace));
    assert!(!one.knows(&all[0]));
    assert_eq!(read_back(&one, &all, Shape::Odd).0, 6);
}

#[test]
fn two_tenants_cannot_read_each_other_and_the_server_sees_ciphertext() {
    let server = RedisServer::start(&[]);
    let key = |digit: &str| EncryptionKey::parse(&digit.repeat(64)).expect("a key");
    let sealed = |key| RemoteConfig {
        encryption_key: Some(key),
        ..remote(&[server.url()])
    };
    let (writer, reader) = (tier(&sealed(key("a"))), tier(&sealed(key("a"))));
    let mut runs = chain("m", 1, &[3], &[4096, 9000]);
    runs.extend(chain("int8", 2, &[2], &[4096]));
    runs[1].terms.codec = Codec::Int8 {
        element: Element::F32,
        group: 64,
    };
    share(&writer, &runs[..1]);
    assert_eq!(
        read_back(&reader, &runs[0].keys, Shape::HalfSpare),
        (3, Vec::new())
    );
    let name = server.names_of('r').remove(0);
    let value = server.get(&name);
    let plain = disk_support::slice_bytes(&runs[0], 0);
    assert!(
        !value.windows(16).any(|window| window == &plain[..16]),
        "in the clear"
    );
    // Others: with another key, and without.
    let (other, none) = (tier(&sealed(key("b"))), tier(&remote(&[server.url()])));
    for stranger in [&other, &none] {
        assert_eq!(read_back(stranger, &runs[0].keys, Shape::Odd).0, 0);
        assert_eq!(stranger.stats().corrupt, 1);
    }
    assert_eq!(server.get(&name), value, "they leave it alone");
    // Plain values are not taken for what this key wrote.
    let open = chain("open", 1, &[2], &[300]);
    share(&none, &open);
    assert_eq!(read_back(&none, &open[0].keys, Shape::Odd).0, 2);
    assert_eq!(read_back(&reader, &open[0].keys, Shape::Odd).0, 0);
    // Slices cannot change places, even with right checksums: two encryptions of one run have nothing in common.
    let mut forged = value.clone();
    let at = value.len() - 1;
    forged[at] ^= 1;
    server.set(&name, &forged);
    assert_eq!(
        read_back(&reader, &runs[0].keys, Shape::Odd),
        (3, vec![ReadFailure::Corrupt])
    );
    assert!(
        server.names_of('r').iter().all(|left| left != &name),
        "damage is deleted"
    );
    share(&writer, &runs[1..]);
    let (run, _) = find(&reader, &runs[1].keys[0]).expect("it is there");
    let target = source(&runs[1]);
    let target = kvlab_core::run::RunTarget {
        region: target.region,
        lease: None,
        slices: target.slices,
    };
    assert_eq!(run.read_slices(0..1, &target), Ok(()));
}

/// What happens to the server between the writing and the reading.
#[derive(Clone, Debug)]
enum Mishap {
    /// A value vanishes.
    Evict(prop::sample::Index),
    /// A byte of a value is another.
    Damage(prop::sample::Index, prop::sample::Index, u8),
    /// A value is cut short.
    Cut(prop::sample::Index, prop::sample::Index),
    /// A value takes the place of another.
    Swap(prop::sample::Index, prop::sample::Index),
    /// A list takes the place of a value.
    List(prop::sample::Index),
}

fn mishap() -> impl Strategy<Value = Mishap> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        index().prop_map(Mishap::Evict),
        (index(), index(), 1..=255_u8)
            .prop_map(|(value, at, flip)| Mishap::Damage(value, at, flip)),
        (index(), index()).prop_map(|(value, at)| Mishap::Cut(value, at)),
        (index(), index()).prop_map(|(from, to)| Mishap::Swap(from, to)),
        index().prop_map(Mishap::List),
    ]
}

fn befall(server: &RedisServer, mishap: &Mishap) {
    let names = server.names();
    if names.is_empty() {
        return;
    }
    let name = |index: &prop::sample::Index| names[index.index(names.len())].clone();
    // An earlier mishap may have left nothing to change.
    let bytes = |name: &str| server.value(name).filter(|bytes| !bytes.is_empty());
    match mishap {
        Mishap::Evict(value) => drop(server.command(&[b"DEL", name(value).as_bytes()])),
        Mishap::Damage(value, at, flip) => {
            let name = name(value);
            if let Some(mut bytes) = bytes(&name) {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
                server.set(&name, &bytes);
            }
        }
        Mishap::Cut(value, at) => {
            let name = name(value);
            if let Some(bytes) = bytes(&name) {
                server.set(&name, &bytes[..at.index(bytes.len())]);
            }
        }
        Mishap::Swap(from, to) => {
            if let Some(bytes) = bytes(&name(from)) {
                server.set(&name(to), &bytes);
            }
        }
        Mishap::List(value) => {
            server.command(&[b"DEL", name(value).as_bytes()]);
            server.command(&[b"RPUSH", name(value).as_bytes(), b"x"]);
        }
    }
}

/// Every block of a chain, as one machine cut it and as another did from somewhere on.
fn machines() -> impl Strategy<Value = (Vec<usize>, Vec<usize>, usize)> {
    let cuts = || prop::collection::vec(1..6_usize, 1..5);
    (cuts(), cuts(), 0..4_usize)
}

#[test]
fn whatever_befalls_the_server_no_byte_is_wrong() {
    let server = RedisServer::start(&[]);
    let strategy = (
        any::<u16>(),
        machines(),
        prop::collection::vec(1..3000_u32, 1..4),
        prop::collection::vec(mishap(), 0..4),
        any::<bool>(),
    );
    let mut runner = proptest::test_runner::TestRunner::new(cases(24));
    let outcome = runner.run(
        &strategy,
        |(seed, (one, other, fork), slices, mishaps, sealed)| {
            server.command(&[b"FLUSHALL"]);
            let mut config = remote(&[server.url()]);
            config.encryption_key =
                sealed.then(|| EncryptionKey::parse(&"7".repeat(64)).expect("a key"));
            let name = format!("model {seed}");
            let first = chain(&name, 1, &one, &slices);
            // The second machine goes on from a run in the middle of the first's, with other cuts.
            let fork = fork.min(first.len());
            let mut second = first[..fork].to_vec();
            let parent = second
                .last()
                .map_or(namespace(&name), |run| run.keys[run.keys.len() - 1]);
            let mut parent = parent;
            for (index, blocks) in other.iter().enumerate() {
                let run = header(
                    namespace(&name),
                    parent,
                    1000 + index as u32,
                    *blocks,
                    &slices,
                );
                parent = run.keys[run.keys.len() - 1];
                second.push(run);
            }
            let writers = [tier(&config), tier(&config)];
            share(&writers[0], &first);
            share(&writers[1], &second);
            let mut all = keys(&first);
            all.extend(keys(&second[fork..]));
            if mishaps.is_empty() {
                let reader = tier(&config);
                prop_assert_eq!(
                    read_back(&reader, &all, Shape::Odd),
                    (all.len(), Vec::new())
                );
                prop_assert_eq!(errors(&reader.stats()), 0);
            }
            for mishap in &mishaps {
                befall(&server, mishap);
            }
            // Every byte that comes back is checked in here.
            let reader = tier(&config);
            let (found, failures) = read_back(&reader, &all, Shape::HalfSpare);
            let stats = reader.stats();
            prop_assert_eq!(stats.found_blocks, found as u64);
            prop_assert_eq!(stats.missed_blocks, (all.len() - found) as u64);
            let bad = |kind| failures.iter().filter(|failure| **failure == kind).count() as u64;
            prop_assert!(bad(ReadFailure::Corrupt) <= stats.corrupt);
            prop_assert_eq!(bad(ReadFailure::Gone), stats.gone);
            prop_assert_eq!(bad(ReadFailure::Io), 0, "the server is well");
            prop_assert_eq!(errors(&stats), stats.errors.wrong_type);
            // Who has the runs writes what a reader did not find.
            let writers = [tier(&config), tier(&config)];
            share(&writers[0], &first);
            share(&writers[1], &second);
            let reader = tier(&config);
            prop_assert_eq!(
                read_back(&reader, &all, Shape::Odd),
                (all.len(), Vec::new()),
                "it healed"
            );
            prop_assert_eq!(errors(&reader.stats()), 0);
            Ok(())
        },
    );
    outcome.expect("no byte is wrong");
}

#[test]
fn checks_of_codecs_hold_over_the_network() {
    let server = RedisServer::start(&[]);
    let config = remote(&[server.url()]);
    let (writer, reader) = (tier(&config), tier(&config));
    let mut run = chain("int8", 2, &[2], &[4096, 8192]).remove(0);
    run.terms.codec = Codec::Int8 {
        element: Element::Bf16,
        group: 64,
    };
    share(&writer, &[run.clone()]);
    let (pinned, _) = find(&reader, &run.keys[1]).expect("it is there");
    assert_eq!(pinned.header().terms.codec, run.terms.codec);
    let read = || {
        let into = source(&chain("x", 9, &[2], &[4096, 8192])[0]);
        let target = kvlab_core::run::RunTarget {
            region: into.region,
            lease: None,
            slices: into.slices,
        };
        let read = pinned.read_slices(0..2, &target);
        let mut bytes = vec![0; 4096 + 8192];
        target.region.read(0, &mut bytes);
        (read, bytes)
    };
    let (first, second) = (read(), read());
    assert_eq!(first.0, Ok(()));
    assert_eq!(first, second, "the decoded form is the same at every read");
    assert_ne!(
        first.1[..4096],
        disk_support::slice_bytes(&chain("x", 9, &[2], &[4096, 8192])[0], 0)
    );
    // Half the bytes and some for scales.
    let sent = reader.stats().read_bytes / 2;
    assert!((6144..7000).contains(&sent), "{sent}");
    // Only the second slice.
    let name = server.names_of('r').remove(0);
    let mut value = server.get(&name);
    let at = value.len() - 10;
    value[at] ^= 0x40;
    server.set(&name, &value);
    let into = source(&chain("x", 9, &[2], &[4096, 8192])[0]);
    let target = kvlab_core::run::RunTarget {
        region: into.region,
        lease: None,
        slices: into.slices,
    };
    assert_eq!(pinned.read_slices(0..1, &target), Ok(()));
    assert_eq!(pinned.read_slices(1..2, &target), Err(ReadFailure::Corrupt));
    assert_eq!(
        pinned.read_slices(0..1, &target),
        Err(ReadFailure::Gone),
        "it was deleted"
    );
    assert!(check(&*pinned, Shape::Odd).is_err());
}
