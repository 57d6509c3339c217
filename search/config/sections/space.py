"""Section `space`: the strategies and hyperparameters that are searched."""

from typing import Annotated

from finetune.model.known_backbones import reads_clips
from finetune.strategy import REPLACE, Strategy
from search.config.domain import (
    STRATEGIES,
    Amount,
    BlockCount,
    Count,
    Fraction,
    FusionName,
    HeadInitName,
    ImbalanceName,
    MixName,
    OptimizerName,
    PoolingNames,
    Rate,
    Scale,
    ScheduleName,
    Section,
    Size,
    StrategyName,
    between,
    per_strategy,
)
from search.config.setting import Asked, Setting, chosen, not_chosen, trains


def _makes_head(strategy: Strategy) -> bool:
    return strategy.makes_head


def _decays(asked: Asked) -> bool:
    # Where every trained weight is a pretrained one, `l2_sp` pulls each of them in its place.
    return not (asked.strategy.head_is_pretrained and asked.params.get("l2_sp"))


def _has_pretrained_weights(asked: Asked) -> bool:
    # Where the source FC trains, there is always a pretrained weight that `l2_sp` can pull.
    return asked.strategy.keeps_source_fc or asked.trains_blocks()


def _joins(asked: Asked) -> bool:
    return asked.params["fusion"] not in ("image", "text")


def _pools_frames(asked: Asked) -> bool:
    return asked.params.get("fusion") != "text" and not reads_clips(str(asked.params.get("backbone")))


class SpaceSection(Section):
    """The search space. Each key takes a value, a list, a range, or a mapping from strategy to these."""

    strategy: Annotated[StrategyName, Setting(baseline=REPLACE.name, carried=True, shown=True)] = STRATEGIES
    """Use of the source FC, the pretrained classifier: `replace` puts a new head in its place, `load` keeps
    and fine-tunes it, `fuse` adds a new head that reads the features and the source FC together."""
    learning_rate: Annotated[Rate, Setting(reported=False, carried=True, shown=True)] = per_strategy(
        lambda strategy: strategy.learning_rates
    )
    """Peak learning rate of the head. The default ranges surround the best rates of a probe (.01) and of
    full fine-tuning (.001)."""
    head_size: Annotated[Size, Setting(by=_makes_head, carried=True, shown=True)] = per_strategy(
        lambda strategy: strategy.head_sizes
    )
    """Hidden units of the new head; 0: a single Linear layer. Not used by `load`."""
    head_init: Annotated[
        HeadInitName,
        Setting(by=lambda strategy: strategy.begins_exact, when=chosen("head_size", 0), carried=True),
    ] = ("random", "exact")
    """First weights of the new head under `fuse`: random, or `exact`, the solution on the features of the
    pretrained backbone, from which training goes on. Only used where `head_size` is 0. With random weights
    (`model.weights: none`) the default is `random`."""
    frozen_layers: Annotated[BlockCount, Setting(reported=False, carried=True, shown=True)] = per_strategy(
        lambda strategy: strategy.frozen_layers
    )
    """Leading blocks of the backbone that stay frozen: a number, a share of all blocks (0.5: half, for
    backbones of different depth), or `all`."""
    backbone_rate: Annotated[Rate, Setting(when=trains, baseline=1.0, reported=False, carried=True)] = (
        0.1,
        1.0,
    )
    """Learning rate of the trained blocks as a multiple of `learning_rate`. Not used if all blocks are
    frozen."""
    fusion: Annotated[FusionName, Setting(needs="text", baseline="concat", shown=True)] = (
        "concat",
        "gated",
        "sum",
    )
    """Parts that the head reads, for samples with text: the `image` alone, the `text` alone, or both.
    `concat` reads them together; `gated` first weighs them by a gate that reads both; `sum` trains a head for
    each and adds their log-probabilities. docs/text-and-clips.md has more."""
    image_scale: Annotated[Rate, Setting(needs="text", when=_joins, baseline=1.0)] = between(
        0.1, 2.0, log=True
    )
    """Factor of the image's features beside those of the text; both are scaled to one variance before. Not
    used where the head reads one of them."""
    modality_dropout: Annotated[Fraction, Setting(needs="text", when=_joins, baseline=0.0)] = 0.0
    """Share of the training samples of which the head sees only the image or only the text, so that it
    answers better where one is missing."""
    pooling: Annotated[
        PoolingNames, Setting(needs="frames", when=_pools_frames, baseline="mean", shown=True)
    ] = ("mean", "mean_std", "mean_diff", "ordered")
    """Summary of the frames that the head reads, for samples with several. `mean`, `max`; `mean_std` and
    `mean_diff` add how much the features vary; `attention` weighs frames by their content; only `ordered`
    sees their order. Not used by a backbone that reads clips."""
    frames_used: Annotated[Size, Setting(needs="frames", when=_pools_frames, baseline=0)] = 0
    """Frames that the head reads, evenly chosen among `data.frames`; 0: all. Not used by a backbone that
    reads clips, which takes all."""
    optimizer: Annotated[OptimizerName, Setting(carried=True)] = "sgd"
    """Optimiser that updates the weights."""
    momentum: Annotated[Fraction, Setting(when=chosen("optimizer", "sgd"), baseline=0.9)] = 0.9
    """Momentum of `sgd`; not used by the other optimisers."""
    weight_decay: Annotated[Amount, Setting(when=_decays)] = 1e-4
    """Strength of the pull of all weights towards zero."""
    dropout: Annotated[Fraction, Setting(by=_makes_head, baseline=0.0)] = 0.0
    """Dropout rate before the last layer of a new head. Not used by `load`."""
    schedule: Annotated[ScheduleName, Setting()] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_epochs: Annotated[Amount, Setting()] = 0.0
    """Epochs over which the learning rate rises linearly from zero."""
    label_smoothing: Annotated[Fraction, Setting(when=not_chosen("imbalance", "focal"), baseline=0.0)] = 0.0
    """Share of each label that is spread over all classes. Not used with `imbalance: focal`."""
    imbalance: Annotated[ImbalanceName, Setting(baseline="none")] = "none"
    """Remedy for classes of unequal size."""
    focal_gamma: Annotated[Amount, Setting(when=chosen("imbalance", "focal"))] = 2.0
    """Gamma of `focal`: the larger it is, the less an image counts that is classified well; 0: no effect."""
    class_balanced_beta: Annotated[Fraction, Setting(when=chosen("imbalance", "class_balanced"))] = 0.999
    """Beta of `class_balanced`: 0 weighs all classes alike; towards 1 a class weighs 1 / its images."""
    logit_adjustment_tau: Annotated[Rate, Setting(when=chosen("imbalance", "logit_adjustment"))] = between(
        0.5, 2.0
    )
    """Factor of the log prior in `logit_adjustment`; 1 gives `balanced_softmax`."""
    layer_decay: Annotated[Scale, Setting(when=trains, baseline=1.0, reported=False)] = 1.0
    """Learning rate of each trained block as a multiple of that of the next block towards the head. Not
    used if all blocks are frozen."""
    unfreeze_epochs: Annotated[Size, Setting(when=trains, baseline=0)] = 0
    """Epochs between two steps of gradual unfreezing: the head trains alone first, then each step adds a
    block, from the last one down to `frozen_layers`. 0: all of them train from the start. Not used if all
    blocks are frozen."""
    l2_sp: Annotated[Amount, Setting(when=_has_pretrained_weights, baseline=0.0)] = 0.0
    """Strength of the pull of pretrained weights towards their initial values (L2-SP), which replaces
    their `weight_decay`. Not used if no pretrained weight trains."""
    ema_decay: Annotated[Fraction, Setting(baseline=0.0)] = 0.0
    """Decay per step of a moving average of the weights, which is evaluated and saved in their place; 0: no
    average."""
    clip_norm: Annotated[Amount, Setting(baseline=0.0)] = 0.0
    """Largest norm of the gradient, to which larger ones are clipped; 0: no limit."""
    accumulate: Annotated[Count, Setting(baseline=1)] = 1
    """Parts into which each batch is divided; they are computed one after another to save memory."""
    mix: Annotated[MixName, Setting(baseline="none")] = "none"
    """Blend each training image and its label with those of another image of the batch."""
    mix_alpha: Annotated[Rate, Setting(when=not_chosen("mix", "none"))] = 0.2
    """Parameter of the Beta distribution from which `mix` draws the share of each image: 1 makes all shares
    equally likely; towards 0 one of the two images nearly fills the blend."""
