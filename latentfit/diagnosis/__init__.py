"""What latents are like: findings with advice, a figure, and warnings in the fit."""

from latentfit.diagnosis._diagnose import diagnose
from latentfit.diagnosis._report import FIGURES, Diagnosis, Finding
from latentfit.diagnosis._warning import warn_about

__all__ = ["FIGURES", "Diagnosis", "Finding", "diagnose", "warn_about"]
