"""batchcal measures what batch size, workers and threads a PyTorch training can really use here.

Names are loaded when they are used, so that `import batchcal` costs milliseconds and no torch.
"""

from __future__ import annotations

__version__ = "0.1.0"
