//! What was answered before.

use std::rc::Rc;

use crate::engine::request::Space;

/// Tokens of it that are kept of each space.
const TOKENS: usize = 4096;
/// Spaces that it is kept of.
const SPACES: usize = 64;

/// The last tokens that were answered, by the space of who asked: nobody learns from the time of an answer what others were told.
#[derive(Debug, Default)]
pub(in crate::engine) struct Earlier {
    /// The one that was added to last is the last.
    of: Vec<(Space, Rc<[u32]>)>,
}

impl Earlier {
    /// What was answered in that space, the latest at the end.
    pub fn of(&self, space: &Space) -> Rc<[u32]> {
        let known = self.of.iter().find(|(of, _)| of == space);
        known.map_or_else(|| Rc::from([]), |(_, tokens)| Rc::clone(tokens))
    }

    /// Keeps one more answer.
    pub fn keep(&mut self, space: &Space, answer: &[u32]) {
        if answer.is_empty() {
            return;
        }
        let answer = &answer[answer.len().saturating_sub(TOKENS)..];
        let known = self.of.iter().position(|(of, _)| of == space);
        let before = known.map(|at| self.of.remove(at).1).unwrap_or_default();
        let kept = before.len().saturating_sub(TOKENS - answer.len());
        let tokens = before[kept..].iter().chain(answer).copied().collect();
        if self.of.len() == SPACES {
            self.of.remove(0);
        }
        self.of.push((space.clone(), tokens));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_tokens_of_the_last_spaces_are_kept() {
        let mut earlier = Earlier::default();
        let space = |name: usize| -> Space { Some(name.to_string().into()) };
        assert!(earlier.of(&None).is_empty());
        earlier.keep(&None, &[1, 2]);
        earlier.keep(&space(0), &[9]);
        earlier.keep(&None, &[3]);
        assert_eq!((&*earlier.of(&None), &*earlier.of(&space(0))), (&[1, 2, 3][..], &[9][..]));
        let long: Vec<u32> = (0..TOKENS as u32 - 2).collect();
        earlier.keep(&None, &long);
        assert_eq!(*earlier.of(&None), [&[2, 3], &long[..]].concat());
        earlier.keep(&None, &[&[7], &long[..], &[8, 9]].concat());
        assert_eq!(*earlier.of(&None), [&long[..], &[8, 9]].concat());
        (1..SPACES).for_each(|name| earlier.keep(&space(name), &[name as u32]));
        // That which was added to longest ago has gone, and nothing else.
        assert!(earlier.of(&space(0)).is_empty());
        assert_eq!((earlier.of(&None).len(), &*earlier.of(&space(1))), (TOKENS, &[1][..]));
        earlier.keep(&None, &[]);
        assert_eq!(earlier.of.len(), SPACES);
    }
}
