//! What guesses are worth: how often those like them were right, and what a row more of a step costs.

use std::time::Duration;

use super::{MOST, Sign};

/// Rows of steps whose time is known.
const ROWS: usize = 256;
/// What an unknown row is thought to cost, of the time of a step.
const ROW: f64 = 0.05;
/// How much faster a step with drafts has to promise to be.
const MARGIN: f64 = 1.02;
/// Weight of the newest time.
const NEWEST: f64 = 0.2;
/// How much a time says of the other numbers of rows: contexts grow, and machines have other things to do.
const DRIFT: f64 = 0.05;

/// Times of guesses that are measured before they count.
const WARM: u32 = 3;

/// Part of the time that may go to seeing whether guesses pay where they do not seem to.
const EXPLORED: f64 = 0.01;

/// Matches of so many tokens are alike.
const MATCHES: [usize; 8] = [1, 2, 3, 4, 6, 10, 18, usize::MAX];
/// So are probabilities below these.
const LIKELY: [f32; 6] = [0.25, 0.45, 0.65, 0.85, 0.97, f32::INFINITY];
/// And what the prompt became behind so many tokens that were right.
const FOLLOWED: [usize; 4] = [2, 8, 24, usize::MAX];
const CLASSES: usize = MATCHES.len() + LIKELY.len() + FOLLOWED.len();
/// How often a guess was right, by class: of matches in texts that repeat much, and of a smaller model's. It is believed before
/// anything is known.
const BELIEF: [f32; CLASSES] =
    [0.4, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 0.9, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95, 0.5, 0.7, 0.85, 0.9];
/// The same of a smaller model's, whatever it says.
const BELIEF_OF_MODEL: f32 = 0.6;
/// How many guesses such a belief counts for.
const WEIGHT: f32 = 6.0;
/// What earlier guesses count beside a new one.
const FADES: f32 = 0.97;

/// How often guesses were right, by what they were made of.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Odds {
    right: [f32; CLASSES],
    all: [f32; CLASSES],
}

impl Odds {
    fn class(sign: Sign) -> usize {
        let (at, last) = match sign {
            Sign::Match(len) => (MATCHES.iter().position(|&end| len < end), MATCHES.len() - 1),
            Sign::Likely(p) => {
                let at = LIKELY.iter().position(|&end| p < end).unwrap_or(0);
                (Some(MATCHES.len() + at), CLASSES - 1)
            }
            Sign::Followed(streak) => {
                let at = FOLLOWED.iter().position(|&end| streak < end);
                (at.map(|at| MATCHES.len() + LIKELY.len() + at), CLASSES - 1)
            }
        };
        at.unwrap_or(last)
    }

    /// Learns whether a guess that is made of `sign` was right.
    pub fn note(&mut self, sign: Sign, right: bool) {
        let class = Self::class(sign);
        self.right[class] = self.right[class] * FADES + f32::from(u8::from(right));
        self.all[class] = self.all[class] * FADES + 1.0;
    }

    fn believing(&self, class: usize, belief: f32) -> f32 {
        (self.right[class] + WEIGHT * belief) / (self.all[class] + WEIGHT)
    }

    /// How likely a guess that is made of `sign` is right, by what this sequence showed and, while that is little, by what `others`
    /// did.
    pub fn of(&self, sign: Sign, others: &Self) -> f32 {
        let class = Self::class(sign);
        self.believing(class, others.believing(class, BELIEF[class]))
    }

    /// The same of a smaller model's next guess, which is not made yet.
    pub fn of_model(&self, others: &Self) -> f32 {
        let believing = |odds: &Self, belief: f32| {
            let sum = |of: &[f32]| of[MATCHES.len()..][..LIKELY.len()].iter().sum::<f32>();
            (sum(&odds.right) + WEIGHT * belief) / (sum(&odds.all) + WEIGHT)
        };
        believing(self, believing(others, BELIEF_OF_MODEL))
    }
}

/// What a sequence may bring to a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Candidate {
    /// How likely the first token is right, the first two, and so on.
    likely: Vec<f32>,
}

impl Candidate {
    /// Of `len` tokens, the `i`th of which is right with the chance `odds(i)` where those before it are.
    pub fn new(len: usize, odds: impl Fn(usize) -> f32) -> Self {
        let mut chance = 1.0;
        let likely = (0..len).map(|i| {
            chance *= odds(i);
            chance
        });
        Self { likely: likely.collect() }
    }
}

/// What more of a step costs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Price {
    /// Tokens a second without drafts.
    pub rate: f64,
    /// Seconds of a row more, on the whole.
    pub row: f64,
}

/// How an engine's steps go.
#[derive(Debug)]
pub(crate) struct Pace {
    pub odds: Odds,
    /// Seconds of a step of so many rows; 0 where there was none yet.
    times: Vec<f64>,
    /// Seconds of all steps that only decoded, and of what guesses cost that were made to see whether they pay.
    all: f64,
    explored: f64,
    /// Seconds that computing a guess takes, and how often that was measured.
    cost: f64,
    costs: u32,
    /// Whether a sequence that goes back computes again what of its step was right.
    again: bool,
}

impl Pace {
    /// Of a model whose sequences go back to the beginning of a step alone, where `again`.
    pub fn new(again: bool) -> Self {
        Self {
            odds: Odds::default(),
            times: vec![0.0; ROWS + 1],
            all: 0.0,
            explored: 0.0,
            cost: 0.0,
            costs: 0,
            again,
        }
    }

    /// Learns what a step of `rows` rows took that only decoded, `with_drafts` among them or not.
    pub fn observe(&mut self, rows: usize, time: Duration, with_drafts: bool) {
        let time = time.as_secs_f64();
        self.all += time;
        if rows > ROWS || rows == 0 || time <= 0.0 {
            return;
        }
        let Some(expected) = self.time(rows as f64) else {
            self.times[rows] = time;
            return;
        };
        let time = time.clamp(0.5 * expected, 1.5 * expected);
        let known = self.times[rows];
        let now = if known > 0.0 { known + NEWEST * (time - known) } else { time };
        if with_drafts {
            let drift = (time / expected).powf(DRIFT);
            self.times.iter_mut().for_each(|time| *time *= drift);
        } else {
            // Contexts have grown, or shrunk: what more rows take has, too.
            let factor = now / expected;
            self.times[rows..].iter_mut().for_each(|time| *time *= factor);
        }
        self.times[rows] = now;
    }

    /// What more costs of a step that has `rows` rows without drafts for `tokens` tokens; before the first step nothing is worth it.
    pub fn price(&self, rows: usize, tokens: usize) -> Price {
        let times = [rows, rows + MOST].map(|rows| self.time(rows as f64));
        match times {
            [Some(alone), Some(more)] if alone > 0.0 => {
                Price { rate: tokens as f64 / alone, row: (more - alone).max(0.0) / MOST as f64 }
            }
            _ => Price { rate: f64::INFINITY, row: 0.0 },
        }
    }

    /// Seconds that computing a guess takes; none while it was measured too seldom: the first times are those of cold weights.
    pub fn cost(&self) -> Option<f64> {
        (self.costs >= WARM).then_some(self.cost)
    }

    /// Learns that computing a guess took `seconds`.
    pub fn guessed(&mut self, seconds: f64) {
        // What held one up says little of the next.
        let weight = if seconds < self.cost { 0.5 } else { 0.5 * NEWEST };
        self.cost = match self.costs {
            0 => seconds,
            n if n < WARM => seconds.min(self.cost),
            _ => self.cost + weight * (seconds.min(2.0 * self.cost) - self.cost),
        };
        self.costs = self.costs.saturating_add(1);
    }

    /// Whether time may go to guesses that do not seem to pay: what they cost is to be little.
    pub fn may_explore(&self) -> bool {
        self.explored <= EXPLORED * self.all
    }

    /// Learns that computing such guesses took `time`.
    pub fn explored(&mut self, time: Duration) {
        self.explored += time.as_secs_f64();
    }

    /// Whether a guess that does not seem to pay may be tried in a step of `rows` rows without it.
    pub fn explore(&mut self, rows: usize) -> bool {
        let may = self.may_explore();
        if may && let (Some(with), Some(without)) = (self.time((rows + 1) as f64), self.time(rows as f64)) {
            self.explored += (with - without).max(0.0);
        }
        may
    }

    /// Seconds that a step of `rows` rows takes, as far as that can be told; none before the first step.
    fn time(&self, rows: f64) -> Option<f64> {
        let known = || self.times.iter().enumerate().filter(|(_, time)| **time > 0.0);
        let at = |(rows, time): (usize, &f64)| (rows as f64, *time);
        let below = known().map(at).take_while(|known| known.0 <= rows).last();
        let above = known().map(at).find(|known| known.0 >= rows);
        Some(match (below, above) {
            (Some(below), Some(above)) if above.0 > below.0 => {
                below.1 + (above.1 - below.1) * (rows - below.0) / (above.0 - below.0)
            }
            (Some(below), Some(_)) => below.1,
            (Some(below), None) => {
                let first = known().map(at).next().filter(|first| first.0 < below.0);
                let slope = first.map_or(ROW * below.1, |first| (below.1 - first.1) / (below.0 - first.0));
                below.1 + slope.max(0.0) * (rows - below.0)
            }
            (None, Some(above)) => above.1,
            (None, None) => return None,
        })
    }

    /// How many tokens a step takes of each candidate, at most `most` in all, where it has `rows` rows without them for `tokens`
    /// tokens: as many as give the most tokens a second.
    pub fn depths(&self, rows: usize, tokens: usize, candidates: &[Candidate], most: usize) -> Vec<usize> {
        let mut depths = vec![0; candidates.len()];
        let Some(alone) = self.time(rows as f64) else { return depths };
        let mut rows_of: Vec<(f32, usize)> = (candidates.iter().enumerate())
            .flat_map(|(i, of)| of.likely.iter().map(move |&likely| (likely, i)))
            .collect();
        // What comes later of one candidate is never likelier, and stays behind what comes before it.
        rows_of.sort_by(|a, b| b.0.total_cmp(&a.0));
        rows_of.truncate(most);
        let mut best = (MARGIN * tokens as f64 / alone, 0);
        let (mut gained, mut again) = (0.0, 0.0);
        let mut taken = vec![0_usize; candidates.len()];
        for (n, &(likely, i)) in rows_of.iter().enumerate() {
            let likely = f64::from(likely);
            if self.again {
                let before =
                    taken[i].checked_sub(1).map_or(1.0, |last| f64::from(candidates[i].likely[last]));
                // Refused here, the token before and those that were right are computed again.
                again += (before - likely) * (taken[i] + 1) as f64;
            }
            taken[i] += 1;
            gained += likely;
            let Some(time) = self.time((rows + n + 1) as f64 + again) else { break };
            let rate = (tokens as f64 + gained) / time;
            if rate > best.0 {
                best = (rate, n + 1);
            }
        }
        rows_of[..best.1].iter().for_each(|&(_, i)| depths[i] += 1);
        depths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(times: &[(usize, u64)]) -> Pace {
        let mut pace = Pace::new(false);
        for &(rows, time) in times {
            pace.times[rows] = Duration::from_micros(time).as_secs_f64();
        }
        pace
    }

    fn sure(len: usize) -> Candidate {
        Candidate::new(len, |_| 0.95)
    }

    #[test]
    fn drafts_are_as_long_as_pays() {
        // Nothing is known of steps.
        assert_eq!(pace(&[]).depths(1, 1, &[sure(8)], 99), [0]);
        // Rows cost nothing.
        assert_eq!(pace(&[(1, 100), (9, 100)]).depths(1, 1, &[sure(8)], 99), [8]);
        assert_eq!(pace(&[(1, 100), (9, 100)]).depths(1, 1, &[sure(8)], 3), [3]);
        // Each costs a whole step.
        assert_eq!(pace(&[(1, 100), (2, 200), (9, 900)]).depths(1, 1, &[sure(8)], 99), [0]);
        // Four come in one tile.
        assert_eq!(pace(&[(1, 100), (4, 120), (5, 400), (9, 500)]).depths(1, 1, &[sure(8)], 99), [3]);
        // A guess that is seldom right does not pay at a price at which one that often is does.
        let unsure = Candidate::new(8, |_| 0.1);
        assert_eq!(pace(&[(1, 100), (9, 260)]).depths(1, 1, std::slice::from_ref(&unsure), 99), [0]);
        assert_eq!(pace(&[(1, 100), (9, 260)]).depths(1, 1, &[sure(8)], 99), [8]);
        assert_eq!(pace(&[(2, 100), (10, 260)]).depths(2, 2, &[unsure, sure(8)], 99), [0, 8]);
    }

    #[test]
    fn what_is_computed_again_counts() {
        let times: Vec<(usize, u64)> = (1..=ROWS).map(|rows| (rows, 90 + 10 * rows as u64)).collect();
        let half = || [Candidate::new(8, |_| 0.3)];
        let mut pace = pace(&times);
        assert_eq!(pace.depths(1, 1, &half(), 99), [1]);
        pace.again = true;
        assert_eq!(pace.depths(1, 1, &half(), 99), [1]);
        let third = || [Candidate::new(8, |_| 0.16)];
        assert_eq!(pace.depths(1, 1, &third(), 99), [0]);
        pace.again = false;
        assert_eq!(pace.depths(1, 1, &third(), 99), [1]);
    }

    #[test]
    fn times_are_learnt_and_drift() {
        let mut pace = Pace::new(false);
        let micros = |pace: &Pace, rows: f64| (pace.time(rows).unwrap() * 1e6).round();
        pace.observe(1, Duration::from_micros(1000), false);
        assert_eq!((micros(&pace, 1.0), micros(&pace, 3.0)), (1000.0, 1100.0));
        pace.observe(5, Duration::from_micros(1200), true);
        assert_eq!((micros(&pace, 1.0), micros(&pace, 3.0), micros(&pace, 9.0)), (1000.0, 1100.0, 1400.0));
        // One step that was held up counts for little.
        pace.observe(5, Duration::from_secs(1), true);
        assert!(micros(&pace, 5.0) < 1400.0, "{}", micros(&pace, 5.0));
        for _ in 0..200 {
            pace.observe(5, Duration::from_micros(2400), true);
        }
        let slower = micros(&pace, 5.0);
        assert!((2300.0..2450.0).contains(&slower), "{slower}");
        // Some of that may be the machine's, or the context's.
        assert!((1050.0..1500.0).contains(&micros(&pace, 1.0)), "{}", micros(&pace, 1.0));
    }

    /// Where all steps become slower, those with drafts do, too, before one of them was made.
    #[test]
    fn a_longer_context_is_no_reason_for_drafts() {
        let mut pace = pace(&[(1, 1000), (17, 1800)]);
        let unsure = [Candidate::new(16, |_| 0.05)];
        for _ in 0..300 {
            pace.observe(1, Duration::from_micros(5000), false);
            assert_eq!(pace.depths(1, 1, &unsure, 99), [0]);
        }
        let ratio = pace.time(17.0).unwrap() / pace.time(1.0).unwrap();
        assert!((1.79..1.81).contains(&ratio), "{ratio}");
    }

    #[test]
    fn exploring_costs_little() {
        let mut pace = pace(&[(1, 1000), (2, 2000)]);
        let mut tried = 0;
        for _ in 0..1000 {
            pace.observe(1, Duration::from_micros(1000), false);
            tried += usize::from(pace.explore(1));
        }
        assert!((5..=12).contains(&tried), "{tried}");
    }

    #[test]
    fn odds_follow_what_happened() {
        let (mut own, mut others) = (Odds::default(), Odds::default());
        let near = |a: f32, b: f32| (a - b).abs() < 1e-6;
        assert!(
            near(own.of(Sign::Match(2), &others), BELIEF[2])
                && near(own.of(Sign::Match(500), &others), BELIEF[7])
        );
        (0..60).for_each(|_| others.note(Sign::Match(2), false));
        assert!(own.of(Sign::Match(2), &others) < 0.07);
        (0..60).for_each(|_| own.note(Sign::Match(2), true));
        assert!(own.of(Sign::Match(2), &others) > 0.8);
        assert!(near(own.of(Sign::Match(4), &others), BELIEF[4]));
    }
    /// Guesses of a smaller model count apart, each probability for itself and all together before they are made.
    #[test]
    fn probabilities_have_odds_of_their_own() {
        let (mut own, others) = (Odds::default(), Odds::default());
        let (sure, unsure) = (Sign::Likely(0.99), Sign::Likely(0.1));
        assert!(own.of(sure, &others) > 0.9 && own.of(unsure, &others) < 0.3);
        let at_first = own.of_model(&others);
        (0..40).for_each(|_| own.note(unsure, false));
        assert!(own.of(sure, &others) > 0.9 && own.of(unsure, &others) < 0.05);
        assert!(own.of_model(&others) < at_first / 3.0);
        assert!(
            own.of(Sign::Match(0), &others) == BELIEF[0] && own.of(Sign::Likely(f32::NAN), &others) < 0.1
        );
    }

    /// The first guesses are slow, and one may be held up.
    #[test]
    fn what_guesses_take_is_not_what_the_first_took() {
        let mut pace = Pace::new(false);
        for (seconds, known) in [(0.5, None), (0.02, None), (0.01, Some(0.01))] {
            pace.guessed(seconds);
            assert_eq!(pace.cost(), known);
        }
        pace.guessed(3.0);
        assert!(pace.cost().unwrap() < 0.012, "{:?}", pace.cost());
        (0..40).for_each(|_| pace.guessed(0.03));
        assert!(pace.cost().unwrap() > 0.028, "{:?}", pace.cost());
        (0..5).for_each(|_| pace.guessed(0.01));
        assert!(pace.cost().unwrap() < 0.011, "{:?}", pace.cost());
    }
}
