"""The diagnosis of a port: every layer is run by itself, and known causes explain those that are wrong."""

from checks.diagnosis.causes import Cause
from checks.diagnosis.diagnose import diagnose
from checks.diagnosis.result import Diagnosis, Finding

__all__ = ["Cause", "Diagnosis", "Finding", "diagnose"]
