//! Who shares an engine: of several owners each has as much of its time as another, however many sequences it has. What a step of
//! so many rows takes is learnt. Who asks one thing after another has nothing waiting in between, and comes back to the step that
//! runs then: the steps of another are short for as long as that is to be expected.

use std::time::{Duration, Instant};

/// Groups of numbers of rows: 1, 2 and 3, 4 to 7, and so on.
const GROUPS: usize = 24;
/// Weight of the newest time where it is longer than what was known, and where it is shorter: what holds a step up says little of the
/// next.
const NEWEST: [f64; 2] = [0.2, 0.5];
/// Times of a group of which the shortest counts: the first ones are those of cold weights.
const WARM: u32 = 3;
/// How long somebody who had work is expected back.
const LATELY: Duration = Duration::from_secs(10);
/// What a step takes at most while somebody is expected: so many seconds, or so many steps of one row where that is more, which
/// is what their weights are read for.
const SHORT: (f64, f64) = (0.1, 4.0);
/// Steps for which a time far above what else is known is believed.
const RECENT: u64 = 64;
/// What a row more is thought to cost, of the time of a step of none, where too little is known.
const ROW: f64 = 0.05;

/// What steps take, by their rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cost {
    groups: [Option<Known>; GROUPS],
    /// Steps whose results nobody has asked for, their rows and seconds: a backend may not have computed them yet.
    open: (u32, f64, f64),
    /// Steps whose times were learnt.
    steps: u64,
}

/// What is known of the steps of a group.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// Their mean number of rows.
    rows: f64,
    /// Their mean time.
    seconds: f64,
    times: u32,
    /// The last of them.
    last: u64,
}

impl Cost {
    /// Learns what a step of `rows` rows took, whose results were waited for where it was `evaluated`.
    pub fn observe(&mut self, rows: usize, time: Duration, evaluated: bool) {
        let (steps, all, seconds) = self.open;
        let (steps, all, seconds) = (steps + 1, all + rows as f64, seconds + time.as_secs_f64());
        if !evaluated {
            self.open = (steps, all, seconds);
            return;
        }
        self.open = Default::default();
        // Of those that were computed together each took its part.
        let (rows, seconds) = (all / f64::from(steps), seconds / f64::from(steps));
        if rows < 1.0 || seconds <= 0.0 {
            return;
        }
        let Some(group) = self.groups.get_mut(rows.log2() as usize) else { return };
        self.steps += 1;
        let Some(known) = group else {
            *group = Some(Known { rows, seconds, times: 1, last: self.steps });
            return;
        };
        (known.times, known.last) = (known.times.saturating_add(1), self.steps);
        known.rows += NEWEST[0] * (rows - known.rows);
        if known.times <= WARM {
            known.seconds = known.seconds.min(seconds);
        } else {
            let seconds = seconds.min(2.0 * known.seconds);
            known.seconds += NEWEST[usize::from(seconds < known.seconds)] * (seconds - known.seconds);
        }
    }

    /// Seconds that a step of `rows` rows takes, never fewer than one of fewer rows; none before the first step.
    pub fn time(&self, rows: usize) -> Option<f64> {
        let rows = rows as f64;
        let (mut first, mut below): (Option<Known>, Option<(usize, Known)>) = (None, None);
        for (group, known) in self.groups.iter().enumerate().filter_map(|(i, known)| Some((i, (*known)?))) {
            let Some((last, least)) = below.filter(|_| known.rows > 0.0) else {
                if known.rows >= rows {
                    return Some(known.seconds * (1.0 + ROW * rows) / (1.0 + ROW * known.rows));
                }
                (first, below) = (Some(known), Some((group, known)));
                continue;
            };
            let known = Known { seconds: known.seconds.max(least.seconds), ..known };
            if known.rows >= rows {
                let part = (rows - least.rows) / (known.rows - least.rows);
                let between = least.seconds + (known.seconds - least.seconds) * part;
                // Of what lies far above, an old time, or a few of cold weights, would keep anybody from learning better.
                let sure = known.times > WARM && self.steps - known.last < RECENT;
                let near = group - last <= 1 || sure;
                return Some(if near { between } else { between.min(beyond(first, least, rows)) });
            }
            below = Some((group, known));
        }
        below.map(|(_, last)| beyond(first, last, rows))
    }

    /// The most rows, of at most `most`, whose step takes `seconds` at the longest; `most` before the first step.
    pub fn rows_within(&self, seconds: f64, most: usize) -> usize {
        let (mut fit, mut over) = (0, most + 1);
        while over - fit > 1 {
            let middle = fit + (over - fit) / 2;
            match self.time(middle) {
                Some(time) if time > seconds => over = middle,
                _ => fit = middle,
            }
        }
        fit
    }

    /// The most rows, of at most `most`, of a step that keeps nobody waiting for long who is expected back.
    pub fn short(&self, most: usize) -> usize {
        let (seconds, steps) = SHORT;
        self.time(1).map_or(most, |one| self.rows_within(seconds.max(steps * one), most))
    }
}

/// Whose work was seen last, and before that another's.
#[derive(Debug, Default)]
pub(crate) struct Lately {
    last: Option<(String, Instant)>,
    before: Option<(String, Instant)>,
}

impl Lately {
    /// `owner` has work.
    pub fn see(&mut self, owner: &str, now: Instant) {
        match &mut self.last {
            Some(last) if last.0 == owner => last.1 = now,
            last => {
                // Whoever was before that is gone for longer than the last.
                let gone = last.replace((owner.to_owned(), now));
                self.before = gone.or(self.before.take());
            }
        }
    }

    /// Whether somebody else than `owner` had work a short time ago.
    pub fn expects_another(&self, owner: &str, now: Instant) -> bool {
        let mut others = [&self.last, &self.before].into_iter().flatten().filter(|seen| seen.0 != owner);
        others.any(|seen| now.saturating_duration_since(seen.1) < LATELY)
    }
}

/// The time of a step of more rows than `last` has, by what more rows took from `first` on.
fn beyond(first: Option<Known>, last: Known, rows: f64) -> f64 {
    let slope = match first {
        Some(first) if last.rows > first.rows => (last.seconds - first.seconds) / (last.rows - first.rows),
        _ => last.seconds * ROW / (1.0 + ROW * last.rows),
    };
    last.seconds + slope.max(0.0) * (rows - last.rows)
}

/// Parts of `whole` for those who want so much: of what there is each has as much as another, unless it wants less, and nobody
/// nothing.
pub(crate) fn parts(whole: usize, wanted: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|&i| wanted[i]);
    let (mut left, mut parts) = (whole, vec![0; wanted.len()]);
    for (done, i) in order.into_iter().enumerate() {
        let equal = left / (wanted.len() - done);
        parts[i] = wanted[i].min(equal.max(1));
        left = left.saturating_sub(parts[i]);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(of: &[(usize, u64)]) -> Cost {
        let mut cost = Cost::default();
        of.iter().for_each(|&(rows, millis)| cost.observe(rows, Duration::from_millis(millis), true));
        cost
    }

    #[track_caller]
    fn near(cost: &Cost, rows: usize, seconds: f64) {
        let time = cost.time(rows).unwrap();
        assert!((time - seconds).abs() < 1e-9, "{rows} rows: {time}");
    }

    #[test]
    fn times_lie_between_those_that_are_known() {
        assert_eq!(Cost::default().time(1), None);
        let one = cost(&[(1, 105)]);
        near(&one, 1, 0.105);
        near(&one, 5, 0.125);
        let two = cost(&[(2, 100), (7, 300)]);
        near(&two, 2, 0.1);
        near(&two, 4, 0.18);
        near(&two, 12, 0.5);
        // Fewer rows than any that are known are thought to take less.
        near(&cost(&[(20, 200)]), 1, 0.105);
        // Chance makes no step of more rows shorter.
        let odd = cost(&[(4, 200), (8, 100)]);
        near(&odd, 8, 0.2);
        near(&odd, 1000, 0.2);
    }

    #[test]
    fn a_time_far_above_keeps_nobody_from_more_rows() {
        // The first chunk took ten seconds, of cold weights.
        let mut cost = cost(&[(512, 10_000), (1, 105)]);
        near(&cost, 21, 0.205);
        cost.observe(20, Duration::from_millis(124), true);
        near(&cost, 39, 0.143);
        // Nor is it believed once a shorter one was seen.
        cost.observe(512, Duration::from_millis(616), true);
        near(&cost, 512, 0.616);
    }

    /// What is seen step after step is so, also where nothing between it and one row was seen.
    #[test]
    fn a_time_far_above_counts_once_it_was_seen_often() {
        let mut cost = cost(&[(1, 20)]);
        (0..3).for_each(|_| cost.observe(13, Duration::from_millis(140), true));
        assert_eq!(cost.rows_within(0.04, 64), 13);
        cost.observe(13, Duration::from_millis(140), true);
        near(&cost, 7, 0.08);
        assert_eq!(cost.rows_within(0.04, 64), 3);
        // A long time after it nobody knows whether it still is.
        (0..RECENT).for_each(|_| cost.observe(1, Duration::from_millis(20), true));
        assert_eq!(cost.rows_within(0.04, 64), 13);
    }

    #[test]
    fn new_times_count_and_a_step_that_was_held_up_does_so_little() {
        let mut cost = cost(&[(1, 100), (1, 100), (1, 100)]);
        cost.observe(1, Duration::from_secs(60), true);
        assert!((cost.time(1).unwrap() - 0.12).abs() < 1e-9);
        (0..50).for_each(|_| cost.observe(1, Duration::from_millis(50), true));
        assert!((cost.time(1).unwrap() - 0.05).abs() < 1e-4);
        // Nothing is learnt of what is no step.
        let before = cost.time(1);
        cost.observe(0, Duration::from_millis(9), true);
        cost.observe(usize::MAX, Duration::from_millis(9), true);
        cost.observe(1, Duration::ZERO, true);
        assert_eq!(cost.time(1), before);
    }

    #[test]
    fn steps_that_were_only_begun_count_with_the_one_that_was_waited_for() {
        let mut cost = Cost::default();
        cost.observe(512, Duration::from_millis(2), false);
        cost.observe(512, Duration::from_millis(2), false);
        assert_eq!(cost.time(512), None);
        cost.observe(512, Duration::from_millis(896), true);
        near(&cost, 512, 0.3);
    }

    #[test]
    fn rows_fit_into_a_time() {
        assert_eq!(Cost::default().rows_within(1.0, 64), 64);
        let cost = cost(&[(2, 100), (7, 300)]);
        assert_eq!(cost.rows_within(0.2001, 1024), 4);
        assert_eq!(cost.rows_within(0.2001, 3), 3);
        assert_eq!(cost.rows_within(0.05, 1024), 0);
    }

    #[test]
    fn short_steps_take_a_tenth_of_a_second_or_four_times_one_row() {
        assert_eq!(Cost::default().short(512), 512);
        // 10 ms for one row, 1 ms for each more.
        let often = |one: u64, many: u64| cost(&[[(1, one)].as_slice(), &[(101, many); 4]].concat());
        let quick = often(10, 110);
        assert_eq!((quick.short(512), quick.short(50)), (91, 50));
        // 200 ms for one, 20 ms for each more.
        assert_eq!(often(200, 2200).short(512), 31);
    }

    #[test]
    fn who_had_work_lately_is_expected_back() {
        let (start, mut lately) = (Instant::now(), Lately::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!lately.expects_another("a", start));
        lately.see("a", start);
        assert!(!lately.expects_another("a", start));
        assert!(lately.expects_another("b", at(9)));
        assert!(!lately.expects_another("b", at(10)));
        // Both are seen in each step for a while; then one of them alone.
        for second in 0..5 {
            ["a", "b"].iter().for_each(|owner| lately.see(owner, at(second)));
        }
        for second in 5..30 {
            lately.see("b", at(second));
            assert_eq!(lately.expects_another("b", at(second)), second < 14, "{second}");
        }
        // A third takes the place of who is gone for longest.
        lately.see("c", at(30));
        assert!(lately.expects_another("c", at(31)) && lately.expects_another("b", at(31)));
    }

    #[test]
    fn nobody_gets_more_than_another_who_wants_it() {
        assert_eq!(parts(12, &[1, 100]), [1, 11]);
        assert_eq!(parts(12, &[100, 1, 100]), [5, 1, 6]);
        assert_eq!(parts(12, &[100, 100]), [6, 6]);
        assert_eq!(parts(100, &[7, 8]), [7, 8]);
        assert_eq!(parts(1, &[5, 5, 5]), [1, 1, 1]);
        assert_eq!(parts(5, &[]), Vec::<usize>::new());
    }
}
