"""Whole runs, by name."""

from streamstill.recipes.base import Base, run_base
from streamstill.recipes.few_steps import FewSteps, run_few_steps
from streamstill.recipes.folder import Folder, run_folder
from streamstill.recipes.knowledge import Knowledge, run_knowledge
from streamstill.recipes.quickstart import Quickstart, run_quickstart

__all__ = [
    "Base",
    "FewSteps",
    "Folder",
    "Knowledge",
    "Quickstart",
    "run_base",
    "run_few_steps",
    "run_folder",
    "run_knowledge",
    "run_quickstart",
]
