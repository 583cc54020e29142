"""Public benchmarks: what they ask, by whose checker they are scored, and one record of how it came out."""
