"""Every token has a role. This package decides it, once, and needs only numpy."""

from unbraid.tokens.automaton import Delimiter, Fault, RoleAutomaton, RoleReader, Scan, Span
from unbraid.tokens.roles import Provenance, Role
from unbraid.tokens.router import NONE, ROUTING_FILE, Boundary, Router, Turns, written_mask, written_spans

__all__ = [
    "NONE",
    "ROUTING_FILE",
    "Boundary",
    "Delimiter",
    "Fault",
    "Provenance",
    "Role",
    "RoleAutomaton",
    "RoleReader",
    "Router",
    "Scan",
    "Span",
    "Turns",
    "written_mask",
    "written_spans",
]
