//! Reading the members of a signed object, with one error for each way in which a member can be wrong.

use super::json::{Json, Object};

/// Why an object of the right JSON form is not a manifest or release index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// `format` names something that this version cannot read.
    #[error("format is {found}, and only {want:?} can be read")]
    Format {
        /// What is there, as JSON.
        found: String,
        /// What was expected.
        want: &'static str,
    },
    /// `requires` is not the empty array: reading it would need something that this version does not have.
    #[error("requires is {0}, and this version has nothing beyond format 1")]
    Requires(String),
    /// A member is missing.
    #[error("the member {0:?} is missing")]
    Missing(&'static str),
    /// A member has the wrong type or value.
    #[error("the member {field:?} is wrong: {reason}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What it has to be.
        reason: String,
    },
}

impl FieldError {
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers hand over errors and texts alike"
    )]
    pub(crate) fn invalid(field: &'static str, reason: impl ToString) -> Self {
        FieldError::Invalid {
            field,
            reason: reason.to_string(),
        }
    }

    /// Returns what a person can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            FieldError::Format { .. } | FieldError::Requires(_) => {
                "a newer version of manifs may read it"
            }
            FieldError::Missing(_) | FieldError::Invalid { .. } => {
                "whoever signed it has to publish a correct one"
            }
        }
    }
}

/// The members of `object`, read by name.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a Object);

impl<'a> Fields<'a> {
    pub(crate) fn format(self, want: &'static str) -> Result<(), FieldError> {
        match self.0.get("format") {
            Some(Json::Text(text)) if text == want => Ok(()),
            other => Err(FieldError::Format {
                found: shown(other),
                want,
            }),
        }
    }

    pub(crate) fn required(self, field: &'static str) -> Result<&'a Json, FieldError> {
        self.0.get(field).ok_or(FieldError::Missing(field))
    }

    pub(crate) fn text(self, field: &'static str) -> Result<&'a str, FieldError> {
        self.required(field)?
            .as_text()
            .ok_or_else(|| FieldError::invalid(field, "not a text"))
    }

    pub(crate) fn optional_text(self, field: &'static str) -> Result<Option<String>, FieldError> {
        match self.0.get(field) {
            None => Ok(None),
            Some(_) => self.text(field).map(|text| Some(text.to_owned())),
        }
    }

    pub(crate) fn parsed<T: std::str::FromStr<Err: ToString>>(
        self,
        field: &'static str,
    ) -> Result<T, FieldError> {
        self.text(field)?
            .parse()
            .map_err(|error: T::Err| FieldError::invalid(field, error))
    }

    pub(crate) fn integer(self, field: &'static str) -> Result<u64, FieldError> {
        self.required(field)?
            .as_integer()
            .ok_or_else(|| FieldError::invalid(field, "not a whole number"))
    }

    pub(crate) fn object(self, field: &'static str) -> Result<Fields<'a>, FieldError> {
        self.required(field)?
            .as_object()
            .map(Fields)
            .ok_or_else(|| FieldError::invalid(field, "not an object"))
    }

    pub(crate) fn texts(self, field: &'static str) -> Result<Vec<&'a str>, FieldError> {
        let elements = self
            .required(field)?
            .as_array()
            .ok_or_else(|| FieldError::invalid(field, "not an array"))?;
        elements
            .iter()
            .map(|element| {
                element
                    .as_text()
                    .ok_or_else(|| FieldError::invalid(field, "not an array of texts"))
            })
            .collect()
    }
}

/// Returns a value as JSON for a message, cut short.
pub(crate) fn shown(value: Option<&Json>) -> String {
    let Some(value) = value else {
        return "missing".to_owned();
    };
    let text = String::from_utf8_lossy(&value.to_canonical()).into_owned();
    text.chars().take(60).collect()
}

/// Makes an array of texts.
pub(crate) fn text_array<T: ToString>(texts: impl IntoIterator<Item = T>) -> Json {
    Json::Array(
        texts
            .into_iter()
            .map(|text| Json::Text(text.to_string()))
            .collect(),
    )
}
