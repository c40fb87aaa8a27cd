"""The sections of the `cluster` group: where `launch` starts a run."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from distft.config.sections.section import Section

SlurmWord = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@+|&-]{0,127}$")]
NodeList = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,\[\]-]{0,4095}$")]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]


class Local(Section):
    # Slurm's keys, and what else others read of any cluster.
    exclude: ClassVar[None] = None
    time_min: ClassVar[None] = None
    preflight: ClassVar[bool] = False
    place: ClassVar[str] = "this machine"

    name: Literal["local"]
    tasks: PositiveInt = 1
    """Processes on this machine."""
    max_restarts: NonNegativeInt = 3
    """Starts in a row that Slurm may make without a step that was saved (under a plain sbatch script)."""

    @property
    def world_size(self) -> int:
        return self.tasks


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

    @property
    def place(self) -> str:
        return f"{self.nodes} nodes x {self.ranks_per_node}"


AnyCluster = Local | Slurm
