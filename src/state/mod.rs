//! Small durable facts: what was seen, slots, pins, the publish journal.
