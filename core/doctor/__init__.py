"""Audit a model on this machine before anyone trusts its maps: `python -m core.doctor MODEL`, or `examine(lmm)`.

Every line of the table is one thing that maps rest on, checked by running the model: which positions are visual, which
pixels each of them sees, which attention row belongs to which token, and that the rows are the ones that transformers'
own eager attention has.
"""

from core.doctor.examination import LINES, examine
from core.doctor.findings import Examination, Finding
from core.doctor.places import Probe

__all__ = ["LINES", "Examination", "Finding", "Probe", "examine"]
