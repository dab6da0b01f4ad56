"""Whether a host does what a store needs of it: `check` tries it in a scratch folder and reports."""

from sovstore.check.report import Finding, Report
from sovstore.check.run import check

__all__ = ["Finding", "Report", "check"]
