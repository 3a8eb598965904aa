//! SentencePiece's `ModelProto`, the fields of it that texts depend on. Nothing is allocated for what the bytes do not hold.

use std::borrow::Cow;

use super::MAX_TOKENS;

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    /// Found in no text: BOS, EOS, ….
    Control,
    /// Found in texts before anything else.
    UserDefined,
    Byte,
}

/// `ModelProto.SentencePiece`.
#[derive(Debug, Clone)]
pub(super) struct Piece<'a> {
    pub text: Cow<'a, str>,
    pub score: f32,
    pub kind: Kind,
}

/// `ModelProto`, with what is not written at its defaults.
#[derive(Debug)]
pub(super) struct Model<'a> {
    pub pieces: Vec<Piece<'a>>,
    /// `trainer_spec.model_type`.
    pub kind: i32,
    pub whitespace_as_suffix: bool,
    pub byte_fallback: bool,
    pub bos: i32,
    pub eos: i32,
    /// `normalizer_spec.precompiled_charsmap`.
    pub charsmap: &'a [u8],
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    pub escape_whitespaces: bool,
    /// Whether a decoded text is changed.
    pub denormalizes: bool,
}

/// Whether bytes can be a message, whose first tag no letter of base64 is.
pub(super) fn is_message(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|&byte| byte < b'+')
}

impl<'a> Model<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut this = Self {
            pieces: Vec::new(),
            kind: 1,
            whitespace_as_suffix: false,
            byte_fallback: false,
            bos: 1,
            eos: 2,
            charsmap: &[],
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
            denormalizes: false,
        };
        let mut fields = Fields(bytes);
        while let Some((field, value)) = fields.next()? {
            match field {
                1 => {
                    let id = this.pieces.len();
                    if id == MAX_TOKENS {
                        return Err(format!("pieces: over {MAX_TOKENS}"));
                    }
                    this.pieces.push(piece(value).map_err(|e| format!("pieces[{id}]{e}"))?);
                }
                2 => this.trainer(value).map_err(|e| format!("trainer_spec{e}"))?,
                3 => this.normalizer(value).map_err(|e| format!("normalizer_spec{e}"))?,
                5 => this.denormalizer(value).map_err(|e| format!("denormalizer_spec{e}"))?,
                _ => {}
            }
        }
        Ok(this)
    }

    fn trainer(&mut self, value: Wire<'a>) -> Result<(), String> {
        let mut fields = Fields(value.bytes("")?);
        while let Some((field, value)) = fields.next()? {
            match field {
                3 => self.kind = value.int(".model_type")?,
                24 => self.whitespace_as_suffix = value.flag(".treat_whitespace_as_suffix")?,
                35 => self.byte_fallback = value.flag(".byte_fallback")?,
                41 => self.bos = value.int(".bos_id")?,
                42 => self.eos = value.int(".eos_id")?,
                _ => {}
            }
        }
        Ok(())
    }

    fn normalizer(&mut self, value: Wire<'a>) -> Result<(), String> {
        let mut fields = Fields(value.bytes("")?);
        while let Some((field, value)) = fields.next()? {
            match field {
                2 => self.charsmap = value.bytes(".precompiled_charsmap")?,
                3 => self.add_dummy_prefix = value.flag(".add_dummy_prefix")?,
                4 => self.remove_extra_whitespaces = value.flag(".remove_extra_whitespaces")?,
                5 => self.escape_whitespaces = value.flag(".escape_whitespaces")?,
                _ => {}
            }
        }
        Ok(())
    }

    fn denormalizer(&mut self, value: Wire<'a>) -> Result<(), String> {
        let mut fields = Fields(value.bytes("")?);
        while let Some((field, value)) = fields.next()? {
            if field == 2 {
                self.denormalizes = !value.bytes(".precompiled_charsmap")?.is_empty();
            }
        }
        Ok(())
    }
}

fn piece(value: Wire<'_>) -> Result<Piece<'_>, String> {
    let (mut text, mut score, mut kind) = ("", 0.0, 1);
    let mut fields = Fields(value.bytes("")?);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => {
                let bytes = value.bytes(".piece")?;
                text = std::str::from_utf8(bytes).map_err(|e| format!(".piece: not UTF-8: {e}"))?;
            }
            2 => score = value.float(".score")?,
            3 => kind = value.int(".type")?,
            _ => {}
        }
    }
    let kind = match kind {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        6 => Kind::Byte,
        5 => return Err(".type is 5 (UNUSED), which is not supported".into()),
        other => return Err(format!(".type is {other}, expected 1 to 6")),
    };
    if text.is_empty() {
        return Err(".piece is \"\", expected a text".into());
    }
    if !score.is_finite() {
        return Err(format!(".score is {score}, expected a finite number"));
    }
    Ok(Piece { text: text.into(), score, kind })
}

/// A field's value as it is written.
#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

impl<'a> Wire<'a> {
    fn bytes(self, name: &str) -> Result<&'a [u8], String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            other => Err(other.refuse(name, "bytes")),
        }
    }

    /// The lowest 32 bits, as every reader of the format takes a longer number.
    fn int(self, name: &str) -> Result<i32, String> {
        match self {
            Self::Varint(n) => Ok(n as i32),
            other => Err(other.refuse(name, "an integer")),
        }
    }

    fn flag(self, name: &str) -> Result<bool, String> {
        match self {
            Self::Varint(n) => Ok(n != 0),
            other => Err(other.refuse(name, "true or false")),
        }
    }

    fn float(self, name: &str) -> Result<f32, String> {
        match self {
            Self::Fixed32(bytes) => Ok(f32::from_le_bytes(bytes)),
            other => Err(other.refuse(name, "a number of 4 bytes")),
        }
    }

    fn refuse(self, name: &str, expected: &str) -> String {
        let got = match self {
            Self::Varint(_) => "an integer",
            Self::Fixed64 => "a number of 8 bytes",
            Self::Bytes(_) => "bytes",
            Self::Fixed32(_) => "a number of 4 bytes",
        };
        format!("{name} is {got}, expected {expected}")
    }
}

/// The fields of a message that are still to be read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => self.take(8).map(|_| Wire::Fixed64)?,
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Wire::Fixed32([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
            other => {
                return Err(format!(": field {} has wire type {other}, expected 0, 1, 2 or 5", tag >> 3));
            }
        };
        match tag >> 3 {
            0 => Err(": a field has number 0".into()),
            field => Ok(Some((field, value))),
        }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let left = self.0.len();
        let taken = usize::try_from(length).ok().and_then(|length| self.0.split_at_checked(length));
        let (taken, rest) = taken.ok_or_else(|| format!(": {length} bytes are named, {left} are left"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(": an integer is longer than 10 bytes".into())
    }
}
