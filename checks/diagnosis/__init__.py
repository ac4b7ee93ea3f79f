"""Why a port differs: every layer is run by itself, and those that are wrong are explained by known causes."""

from checks.diagnosis.causes import Cause
from checks.diagnosis.diagnose import diagnose
from checks.diagnosis.result import Diagnosis, Finding

__all__ = ["Cause", "Diagnosis", "Finding", "diagnose"]
