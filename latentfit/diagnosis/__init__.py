"""What latents are like: findings with advice, a figure, and warnings in the fit."""

from latentfit.diagnosis._diagnose import diagnose
from latentfit.diagnosis._report import Diagnosis, Finding, check_figure_path
from latentfit.diagnosis._warning import warn_about

__all__ = ["Diagnosis", "Finding", "check_figure_path", "diagnose", "warn_about"]
