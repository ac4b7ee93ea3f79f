"""Audits of ports that others made: every tensor against the source, and graphs run."""
