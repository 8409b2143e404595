"""The study that this package exists for: what its notebooks compute. Nothing outside imports it."""
