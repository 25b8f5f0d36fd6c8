//! Reading what vector files are made of.

use serde_json::Value;

/// Returns the cases of a list, which must not be empty.
pub(crate) fn cases<'a>(file: &'a Value, list: &str) -> &'a [Value] {
    let cases = file[list].as_array().unwrap();
    assert!(!cases.is_empty(), "{list}");
    cases
}

pub(crate) fn text<'a>(case: &'a Value, member: &str) -> &'a str {
    case[member]
        .as_str()
        .unwrap_or_else(|| panic!("no text {member}"))
}

/// Returns the bytes that a content stands for.
pub(crate) fn content(content: &Value) -> Vec<u8> {
    if let Some(hex) = content["hex"].as_str() {
        return hex::decode(hex).unwrap();
    }
    if let Some(text) = content["text"].as_str() {
        return text.as_bytes().to_vec();
    }
    if let Some(hex) = content["repeat"].as_str() {
        let times = usize::try_from(content["times"].as_u64().unwrap()).unwrap();
        return hex::decode(hex).unwrap().repeat(times);
    }
    content["concat"]
        .as_array()
        .expect("a content of a known kind")
        .iter()
        .flat_map(self::content)
        .collect()
}
