"""The typed config: what every key means, and what its value may be. Imports neither torch nor Hydra."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from distft.config.sections.adapter import AnyAdapter, Bitfit, Bottleneck, Full, Head, Layers, Lora, Peft
from distft.config.sections.model import Model
from distft.config.sections.section import Fraction, Section
from distft.config.sections.task import (
    LOWER_IS_BETTER,
    AnyTask,
    CausalLm,
    Distillation,
    ExtractiveQa,
    Preference,
    RelationExtraction,
    Reward,
    Seq2Seq,
    SequenceClassification,
    TokenClassification,
)

__all__ = [
    "LOWER_IS_BETTER",
    "AnyAdapter",
    "AnyTask",
    "Bitfit",
    "Bottleneck",
    "CausalLm",
    "Config",
    "Distillation",
    "ExtractiveQa",
    "Full",
    "Head",
    "Layers",
    "Lora",
    "Model",
    "Peft",
    "Preference",
    "RelationExtraction",
    "Reward",
    "Section",
    "Seq2Seq",
    "SequenceClassification",
    "TokenClassification",
]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=,+-]{0,127}$")]


class Auto(Section):
    name: Literal["auto"]


class Single(Section):
    name: Literal["single"]


class Fsdp(Section):
    name: Literal["fsdp"]
    shard_size: PositiveInt | None = None
    """Ranks that share one copy of the weights (HSDP: world_size / shard_size replicas); null: all ranks."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the gradient reduction."""
    reshard_after_forward: bool = True
    """Free the gathered weights after the forward pass and gather them again in the backward pass."""
    offload: bool = False
    """Keep the shards in host memory between uses (GPU only)."""


class Zero2(Section):
    name: Literal["zero2"]
    offload_optimizer: bool = False
    """Keep optimizer states in host memory (GPU only)."""
    bucket_mb: PositiveFloat = 100
    """Size of a gradient bucket in MB."""


class Zero3(Section):
    name: Literal["zero3"]
    offload_optimizer: bool = False
    """Keep optimizer states in host memory (GPU only)."""
    offload_params: bool = False
    """Keep the shards in host memory between uses (GPU only)."""
    bucket_mb: PositiveFloat = 100
    """Size of a gradient bucket in MB."""
    prefetch_mb: NonNegativeFloat = 100
    """Weights gathered ahead of their use, in MB."""


AnyEngine = Auto | Single | Fsdp | Zero2 | Zero3


class Source(Section):
    path: str
    """Local file or folder, hub id, or `package://PKG/PATH`."""
    weight: PositiveFloat = 1.0
    """Passes over this source in one epoch: 2 twice, 0.5 a fixed half."""
    split: str = "train"
    """Split of a hub dataset."""
    subset: str | None = None
    """Configuration of a hub dataset."""
    format: str | None = None
    """One of the task's formats; null: inferred from the columns."""


class Data(Section):
    train: str | list[str | Source]
    eval: str | list[str | Source] | None = None
    """Held-out rows; null with `eval_fraction` 0: no evaluation."""
    eval_fraction: Fraction = 0.0
    """Share of `train` held out by a hash of each row's prompt: the same rows whatever the seed. Not beside `eval`."""
    replay: str | list[str | Source] | None = None
    """Older data that is mixed in, so that it is not forgotten. What `eval_fraction` holds out of it stays unseen."""
    replay_share: Fraction = 0.1
    """Of the rows of an epoch, those of `replay`: drawn by their hashes, or repeated where there are too few."""
    format: str | None = None
    """One of the task's formats; null: inferred from the columns."""
    chat_template: str | None = None
    """A Jinja file in place of the tokenizer's own template."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Tokens that are trained on: replies and completions, or every token."""
    max_length: PositiveInt = 2048
    """Tokens a row."""
    too_long: Literal["truncate", "drop"] = "truncate"
    packing: bool = True
    """Whole documents, isolated from each other, fill rows of `max_length`; false: one document a row, padded."""
    deduplicate: bool = False
    """Drop rows equal to an earlier one."""
    global_batch: PositiveInt = 8
    """Rows per optimizer step over all ranks."""
    micro_batch: PositiveInt = 1
    """Rows per rank per forward pass. Accumulation is derived."""
    num_workers: PositiveInt | None = None
    """Processes that tokenise; null: one a core."""
    cache_dir: str = "~/.cache/distft"
    """Where tokenised data is kept."""


class _Optim(Section):
    lr: PositiveFloat
    warmup: NonNegativeFloat = 0.03
    """Steps if >= 1, else the share of all steps."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After the warm-up: fall to `min_lr_ratio * lr`, or stay."""
    min_lr_ratio: Fraction = 0.0
    weight_decay: NonNegativeFloat = 0.0
    weight_decay_on: Literal["all", "matrices"] = "all"
    """What decays; `matrices`: no biases and norms."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Clip the gradient's norm over all parameters and ranks; null: never."""
    skip_nonfinite: NonNegativeInt = 0
    """Steps with a NaN or infinite gradient that a run may skip before it stops."""


class AdamW(_Optim):
    name: Literal["adamw"]
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8


class AdamW8bit(_Optim):
    name: Literal["adamw_8bit"]
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8


class Sgd(_Optim):
    name: Literal["sgd"]
    momentum: Fraction = 0.9


class Adafactor(_Optim):
    name: Literal["adafactor"]


AnyOptim = AdamW | AdamW8bit | Sgd | Adafactor


class Regularisation(Section):
    neftune_alpha: NonNegativeFloat = 0.0
    """Noise on the embedded tokens, alpha / sqrt(tokens * width) * U(-1, 1) (NEFTune, arXiv:2310.05914); 5 is usual."""
    label_smoothing: Fraction = 0.0
    """Share of each target that all of the vocabulary, or all classes, have alike (arXiv:1512.00567)."""
    fgm_epsilon: NonNegativeFloat = 0.0
    """Length of an adversarial step on each document's embeddings in a second pass (FGM, arXiv:1605.07725)."""
    r_drop: NonNegativeFloat = 0.0
    """Weight of the divergence between two dropout masks' predictions (R-Drop, arXiv:2106.14448)."""


class Checkpoint(Section):
    every: PositiveInt = 100
    """Steps between checkpoints; one more is written at the end and on a stop."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints to keep; the best one is kept besides."""


class Evaluation(Section):
    every: PositiveInt | None = None
    """Steps between evaluations; null: only before the first step and after the last."""
    patience: PositiveInt | None = None
    """Stop after this many evaluations without a better metric; `adapter/` is then the best, not the last."""
    metric: str = "loss"
    """What "best" means: the lowest held-out loss, or the best value of one of the task's metrics."""
    earlier: dict[str, str] = {}
    """Datasets learnt before, by name, measured whole at each evaluation: `forgetting.json` tells what is forgotten."""
    samples: NonNegativeInt = 0
    """Held-out prompts answered before and after training."""
    max_new_tokens: PositiveInt = 48
    """Length of a sample answer."""


class NoTracking(Section):
    name: Literal["none"]


class Wandb(Section):
    name: Literal["wandb"]
    project: str = "distft"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = []


class Tensorboard(Section):
    name: Literal["tensorboard"]


SlurmWord = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@+|&-]{0,127}$")]
NodeList = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,\[\]-]{0,4095}$")]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]


class Local(Section):
    name: Literal["local"]
    tasks: PositiveInt = 1
    """Processes on this machine."""
    max_restarts: NonNegativeInt = 3
    """Starts in a row that Slurm may make without a step that was saved (under a plain sbatch script)."""

    @property
    def world_size(self) -> int:
        return self.tasks

    @property
    def preflight(self) -> bool:
        return False


class Slurm(Section):
    name: Literal["slurm"]
    partition: SlurmWord | None = None
    account: SlurmWord | None = None
    qos: SlurmWord | None = None
    constraint: SlurmWord | None = None
    """Features that nodes must have."""
    exclude: NodeList | None = None
    """Nodes that the job must not get."""
    nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 0
    tasks_per_node: PositiveInt | None = None
    """Ranks on a node; null: one a GPU, or one where there is none."""
    cpus_per_task: PositiveInt = 1
    mem_gb: PositiveFloat | None = None
    """Host memory of a node; null: the partition's default."""
    time_min: PositiveInt | None = None
    """The job's wall time limit; null: the partition's default, which it must have."""
    signal_s: PositiveInt = 120
    """SIGUSR2 comes this long before the limit: a step and a save must fit. The run watches the clock itself too."""
    max_restarts: NonNegativeInt = 3
    """Starts in a row that Slurm may make without a step that was saved."""
    max_parallel: PositiveInt = 8
    """Jobs of a sweep that may run at the same time."""
    preflight: bool = False
    """Five seconds of matmuls and all-reduces first; unfit nodes are named, and the job is requeued without them."""
    container: list[Line] = []
    """Words before `python` in each rank's command, such as [apptainer, exec, --nv, image.sif]."""
    setup: list[Line] = []
    """Privileged: shell lines that the job runs as you before its ranks start, such as `module load cuda`."""

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node


class Runtime(Section):
    hang_after: PositiveFloat | None = 900
    """Seconds without a step after which all ranks tell where they stand and the run ends; null: never."""


class Config(Section):
    """A whole run. `distft.config.reading.compose.load` makes one from the command line."""

    name: Name
    """The run folder is `<run_root>/<name>`."""
    run_root: str = "runs"
    seed: NonNegativeInt = 0
    steps: PositiveInt | None = None
    """Optimizer steps; or `epochs`: exactly one is set."""
    epochs: PositiveFloat | None = None
    """Passes over the data."""
    resume: str = "auto"
    """`auto`: the newest valid checkpoint, else fresh; `never`: refuse a used run folder; or a checkpoint's path."""
    task: Annotated[AnyTask, Field(discriminator="name")] = CausalLm(name="causal_lm")
    model: Model
    adapter: Annotated[AnyAdapter, Field(discriminator="method")]
    engine: Annotated[AnyEngine, Field(discriminator="name")]
    data: Data
    optim: Annotated[AnyOptim, Field(discriminator="name")]
    regularisation: Regularisation = Regularisation()
    checkpoint: Checkpoint
    evaluation: Evaluation
    tracking: Annotated[NoTracking | Wandb | Tensorboard, Field(discriminator="name")]
    cluster: Annotated[Local | Slurm, Field(discriminator="name")]
    runtime: Runtime = Runtime()
