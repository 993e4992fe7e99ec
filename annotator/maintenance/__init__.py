"""Keeping a workspace: backup, restore, verify, erase, prune."""

from annotator.maintenance.backups import backup, restore
from annotator.maintenance.erase import ErasureReport, erase
from annotator.maintenance.prune import prune
from annotator.maintenance.verify import VerifyReport, verify

__all__ = ["ErasureReport", "VerifyReport", "backup", "erase", "prune", "restore", "verify"]
