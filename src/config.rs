//! The configuration file, and where a home lies; the only reader of environment and home.
