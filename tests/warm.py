"""Imported once, by the process that all others are forked from: what every training imports and works out first."""

import gc
import os

os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")

import bitsandbytes  # noqa: F401
import datasets  # noqa: F401
import deepspeed  # noqa: F401
import torch
import torch.distributed.fsdp
import torch.utils.checkpoint
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.llama import modeling_llama  # noqa: F401

import distft.config.reading.compose
import distft.data.prepare
import distft.engine.fsdp
import distft.engine.zero
import distft.model.load
import distft.run.checkpoints
import distft.session.replies
import distft.tracking.report
import distft.train.assemble
import distft.train.command
import distft.train.run_to_end

torch.set_num_threads(1)
distft.config.reading.compose.load(["+exp=llama_lora"], program="distft.train", here=False)
get_checkpoint_conversion_mapping("llama")
distft.tracking.report.Report()
gc.collect()
gc.freeze()  # a collection in a fork would copy every page of the above
