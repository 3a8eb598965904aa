//! Who shares an engine: of several owners each has as much of its time as another, however many sequences it has. What a step of
//! so many rows takes is learnt.

use std::time::Duration;

/// Groups of numbers of rows: 1, 2 and 3, 4 to 7, and so on.
const GROUPS: usize = 24;
/// Weight of the newest time.
const NEWEST: f64 = 0.2;
/// What a row more is thought to cost, of the time of a step, where one number of rows alone is known.
const ROW: f64 = 0.05;

/// What steps take, by their rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cost {
    /// The mean number of rows of the steps of a group, and the mean of their seconds.
    groups: [Option<(f64, f64)>; GROUPS],
}

impl Cost {
    /// Learns what a step of `rows` rows took.
    pub fn observe(&mut self, rows: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        let Some(group) = rows.checked_ilog2().and_then(|log| self.groups.get_mut(log as usize)) else {
            return;
        };
        if seconds <= 0.0 {
            return;
        }
        *group = Some(match *group {
            None => (rows as f64, seconds),
            Some((of, known)) => {
                // What held a step up says little of the next.
                let seconds = seconds.clamp(0.5 * known, 2.0 * known);
                (of + NEWEST * (rows as f64 - of), known + NEWEST * (seconds - known))
            }
        });
    }

    /// Seconds that a step of `rows` rows takes, never fewer than one of fewer rows; none before the first step.
    pub fn time(&self, rows: usize) -> Option<f64> {
        let rows = rows as f64;
        let (mut below, mut first) = (None, None);
        for &(of, seconds) in self.groups.iter().flatten() {
            let seconds = below.map_or(seconds, |(_, least): (f64, f64)| seconds.max(least));
            if of >= rows {
                let Some((from, least)) = below else { return Some(seconds) };
                return Some(least + (seconds - least) * (rows - from) / (of - from));
            }
            first = first.or(Some((of, seconds)));
            below = Some((of, seconds));
        }
        let ((from, least), (last, most)) = first.zip(below)?;
        let slope = if last > from { (most - least) / (last - from) } else { ROW * most };
        Some(most + slope * (rows - last))
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
        of.iter().for_each(|&(rows, millis)| cost.observe(rows, Duration::from_millis(millis)));
        cost
    }

    #[test]
    fn times_lie_between_those_that_are_known() {
        let near = |cost: &Cost, rows: usize, seconds: f64| {
            let time = cost.time(rows).unwrap();
            assert!((time - seconds).abs() < 1e-9, "{rows} rows: {time}");
        };
        assert_eq!(Cost::default().time(1), None);
        let one = cost(&[(1, 100)]);
        near(&one, 1, 0.1);
        near(&one, 5, 0.12);
        let two = cost(&[(1, 100), (101, 300)]);
        near(&two, 1, 0.1);
        near(&two, 51, 0.2);
        near(&two, 201, 0.5);
        // Fewer rows than any that are known take no longer.
        near(&cost(&[(64, 300)]), 1, 0.3);
        // Chance makes no step of more rows shorter.
        let odd = cost(&[(4, 200), (64, 100)]);
        near(&odd, 64, 0.2);
        near(&odd, 1000, 0.2);
    }

    #[test]
    fn new_times_count_and_a_step_that_was_held_up_does_so_little() {
        let mut cost = cost(&[(1, 100)]);
        cost.observe(1, Duration::from_secs(60));
        assert!(cost.time(1).unwrap() <= 0.1201);
        (0..50).for_each(|_| cost.observe(1, Duration::from_millis(50)));
        assert!((cost.time(1).unwrap() - 0.05).abs() < 1e-4);
        // Nothing is learnt of what is no step.
        let before = cost.time(1);
        cost.observe(0, Duration::from_millis(9));
        cost.observe(usize::MAX, Duration::from_millis(9));
        cost.observe(1, Duration::ZERO);
        assert_eq!(cost.time(1), before);
    }

    #[test]
    fn rows_fit_into_a_time() {
        assert_eq!(Cost::default().rows_within(1.0, 64), 64);
        let cost = cost(&[(1, 100), (101, 300)]);
        assert_eq!(cost.rows_within(0.2001, 1024), 51);
        assert_eq!(cost.rows_within(0.2001, 20), 20);
        assert_eq!(cost.rows_within(0.05, 1024), 0);
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
