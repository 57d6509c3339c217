"""Is it right on a GPU: each check returns what it found, with `ok`; `python -m benchmarks.gpu` prints it."""

import collections
import dataclasses
import multiprocessing
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_setup import Setup, say
from finetune.explain import maps as explaining
from finetune.frozen import execution
from finetune.frozen.execution import Pass
from finetune.images.pixels import normalise
from finetune.messages import Epoch, Keep, Message
from finetune.model import backbones
from finetune.model_folder import reading, writing
from finetune.settings import ALL, DataSettings, TrialSettings
from finetune.training import loop
from finetune.training.run import Run
from finetune.training.workers import World

Found = dict[str, Any]

FAMILIES = {
    **{"mobilenet_v2": 128, "resnet18": 128, "vgg11": 96, "squeezenet1_0": 128, "densenet121": 128},
    **{"googlenet": 128, "shufflenet_v2_x0_5": 128, "mobilenet_v3_small": 128, "efficientnet_b0": 128},
    **{"efficientnet_v2_s": 96, "regnet_y_400mf": 128, "convnext_tiny": 96, "vit_b_16": 224, "swin_t": 96},
    **{"maxvit_t": 224, "inception_v3": 128, "mnasnet0_5": 128, "alexnet": 128},
}
"""One model of each family, and the side of its images in pixels."""
FEW = ("mobilenet_v2", "resnet18", "densenet121", "convnext_tiny", "vit_b_16")
"""Those that `features` looks at; `families` looks at all."""
QUICK = ("shufflenet_v2_x0_5", "squeezenet1_0")
EXACT_WITHIN, AUTO_WITHIN = 1e-3, 3e-2
"""Largest relative difference of features to the CPU's: float32, and bfloat16."""
MEMORY_WITHIN = 1e-2
"""Largest relative difference of the loss of three steps in parts."""
MODELS_WITHIN = 0.02
"""Largest difference of a model's probabilities, maps and accuracy on the device and on the CPU."""
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def frozen(setup: Setup) -> Found:
    """Frozen blocks keep their parameters and buffers to the bit while the others train."""
    ok = True
    ways: dict[str, dict[str, Any]] = {
        "half": {"frozen_layers": 10},
        "thawed": {"frozen_layers": 10, "unfreeze_epochs": 1},
        "average": {"frozen_layers": 10, "ema_decay": 0.9, "l2_sp": 0.01, "strategy": "fuse"},
    }
    for name, options in ways.items():
        settings = setup.trial("mobilenet_v2", setup.digits(), weights=setup.digit_weights(), **options)
        run = Run(settings, setup.world)
        before = {k: v.clone() for k, v in run.model.prefix.state_dict().items()}
        trained = {k: v.clone() for k, v in run.model.trained_state().items()}
        for epoch in (1, 2):
            run.train_epoch(epoch, lambda: False)
        same = all(torch.equal(v, before[k]) for k, v in run.model.prefix.state_dict().items())
        moved = any(not torch.equal(v, trained[k]) for k, v in run.model.trained_state().items())
        say(f"frozen, {name}: blocks bit-equal {same}, others moved {moved}")
        ok = ok and same and moved
    return {"ok": ok}


def features(setup: Setup) -> Found:
    """Features on the device against the CPU's; stored ones against fresh ones."""
    return _features(setup, FEW)


def families(setup: Setup) -> Found:
    """The same for a model of each family."""
    return _features(setup, tuple(FAMILIES))


@torch.no_grad()
def _features(setup: Setup, names: Sequence[str]) -> Found:
    ways = {"exact": ("exact", Pass()), "tf32": ("float32", Pass()), "auto": ("auto", Pass("bfloat16"))}
    table: dict[str, dict[str, float]] = {}
    for name in QUICK if setup.quick else names:
        torch.manual_seed(0)
        side = FAMILIES[name]
        model = backbones.build(name).requires_grad_(False).eval().to(memory_format=torch.channels_last)
        draws = torch.Generator().manual_seed(1)
        images = torch.randn(setup.size(8, 2), 3, side, side, generator=draws)
        images = images.contiguous(memory_format=torch.channels_last)
        expected = model.pool(Pass().run(model.blocks, images))
        model.to(setup.device)
        x = images.to(setup.device)
        table[name] = {}
        for way, (precision, how) in ways.items():
            with execution.rounding(precision):
                found = model.pool(how.run(model.blocks, x).float()).cpu()
            table[name][way] = float((found - expected).norm() / expected.norm())
        numbers = "  ".join(f"{way} {value:.1e}" for way, value in table[name].items())
        say(f"features, {name:20} {numbers}")
    most = {way: max(values[way] for values in table.values()) for way in ways}
    equal = stored_equal_fresh(setup)
    ok = most["exact"] < EXACT_WITHIN and most["auto"] < AUTO_WITHIN and equal
    return {"ok": ok, "most": most, "stored_equal_fresh": equal, "by_family": table}


def stored_equal_fresh(setup: Setup) -> bool:
    """True if stored features are those that are computed now, to the bit, with `precision: exact`."""
    settings = setup.trial(
        "mobilenet_v2", setup.digits(), weights=setup.digit_weights(), frozen_layers=ALL, precision="exact"
    )
    order = [torch.arange(start, start + 20) for start in (0, 20, 40)]
    found = []
    for place in (setup.store("right-features"), None):
        feed = Run(settings, setup.world, place).inputs.feed("train", view=0)
        found.append(torch.cat([feed.finish(x) for x in feed.batches(order)]).cpu())
        say(f"features, {'stored' if feed.rows is not None else 'fresh'}: {feed.how}")
    return torch.equal(*found)


def precision(setup: Setup) -> Found:
    """Validation accuracy after training in float32 and in bfloat16: within the spread of seeds."""
    kinds: dict[str, TrialSettings] = {}
    half = {"frozen_layers": 10, "learning_rate": 0.03, "epochs": setup.size(4, 1)}
    kinds["digits"] = setup.trial("mobilenet_v2", setup.digits(), weights=setup.digit_weights(), **half)
    if setup.images and setup.weights:
        given = dataclasses.replace(kinds["digits"].weights, source=None, file=str(setup.weights))
        data = setup.real_data(batch_size=64)
        kinds["images"] = setup.trial(
            "mobilenet_v2",
            data,
            weights=given,
            **(half | {"epochs": setup.size(3, 1), "learning_rate": 0.01}),
        )
    ok, table = True, {}
    for name, settings in kinds.items():
        scores: dict[str, list[float]] = {}
        for how in ("float32", "bfloat16"):
            for seed in range(setup.size(2, 1)):
                one = dataclasses.replace(settings, precision=how, seed=seed)
                ends = train(one, setup, f"precision-{name}-{how}-{seed}")
                scores.setdefault(how, []).append(ends[-1]["val/accuracy"])
        whole, halved = (torch.tensor(scores[how]) for how in ("float32", "bfloat16"))
        images = Run(settings, setup.world).data.size("val")
        chance = float((whole.mean() * (1 - whole.mean()) / images).clamp(min=1e-5).sqrt())
        apart = float((halved.mean() - whole.mean()).abs())
        table[name] = scores | {"apart": apart, "standard_error": chance}
        say(f"precision, {name}: {scores}, means apart {apart:.4f}, one standard error {chance:.4f}")
        ok = ok and apart < 3 * chance
    return {"ok": ok, **table}


def seed(setup: Setup) -> Found:
    """The same seed gives the same epochs; where it does not, which operators forbid it."""
    table: dict[str, Any] = {}
    names = ("mobilenet_v2",) if setup.quick else ("mobilenet_v2", "convnext_tiny")
    for name in names:
        data = setup.photo_data(image_size=setup.size(64, 32), batch_size=setup.size(64, 8))
        settings = setup.trial(name, data, dropout=0.2, seed=3)
        states = []
        for _ in range(2):
            run = Run(settings, setup.world)
            _few_batches(run, setup.size(6, 2))
            run.train_epoch(1, lambda: False)
            states.append({k: v.cpu() for k, v in run.model.trained_state().items()})
        first, second = states
        differ = [k for k, v in first.items() if not torch.equal(v, second[k])]
        named = nondeterministic(settings, setup)
        table[name] = {"equal": not differ, "differing_tensors": len(differ), "operators": named}
        say(f"seed, {name}: equal {not differ} ({len(differ)} tensors differ), operators: {named or 'none'}")
    return {"ok": all(row["equal"] or row["operators"] for row in table.values()), **table}


def nondeterministic(settings: TrialSettings, setup: Setup) -> list[str]:
    """Return the operators of an epoch and an evaluation that torch says are not deterministic."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run = Run(settings, setup.world)
            _few_batches(run, 2)
            run.train_epoch(1, lambda: False)
            run.evaluate("val")
    finally:
        torch.use_deterministic_algorithms(False)
    messages = {str(w.message) for w in told if "determin" in str(w.message)}
    # cuBLAS means several streams at a time; training has one.
    return sorted(m.split(" does not have")[0][:120] for m in messages if "CuBLAS" not in m)


def graphs(setup: Setup) -> Found:
    """Steps that are replayed train as steps that are launched: losses, and every bit of the weights."""
    table: dict[str, Any] = {}
    ok = True
    data = setup.photo_data(image_size=setup.size(64, 32), batch_size=setup.size(32, 8))
    usual = {"dropout": 0.2, "ema_decay": 0.9, "clip_norm": 1.0}
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "trained": ("mobilenet_v2", usual | {"mix": "mixup"}),
        "thawed": ("mobilenet_v2", usual | {"frozen_layers": 10, "unfreeze_epochs": 1}),
        "random": ("convnext_tiny", usual | {"optimizer": "adamw", "learning_rate": 1e-4}),
    }
    for name, (backbone, options) in ways.items():
        settings = setup.trial(backbone, data, **options)
        ends = []
        for on in (False, True):
            run = Run(settings, setup.world)
            run.replays.on = on and setup.device.type == "cuda"
            losses = [run.train_epoch(epoch, lambda: False) for epoch in (1, 2)]
            ends.append((losses, {k: v.cpu() for k, v in run.model.trained_state().items()}))
        (launched, first), (replayed, second) = ends
        differ = [k for k, v in first.items() if not torch.equal(v, second[k])]
        apart = max(abs(a / b - 1) for a, b in zip(replayed, launched, strict=True) if a and b)
        recorded = run.replays.records or setup.device.type == "cpu"
        table[name] = {"recorded": recorded, "differing_tensors": len(differ), "loss_apart": apart}
        say(f"graphs, {name}: {table[name]}, losses {launched} and {replayed}")
        ok = ok and recorded and apart < 1e-2
    return {"ok": ok, **table}


def memory(setup: Setup) -> Found:
    """Where memory is short, a step is taken in parts: the same loss but for rounding, without batch norm."""
    data = setup.photo_data(batch_size=setup.size(128, 8))
    options = {"learning_rate": 1e-3, "optimizer": "adamw", "precision": "exact", "dropout": 0.0}
    settings = setup.trial("squeezenet1_0", data, **options)
    with _short_of_memory(setup, 1.0):
        whole = Run(settings, setup.world)
        _few_batches(whole, 3)
        expected = whole.train_epoch(1, lambda: False)
        del whole
    with _short_of_memory(setup, 1.5 * 2**30):
        short = Run(settings, setup.world)
        _few_batches(short, 3)
        found = short.train_epoch(1, lambda: False)
    assert expected is not None
    assert found is not None
    apart = abs(found - expected) / expected
    say(f"memory: {short.parts} parts, loss {found:.4f}, with memory enough {expected:.4f}")
    needed = short.parts > 1 or setup.device.type == "cpu"
    return {"ok": needed and apart < MEMORY_WITHIN, "parts": short.parts, "loss_apart": apart}


@contextmanager
def _short_of_memory(setup: Setup, room: float) -> Iterator[None]:
    """Leave so many bytes of the device's memory to this process; 1: all of it."""
    if setup.device.type != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(setup.device).total_memory
    taken = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction(1.0 if room == 1 else (taken + room) / whole)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def processes(setup: Setup) -> Found:
    """Two processes on one device give what one gives alone, and together take less time than in turn."""
    settings = setup.trial(
        "mobilenet_v2",
        setup.digits(),
        weights=setup.digit_weights(),
        frozen_layers=10,
        epochs=setup.size(3, 1),
    )
    setup_args = dataclasses.asdict(setup) | {"device": str(setup.device)}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(time.sleep, (0.5, 0.5)))  # both start
        list(pool.map(_train_there, [settings] * 2, [setup_args] * 2, ["warm-0", "warm-1"]))
        alone, last = pool.submit(_train_there, settings, setup_args, "alone").result(timeout=120)
        began = time.perf_counter()
        both = list(pool.map(_train_there, [settings] * 2, [setup_args] * 2, ["two-0", "two-1"]))
        together = time.perf_counter() - began
    equal = all(end["val/loss"] == last["val/loss"] for _, end in both)
    close = all(abs(end["val/accuracy"] - last["val/accuracy"]) < 0.05 for _, end in both)
    say(f"processes: alone {alone:.2f} s, both {together:.2f} s, equal {equal}, close {close}")
    return {
        "ok": close,
        "equal": equal,
        "alone": alone,
        "both": together,
        "two_over_one": 2 * alone / together,
    }


def _train_there(settings: TrialSettings, setup_args: Mapping[str, Any], name: str) -> tuple[float, Found]:
    setup = Setup(**{**setup_args, "device": torch.device(setup_args["device"])})
    if setup.device.type == "cpu":
        torch.set_num_threads(1)
    began = time.perf_counter()
    ends = train(settings, setup, name)
    return time.perf_counter() - began, ends[-1]


def syncs(setup: Setup) -> Found:
    """What waits for the device, per step: as torch warns of it by line, and as the profiler counts it."""
    table: dict[str, Any] = {}
    kept = setup.store("right-syncs")
    data = setup.photo_data(batch_size=setup.size(32, 8), image_size=setup.size(96, 32))
    steps = setup.size(10, 3)
    ways: dict[str, tuple[dict[str, Any], Any]] = {
        "trained": ({"clip_norm": 1.0, "ema_decay": 0.9, "mix": "mixup"}, None),
        "frozen": ({"frozen_layers": 10}, None),
        "head": ({"frozen_layers": ALL, "dropout": 0.2}, kept),
    }
    for name, (options, place) in ways.items():
        run = Run(setup.trial("mobilenet_v2", data, **options), setup.world, place)
        _few_batches(run, steps)
        run.train_epoch(1, lambda: False)
        run.evaluate("val")
        lines = _waits_by_line(lambda run=run: run.train_epoch(2, lambda: False), setup)
        lines_val = _waits_by_line(lambda run=run: run.evaluate("val"), setup)
        per_epoch = {line: count for line, count in lines.items() if count < steps}
        per_step = {line: count for line, count in lines.items() if count >= steps}
        table[name] = {"steps": steps, "per_step": per_step, "per_epoch": per_epoch, "evaluation": lines_val}
        say(f"syncs, {name}, {steps} steps: per step {per_step or 'none'}, per epoch {per_epoch}")
        say(f"    evaluation {lines_val}")
        if name == "trained":  # the profiler is slow
            counts = _profiled(lambda run=run: run.train_epoch(3, lambda: False), setup)
            table[name]["profiled"] = {kind: count / steps for kind, count in counts.items()}
            say(f"    profiler, each step: {table[name]['profiled']}")
    return {"ok": not any(row["per_step"] for row in table.values()), **table}


def _waits_by_line(call: Any, setup: Setup) -> dict[str, int]:
    if setup.device.type != "cuda":
        call()
        return {}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [f"{Path(w.filename).name}:{w.lineno}" for w in told if "synchroniz" in str(w.message)]
    return dict(collections.Counter(found).most_common(12))


def _profiled(call: Any, setup: Setup) -> dict[str, int]:
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.device.type == "cuda" else [])]
    with profile(activities=kinds) as seen:
        call()
        setup.clock()
    names = (*WAITS, "cudaMemcpyAsync", "cudaLaunchKernel", "aten::item", "aten::_local_scalar_dense")
    counts = {event.key: event.count for event in seen.key_averages()}
    copies = {name: count for name, count in counts.items() if name.startswith("Memcpy")}
    return {name: counts[name] for name in names if name in counts} | copies


def _few_batches(run: Run, count: int) -> None:
    """Shorten the epochs of a run."""
    whole = run._order
    run._order = lambda epoch: whole(epoch)[:count]  # type: ignore[method-assign]


def train(settings: TrialSettings, setup: Setup, name: str) -> list[dict[str, Any]]:
    """Train a whole trial; return its epochs."""
    folder = setup.scratch / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("best", "last"):
        with suppress(FileNotFoundError):
            (folder / file).unlink()
    keep = Keep(metric="val/accuracy", best=folder / "best", last=folder / "last")
    said: list[Message] = []
    loop.train(settings, keep=keep, report=said.append, world=World(device=setup.device))
    return [dict(message.metrics) for message in said if isinstance(message, Epoch)]


def models(setup: Setup) -> Found:
    """A model that was trained on the device answers and is explained on the CPU as it is there."""
    settings = setup.trial(
        "mobilenet_v2",
        setup.digits(),
        weights=setup.digit_weights(),
        strategy="fuse",
        frozen_layers=10,
        epochs=setup.size(3, 1),
    )
    ends = train(settings, setup, "models")
    best, folder = setup.scratch / "models" / "best", setup.scratch / "model"
    facts = writing.write(best, folder, {}, world=setup.world)
    here, there = reading.load(folder, device=setup.device), reading.load(folder)
    data = Run(settings, setup.world).data
    images = next(iter(data.batches("val", [torch.arange(setup.size(64, 8))])))[0].cpu()
    pixels = here.probabilities(images), there.probabilities(images)
    apart = float((pixels[0] - pixels[1]).abs().max())
    x = normalise(images, *(here.facts["preprocessing"][name] for name in ("mean", "std")))
    classes = pixels[1].argmax(1)
    shown = [explaining.maps(model.net, x.to(model.device), classes) for model in (here, there)]
    unlike = float((shown[0] - shown[1]).abs().mean())
    accuracy = max(end["val/accuracy"] for end in ends)
    found = {"answers_apart": apart, "maps_apart": unlike, "accuracy": accuracy}
    found |= {"written": facts["metrics"]["validation"]["accuracy"]}
    say(f"models: {found}")
    close = apart < MODELS_WITHIN and unlike < MODELS_WITHIN
    return {"ok": close and abs(found["written"] - accuracy) < MODELS_WITHIN, **found}


def exact(setup: Setup) -> Found:
    """A head that is solved for: the one that the CPU finds, with its loss."""
    options = {"weights": setup.weights_alike(), "strategy": "exact", "precision": "exact"}
    settings = setup.trial(
        "mobilenet_v2", setup.digits(), learning_rate=0.0, epochs=1, frozen_layers=ALL, **options
    )
    ends = []
    for name, device in (("cpu", torch.device("cpu")), ("device", setup.device)):
        other = dataclasses.replace(setup, device=device)
        ends.append(train(settings, other, f"exact-{name}")[-1])
    apart = {name: abs(ends[0][name] - ends[1][name]) for name in ("val/accuracy", "val/loss", "train/loss")}
    say(f"exact: {ends[0]['seconds']:.2f} s on the CPU, {ends[1]['seconds']:.2f} s here, apart {apart}")
    seconds = {"cpu_seconds": ends[0]["seconds"], "seconds": ends[1]["seconds"]}
    return {"ok": apart["val/accuracy"] < 0.01 and apart["val/loss"] < 0.02, **apart, **seconds}


def samples(setup: Setup) -> Found:
    """Heads on texts and clips train on the device as on the CPU."""
    table: dict[str, Any] = {}
    ok = True
    ways: dict[str, tuple[DataSettings, dict[str, Any]]] = {
        "gated": (DataSettings(kind="captions", image_size=32, text=("text",)), {"fusion": "gated"}),
        "ordered": (DataSettings(kind="motion", image_size=32, frames=6), {"pooling": "ordered"}),
    }
    for name, (data, options) in ways.items():
        options |= {"epochs": setup.size(8, 1), "precision": "exact", "learning_rate": 0.03}
        settings = setup.trial(
            "mobilenet_v2", data, weights=setup.weights_alike(), frozen_layers=ALL, **options
        )
        ends = []
        for which, device in (("cpu", torch.device("cpu")), ("device", setup.device)):
            other = dataclasses.replace(setup, device=device)
            ends.append(train(settings, other, f"samples-{name}-{which}")[-1])
        apart = abs(ends[0]["val/loss"] - ends[1]["val/loss"])
        table[name] = {"loss_apart": apart, "accuracy": ends[1]["val/accuracy"]}
        say(f"samples, {name}: {table[name]}")
        ok = ok and apart < 0.05
    return {"ok": ok, **table}


PARTS = {
    **{"frozen": frozen, "features": features, "precision": precision, "seed": seed},
    **{"models": models, "exact": exact, "samples": samples},
    **{"graphs": graphs, "memory": memory, "syncs": syncs, "processes": processes, "families": families},
}
