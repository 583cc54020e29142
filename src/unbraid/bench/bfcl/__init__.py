"""BFCL by its official harness, in an environment of its own: `inside/` runs there, everything else here."""
