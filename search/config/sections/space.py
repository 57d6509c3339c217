"""`space`: the keys that are searched, and the ways to fine-tune."""

from search.config.domain import (
    Amount,
    BlockCount,
    Count,
    Fraction,
    ImbalanceName,
    MixName,
    OptimizerName,
    Rate,
    Scale,
    ScheduleName,
    Section,
    Size,
    StrategyName,
    between,
    per_strategy,
)


class SpaceSection(Section):
    """What is searched. Each key: a value, a list, a range, or a mapping strategy -> those."""

    strategy: StrategyName = ("replace", "load", "fuse")
    """How the source FC becomes the new head, and what trains."""
    learning_rate: Rate = per_strategy(
        replace={"low": 1e-3, "high": 1e-1, "log": True},
        load={"low": 1e-3, "high": 3e-2, "log": True},
        fuse={"low": 1e-3, "high": 3e-2, "log": True},
    )
    """Peak rate of the head. Around the best rates of a probe (.01) and of full fine-tuning (.001)."""
    head_size: Size = per_strategy(replace=(0, 64, 256, 1024), fuse=(0, 1024))
    """Hidden units of the new head; 0: one Linear. Not used by `load`."""
    frozen_layers: BlockCount = per_strategy(replace="all", load="all", fuse={"low": 0, "high": "all"})
    """How many leading blocks of the backbone stay as they are: a number, a share of them (0.5: half, for
    backbones of different depth), or `all`."""
    backbone_rate: Rate = (0.1, 1.0)
    """Rate of the trained blocks as a multiple of `learning_rate`. Not used where all are frozen."""
    optimizer: OptimizerName = "sgd"
    """Who takes the steps."""
    momentum: Fraction = 0.9
    """Of `sgd`; not used by the others."""
    weight_decay: Amount = 1e-4
    """Pull of all weights towards zero."""
    dropout: Fraction = 0.0
    """Before the last layer of a new head. Not used by `load`."""
    schedule: ScheduleName = "cosine"
    """How the rate goes on after the warm-up."""
    warmup_epochs: Amount = 0.0
    """Epochs over which the rate rises from zero."""
    label_smoothing: Fraction = 0.0
    """Share of each label spread over all classes. Not used with `imbalance: focal`."""
    imbalance: ImbalanceName = "none"
    """What is done about classes of unequal size."""
    focal_gamma: Amount = 2.0
    """Of `focal`: how strongly images that are classified well are discounted."""
    class_balanced_beta: Fraction = 0.999
    """Of `class_balanced`: 0 weighs all classes alike, towards 1 by 1 / images."""
    logit_adjustment_tau: Rate = between(0.5, 2.0)
    """Of `logit_adjustment`: multiple of the log prior; at 1 it is `balanced_softmax`."""
    layer_decay: Scale = 1.0
    """Rate of each trained block as a multiple of that of the next one towards the head. Not used where
    all are frozen."""
    unfreeze_epochs: Size = 0
    """Epochs between two thaws, the head alone first, then block by block from the last one down to
    `frozen_layers`; 0: all of them train from the start. Not used where all are frozen."""
    l2_sp: Amount = 0.0
    """Pull of pretrained weights towards where they started, in place of their `weight_decay`; not used
    where none of them trains."""
    ema_decay: Fraction = 0.0
    """Per step, of a moving average of the weights that is evaluated and kept in their place; 0: none."""
    clip_norm: Amount = 0.0
    """Largest norm of the gradient; 0: no limit."""
    accumulate: Count = 1
    """Parts that each batch is computed in, one after another, to save memory."""
    mix: MixName = "none"
    """Blend each training image and its label with another one's of the batch."""
    mix_alpha: Rate = 0.2
    """Of `mix`: at 1 any share of the two images is as likely; towards 0 one of them nearly fills it."""
