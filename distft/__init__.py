"""Fine-tunes large language models on multi-GPU clusters: QLoRA with the operations of a pre-training codebase."""

import os

# libgomp's threads spin at every barrier. Where they share a core, with each other or with other jobs, a step then
# takes up to ten times as long (seen on two virtual cores); asleep they cost nothing. Read when torch loads libgomp.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# posix_memalign before glibc 2.38 never reuses a hole of the size it asks for, and the heap of a training step grows by
# half. With this, torch aligns host tensors from 2 MB on to pages, which leaves holes that fit (3.3 -> 2.7 GB on the
# embedded example, at the same speed). Read at torch's first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
