//! Marks in text: whether what has come so far is one, or may become one.

use super::super::tool::Tool;
use super::{ID, INDEX};

/// How a text fits a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    No,
    /// It is the beginning of it.
    Part,
    /// It is the mark.
    Whole,
}

/// Bytes by which a text may be longer than the mark that it is: white space, and an id. What may become a mark is looked at anew
/// with each of its characters, so it may not have any length.
const MORE: usize = 256;

#[cfg(test)]
thread_local! {
    /// Bytes that were looked at for marks, and before them.
    pub(in crate::text) static LOOKED_AT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Fits `text` to `mark`. Models write other white space than their templates: it may stand wherever the mark has some,
/// behind its brackets and commas, and in front of `{`; and it may be missing.
pub(super) fn fit(mark: &str, text: &str) -> Fit {
    if text.len() > mark.len() + MORE {
        return Fit::No;
    }
    #[cfg(test)]
    LOOKED_AT.set(LOOKED_AT.get() + text.len());
    let mut wanted = mark.chars().peekable();
    let (mut loose, mut in_id) = (true, false);
    for c in text.chars() {
        if in_id && is_id(c) {
            continue;
        }
        in_id = false;
        while wanted.next_if(|w| w.is_whitespace()).is_some() {
            loose = true;
        }
        match wanted.peek() {
            Some(&(ID | INDEX)) if is_id(c) => {
                wanted.next();
                (in_id, loose) = (true, false);
            }
            Some(&w) if w == c => {
                wanted.next();
                loose = ">]},".contains(c);
            }
            Some(&w) if c.is_whitespace() && (loose || w == '{') => {}
            _ => return Fit::No,
        }
    }
    while wanted.next_if(|w| w.is_whitespace()).is_some() {}
    if wanted.peek().is_none() && !in_id { Fit::Whole } else { Fit::Part }
}

fn is_id(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-.:".contains(c)
}

/// How a text fits a tool's name and a mark behind it.
#[derive(Debug)]
pub(super) enum Named<'a> {
    /// It is the name of this tool and the mark of this number.
    Whole(&'a Tool, usize),
    Part,
    No,
}

/// Fits `text` to the name of one of `tools` and one of `marks`.
pub(super) fn fit_name<'a>(text: &str, tools: &'a [Tool], marks: &[String]) -> Named<'a> {
    let mut fits = Named::No;
    for tool in tools {
        let Some(rest) = text.strip_prefix(tool.name.as_str()) else {
            if tool.name.starts_with(text) {
                fits = Named::Part;
            }
            continue;
        };
        for (i, mark) in marks.iter().enumerate() {
            match fit(mark, rest) {
                Fit::Whole => return Named::Whole(tool, i),
                Fit::Part => fits = Named::Part,
                Fit::No => {}
            }
        }
    }
    fits
}

/// What stands in brackets, `<…>` or `[…]`, in the order of the text; the last one may be open.
pub(in crate::text) fn marks(text: &str) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(['<', '[']) {
        let close = if rest[at..].starts_with('<') { '>' } else { ']' };
        let end = rest[at..].find(close).map_or(rest.trim_end().len(), |end| at + end + 1);
        found.push(&rest[at..end]);
        rest = &rest[end..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_of_marks_is_free() {
        let mark = "<calls>\n<call name=\"";
        for text in ["<calls>\n<call name=\"", "<calls><call name=\"", " <calls> \n\n<call  name=\""] {
            assert_eq!(fit(mark, text), Fit::Whole, "{text:?}");
            for cut in 0..text.len() {
                assert_eq!(fit(mark, &text[..cut]), Fit::Part, "{:?}", &text[..cut]);
            }
        }
        for text in ["<calls>x", "< calls>", "<ca lls>", "<calls><call name=\"x"] {
            assert_eq!(fit(mark, text), Fit::No, "{text:?}");
        }
        assert_eq!(fit("[A][{", "[A] [ {"), Fit::Whole);
        assert_eq!(fit("", "x"), Fit::No);
        // Nobody waits for an end of it.
        let wide = |n: usize| format!("<calls>{}", " ".repeat(n));
        assert_eq!([MORE, 2 * MORE].map(|n| fit(mark, &wide(n))), [Fit::Part, Fit::No]);
    }

    #[test]
    fn identifiers_are_any() {
        let mark = format!("[ID]{ID}[ARGS]");
        assert_eq!(fit(&mark, "[ID]a1-B_2[ARGS]"), Fit::Whole);
        assert_eq!(fit(&mark, "[ID]a1"), Fit::Part);
        assert_eq!(fit(&mark, "[ID][ARGS]"), Fit::No);
        assert_eq!(fit(&mark, "[ID]a1[ARG_"), Fit::No);
    }

    #[test]
    fn marks_are_told_from_text() {
        assert_eq!(marks("a <b> [c]\n</d>e"), ["<b>", "[c]", "</d>"]);
        assert_eq!(marks("x [e~[\n"), ["[e~["]);
        assert!(marks("none").is_empty());
    }
}
