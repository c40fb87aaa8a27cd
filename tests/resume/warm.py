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

import distft.checkpoint
import distft.config.compose
import distft.data.prepare
import distft.engine.fsdp
import distft.engine.zero
import distft.loop
import distft.model.load
import distft.plan_lines
import distft.samples
import distft.tracking.report
import distft.train

torch.set_num_threads(1)
distft.config.compose.load(["+exp=llama_lora"], program="distft.train", here=False)
get_checkpoint_conversion_mapping("llama")
distft.tracking.report.Report()
gc.collect()
gc.freeze()  # a collection in a fork would copy every page of the above
