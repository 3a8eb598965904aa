//! Characters that fold to several, as `(?i)` of Oniguruma has it: `ß` is `ss`.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Small letters to the characters that fold to them together.
static SEVERAL: LazyLock<HashMap<Vec<char>, Vec<char>>> = LazyLock::new(|| {
    let mut several = HashMap::<_, Vec<_>>::new();
    // Unicode has none beyond.
    for c in '\0'..='\u{FFFF}' {
        let to = fold(c);
        if to.len() > 1 {
            several.entry(to).or_default().push(c);
        }
    }
    several
});
/// As many as one character folds to.
const MOST: usize = 3;

/// What a character folds to: the small letters of its capitals.
fn fold(c: char) -> Vec<char> {
    match c {
        // A capital that has a small letter of its own.
        'ẞ' => vec!['s', 's'],
        c => c.to_uppercase().flat_map(char::to_lowercase).collect(),
    }
}

/// Whether `c` folds to several characters, or is among those that another one folds to.
pub(super) fn takes_part(c: char) -> bool {
    let to = fold(c);
    is_several(c) || SEVERAL.keys().any(|several| several.contains(&to[0]))
}

/// Whether `c` folds to several characters.
pub(super) fn is_several(c: char) -> bool {
    fold(c).len() > 1
}

/// Whether the end of `before` and the beginning of `after` may be one character: one that folds to several is none with another.
pub(super) fn joins(before: char, after: char) -> bool {
    match (&fold(before)[..], &fold(after)[..]) {
        (&[before], &[after]) => {
            SEVERAL.keys().any(|several| several.windows(2).any(|two| two == [before, after]))
        }
        _ => false,
    }
}

/// A part of a text: a character of it, or several in small letters and what may stand for them.
#[derive(Debug, PartialEq)]
pub(super) enum Part {
    One(char),
    Several(Vec<char>, &'static [char]),
}

/// Parts of a text: each character that folds to several, and of those between, the longest first from their beginning.
pub(super) fn parts(text: &str) -> Vec<Part> {
    let folded: Vec<(char, Vec<char>)> = text.chars().map(|c| (c, fold(c))).collect();
    // What the next `len` fold to, where none of them folds to several.
    let letters = |at: usize, len: usize| {
        let of = folded[at..at + len].iter().map(|(_, to)| if let [one] = to[..] { Some(one) } else { None });
        of.collect::<Option<Vec<char>>>()
    };
    let known = |letters: Vec<char>| SEVERAL.get(&letters).map(|ones| Part::Several(letters, ones));
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some((c, to)) = folded.get(at) {
        if to.len() > 1 {
            parts.extend(known(to.clone()));
            at += 1;
            continue;
        }
        let found = (2..=MOST.min(folded.len() - at)).rev();
        let found = found.filter_map(|len| Some((len, known(letters(at, len)?)?))).next();
        let (len, part) = found.unwrap_or((1, Part::One(*c)));
        parts.push(part);
        at += len;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_unicodes() {
        // CaseFolding.txt has 104 with status F.
        assert_eq!(SEVERAL.values().map(Vec::len).sum::<usize>(), 104);
        assert_eq!(SEVERAL.keys().map(Vec::len).max(), Some(MOST));
        assert_eq!(SEVERAL[&['s', 's'][..]], ['ß', 'ẞ']);
        assert_eq!(SEVERAL[&['i', '\u{307}'][..]], ['İ']);
    }

    #[test]
    fn the_longest_stands_first() {
        let several =
            |text: &str| Part::Several(text.chars().collect(), &SEVERAL[&*text.chars().collect::<Vec<_>>()]);
        assert_eq!(parts("xSSt"), [Part::One('x'), several("ss"), Part::One('t')]);
        assert_eq!(parts("ffi"), [several("ffi")]);
        // What folds to several is nothing together with others.
        assert_eq!(parts("ﬀi"), [several("ff"), Part::One('i')]);
        assert_eq!(parts("sßs"), [Part::One('s'), several("ss"), Part::One('s')]);
        assert_eq!(parts("'Ll"), ['\'', 'L', 'l'].map(Part::One));
        assert!(joins('S', 't') && !joins('ß', 't') && !joins('s', 'ﬆ') && !joins('l', 'l'));
        assert!(takes_part('S') && takes_part('ß') && !takes_part('k'));
    }
}
