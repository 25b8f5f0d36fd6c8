//! JSON as signed objects use it: read strictly, written in one way.
//!
//! The writer is JCS (RFC 8785) for the values that occur here: there are no numbers but the integers from 0 to
//! 2^53 - 1. The reader is lax about nothing that two readers could take differently: [`Json::parse_canonical`]
//! reads, writes again and compares, so every accepted text has one spelling. It knows nothing of manifests.

use std::cmp::Ordering;
use std::fmt::Write as _;

/// The largest integer that every JSON implementation keeps exactly: 2^53 - 1.
pub const INTEGER_MAX: u64 = (1 << 53) - 1;

/// Arrays and objects within each other, the outermost counted as 1.
pub const NESTING_MAX: usize = 8;

/// A JSON value without fractions and negative numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number, at most [`INTEGER_MAX`].
    Integer(u64),
    /// A text.
    Text(String),
    /// An array.
    Array(Vec<Json>),
    /// An object.
    Object(Object),
}

/// The members of an object, in JCS order (by UTF-16 code units), each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object(Vec<(String, Json)>);

/// Why bytes are not a canonical JSON text. Positions are bytes from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The bytes are not UTF-8.
    #[error("byte {0} is not UTF-8")]
    Utf8(usize),
    /// The bytes are not JSON.
    #[error("not JSON at byte {0}")]
    Syntax(usize),
    /// Arrays and objects are nested too deeply.
    #[error("arrays and objects are nested more than {NESTING_MAX} deep at byte {0}")]
    Nesting(usize),
    /// A member is there twice.
    #[error("the member {0:?} is there twice")]
    Duplicate(String),
    /// A number is not a whole number from 0 to 2^53 - 1, or not written as digits alone.
    #[error("the number at byte {0} is not a whole number from 0 to 2^53-1 in plain digits")]
    Number(usize),
    /// An escape is half of a surrogate pair.
    #[error("the escape at byte {0} is half of a surrogate pair")]
    Surrogate(usize),
    /// The value has another spelling than the only right one.
    #[error("not in canonical form (RFC 8785); the first difference is at byte {0}")]
    NotCanonical(usize),
    /// A text has a character that a terminal would act upon.
    #[error("the text {0:?} has control or bidirectional formatting characters")]
    Character(String),
}

impl Object {
    /// Makes an object without members.
    pub fn new() -> Self {
        Object::default()
    }

    /// Returns the value of a member.
    pub fn get(&self, name: &str) -> Option<&Json> {
        let at = self.find(name).ok()?;
        Some(&self.0[at].1)
    }

    /// Sets a member and returns the value it had.
    pub fn insert(&mut self, name: &str, value: Json) -> Option<Json> {
        match self.find(name) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, value)),
            Err(at) => {
                self.0.insert(at, (name.to_owned(), value));
                None
            }
        }
    }

    /// Returns name and value of each member, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Json)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Returns the number of members.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.0
            .binary_search_by(|(other, _)| utf16_order(other, name))
    }

    fn from_members(mut members: Vec<(String, Json)>) -> Result<Self, JsonError> {
        members.sort_by(|(a, _), (b, _)| utf16_order(a, b));
        if let Some(pair) = members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(JsonError::Duplicate(pair[0].0.clone()));
        }
        Ok(Object(members))
    }
}

/// Compares as JCS does: by UTF-16 code units, where characters above U+FFFF come before U+E000.
fn utf16_order(a: &str, b: &str) -> Ordering {
    a.encode_utf16().cmp(b.encode_utf16())
}

/// Returns whether a terminal or a text view would act upon the character instead of showing it: C0, DEL, C1,
/// and the bidirectional formatting characters.
pub fn is_unsafe_char(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl Json {
    /// Reads a text that must be canonical already: the only reader of what comes from outside.
    ///
    /// # Errors
    /// [`JsonError`], the first thing that is wrong.
    pub fn parse_canonical(bytes: &[u8]) -> Result<Json, JsonError> {
        let value = Json::parse(bytes)?;
        let canonical = value.to_canonical();
        if canonical != bytes {
            let at = canonical
                .iter()
                .zip(bytes)
                .take_while(|(a, b)| a == b)
                .count();
            return Err(JsonError::NotCanonical(at));
        }
        value.check_characters()?;
        Ok(value)
    }

    /// Reads JSON in any spelling, within the limits on nesting and numbers; each member only once.
    fn parse(bytes: &[u8]) -> Result<Json, JsonError> {
        let text =
            std::str::from_utf8(bytes).map_err(|error| JsonError::Utf8(error.valid_up_to()))?;
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(1)?;
        reader.spaces();
        if reader.at < text.len() {
            return Err(JsonError::Syntax(reader.at));
        }
        Ok(value)
    }

    /// Writes the value in JCS.
    pub fn to_canonical(&self) -> Vec<u8> {
        let mut text = String::new();
        self.write(&mut text);
        text.into_bytes()
    }

    /// Returns the text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the number, if it is one.
    pub fn as_integer(&self) -> Option<u64> {
        match self {
            Json::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// Returns the elements, if it is an array.
    pub fn as_array(&self) -> Option<&[Json]> {
        match self {
            Json::Array(elements) => Some(elements),
            _ => None,
        }
    }

    /// Returns the members, if it is an object.
    pub fn as_object(&self) -> Option<&Object> {
        match self {
            Json::Object(members) => Some(members),
            _ => None,
        }
    }

    /// Returns how deeply arrays and objects are nested; 0 for a plain value.
    fn nesting(&self) -> usize {
        match self {
            Json::Array(elements) => 1 + elements.iter().map(Json::nesting).max().unwrap_or(0),
            Json::Object(members) => {
                1 + members
                    .iter()
                    .map(|(_, value)| value.nesting())
                    .max()
                    .unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// Checks a value of our own against what [`Json::parse_canonical`] would refuse, `above` levels down.
    ///
    /// # Errors
    /// [`JsonError::Nesting`], [`JsonError::Number`] or [`JsonError::Character`].
    pub(crate) fn check(&self, above: usize) -> Result<(), JsonError> {
        if self.nesting() + above > NESTING_MAX {
            return Err(JsonError::Nesting(0));
        }
        self.check_numbers()?;
        self.check_characters()
    }

    fn check_numbers(&self) -> Result<(), JsonError> {
        match self {
            Json::Integer(number) if *number > INTEGER_MAX => Err(JsonError::Number(0)),
            Json::Array(elements) => elements.iter().try_for_each(Json::check_numbers),
            Json::Object(members) => members
                .iter()
                .try_for_each(|(_, value)| value.check_numbers()),
            _ => Ok(()),
        }
    }

    fn check_characters(&self) -> Result<(), JsonError> {
        let check = |text: &str| {
            if text.chars().any(is_unsafe_char) {
                // Enough to find it; a hostile text may have megabytes.
                return Err(JsonError::Character(text.chars().take(80).collect()));
            }
            Ok(())
        };
        match self {
            Json::Text(text) => check(text),
            Json::Array(elements) => elements.iter().try_for_each(Json::check_characters),
            Json::Object(members) => members.iter().try_for_each(|(name, value)| {
                check(name)?;
                value.check_characters()
            }),
            Json::Null | Json::Bool(_) | Json::Integer(_) => Ok(()),
        }
    }

    fn write(&self, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(true) => out.push_str("true"),
            Json::Bool(false) => out.push_str("false"),
            Json::Integer(number) => {
                // Writing to a String cannot fail.
                let _ = write!(out, "{number}");
            }
            Json::Text(text) => write_text(text, out),
            Json::Array(elements) => {
                out.push('[');
                for (index, element) in elements.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    element.write(out);
                }
                out.push(']');
            }
            Json::Object(members) => {
                out.push('{');
                for (index, (name, value)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    write_text(name, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            '\0'..='\u{1f}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}

/// The state of reading: `at` is always at a character boundary.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn spaces(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn syntax<T>(&self) -> Result<T, JsonError> {
        Err(JsonError::Syntax(self.at))
    }

    fn take(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.peek() != Some(byte) {
            return self.syntax();
        }
        self.at += 1;
        Ok(())
    }

    /// Reads a value; an array or object that begins here is at `depth`, counted from 1.
    fn value(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.spaces();
        let rest = &self.text[self.at..];
        for (word, value) in [
            ("null", Json::Null),
            ("true", Json::Bool(true)),
            ("false", Json::Bool(false)),
        ] {
            if rest.starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        match self.peek() {
            Some(b'"') => Ok(Json::Text(self.string()?)),
            Some(b'[' | b'{') if depth > NESTING_MAX => Err(JsonError::Nesting(self.at)),
            Some(b'[') => self.array(depth),
            Some(b'{') => self.object(depth),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.syntax(),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Json, JsonError> {
        let mut elements = Vec::new();
        self.take(b'[')?;
        self.spaces();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Json::Array(elements));
        }
        loop {
            elements.push(self.value(depth + 1)?);
            self.spaces();
            if self.peek() == Some(b']') {
                self.at += 1;
                return Ok(Json::Array(elements));
            }
            self.take(b',')?;
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, JsonError> {
        let mut members = Vec::new();
        self.take(b'{')?;
        self.spaces();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Json::Object(Object(members)));
        }
        loop {
            self.spaces();
            let name = self.string()?;
            self.spaces();
            self.take(b':')?;
            members.push((name, self.value(depth + 1)?));
            self.spaces();
            if self.peek() == Some(b'}') {
                self.at += 1;
                return Ok(Json::Object(Object::from_members(members)?));
            }
            self.take(b',')?;
        }
    }

    fn number(&mut self) -> Result<Json, JsonError> {
        let start = self.at;
        let rest = &self.text[start..];
        let len = rest
            .bytes()
            .take_while(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
            .count();
        let digits = &rest[..len];
        self.at += len;
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        if plain && digits.len() > 1 && digits.starts_with('0') {
            return Err(JsonError::Syntax(start));
        }
        // Sixteen digits are enough for 2^53 - 1 and cannot overflow.
        match digits.parse::<u64>() {
            Ok(number) if plain && digits.len() <= 16 && number <= INTEGER_MAX => {
                Ok(Json::Integer(number))
            }
            _ => Err(JsonError::Number(start)),
        }
    }

    fn string(&mut self) -> Result<String, JsonError> {
        self.take(b'"')?;
        let mut text = String::new();
        loop {
            let rest = &self.text[self.at..];
            let plain = rest
                .find(|c: char| matches!(c, '"' | '\\' | '\0'..='\u{1f}'))
                .unwrap_or(rest.len());
            text.push_str(&rest[..plain]);
            self.at += plain;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some(b'\\') => text.push(self.escape()?),
                // A raw control character, or the end.
                _ => return self.syntax(),
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let start = self.at;
        self.take(b'\\')?;
        let kind = self.peek();
        let c = match kind {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode_escape(start);
            }
            _ => return self.syntax(),
        };
        self.at += 1;
        Ok(c)
    }

    /// Reads what follows `\u`, both halves of a pair.
    fn unicode_escape(&mut self, start: usize) -> Result<char, JsonError> {
        let first = self.four_hex()?;
        let mut units = vec![first];
        if (0xd800..0xdc00).contains(&first) && self.text[self.at..].starts_with("\\u") {
            self.at += 2;
            units.push(self.four_hex()?);
        }
        let mut decoded = char::decode_utf16(units);
        match (decoded.next(), decoded.next()) {
            (Some(Ok(c)), None) => Ok(c),
            _ => Err(JsonError::Surrogate(start)),
        }
    }

    fn four_hex(&mut self) -> Result<u16, JsonError> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let Some(digits) = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit)) else {
            return self.syntax();
        };
        self.at += 4;
        Ok(digits.iter().fold(0, |sum, &digit| {
            let value = char::from(digit).to_digit(16).unwrap_or(0);
            // A hexadecimal digit is below 16.
            sum << 4 | u16::try_from(value).unwrap_or(0)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        String::from_utf8(Json::parse(text.as_bytes()).unwrap().to_canonical()).unwrap()
    }

    /// RFC 8785, sections 3.2.2 and 3.2.3, without its fractions.
    #[test]
    fn rfc_8785() {
        assert_eq!(
            canonical(
                r#"{
                  "numbers": [333333333, 4, 2, 0],
                  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
                  "literals": [null, true, false]
                }"#
            ),
            r#"{"literals":[null,true,false],"numbers":[333333333,4,2,0],"string":"€$\u000f\nA'B\"\\\\\"/"}"#
        );
        let sorted = Json::parse(
            br#"{
              "\u20ac": "Euro Sign",
              "\r": "Carriage Return",
              "\ufb33": "Hebrew Letter Dalet With Dagesh",
              "1": "One",
              "\ud83d\ude00": "Emoji: Grinning Face",
              "\u0080": "Control",
              "\u00f6": "Latin Small Letter O With Diaeresis"
            }"#,
        )
        .unwrap();
        let order: Vec<_> = sorted
            .as_object()
            .unwrap()
            .iter()
            .map(|(_, value)| value.as_text().unwrap())
            .collect();
        assert_eq!(
            order,
            [
                "Carriage Return",
                "One",
                "Control",
                "Latin Small Letter O With Diaeresis",
                "Euro Sign",
                "Emoji: Grinning Face",
                "Hebrew Letter Dalet With Dagesh"
            ]
        );
    }

    #[test]
    fn every_control_character_has_its_spelling() {
        let all: String = ('\0'..=' ').collect();
        let expected = concat!(
            r#""\u0000\u0001\u0002\u0003\u0004\u0005\u0006\u0007\b\t\n\u000b\f\r\u000e\u000f"#,
            r#"\u0010\u0011\u0012\u0013\u0014\u0015\u0016\u0017\u0018\u0019\u001a\u001b\u001c\u001d\u001e\u001f ""#,
        );
        let text = Json::Text(all);
        assert_eq!(text.to_canonical(), expected.as_bytes());
        assert_eq!(Json::parse(expected.as_bytes()), Ok(text));
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let error = |text: &str| Json::parse_canonical(text.as_bytes()).unwrap_err();
        assert_eq!(error(""), JsonError::Syntax(0));
        assert_eq!(error("[1,]"), JsonError::Syntax(3));
        assert_eq!(error("01"), JsonError::Syntax(0));
        assert_eq!(error("nul"), JsonError::Syntax(0));
        assert_eq!(error("\"\\x\""), JsonError::Syntax(2));
        assert_eq!(error("\"a\u{1}\""), JsonError::Syntax(2));
        assert_eq!(error("\"\\u12\""), JsonError::Syntax(3));
        assert_eq!(error("\"\\u+123\""), JsonError::Syntax(3));
        assert_eq!(error("\"\\ud800\""), JsonError::Surrogate(1));
        assert_eq!(error("\"\\ud800\\u0041\""), JsonError::Surrogate(1));
        assert_eq!(error("1.0"), JsonError::Number(0));
        assert_eq!(error("-0"), JsonError::Number(0));
        assert_eq!(error("9007199254740992"), JsonError::Number(0));
        assert_eq!(error("[ 1]"), JsonError::NotCanonical(1));
        assert_eq!(error("{\"b\":1,\"a\":2}"), JsonError::NotCanonical(2));
        assert_eq!(
            error("{\"a\":1,\"\\u0061\":2}"),
            JsonError::Duplicate("a".into())
        );
        assert_eq!(error("[[[[[[[[[]]]]]]]]]"), JsonError::Nesting(8));
        assert_eq!(
            error("\"a\u{202e}b\""),
            JsonError::Character("a\u{202e}b".into())
        );
        assert_eq!(error("\"\\n\""), JsonError::Character("\n".into()));
        assert_eq!(
            Json::parse_canonical(b"\"\xff\"").unwrap_err(),
            JsonError::Utf8(1)
        );
        assert!(Json::parse_canonical(b"[[[[[[[[]]]]]]]]").is_ok());
        assert_eq!(
            Json::parse_canonical(b"9007199254740991"),
            Ok(Json::Integer(INTEGER_MAX))
        );
    }

    fn any_json() -> impl Strategy<Value = Json> {
        // Unlike any::<String>(), with control characters.
        let text = || {
            prop::collection::vec(any::<char>(), 0..8)
                .prop_map(|chars| chars.into_iter().collect::<String>())
        };
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::Bool),
            (0..=INTEGER_MAX).prop_map(Json::Integer),
            text().prop_map(Json::Text),
        ];
        leaf.prop_recursive(7, 48, 6, move |inner| {
            let members = prop::collection::vec((text(), inner.clone()), 0..6);
            prop_oneof![
                prop::collection::vec(inner, 0..6).prop_map(Json::Array),
                members.prop_map(|members| {
                    let mut object = Object::new();
                    for (name, value) in members {
                        object.insert(&name, value);
                    }
                    Json::Object(object)
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_the_same(value in any_json()) {
            let bytes = value.to_canonical();
            prop_assert_eq!(&Json::parse(&bytes), &Ok(value.clone()));
            // serde_json agrees on what the text means.
            let theirs: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            let again = serde_json::to_vec(&theirs).unwrap();
            prop_assert_eq!(Json::parse(&again), Ok(value.clone()));
            match (value.check(0), Json::parse_canonical(&bytes)) {
                (Ok(()), Ok(read)) => prop_assert_eq!(read, value),
                (Err(ours), Err(theirs)) => prop_assert_eq!(ours, theirs),
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn whatever_is_accepted_has_one_spelling(text in r#"[\[\]{}",:0-9a\\u \-.e]{0,24}"#) {
            if let Ok(value) = Json::parse_canonical(text.as_bytes()) {
                prop_assert_eq!(value.to_canonical(), text.as_bytes());
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Json::parse_canonical(&bytes);
        }
    }
}
