"""The diagnosis of a port: run every layer by itself, and explain the wrong ones by known causes."""

from checks.diagnosis.causes import Cause
from checks.diagnosis.diagnose import diagnose
from checks.diagnosis.result import Diagnosis, Finding

__all__ = ["Cause", "Diagnosis", "Finding", "diagnose"]
