//! Versions made visible: listed from a manifest, installed with a whole valid catalog.
