//! The write queue: bounded, drained, purged and stopped while it is written.

use shuttle::thread;

use super::{LONG, config, explore, open};
use crate::config::{StoreConfig, WritePolicy};
use crate::tier::testing::{FakeDisk, chain, header, namespace, source};
use crate::tier::{Put, Refusal, Tier};

/// Two threads fill a queue that holds one run; one waits for its own, one clears.
#[test]
fn writers_against_flush_and_clear() {
    explore(|| {
        let disk = FakeDisk::new(1 << 20);
        let small = StoreConfig {
            write_queue_bytes: 100,
            ..config(4, WritePolicy::WriteThrough)
        };
        let store = open(&small, &disk);
        let writers = [1, 2].map(|branch| {
            let store = store.clone();
            thread::spawn(move || {
                let space = namespace(branch as u8);
                let keys = chain(&space, branch, 0, 2);
                for at in 0..2 {
                    let run = header(&space, &keys, at..at + 1, &[60]);
                    match store
                        .write_through(run.clone(), source(&run))
                        .expect("write")
                    {
                        Put::Queued => store.flush(LONG).expect("flush"),
                        Put::Refused(Refusal::QueueFull | Refusal::ParentMissing) => {}
                        put => panic!("{put:?}"),
                    }
                    store.validate().expect("sound");
                }
            })
        });
        store.clear(Some(&namespace(1))).expect("clear");
        for thread in writers {
            thread.join().expect("a thread");
        }
        store.flush(LONG).expect("flush");
        let keys = chain(&namespace(2), 2, 0, 2);
        assert!(
            disk.contains(&keys[0]) || !disk.contains(&keys[1]),
            "a run without its parent"
        );
        store.close(LONG).expect("close");
        store.validate().expect("sound");
    });
}

/// An eviction that waits for room in the queue is woken by every write.
#[test]
fn evict_waits_for_room() {
    explore(|| {
        let disk = FakeDisk::new(1 << 20);
        let small = StoreConfig {
            write_queue_bytes: 100,
            ..config(8, WritePolicy::WriteBack)
        };
        let store = open(&small, &disk);
        let space = namespace(1);
        let keys = chain(&space, 1, 0, 3);
        for at in 0..3 {
            let run = header(&space, &keys, at..at + 1, &[60]);
            assert_eq!(
                store.demote(run.clone(), source(&run)).expect("demote"),
                Put::Stored
            );
        }
        let evicters = [(); 2].map(|()| {
            let store = store.clone();
            thread::spawn(move || store.evict_l2(LONG).expect("evict"))
        });
        let evicted: usize = evicters
            .map(|thread| thread.join().expect("a thread"))
            .iter()
            .sum();
        assert_eq!(evicted, 3);
        store.flush(LONG).expect("flush");
        assert!(
            keys.iter().all(|key| disk.contains(key)),
            "two evictions at once lost a run"
        );
        store.close(LONG).expect("close");
    });
}
