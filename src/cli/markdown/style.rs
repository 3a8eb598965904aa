//! The styles of a text, in the sixteen colours that a terminal's owner has chosen.

/// What a run of characters looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Text {
        heading: bool,
        bold: bool,
        italic: bool,
    },
    /// Code within a line.
    Span,
    /// What opens and closes a block of code.
    Mark,
    /// A bullet, a number, the mark of a quotation.
    List,
    Keyword,
    Quoted,
    Number,
    Comment,
    /// A line that a diff adds.
    Added,
    /// A line that a diff takes out.
    Removed,
}

impl Style {
    pub const PLAIN: Self = Self::Text { heading: false, bold: false, italic: false };

    /// The parameters of the escape sequence that begins it.
    fn code(self) -> &'static str {
        match self {
            Self::Text { heading: true, italic: false, .. } => "1;36",
            Self::Text { heading: true, italic: true, .. } => "1;3;36",
            Self::Text { bold: true, italic: true, .. } => "1;3",
            Self::Text { bold: true, .. } => "1",
            Self::Text { italic: true, .. } => "3",
            Self::Text { .. } => "",
            Self::Span | Self::List => "36",
            Self::Mark | Self::Comment => "2",
            Self::Keyword => "35",
            Self::Quoted | Self::Added => "32",
            Self::Number => "33",
            Self::Removed => "31",
        }
    }
}

/// Text with its styles. At its end, and at each line's, none is on.
#[derive(Debug, Default)]
pub struct Styled {
    text: String,
    on: &'static str,
}

impl Styled {
    pub fn put(&mut self, text: &str, style: Style) {
        for line in text.split_inclusive('\n') {
            let code = if line == "\n" { "" } else { style.code() };
            if code != self.on {
                self.off();
                if !code.is_empty() {
                    self.text += "\x1b[";
                    self.text += code;
                    self.text.push('m');
                }
                self.on = code;
            }
            match line.strip_suffix('\n') {
                Some(before) => {
                    self.text += before;
                    self.off();
                    self.text.push('\n');
                }
                None => self.text += line,
            }
        }
    }

    fn off(&mut self) {
        if !std::mem::take(&mut self.on).is_empty() {
            self.text += "\x1b[0m";
        }
    }

    pub fn end(mut self) -> String {
        self.off();
        self.text
    }
}
