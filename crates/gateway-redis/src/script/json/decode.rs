//! `cjson.decode`, with what Redis accepts beyond JSON: strings of any bytes and, unless that is switched
//! off, numbers such as `0x10`, `007`, `inf` and `nan`. No library reads these.
//!
//! Values are built as they are read, so what is made counts on the script's memory, and every byte on its
//! budget. The recursion is bounded by [`Settings::decode_depth`].

use mlua::{Lua, Table, Value};

use super::{super::Budget, Settings};

/// The value of a JSON text.
pub(in crate::script) fn decode(lua: &Lua, text: &[u8], settings: &Settings, budget: &Budget) -> mlua::Result<Value> {
    if text.len() >= 2 && (text[0] == 0 || text[1] == 0) {
        return Err(mlua::Error::runtime("JSON parser does not support UTF-16 or UTF-32"));
    }
    let mut parser = Parser { lua, text, at: 0, depth: 0, settings, budget };
    let first = parser.next()?;
    let value = parser.value(first)?;
    match parser.next()? {
        Token { kind: Kind::End, .. } => Ok(value),
        token => Err(token.unexpected("the end")),
    }
}

enum Kind {
    ObjectBegin,
    ObjectEnd,
    ArrayBegin,
    ArrayEnd,
    String(Vec<u8>),
    Number(f64),
    Boolean(bool),
    Null,
    Colon,
    Comma,
    End,
    Malformed(&'static str),
}

struct Token {
    kind: Kind,
    at: usize,
}

impl Token {
    fn unexpected(&self, expected: &str) -> mlua::Error {
        // The names that Redis's error messages have.
        let found = match &self.kind {
            Kind::ObjectBegin => "T_OBJ_BEGIN",
            Kind::ObjectEnd => "T_OBJ_END",
            Kind::ArrayBegin => "T_ARR_BEGIN",
            Kind::ArrayEnd => "T_ARR_END",
            Kind::String(_) => "T_STRING",
            Kind::Number(_) => "T_NUMBER",
            Kind::Boolean(_) => "T_BOOLEAN",
            Kind::Null => "T_NULL",
            Kind::Colon => "T_COLON",
            Kind::Comma => "T_COMMA",
            Kind::End => "T_END",
            Kind::Malformed(why) => why,
        };
        mlua::Error::runtime(format_args!("Expected {expected} but found {found} at character {}", self.at + 1))
    }
}

struct Parser<'a> {
    lua: &'a Lua,
    text: &'a [u8],
    at: usize,
    depth: usize,
    settings: &'a Settings,
    budget: &'a Budget,
}

impl Parser<'_> {
    fn rest(&self) -> &[u8] {
        &self.text[self.at..]
    }

    fn next(&mut self) -> mlua::Result<Token> {
        while matches!(self.rest().first(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        let at = self.at;
        let (kind, bytes) = match self.rest() {
            [] => (Kind::End, 0),
            [b'{', ..] => (Kind::ObjectBegin, 1),
            [b'}', ..] => (Kind::ObjectEnd, 1),
            [b'[', ..] => (Kind::ArrayBegin, 1),
            [b']', ..] => (Kind::ArrayEnd, 1),
            [b':', ..] => (Kind::Colon, 1),
            [b',', ..] => (Kind::Comma, 1),
            [b'"', ..] => match self.string() {
                Ok((text, bytes)) => (Kind::String(text), bytes),
                Err((why, bytes)) => return Ok(Token { kind: Kind::Malformed(why), at: at + bytes }),
            },
            [b't', b'r', b'u', b'e', ..] => (Kind::Boolean(true), 4),
            [b'f', b'a', b'l', b's', b'e', ..] => (Kind::Boolean(false), 5),
            [b'n', b'u', b'l', b'l', ..] => (Kind::Null, 4),
            rest => self.number(rest),
        };
        self.at += bytes;
        self.budget.spend(self.at - at + 1)?;
        Ok(Token { kind, at })
    }

    fn number(&self, rest: &[u8]) -> (Kind, usize) {
        let is_strict = is_strict_number(rest);
        let is_number = matches!(rest.first(), Some(b'-' | b'0'..=b'9'));
        if !is_strict && !self.settings.decode_invalid_numbers {
            return (Kind::Malformed(if is_number { "invalid number" } else { "invalid token" }), 0);
        }
        if is_strict && !is_number {
            return (Kind::Malformed("invalid token"), 0);
        }
        match number_at(rest) {
            Some((number, bytes)) => (Kind::Number(number), bytes),
            None => (Kind::Malformed("invalid number"), 0),
        }
    }

    /// A string and its length in the text; or why it is none, and where.
    fn string(&self) -> Result<(Vec<u8>, usize), (&'static str, usize)> {
        let rest = self.rest();
        let (mut text, mut at) = (Vec::new(), 1);
        loop {
            match rest.get(at) {
                None => return Err(("unexpected end of string", at)),
                Some(b'"') => return Ok((text, at + 1)),
                Some(b'\\') => {
                    let (char, bytes) = match rest.get(at + 1) {
                        Some(b'b') => (0x08, 2),
                        Some(b't') => (b'\t', 2),
                        Some(b'n') => (b'\n', 2),
                        Some(b'f') => (0x0c, 2),
                        Some(b'r') => (b'\r', 2),
                        Some(same @ (b'"' | b'\\' | b'/')) => (*same, 2),
                        Some(b'u') => {
                            let (char, bytes) = unicode(&rest[at..]).ok_or(("invalid unicode escape code", at))?;
                            text.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                            at += bytes;
                            continue;
                        }
                        _ => return Err(("invalid escape code", at)),
                    };
                    text.push(char);
                    at += bytes;
                }
                Some(byte) => {
                    text.push(*byte);
                    at += 1;
                }
            }
        }
    }

    fn value(&mut self, token: Token) -> mlua::Result<Value> {
        Ok(match token.kind {
            Kind::String(text) => Value::String(self.lua.create_string(text)?),
            Kind::Number(number) => Value::Number(number),
            Kind::Boolean(value) => Value::Boolean(value),
            Kind::Null => Value::NULL,
            Kind::ObjectBegin => Value::Table(self.nested(Self::object)?),
            Kind::ArrayBegin => Value::Table(self.nested(Self::array)?),
            _ => return Err(token.unexpected("value")),
        })
    }

    fn nested(&mut self, read: fn(&mut Self) -> mlua::Result<Table>) -> mlua::Result<Table> {
        self.depth += 1;
        if self.depth > self.settings.decode_depth() {
            let (depth, at) = (self.depth, self.at);
            let text = format_args!("Found too many nested data structures ({depth}) at character {at}");
            return Err(mlua::Error::runtime(text));
        }
        let table = read(self)?;
        self.depth -= 1;
        Ok(table)
    }

    fn object(&mut self) -> mlua::Result<Table> {
        let table = self.lua.create_table()?;
        let mut token = self.next()?;
        if matches!(token.kind, Kind::ObjectEnd) {
            return Ok(table);
        }
        loop {
            let Kind::String(key) = token.kind else { return Err(token.unexpected("object key string")) };
            match self.next()? {
                Token { kind: Kind::Colon, .. } => {}
                other => return Err(other.unexpected("colon")),
            }
            token = self.next()?;
            let value = self.value(token)?;
            table.raw_set(self.lua.create_string(key)?, value)?;
            match self.next()? {
                Token { kind: Kind::ObjectEnd, .. } => return Ok(table),
                Token { kind: Kind::Comma, .. } => token = self.next()?,
                other => return Err(other.unexpected("comma or object end")),
            }
        }
    }

    fn array(&mut self) -> mlua::Result<Table> {
        let table = self.lua.create_table()?;
        let mut token = self.next()?;
        if matches!(token.kind, Kind::ArrayEnd) {
            return Ok(table);
        }
        for at in 1_usize.. {
            let value = self.value(token)?;
            table.raw_set(at, value)?;
            match self.next()? {
                Token { kind: Kind::ArrayEnd, .. } => break,
                Token { kind: Kind::Comma, .. } => token = self.next()?,
                other => return Err(other.unexpected("comma or array end")),
            }
        }
        Ok(table)
    }
}

/// The character of `\uXXXX`, or of two that are a surrogate pair, and the length of the escape.
fn unicode(escape: &[u8]) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let digits = escape.get(at..at + 6)?.strip_prefix(b"\\u")?;
        digits.iter().try_fold(0, |all, digit| Some(all << 4 | char::from(*digit).to_digit(16)?))
    };
    let first = unit(0)?;
    if !(0xd800..0xdc00).contains(&first) {
        return char::from_u32(first).map(|char| (char, 6));
    }
    let second = unit(6).filter(|second| (0xdc00..0xe000).contains(second))?;
    char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)).map(|char| (char, 12))
}

/// Whether a text does not begin with a number that only C reads. It need not be a number at all.
fn is_strict_number(text: &[u8]) -> bool {
    let unsigned = text.strip_prefix(b"-").unwrap_or(text);
    match unsigned {
        [b'0', next, ..] => !matches!(next, b'x' | b'X' | b'0'..=b'9'),
        _ => !text.starts_with(b"+") && word(unsigned, b"inf").is_none() && word(unsigned, b"nan").is_none(),
    }
}

/// The rest after a word in any case.
fn word<'a>(text: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = text.split_at_checked(word.len())?;
    head.eq_ignore_ascii_case(word).then_some(rest)
}

/// The number at the beginning of a text, as C's `strtod` reads it, and its length.
fn number_at(text: &[u8]) -> Option<(f64, usize)> {
    let unsigned = text.strip_prefix(b"-").or_else(|| text.strip_prefix(b"+")).unwrap_or(text);
    let sign = if text.first() == Some(&b'-') { -1.0 } else { 1.0 };
    if let Some(rest) = word(unsigned, b"infinity").or_else(|| word(unsigned, b"inf")) {
        return Some((sign * f64::INFINITY, text.len() - rest.len()));
    }
    if let Some(rest) = word(unsigned, b"nan") {
        return Some((f64::NAN, text.len() - rest.len()));
    }
    if let Some(digits) = word(unsigned, b"0x") {
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        let count = digits.iter().take_while(|byte| digit(byte).is_some()).count();
        if count > 0 {
            let number = digits[..count].iter().filter_map(digit).fold(0.0, |all, next| all * 16.0 + f64::from(next));
            return Some((sign * number, text.len() - digits.len() + count));
        }
    }
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut length = digits(unsigned);
    if unsigned.get(length) == Some(&b'.') {
        length += 1 + digits(&unsigned[length + 1..]);
    }
    if let [b'e' | b'E', rest @ ..] = &unsigned[length..] {
        let signed = usize::from(matches!(rest.first(), Some(b'+' | b'-')));
        let exponent = digits(&rest[signed..]);
        length += if exponent > 0 { 1 + signed + exponent } else { 0 };
    }
    let number: f64 = std::str::from_utf8(&unsigned[..length]).ok()?.parse().ok()?;
    Some((sign * number, text.len() - unsigned.len() + length))
}
