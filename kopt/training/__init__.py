"""Compiled training: epochs as single programs, shared by all networks of one structure."""
