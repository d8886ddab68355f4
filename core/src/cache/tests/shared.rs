//! Two machines over servers that do whatever they like: every byte that is restored is the one that was computed.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::*;

use super::{LONG, NAMESPACE};
use crate::cache::{Begin, CacheConfig, HitTokens, Lease, PrefixCache};
use crate::config::{StoreConfig, WritePolicy};
use crate::cost::RestoreMode;
use crate::key::BlockKey;
use crate::layout::{LayerLayout, Layout, RunWindow};
use crate::run::Terms;
use crate::store::{BlockStore, Inquiry};
use crate::tier::TierId;
use crate::tier::memory::ARENA_PAGE;
use crate::tier::testing::{FakeDisk, FakeServers, Lie};

const BLOCK: usize = 4;
const LAYERS: usize = 3;

fn layout() -> Layout {
    let layer = LayerLayout {
        k_heads: 2,
        k_dim: 24,
        v_heads: 1,
        v_dim: 40,
    };
    Layout::new(&[layer; LAYERS], 4, BLOCK as u32).expect("a valid layout")
}

/// The tiers of a machine beside L4.
#[derive(Clone, Copy, Debug)]
struct Machine {
    l2: bool,
    l3: bool,
    write_policy: WritePolicy,
}

fn machine(of: Machine, servers: &Arc<FakeServers>) -> PrefixCache {
    let config = StoreConfig {
        l2_bytes: if of.l2 { 6 * ARENA_PAGE as u64 } else { 0 },
        io_workers: 2,
        write_policy: of.write_policy,
        ..StoreConfig::default()
    };
    let disk = of.l3.then(|| FakeDisk::new(1 << 30) as _);
    let store = BlockStore::with_tiers(&config, disk, Some(Arc::clone(servers) as _));
    let config = CacheConfig {
        block_bytes: 24 * layout().block_bytes() as u64,
        buffer_bytes: 4 << 20,
        residents: 0,
        policy: "lru".to_owned(),
    };
    PrefixCache::new(layout(), store.expect("a store"), &config).expect("a cache")
}

/// Prompts of one family share all their tokens.
fn prompt(family: u32, blocks: usize) -> Vec<u32> {
    let tokens = 0..=(blocks * BLOCK) as u32;
    tokens
        .map(|at| if at < 6 { at } else { family * 1000 + at })
        .collect()
}

/// Calls `each` with the place in the buffer and the bytes of the tokens in `range`: they follow from all tokens before.
fn rows(
    buffer: &Lease,
    tokens: &[u32],
    range: std::ops::Range<usize>,
    mut each: impl FnMut(usize, &[u8]),
) {
    for at in range {
        for layer in 0..LAYERS {
            let window = RunWindow {
                run_tokens: 1,
                kept: 0..1,
                at,
            };
            for piece in layout().buffer_pieces(buffer.layout(), layer, &window) {
                let mut state = DefaultHasher::new();
                (&tokens[..=at], layer, piece.len).hash(&mut state);
                let seed = state.finish().to_le_bytes();
                let bytes = seed.iter().copied().cycle().take(piece.len);
                each(piece.offset, &bytes.collect::<Vec<_>>());
            }
        }
    }
}

/// Serves a prompt as an engine does; every byte that is restored is checked.
fn serve(cache: &PrefixCache, tokens: &[u32]) -> HitTokens {
    serve_with(cache, tokens, Begin::default())
}

/// As an engine that had L4 asked before.
fn serve_after(cache: &PrefixCache, tokens: &[u32], inquiry: &Inquiry) -> HitTokens {
    let inquiry = Some(inquiry);
    let options = Begin {
        inquiry,
        ..Begin::default()
    };
    serve_with(cache, tokens, options)
}

fn inquire(cache: &PrefixCache, tokens: &[u32]) -> Inquiry {
    cache.inquire(NAMESPACE, tokens, 0).expect("an answer")
}

fn serve_with(cache: &PrefixCache, tokens: &[u32], options: Begin<'_>) -> HitTokens {
    let mut request = cache
        .begin_with(NAMESPACE, tokens.to_vec(), options)
        .expect("a request");
    let buffer = cache.lease(tokens.len()).expect("room");
    let restored = request.restore(&buffer).expect("nothing fails");
    let hit = restored.tokens.total();
    assert!(hit <= request.found().total());
    rows(&buffer, tokens, 0..hit, |offset, bytes| {
        let mut found = vec![0; bytes.len()];
        buffer.region().read(offset, &mut found);
        assert_eq!(found, bytes, "wrong bytes");
    });
    rows(&buffer, tokens, hit..tokens.len(), |offset, bytes| {
        buffer.region().write(offset, bytes);
    });
    request.commit(tokens.to_vec(), &buffer).expect("commit");
    assert!(request.wait_committed(LONG));
    restored.tokens
}

#[test]
fn a_second_machine_restores_what_the_first_one_computed() {
    for (l2, l3) in [(true, true), (true, false), (false, true), (false, false)] {
        let of = Machine {
            l2,
            l3,
            write_policy: WritePolicy::WriteThrough,
        };
        let servers = FakeServers::new(1 << 30);
        let one = machine(of, &servers);
        let tokens = prompt(1, 5);
        assert_eq!(serve(&one, &tokens).total(), 0);
        one.flush(LONG).expect("flush");
        let elsewhere = servers.elsewhere();
        let other = machine(of, &elsewhere);
        assert_eq!(serve(&other, &tokens).l4, 5 * BLOCK);
        // What goes on from it is shared alone: the rest was seen there.
        let longer = [&tokens[..5 * BLOCK], &prompt(2, 3)[..]].concat();
        assert_eq!(serve(&other, &longer).l1, 5 * BLOCK);
        other.flush(LONG).expect("flush");
        assert_eq!(servers.keys().len(), 8);
        assert_eq!(serve(&one, &longer).l4, 3 * BLOCK);
        if l3 {
            let blocks = other.store().stats().expect("stats").l3.blocks;
            assert_eq!(blocks, 8, "the disk here takes what came from L4");
        }
        other.validate().expect("sound");
    }
}

#[test]
fn who_had_l4_asked_before_does_not_ask_and_stale_answers_are_misses() {
    let of = Machine {
        l2: true,
        l3: false,
        write_policy: WritePolicy::WriteThrough,
    };
    let servers = FakeServers::new(1 << 30);
    let tokens = prompt(1, 5);
    let one = machine(of, &servers);
    serve(&one, &tokens);
    one.flush(LONG).expect("flush");
    let asked = |here: &FakeServers| here.lookups.load(Ordering::SeqCst);
    // A request behind an answer waits for nobody, even if the server hangs by then.
    let here = servers.elsewhere();
    let cache = machine(of, &here);
    let inquiry = inquire(&cache, &tokens);
    assert_eq!((inquiry.blocks(), asked(&here)), (5, 1));
    here.hung.store(true, Ordering::SeqCst);
    assert_eq!(serve_after(&cache, &tokens, &inquiry).l4, 5 * BLOCK);
    assert_eq!(asked(&here), 1);
    // What is here is not asked for, and what came here since is not taken from there.
    assert_eq!((inquire(&cache, &tokens).blocks(), asked(&here)), (0, 1));
    assert_eq!(serve_after(&cache, &tokens, &inquiry).l1, 5 * BLOCK);
    // What was lost since, and what belongs to other tokens, is not served.
    here.hung.store(false, Ordering::SeqCst);
    let fresh = machine(of, &here);
    let inquiry = inquire(&fresh, &tokens);
    assert_eq!(serve_after(&fresh, &prompt(2, 5), &inquiry).l4, BLOCK);
    for key in here.keys() {
        here.damage(&key);
    }
    let other = machine(of, &here);
    assert_eq!(serve_after(&other, &tokens, &inquiry).total(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn hits_are_the_same_whether_l4_is_asked_before_or_by_the_request(
        of in [machines(), machines()],
        events in prop::collection::vec((0..2_usize, events()), 1..24),
    ) {
        let serve_ahead: fn(&PrefixCache, &[u32]) -> HitTokens =
            |cache, tokens| serve_after(cache, tokens, &inquire(cache, tokens));
        let hits = [serve, serve_ahead].map(|serve| {
            let servers = FakeServers::new(200_000);
            let sides = [Arc::clone(&servers), servers.elsewhere()];
            let caches = [0, 1].map(|side| machine(of[side], &sides[side]));
            let mut hits = Vec::new();
            for (side, event) in &events {
                let (cache, here) = (&caches[*side], &sides[*side]);
                match *event {
                    Event::Serve { family, blocks } => hits.push(serve(cache, &prompt(family, blocks))),
                    Event::Evict => {
                        cache.evict(usize::MAX).expect("evict");
                    }
                    Event::EvictL2 => {
                        cache.store().evict_l2(LONG).expect("evict");
                    }
                    Event::Hang(hung) => here.hung.store(hung, Ordering::SeqCst),
                    Event::Lie(lie) => *here.lie.lock() = lie,
                    Event::LoseAll => here.lose_all(),
                    // Which of two reads fails, and so what is left, is chance.
                    Event::Fail(_) | Event::Damage(_) | Event::Flush => {}
                }
                cache.flush(LONG).expect("flush");
            }
            hits
        });
        prop_assert_eq!(&hits[0], &hits[1]);
    }
}

#[test]
fn a_run_of_another_shape_is_computed_again() {
    let of = Machine {
        l2: true,
        l3: true,
        write_policy: WritePolicy::WriteThrough,
    };
    let servers = FakeServers::new(1 << 30);
    let tokens = prompt(1, 5);
    serve(&machine(of, &servers), &tokens);
    let elsewhere = servers.elsewhere();
    *elsewhere.lie.lock() = Some(Lie::Lengths);
    let other = machine(of, &elsewhere);
    assert_eq!(serve(&other, &tokens), HitTokens::default());
    let stats = other.store().stats().expect("stats");
    assert_eq!((stats.l4.corrupt, stats.l4.hit_blocks), (1, 0));
}

#[test]
fn servers_that_are_slower_than_computing_are_left_alone_and_tried_again() {
    let of = Machine {
        l2: false,
        l3: false,
        write_policy: WritePolicy::WriteThrough,
    };
    let servers = FakeServers::new(1 << 30);
    let (brief, long) = (prompt(1, 5), prompt(1, 9));
    serve(&machine(of, &servers), &long);
    let servers = servers.elsewhere();
    let cache = machine(of, &servers);
    let (model, costs) = (BlockKey([1; 32]), cache.store().costs());
    let slow = |seconds| costs.note_read(&[(TierId::L4, 1 << 20, Duration::from_secs(seconds))]);
    for _ in 0..3 {
        slow(1);
        costs.note_prefill(&model, 30, 0, Duration::from_millis(50));
    }
    // What a request finds in L4 and what it restores of that.
    let ask = |tokens: &[u32]| {
        let mut request = cache.begin(NAMESPACE, tokens.to_vec(), 0).expect("begin");
        request.choose(RestoreMode::Auto, &model);
        let buffer = cache.lease(tokens.len()).expect("room");
        let restored = request.restore(&buffer).expect("nothing fails");
        (request.found().l4, restored.tokens.l4)
    };
    assert_eq!(ask(&brief), (5 * BLOCK, 0));
    // Who could find no more does not ask, but for one now and then; who could find more does.
    let found = (0..16).map(|_| ask(&brief).0).collect::<Vec<_>>();
    assert_eq!(found[..15], [0; 15]);
    assert_eq!(servers.lookups.load(Ordering::SeqCst), 2);
    assert_eq!(ask(&long).0, 9 * BLOCK);
    assert_eq!(servers.lookups.load(Ordering::SeqCst), 3);
    // They have become faster, which is found out in time.
    let restored = (0..2000).map(|_| ask(&brief).1).find(|tokens| *tokens > 0);
    assert!(restored.is_some());
}

#[test]
fn what_must_not_leave_the_machine_is_not_shared() {
    let of = Machine {
        l2: true,
        l3: false,
        write_policy: WritePolicy::WriteThrough,
    };
    let servers = FakeServers::new(1 << 30);
    let cache = machine(of, &servers);
    let terms = Terms {
        persist: false,
        ..Terms::default()
    };
    cache.set_terms(NAMESPACE, terms);
    serve(&cache, &prompt(1, 5));
    cache.evict(usize::MAX).expect("evict");
    cache.store().evict_l2(LONG).expect("evict");
    cache.flush(LONG).expect("flush");
    assert!(servers.keys().is_empty());
    assert!(servers.refused.load(Ordering::SeqCst) > 0);
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Serve { family: u32, blocks: usize },
    Evict,
    EvictL2,
    Hang(bool),
    Lie(Option<Lie>),
    Fail(usize),
    Damage(usize),
    LoseAll,
    Flush,
}

fn events() -> impl Strategy<Value = Event> {
    let lies = prop_oneof![
        Just(None),
        Just(Some(Lie::Position)),
        Just(Some(Lie::Blocks)),
        Just(Some(Lie::Lengths)),
        Just(Some(Lie::Silence)),
    ];
    prop_oneof![
        12 => (1..4_u32, 1..8_usize).prop_map(|(family, blocks)| Event::Serve { family, blocks }),
        2 => Just(Event::Evict),
        2 => Just(Event::EvictL2),
        1 => any::<bool>().prop_map(Event::Hang),
        1 => lies.prop_map(Event::Lie),
        1 => (1..4_usize).prop_map(Event::Fail),
        2 => (0..40_usize).prop_map(Event::Damage),
        1 => Just(Event::LoseAll),
        2 => Just(Event::Flush),
    ]
}

fn machines() -> impl Strategy<Value = Machine> {
    let policies = prop_oneof![
        Just(WritePolicy::WriteThrough),
        Just(WritePolicy::WriteThroughSelective),
        Just(WritePolicy::WriteBack),
    ];
    (any::<bool>(), any::<bool>(), policies).prop_map(|(l2, l3, write_policy)| Machine {
        l2,
        l3,
        write_policy,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_the_servers_do_what_is_restored_is_what_was_computed(
        of in [machines(), machines()],
        events in prop::collection::vec((0..2_usize, events()), 1..40),
    ) {
        let servers = FakeServers::new(200_000);
        let sides = [Arc::clone(&servers), servers.elsewhere()];
        let caches = [0, 1].map(|side| machine(of[side], &sides[side]));
        for (side, event) in events {
            let (cache, here) = (&caches[side], &sides[side]);
            match event {
                Event::Serve { family, blocks } => {
                    serve(cache, &prompt(family, blocks));
                }
                Event::Evict => {
                    cache.evict(usize::MAX).expect("evict");
                }
                Event::EvictL2 => {
                    cache.store().evict_l2(LONG).expect("evict");
                }
                Event::Hang(hung) => here.hung.store(hung, Ordering::SeqCst),
                Event::Lie(lie) => *here.lie.lock() = lie,
                Event::Fail(reads) => here.failing.store(reads, Ordering::SeqCst),
                Event::Damage(index) => {
                    let keys = here.keys();
                    let mut keys = keys.iter().collect::<Vec<_>>();
                    keys.sort_unstable();
                    if let Some(key) = keys.get(index) {
                        here.damage(key);
                    }
                }
                Event::LoseAll => here.lose_all(),
                Event::Flush => cache.store().flush_l3(LONG).expect("flush"),
            }
        }
        // Once the servers are well again, a machine with nothing of its own finds what was computed now.
        for side in &sides {
            side.hung.store(false, Ordering::SeqCst);
            *side.lie.lock() = None;
            side.failing.store(0, Ordering::SeqCst);
        }
        servers.lose_all();
        let whole = Machine { l2: false, l3: false, write_policy: WritePolicy::WriteThrough };
        let fresh = [servers.elsewhere(), servers.elsewhere()].map(|servers| machine(whole, &servers));
        serve(&fresh[0], &prompt(1, 7));
        fresh[0].flush(LONG).expect("flush");
        prop_assert_eq!(serve(&fresh[1], &prompt(1, 7)).l4, 7 * BLOCK);
        for cache in &caches {
            cache.flush(LONG).expect("flush");
            cache.validate().expect("sound");
            cache.store().validate().expect("sound");
            prop_assert!(cache.store().stats().expect("stats").remote.is_some());
        }
        let held = caches.iter().map(|cache| cache.stats().l1.in_flight).collect::<HashSet<_>>();
        prop_assert_eq!(held, HashSet::from([0]));
    }
}
