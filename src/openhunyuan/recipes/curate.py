"""The curation plan: which stages run over footage, in which order, with which thresholds.

All of it runs on a CPU without weights. The measures are named as what they are; none stands for a trained model
(`run.json` lists them under `proxies`). Thresholds were set on rendered footage with planted defects and looked at on a
few real clips (docs/results/curation.md); they are a start, not the report's, which were never published.
"""

from __future__ import annotations

from openhunyuan.curate.concepts import Concepts
from openhunyuan.curate.cut import Cut
from openhunyuan.curate.decide import Crop, Filter
from openhunyuan.curate.duplicates import Duplicates
from openhunyuan.curate.measures.border import Border
from openhunyuan.curate.measures.clarity import Clarity
from openhunyuan.curate.measures.clear_start import ClearStart
from openhunyuan.curate.measures.fingerprint import Fingerprint
from openhunyuan.curate.measures.motion import Motion
from openhunyuan.curate.measures.overlay import Overlay
from openhunyuan.curate.measures.quality import Quality
from openhunyuan.curate.measures.strip import Strip
from openhunyuan.curate.measures.text import Text
from openhunyuan.curate.run import Plan
from openhunyuan.curate.split import Split

MEASURES = (ClearStart(), Border(), Motion(), Clarity(), Quality(), Text(), Overlay(), Fingerprint(), Strip())

FILTERS = (
    Filter(name="duration", score="clip.seconds", at_least=1.0, reason="is too short"),
    Filter(name="size", score="clip.short_side", at_least=64, reason="is too small"),
    Filter(name="aspect", score="clip.aspect", at_least=0.25, at_most=4.0, reason="is too narrow or too wide"),
    Filter(name="motion", score="motion.speed", at_least=1.0, reason="hardly moves"),
    Filter(name="frozen", score="quality.frozen_share", at_most=0.5, reason="repeats frames"),
    Filter(name="contrast", score="quality.contrast", at_least=45.0, reason="has hardly any contrast"),
    Filter(name="clarity", score="clarity.edge_width", at_most=3.2, reason="is blurred"),
    Filter(name="overlay", score="overlay.strength", at_most=0.0, reason="has a watermark or logo"),
    Filter(name="text", score="text.other_share", at_most=0.01, reason="has text on it"),
)

PLAN = Plan(
    split=Split(max_seconds=20.0),
    measures=MEASURES,
    filters=FILTERS,
    crop=Crop(),
    duplicates=Duplicates(),
    concepts=Concepts(),
    cut=Cut(),
)
