//! `packages.json`: the names of a registry, for those who cannot list its directories.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::manifest::{PackageName, Version};

use super::{NAMES_MAX, VERSIONS_MAX};

/// The value of `format`.
const FORMAT: &str = "manifs-packages/1";

/// Why a list of names is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// Not JSON of this form.
    #[error("not a list of packages: {0}")]
    Syntax(String),
    /// Another format, or a later one.
    #[error("format {0:?} is not {FORMAT:?}")]
    Format(String),
}

/// The packages of a registry and their versions.
///
/// The file is `{"format": "manifs-packages/1", "packages": {"<name>": ["<version>", ...], ...}}`. The versions matter
/// only for a package without a release index. It is not signed: it says what to ask for, nothing else. Names and
/// versions that do not parse are passed over, so that one entry made by a later program does not hide the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    packages: BTreeMap<PackageName, Vec<Version>>,
}

impl Listing {
    /// Reads the file.
    ///
    /// # Errors
    /// [`ListingError`] when it is not of this form, or holds more than a registry may.
    pub fn parse(bytes: &[u8]) -> Result<Self, ListingError> {
        let file: File = serde_json::from_slice(bytes)
            .map_err(|error| ListingError::Syntax(error.to_string()))?;
        if file.format != FORMAT {
            return Err(ListingError::Format(file.format));
        }
        Ok(Listing {
            packages: file.packages.0,
        })
    }

    /// Adds a package, and a version of it.
    pub fn insert(&mut self, name: &PackageName, version: Option<&Version>) {
        let versions = self.packages.entry(name.clone()).or_default();
        if let Some(version) = version
            && let Err(at) = versions.binary_search(version)
        {
            versions.insert(at, version.clone());
        }
    }

    /// Returns the names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &PackageName> {
        self.packages.keys()
    }

    /// Returns the versions of a package, in ascending order.
    pub fn versions(&self, name: &PackageName) -> &[Version] {
        self.packages.get(name).map_or(&[], Vec::as_slice)
    }

    /// Returns how many packages it lists.
    pub fn len(&self) -> usize {
        self.packages.len()
    }

    /// Returns whether it lists none.
    pub fn is_empty(&self) -> bool {
        self.packages.is_empty()
    }
}

impl fmt::Display for Listing {
    /// Writes the file, one package in a line: a change is one line of a diff.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither names nor versions have a character that JSON escapes.
        write!(f, "{{\"format\": \"{FORMAT}\", \"packages\": {{")?;
        for (nth, (name, versions)) in self.packages.iter().enumerate() {
            let comma = if nth == 0 { "" } else { "," };
            write!(f, "{comma}\n\"{name}\": [")?;
            for (nth, version) in versions.iter().enumerate() {
                let comma = if nth == 0 { "" } else { ", " };
                write!(f, "{comma}\"{version}\"")?;
            }
            f.write_str("]")?;
        }
        f.write_str("\n}}\n")
    }
}

#[derive(Deserialize)]
struct File {
    format: String,
    packages: Packages,
}

struct Packages(BTreeMap<PackageName, Vec<Version>>);

impl<'de> Deserialize<'de> for Packages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Packages;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of package names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Packages, A::Error> {
                let mut packages = BTreeMap::new();
                let mut seen = 0;
                while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                    seen += 1;
                    if seen > NAMES_MAX {
                        return Err(A::Error::custom(format!("more than {NAMES_MAX} names")));
                    }
                    let versions = map.next_value_seed(Versions)?;
                    if let Ok(name) = name.parse() {
                        packages.insert(name, versions);
                    }
                }
                Ok(Packages(packages))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

struct Versions;

impl<'de> DeserializeSeed<'de> for Versions {
    type Value = Vec<Version>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Versions {
    type Value = Vec<Version>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of versions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut versions = Vec::new();
        let mut seen = 0;
        while let Some(version) = seq.next_element::<std::borrow::Cow<'de, str>>()? {
            seen += 1;
            if seen > VERSIONS_MAX {
                return Err(A::Error::custom(format!(
                    "more than {VERSIONS_MAX} versions"
                )));
            }
            versions.extend(version.parse::<Version>());
        }
        versions.sort_unstable();
        versions.dedup();
        Ok(versions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(text: &str) -> Result<Listing, ListingError> {
        Listing::parse(text.as_bytes())
    }

    #[test]
    fn it_is_read_as_it_is_written() {
        let mut list = Listing::default();
        assert_eq!(listing(&list.to_string()).unwrap(), list);
        list.insert(
            &"acme/tool".parse().unwrap(),
            Some(&"1.10.0".parse().unwrap()),
        );
        list.insert(
            &"acme/tool".parse().unwrap(),
            Some(&"1.9.0".parse().unwrap()),
        );
        list.insert(
            &"acme/tool".parse().unwrap(),
            Some(&"1.9.0".parse().unwrap()),
        );
        list.insert(&"bare".parse().unwrap(), None);
        assert_eq!(
            list.to_string(),
            "{\"format\": \"manifs-packages/1\", \"packages\": {\n\
             \"acme/tool\": [\"1.9.0\", \"1.10.0\"],\n\"bare\": []\n}}\n"
        );
        assert_eq!(listing(&list.to_string()).unwrap(), list);
    }

    #[test]
    fn what_is_no_name_is_passed_over() {
        let list = listing(
            r#"{"format":"manifs-packages/1","made":1,"packages":{"../x":[],"A":["1.0.0"],"ok":["1.0","2.0.0","2.0.0"],"latest":[]}}"#,
        )
        .unwrap();
        let ok: PackageName = "ok".parse().unwrap();
        assert_eq!(list.names().collect::<Vec<_>>(), [&ok]);
        assert_eq!(list.versions(&ok), ["2.0.0".parse().unwrap()]);
    }

    #[test]
    fn other_files_are_refused() {
        assert!(matches!(
            listing(r#"{"format":"manifs-packages/2","packages":{}}"#),
            Err(ListingError::Format(_))
        ));
        for text in [
            "",
            "[]",
            "{}",
            "null",
            r#"{"format":"manifs-packages/1"}"#,
            r#"{"format":"manifs-packages/1","packages":["a"]}"#,
            r#"{"format":"manifs-packages/1","packages":{"a":"1.0.0"}}"#,
            r#"{"format":"manifs-packages/1","packages":{}} x"#,
        ] {
            assert!(
                matches!(listing(text), Err(ListingError::Syntax(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn the_number_of_names_is_bounded() {
        let text = |count: usize| {
            let names: Vec<_> = (0..count).map(|nth| format!("\"a{nth}\":[]")).collect();
            format!(
                r#"{{"format":"manifs-packages/1","packages":{{{}}}}}"#,
                names.join(",")
            )
        };
        assert_eq!(listing(&text(NAMES_MAX)).unwrap().len(), NAMES_MAX);
        assert!(listing(&text(NAMES_MAX + 1)).is_err());
    }
}
