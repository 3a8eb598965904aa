//! What there is so much of: places for sequences, threads that make tokens of texts. Where there are several keys, none of them may
//! have all of it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::store::Caller;

/// Of `all`, what one key may have where there are `keys`.
const fn of_one(all: usize, keys: usize) -> usize {
    if keys < 2 { all } else { all - all.div_ceil(4) }
}

/// Places for sequences, in flight or in the queue.
#[derive(Debug)]
pub(crate) struct Places {
    taken: Mutex<Taken>,
    all: usize,
    /// What one key may have of them.
    pub most: usize,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Those of each key that has any.
    of: HashMap<Caller, usize>,
}

/// One place; free again once it is dropped.
#[derive(Debug)]
pub(crate) struct QueuePlace(Arc<Places>, Caller);

impl Places {
    /// `all` places for those who have one of `keys` keys.
    pub fn new(all: usize, keys: usize) -> Arc<Self> {
        Arc::new(Self { taken: Mutex::default(), all, most: of_one(all, keys).max(1) })
    }

    /// `count` places; none while there are not as many.
    pub fn take(self: &Arc<Self>, count: usize, caller: &Caller) -> Option<Vec<QueuePlace>> {
        let mut taken = self.taken.lock();
        let own = taken.of.get(caller).copied().unwrap_or_default();
        if taken.all.saturating_add(count) > self.all || own.saturating_add(count) > self.most {
            return None;
        }
        taken.all += count;
        taken.of.insert(caller.clone(), own + count);
        Some((0..count).map(|_| QueuePlace(Arc::clone(self), caller.clone())).collect())
    }

    #[cfg(test)]
    pub fn taken(&self) -> usize {
        self.taken.lock().all
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        let mut taken = self.0.taken.lock();
        taken.all -= 1;
        if let Some(own) = taken.of.get_mut(&self.1) {
            *own -= 1;
            if *own == 0 {
                taken.of.remove(&self.1);
            }
        }
    }
}

/// Turns on threads that make tokens of texts.
#[derive(Debug)]
pub(crate) struct Encoders {
    all: Arc<Semaphore>,
    /// What each key may have of them; there is one for each key that has asked.
    of: Mutex<HashMap<Caller, Arc<Semaphore>>>,
    most: usize,
}

/// A turn; over once it is dropped. It goes with the work, which goes on where its client has left.
#[derive(Debug)]
pub(crate) struct Encoder {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Encoders {
    /// `all` turns at a time for those who have one of `keys` keys.
    pub fn new(all: usize, keys: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), of: Mutex::default(), most: of_one(all, keys).max(1) }
    }

    /// Waits for a turn; none once there are no more.
    pub async fn acquire(&self, caller: &Caller) -> Option<Encoder> {
        let own = || Arc::new(Semaphore::new(self.most));
        let own = Arc::clone(self.of.lock().entry(caller.clone()).or_insert_with(own));
        // Who waits for one of its own keeps nobody from the others.
        let own = own.acquire_owned().await.ok()?;
        Some(Encoder { _own: own, _of_all: Arc::clone(&self.all).acquire_owned().await.ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str) -> Caller {
        Caller(Some(name.into()))
    }

    #[test]
    fn places_come_back() {
        let (places, me) = (Places::new(3, 1), Caller::default());
        let two = places.take(2, &me).unwrap();
        assert!(places.take(2, &me).is_none());
        let one = places.take(1, &me).unwrap();
        assert_eq!(places.taken(), 3);
        drop((two, one));
        assert_eq!(places.taken(), 0);
        assert!(places.taken.lock().of.is_empty());
        assert_eq!(places.take(3, &me).unwrap().len(), 3);
        assert!(places.take(usize::MAX, &me).is_none());
    }

    #[test]
    fn of_several_keys_none_has_all_places() {
        let places = Places::new(8, 2);
        let six = places.take(6, &caller("a")).unwrap();
        assert!(places.take(1, &caller("a")).is_none());
        let two = places.take(2, &caller("b")).unwrap();
        assert!(places.take(1, &caller("b")).is_none());
        drop(six);
        assert!(places.take(4, &caller("b")).is_some());
        drop(two);
        // One place is somebody's.
        assert!(Places::new(1, 2).take(1, &caller("a")).is_some());
    }

    #[tokio::test]
    async fn of_several_keys_none_has_all_encoders() {
        use std::time::Duration;
        let encoders = Encoders::new(2, 2);
        let first = encoders.acquire(&caller("a")).await.unwrap();
        let a = caller("a");
        let mut second = Box::pin(encoders.acquire(&a));
        tokio::time::timeout(Duration::from_millis(20), &mut second).await.unwrap_err();
        // It waits, and another does not.
        drop(encoders.acquire(&caller("b")).await.unwrap());
        drop(first);
        assert!(second.await.is_some());
    }

    #[tokio::test]
    async fn one_turn_goes_from_key_to_key() {
        use std::time::Duration;
        use tokio::time::timeout;
        const NOT_YET: Duration = Duration::from_millis(20);
        let turns = Encoders::new(1, 2);
        let (a, b) = (caller("a"), caller("b"));
        let first = turns.acquire(&a).await.unwrap();
        // Of one key the second waits for the first, and then for another key's, though it came before.
        let (mut of_a, mut of_b) = (Box::pin(turns.acquire(&a)), Box::pin(turns.acquire(&b)));
        timeout(NOT_YET, &mut of_a).await.unwrap_err();
        timeout(NOT_YET, &mut of_b).await.unwrap_err();
        drop(first);
        timeout(NOT_YET, &mut of_a).await.unwrap_err();
        drop(of_b.await.unwrap());
        assert!(of_a.await.is_some());
    }
}
