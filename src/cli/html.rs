//! Reports as one file of HTML: without scripts, and nothing is loaded from elsewhere.

use std::fmt::Write;

use backstop::text::Tokenizer;

/// How it looks, by day and by night.
const STYLE: &str = include_str!("html.css");
/// Width and height of a plot, and the room for its axes, in units of its own.
const PLOT: [f64; 2] = [960.0, 260.0];
const LEFT: f64 = 64.0;
const BELOW: f64 = 28.0;
/// Marks that a plot has room for.
const MARKS: usize = 480;
/// Powers of ten that a plot shows at most, from its largest value down.
const DECADES: i32 = 12;

/// Tokens that are told of as the worst.
pub const WORST: usize = 20;
/// Tokens of a text that is shown.
const TEXT: usize = 4096;
/// Tokens before one that is told of.
const BEFORE: usize = 24;

/// A report in the making.
pub struct Page {
    title: String,
    body: String,
}

/// A number at a place, and what it is of.
pub struct Mark {
    pub name: String,
    pub value: f64,
}

/// A token in its text.
pub struct Shown {
    pub text: String,
    /// How much it stands out, from 0 to 1.
    pub weight: f64,
    /// What is told of it.
    pub told: String,
}

impl Page {
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), body: format!("<h1>{}</h1>\n", escaped(title)) }
    }

    pub fn heading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escaped(text));
    }

    pub fn note(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escaped(text));
    }

    /// Lines of a name and what it is.
    pub fn facts(&mut self, lines: &[[String; 2]]) {
        self.body += "<table>\n";
        for [name, value] in lines {
            let _ = writeln!(
                self.body,
                "<tr><th scope=\"row\">{}</th><td>{}</td></tr>",
                escaped(name),
                escaped(value)
            );
        }
        self.body += "</table>\n";
    }

    /// Lines below their heads.
    pub fn table(&mut self, heads: &[&str], lines: &[Vec<String>]) {
        self.body += "<table>\n<tr>";
        for head in heads {
            let _ = write!(self.body, "<th scope=\"col\">{}</th>", escaped(head));
        }
        self.body += "</tr>\n";
        for line in lines {
            self.body += "<tr>";
            for cell in line {
                let _ = write!(self.body, "<td>{}</td>", escaped(cell));
            }
            self.body += "</tr>\n";
        }
        self.body += "</table>\n";
    }

    /// A text whose tokens stand out more or less.
    pub fn text(&mut self, tokens: &[Shown]) {
        self.body += "<p class=\"text\">";
        for Shown { text, weight, told } in tokens {
            let _ = write!(
                self.body,
                "<span style=\"--weight:{:.3}\" title=\"{}\">{}</span>",
                weight.clamp(0.0, 1.0),
                escaped(told),
                escaped(text)
            );
        }
        self.body += "</p>\n";
    }

    /// Numbers by a logarithmic scale, `of` what they are: those of zero lie on the ground, those that are none or infinite at the top.
    /// Where there are more than a plot has room for, the largest of each part is shown.
    pub fn plot(&mut self, of: &str, along: &str, marks: &[Mark]) {
        let each = marks.len().div_ceil(MARKS).max(1);
        let marks: Vec<&Mark> = marks.chunks(each).filter_map(largest).collect();
        let (top, bottom) = decades(marks.iter().map(|mark| mark.value));
        let [width, height] = PLOT;
        let (across, up) = (width - LEFT - 8.0, height - BELOW - 8.0);
        let step = across / marks.len().max(1) as f64;
        let y = |value: f64| {
            let part = match value {
                value if !value.is_finite() => 1.0,
                value if value > 0.0 => (value.log10() - f64::from(bottom)) / f64::from(top - bottom),
                _ => 0.0,
            };
            8.0 + up * (1.0 - part.clamp(0.0, 1.0))
        };
        let label = escaped(&format!("{of}, {along}"));
        let _ = writeln!(
            self.body,
            "<figure><figcaption>{label}</figcaption>\n<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{label}\">"
        );
        for decade in bottom..=top {
            let at = y(10_f64.powi(decade));
            let _ = writeln!(
                self.body,
                "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">1e{decade}</text>",
                width - 8.0,
                LEFT - 6.0,
                at + 4.0
            );
        }
        let every = marks.len().div_ceil(12).max(1);
        for (i, mark) in marks.iter().enumerate() {
            let (x, top) = (LEFT + step * i as f64, y(mark.value));
            let ground = 8.0 + up;
            let kind = if mark.value.is_finite() { "" } else { " class=\"none\"" };
            let _ = writeln!(
                self.body,
                "<rect{kind} x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{:.2}\"><title>{}: {}</title></rect>",
                x + 0.1 * step,
                top.min(ground - 1.0),
                (0.8 * step).max(0.5),
                (ground - top).max(1.0),
                escaped(&mark.name),
                number(mark.value)
            );
            if i % every == 0 {
                let (x, y) = (x + step / 2.0, height - 8.0);
                let _ = writeln!(
                    self.body,
                    "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{}</text>",
                    escaped(&mark.name)
                );
            }
        }
        self.body += "</svg></figure>\n";
        if each > 1 {
            self.note(&format!("Of {each} each, the largest."));
        }
    }

    pub fn finish(self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
             <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
            escaped(&self.title),
            self.body
        )
    }
}

fn largest(marks: &[Mark]) -> Option<&Mark> {
    // What is no number is larger than any.
    let rank = |mark: &Mark| if mark.value.is_nan() { f64::INFINITY } else { mark.value };
    marks.iter().max_by(|a, b| rank(a).total_cmp(&rank(b)))
}

/// The powers of ten above and below the numbers, at least one apart.
fn decades(values: impl Iterator<Item = f64>) -> (i32, i32) {
    let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
    for value in values.filter(|value| value.is_finite() && *value > 0.0) {
        (least, most) = (least.min(value), most.max(value));
    }
    if most == 0.0 {
        return (0, -1);
    }
    let top = most.log10().ceil() as i32;
    (top, (least.log10().floor() as i32).clamp(top - DECADES, top - 1))
}

/// A number as it is told.
pub fn number(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if !value.is_finite() => "not a number".to_owned(),
        value => format!("{value:.3e}"),
    }
}

/// Of numbers, how much each stands out: from 0 for a thousandth of the largest to 1 for it.
pub fn weights(values: &[f64]) -> Vec<f64> {
    let most = values.iter().copied().filter(|value| value.is_finite()).fold(0.0, f64::max);
    let weight = |&value: &f64| match value {
        value if !value.is_finite() => 1.0,
        value if value > 0.0 && most > 0.0 => 1.0 + (value / most).log10() / 3.0,
        _ => 0.0,
    };
    values.iter().map(weight).map(|weight: f64| weight.clamp(0.0, 1.0)).collect()
}

/// The places of the largest numbers above zero, the largest first.
pub fn worst(values: &[f64], most: usize) -> Vec<usize> {
    let rank = |place: usize| if values[place].is_nan() { f64::INFINITY } else { values[place] };
    let mut places: Vec<usize> = (0..values.len()).filter(|&place| rank(place) > 0.0).collect();
    places.sort_by(|&a, &b| rank(b).total_cmp(&rank(a)));
    places.truncate(most);
    places
}

/// The texts of tokens one behind the other. A character of several tokens is the last one's.
pub fn texts(tokenizer: Option<&Tokenizer>, tokens: &[u32]) -> Vec<String> {
    let Some(tokenizer) = tokenizer else { return tokens.iter().map(|id| format!("{id} ")).collect() };
    let mut begun: Vec<u8> = Vec::new();
    let text = |&id: &u32| {
        match tokenizer.token_bytes(id) {
            Ok(Some(bytes)) => begun.extend_from_slice(&bytes),
            _ => begun.extend_from_slice(tokenizer.token_text(id).unwrap_or_default().as_bytes()),
        }
        let whole = match std::str::from_utf8(&begun) {
            // It goes on in the next token, unless it never can.
            Err(error) if error.error_len().is_none() && begun.len() - error.valid_up_to() < 4 => {
                error.valid_up_to()
            }
            _ => begun.len(),
        };
        let rest = begun.split_off(whole);
        String::from_utf8_lossy(&std::mem::replace(&mut begun, rest)).into_owned()
    };
    tokens.iter().map(text).collect()
}

/// A text whose tokens stand out by their numbers, of which each is told something by its place; the beginning of a long one.
pub fn heat(texts: &[String], values: &[f64], told: impl Fn(usize) -> String) -> Vec<Shown> {
    let shown =
        |(at, (text, weight)): (usize, (&String, f64))| Shown { text: text.clone(), weight, told: told(at) };
    let mut all: Vec<Shown> = texts.iter().zip(weights(values)).enumerate().take(TEXT).map(shown).collect();
    if texts.len() > TEXT {
        all.push(Shown {
            text: " …".into(),
            weight: 0.0,
            told: format!("of {} tokens the first", texts.len()),
        });
    }
    all
}

/// The text up to the token at `at`, itself included.
pub fn before(texts: &[String], at: usize) -> String {
    let first = (at + 1).saturating_sub(BEFORE);
    let dots = if first > 0 { "… " } else { "" };
    format!("{dots}{}", texts[first..=at.min(texts.len().saturating_sub(1))].concat())
}

/// As text within HTML, and within an attribute's quotes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\t' => out.push(c),
            // HTML has no such characters.
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(value: f64) -> Mark {
        Mark { name: "a<b".into(), value }
    }

    #[test]
    fn nothing_of_a_text_becomes_html() {
        let mut page = Page::new("<b>\"x\" & 'y'");
        page.facts(&[["<i>".into(), "\u{1b}[0m".into()]]);
        page.text(&[Shown { text: "</p><script>".into(), weight: 7.0, told: "\"onload=\"".into() }]);
        page.plot("<s>", "along", &[mark(1.0)]);
        let html = page.finish();
        for none in ["<b>", "<i>", "<script", "<s>", "a<b", "\u{1b}", "\"onload"] {
            assert!(!html.contains(none), "{none}: {html}");
        }
        assert!(html.contains("--weight:1.000"), "{html}");
        assert!(html.contains("&lt;/p&gt;&lt;script&gt;") && html.contains("&quot;onload=&quot;"), "{html}");
    }

    #[test]
    fn numbers_are_where_they_belong() {
        assert_eq!(decades([0.002, 0.5, 0.0, f64::NAN].into_iter()), (0, -3));
        assert_eq!(decades([1.0].into_iter()), (0, -1));
        assert_eq!(decades([1e-30, 10.0].into_iter()), (1, -11));
        assert_eq!(decades([0.0, f64::INFINITY].into_iter()), (0, -1));
        assert_eq!(worst(&[0.0, 2.0, f64::NAN, 1.0], 2), [2, 1]);
        assert_eq!(worst(&[0.0; 3], 2), [0; 0]);
        assert_eq!(weights(&[1.0, 0.001, 0.0, f64::INFINITY, 1e-9]), [1.0, 0.0, 0.0, 1.0, 0.0]);
        let mut page = Page::new("x");
        page.plot("y", "z", &[mark(1.0), mark(0.0), mark(f64::NAN), mark(0.1)]);
        let html = page.finish();
        let heights: Vec<f64> = html
            .split(" height=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next()?.parse().ok())
            .collect();
        let up = PLOT[1] - BELOW - 8.0;
        assert_eq!(heights, [up, 1.0, up, 1.0], "{html}");
        assert_eq!(html.matches("class=\"none\"").count(), 1);
    }

    #[test]
    fn of_many_numbers_the_largest_are_shown() {
        let mut page = Page::new("x");
        let marks: Vec<Mark> = (0..10 * MARKS).map(|i| mark(if i == 4321 { 1.0 } else { 1e-3 })).collect();
        page.plot("y", "z", &marks);
        let html = page.finish();
        assert_eq!(html.matches("<rect").count(), MARKS);
        assert_eq!(html.matches("a&lt;b: 1.000e0<").count(), 1);
        assert!(html.contains("Of 10 each, the largest."));
    }
}
