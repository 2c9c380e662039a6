//! Decoded tiles, kept for the next patch that touches them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::error::Result;

/// Which tile: level and index, row by row.
pub(super) type TileKey = (usize, usize);
/// Pixels of a tile, RGB, row by row.
pub(super) type Tile = Arc<Vec<u8>>;

/// The tiles used last, up to a number of bytes, shared by all threads.
///
/// The lock covers the bookkeeping only. A tile is decoded outside it, once: who asks for it meanwhile waits for that
/// one tile, and for nothing else.
pub(super) struct TileCache {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slots: HashMap<TileKey, Slot>,
    /// Keys by time of last use, oldest first.
    order: BTreeMap<u64, TileKey>,
    clock: u64,
    bytes: usize,
}

struct Slot {
    tile: Arc<OnceLock<Option<Tile>>>,
    used: u64,
    bytes: usize,
}

impl TileCache {
    /// A cache of at most `limit` bytes of pixels (but always room for one tile).
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default() }
    }

    /// The tile `key` of `bytes` bytes, from the cache or from `decode`. An error is returned and not kept.
    pub(super) fn get(&self, key: TileKey, bytes: usize, decode: impl Fn() -> Result<Tile>) -> Result<Tile> {
        let cell = self.reserve(key, bytes);
        let mut failure = None;
        let tile = cell.get_or_init(|| decode().map_err(|error| failure = Some(error)).ok()).clone();
        match (tile, failure) {
            (Some(tile), _) => Ok(tile),
            (None, Some(error)) => {
                self.forget(key, &cell);
                Err(error)
            }
            // Another thread met the error; this one decodes for itself to report it too.
            (None, None) => decode(),
        }
    }

    /// The place of `key`, made the most recent; the oldest are dropped to make room.
    fn reserve(&self, key: TileKey, bytes: usize) -> Arc<OnceLock<Option<Tile>>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { slots, order, clock, bytes: total } = &mut *state;
        *clock += 1;
        if let Some(slot) = slots.get_mut(&key) {
            order.remove(&slot.used);
            slot.used = *clock;
            order.insert(*clock, key);
            return slot.tile.clone();
        }
        while *total + bytes > self.limit {
            let Some((_, oldest)) = order.pop_first() else { break };
            *total -= slots.remove(&oldest).map_or(0, |slot| slot.bytes);
        }
        let tile = Arc::new(OnceLock::new());
        slots.insert(key, Slot { tile: tile.clone(), used: *clock, bytes });
        order.insert(*clock, key);
        *total += bytes;
        tile
    }

    fn forget(&self, key: TileKey, cell: &Arc<OnceLock<Option<Tile>>>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.slots.get(&key).is_some_and(|slot| Arc::ptr_eq(&slot.tile, cell))
            && let Some(slot) = state.slots.remove(&key)
        {
            state.order.remove(&slot.used);
            state.bytes -= slot.bytes;
        }
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.state.lock().unwrap().bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::error::Error;

    #[test]
    fn decodes_once_and_stays_within_its_limit() {
        let cache = TileCache::new(30);
        let decoded = AtomicUsize::new(0);
        let get = |index: usize| {
            let tile = || {
                decoded.fetch_add(1, Ordering::Relaxed);
                Ok(Arc::new(vec![index as u8; 10]))
            };
            assert_eq!(*cache.get((0, index), 10, tile).unwrap(), [index as u8; 10]);
            assert!(cache.bytes() <= 30);
        };
        for index in [0, 1, 2, 0, 1, 2] {
            get(index);
        }
        assert_eq!(decoded.load(Ordering::Relaxed), 3);
        get(0);
        get(3); // drops 1, the least recently used
        get(0);
        get(2);
        assert_eq!(decoded.load(Ordering::Relaxed), 4);
        get(1);
        assert_eq!(decoded.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn errors_are_not_kept() {
        let cache = TileCache::new(100);
        assert!(cache.get((0, 0), 10, || Err(Error::Usage("no".into()))).is_err());
        assert_eq!(cache.bytes(), 0);
        assert!(cache.get((0, 0), 10, || Ok(Arc::new(vec![1]))).is_ok());
    }

    #[test]
    fn threads_share_one_decode() {
        let cache = TileCache::new(100);
        let decoded = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let slow = || {
                        decoded.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        Ok(Arc::new(vec![7]))
                    };
                    assert_eq!(*cache.get((1, 2), 1, slow).unwrap(), [7]);
                });
            }
        });
        assert_eq!(decoded.load(Ordering::Relaxed), 1);
    }
}
