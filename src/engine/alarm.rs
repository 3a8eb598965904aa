//! How long another rank is waited for, and who says when that is too long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::refusals;

/// Groups of rows.
const GROUPS: usize = 24;
/// How often the alarm looks.
const LOOK: Duration = Duration::from_millis(100);

/// Says that another rank is lost when it is waited for too long.
pub(super) struct Alarm {
    state: Arc<Mutex<Option<Waited>>>,
}

/// What is waited for.
struct Waited {
    /// How long already, as the alarm saw it: a process that was stopped itself has waited for nobody.
    time: Duration,
    patience: Duration,
    what: String,
}

impl Alarm {
    pub fn start(lost: impl Fn(&str) + Send + 'static) -> Result<Self> {
        let state: Arc<Mutex<Option<Waited>>> = Arc::default();
        let weak = Arc::downgrade(&state);
        let watch = move || {
            let mut last = Instant::now();
            while let Some(state) = weak.upgrade() {
                let passed = last.elapsed().min(2 * LOOK);
                last = Instant::now();
                let late = state.lock().take_if(|waited| {
                    waited.time += passed;
                    waited.time > waited.patience
                });
                drop(state);
                if let Some(late) = late {
                    lost(&late.what);
                }
                std::thread::sleep(LOOK);
            }
        };
        let thread = std::thread::Builder::new().name("backstop-ranks".into());
        refusals::spawn(thread, watch)
            .map_err(|source| Error::Thread { what: "a watch of ranks", source })?;
        Ok(Self { state })
    }

    /// From here on somebody is waited for.
    pub fn set(&self, patience: Duration, what: String) {
        *self.state.lock() = Some(Waited { time: Duration::ZERO, patience, what });
    }

    pub fn clear(&self) {
        *self.state.lock() = None;
    }
}

/// The slowest steps so far, by groups of rows: 1, 2 and 3, 4 to 7, and so on. In seconds.
#[derive(Clone, Copy, Default)]
pub(super) struct Slowest([Option<f64>; GROUPS]);

impl Slowest {
    fn group(rows: usize) -> usize {
        (rows.max(1).ilog2() as usize).min(GROUPS - 1)
    }

    pub fn see(&mut self, rows: usize, time: Duration) {
        let slowest = &mut self.0[Self::group(rows)];
        *slowest = Some(slowest.map_or(0.0, |slowest| slowest).max(time.as_secs_f64()));
    }

    /// What a step of so many rows may take: as long as the slowest of its group, or of the next smaller one for each of its rows.
    pub fn expected(&self, rows: usize) -> Duration {
        let group = Self::group(rows);
        let of = |at: usize| Some(self.0[at]? * (1_u64 << (group - at)) as f64);
        let longer = self.0[group..].iter().flatten().next().copied();
        let seconds = (0..=group).rev().find_map(of).or(longer).unwrap_or(0.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_may_take_as_long_as_those_before_it() {
        let mut slowest = Slowest::default();
        assert_eq!(slowest.expected(512), Duration::ZERO);
        slowest.see(1, Duration::from_secs(1));
        slowest.see(1, Duration::from_millis(500));
        assert_eq!([1, 3, 512].map(|rows| slowest.expected(rows).as_secs()), [1, 2, 512]);
        slowest.see(600, Duration::from_secs(8));
        assert_eq!([1, 256, 512, 1024].map(|rows| slowest.expected(rows).as_secs()), [1, 256, 8, 16]);
        assert_eq!(Slowest::default().expected(usize::MAX), Duration::ZERO);
    }

    #[test]
    fn an_alarm_goes_off_where_nobody_clears_it_in_time() {
        static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let alarm = Alarm::start(|what| TOLD.lock().push(what.to_owned())).unwrap();
        alarm.set(Duration::from_secs(600), "early".to_owned());
        alarm.clear();
        alarm.set(Duration::ZERO, "late".to_owned());
        let start = Instant::now();
        while TOLD.lock().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(60), "no alarm");
            std::thread::sleep(LOOK);
        }
        assert_eq!(*TOLD.lock(), ["late"]);
    }
}
