"""Every token has a role. This package decides it, once, and needs only numpy."""

from unbraid.tokens.automaton import Delimiter, Fault, RoleAutomaton, RoleReader, Scan, Span
from unbraid.tokens.roles import Provenance, Role

__all__ = ["Delimiter", "Fault", "Provenance", "Role", "RoleAutomaton", "RoleReader", "Scan", "Span"]
