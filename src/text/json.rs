//! `tojson` as Python's `json.dumps` writes, and `strftime`.

use minijinja::Value;
use minijinja::value::{Kwargs, ValueKind};

use super::budget::MAX_BYTES;

/// A JSON value as the template sees it. `json` is nested at most as deep as messages may.
pub(super) fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (_, Some(u)) => Value::from(u),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(items) => Value::from(items.iter().map(value).collect::<Vec<_>>()),
        Json::Object(entries) => {
            Value::from_pairs(entries.iter().map(|(k, v)| (Value::from(k.as_str()), value(v))))
        }
    }
}

/// A number as Python writes it: exponents below 1e-4 and from 1e16 on, of at least two digits.
pub(super) fn number(value: &Value) -> String {
    let float = f64::try_from(value.clone()).ok().filter(|_| !value.is_integer());
    match float {
        Some(x) if x != 0.0 && x.is_finite() && !(1e-4..1e16).contains(&x.abs()) => {
            let text = format!("{x:e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        _ => value.to_string(),
    }
}

/// `json.dumps(value, ensure_ascii=False)` of arguments that came as an object; empty where they are beyond its limits.
pub(super) fn dumps(json: &serde_json::Value) -> String {
    let (comma, colon) = (", ".to_owned(), ": ".to_owned());
    let mut writer = Writer { out: String::new(), indent: None, ascii: false, sort: false, comma, colon };
    writer.value(&value(json), 0).map(|()| writer.out).unwrap_or_default()
}

struct Writer {
    out: String,
    indent: Option<usize>,
    ascii: bool,
    sort: bool,
    comma: String,
    colon: String,
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(value: &Value, positional: &[Value], kwargs: &Kwargs) -> Result<Value, String> {
    let named = |name: &str| kwargs.get::<Option<Value>>(name).ok().flatten().filter(|v| !v.is_none());
    let ascii = positional.first().cloned().or_else(|| named("ensure_ascii")).is_some_and(|v| v.is_true());
    let indent = positional.get(1).cloned().or_else(|| named("indent")).and_then(|v| v.as_usize());
    let sort = named("sort_keys").is_some_and(|v| v.is_true());
    if indent.is_some_and(|n| n > 64) {
        return Err("tojson: an indent of over 64 is not supported".into());
    }
    let (mut comma, mut colon) = (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = named("separators") {
        let item =
            |i: usize| separators.get_item(&Value::from(i)).ok().and_then(|v| v.as_str().map(str::to_owned));
        (comma, colon) = item(0).zip(item(1)).ok_or("tojson: separators are two strings")?;
        if comma.len() + colon.len() > 64 {
            return Err("tojson: separators of over 64 bytes are not supported".into());
        }
    }
    let mut writer = Writer { out: String::new(), indent, ascii, sort, comma, colon };
    writer.value(value, 0)?;
    Ok(Value::from(writer.out))
}

impl Writer {
    fn push(&mut self, s: &str) -> Result<(), String> {
        if self.out.len() + s.len() > MAX_BYTES {
            return Err("tojson makes too large a string".into());
        }
        self.out.push_str(s);
        Ok(())
    }

    fn line(&mut self, depth: usize) -> Result<(), String> {
        match self.indent {
            Some(n) => self.push(&format!("\n{}", " ".repeat(n * depth))),
            None => Ok(()),
        }
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), String> {
        if depth > 64 {
            return Err("tojson: nested too deep".into());
        }
        match value.kind() {
            ValueKind::None => self.push("null"),
            ValueKind::Bool => self.push(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.push(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.push("[")?;
                let mut empty = true;
                for item in value.try_iter().map_err(|e| e.to_string())?.checked() {
                    let item = item.map_err(|e| e.to_string())?;
                    if !empty {
                        self.push(&self.comma.clone())?;
                    }
                    empty = false;
                    self.line(depth + 1)?;
                    self.value(&item, depth + 1)?;
                }
                if !empty {
                    self.line(depth)?;
                }
                self.push("]")
            }
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|o| o.try_iter_pairs());
                let mut pairs: Vec<(Value, Value)> = pairs.into_iter().flatten().collect();
                if self.sort {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.push("{")?;
                let empty = pairs.is_empty();
                for (i, (key, item)) in pairs.iter().enumerate() {
                    if i > 0 {
                        self.push(&self.comma.clone())?;
                    }
                    self.line(depth + 1)?;
                    match key.as_str() {
                        Some(key) => self.string(key)?,
                        None => self.string(&key.to_string())?,
                    }
                    self.push(&self.colon.clone())?;
                    self.value(item, depth + 1)?;
                }
                if !empty {
                    self.line(depth)?;
                }
                self.push("}")
            }
            kind => Err(format!("tojson: {kind} is not JSON")),
        }
    }

    fn string(&mut self, text: &str) -> Result<(), String> {
        let mut quoted = serde_json::to_string(text).map_err(|e| e.to_string())?;
        if self.ascii {
            let mut ascii = String::new();
            for c in quoted.chars() {
                if matches!(c, ' '..='~') {
                    ascii.push(c);
                } else {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        ascii.push_str(&format!("\\u{unit:04x}"));
                    }
                }
            }
            quoted = ascii;
        }
        self.push(&quoted)
    }
}

/// `strftime` of a time in UTC, in English.
pub(crate) fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    if format.len() > 4096 {
        return Err("strftime_now: a format of over 4096 bytes is not supported".into());
    }
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    // Howard Hinnant's civil_from_days, for days since 1970.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let yday = if month <= 2 { day_of_year - 306 } else { day_of_year + 59 + u64::from(leap) } + 1;
    let (weekday, month_name) = (DAYS[((days + 4) % 7) as usize], MONTHS[(month - 1) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next().unwrap_or('%');
        let plain = code == '-';
        if plain {
            code = chars.next().unwrap_or('%');
        }
        let two = |n: u64| if plain { n.to_string() } else { format!("{n:02}") };
        let hour12 = (hour + 11) % 12 + 1;
        out += &match code {
            'Y' => year.to_string(),
            'y' => two(year % 100),
            'm' => two(month),
            'd' => two(day),
            'e' => format!("{day:2}"),
            'H' => two(hour),
            'I' => two(hour12),
            'M' => two(minute),
            'S' => two(second % 60),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'w' => ((days + 4) % 7).to_string(),
            'j' => {
                if plain {
                    yday.to_string()
                } else {
                    format!("{yday:03}")
                }
            }
            'F' => format!("{year}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{:02}", second % 60),
            'R' => format!("{hour:02}:{minute:02}"),
            'D' => format!("{month:02}/{day:02}/{:02}", year % 100),
            's' => seconds.to_string(),
            'z' | 'Z' => String::new(),
            'f' => "000000".to_owned(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            other => return Err(format!("strftime_now: %{other} is not supported")),
        };
    }
    Ok(out)
}
