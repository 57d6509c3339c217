"""Section `resources`: the slots, processes, cores and GPUs that train the trials."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from search.config.domain import Section, refused


class Resources(Section):
    """The slots of the study, and the processes, cores and GPUs of each trial."""

    slots: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of trials that run at the same time; `auto`: as many as fit. On a cluster the study requests
    nodes and waits for them: enough for this number, or with `auto` all that the autoscaler of `ray up` may
    start."""
    workers_per_trial: Annotated[int, Field(ge=1)] = 1
    """Processes that train one trial together (DDP)."""
    gpu: bool | Literal["auto"] = "auto"
    """Train on GPUs; `auto`: if the cluster has any."""
    gpu_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """GPUs of each worker if the study trains on GPUs; 0.5: two workers share one."""
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    """CPU cores of each worker."""

    @field_validator("gpu_per_worker")
    @classmethod
    def _share_fits(cls, share: float, info: ValidationInfo) -> float:
        if share > 1 and share != int(share):
            raise refused("must be a whole number above 1", share, "Write 1, 2, ... or a share below 1.")
        workers = info.data.get("workers_per_trial", 1)
        if share < 1 and workers > 1:
            rule = "workers of one trial cannot share a GPU (NCCL refuses that)"
            raise refused(rule, share, "Write 1, or workers_per_trial: 1 and more slots.")
        return share
