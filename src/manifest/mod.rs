//! What is signed: names, manifests, release indices, envelopes, keys and the trust policy.
