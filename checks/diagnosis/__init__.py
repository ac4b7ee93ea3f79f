"""Why a port differs: every layer by itself, and the known causes tried at those that are wrong."""

from checks.diagnosis.causes import Cause
from checks.diagnosis.diagnose import Diagnosis, Finding, diagnose

__all__ = ["Cause", "Diagnosis", "Finding", "diagnose"]
