"""How far the tuned model has moved from the base on a text of the user's, with no benchmark's data.

``text`` reads the text, ``windows`` cuts it and puts it through a model, ``base_states`` keeps what the base model
makes of it, ``side_by_side`` sets the tuned model beside that, and ``comparison`` sums up.
"""

from osft.evaluation.probe.base_states import remember_on_probe
from osft.evaluation.probe.comparison import ProbeComparison, compare_on_probe
from osft.evaluation.probe.text import read_probe

__all__ = ["ProbeComparison", "compare_on_probe", "read_probe", "remember_on_probe"]
