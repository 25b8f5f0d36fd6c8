//! Wiring: a home, its mounts and its tasks.
