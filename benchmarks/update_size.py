"""Measure how far a learning rate moves a weight, beside the paper's factors: ``python -m benchmarks.update_size``.

``learning_rate`` is to mean the size of update that it means for mini-trainer, whose U_low, S_low and V_low AdamW
moves; the engine scales its updates for that (``osft.subspace.parametrization.update_scale``). Both forms start here
from the same weight, see the same batches and take the same number of AdamW steps at the same learning rate; what is
compared is ``||W - W0||`` (Frobenius norm).

Two kinds of weights: made ones with the spectra of trained weights, which learn a small noisy regression, and all those
of the embedded demo model, which learns its own data. The made ones cover shapes and ratios; the demo model has the
gradients of a language model. A large learning rate has no answer: once the singular values have grown, the factors
move the weight farther with each step, and no fixed scale follows them.
"""

import json
import logging
import math
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.report import Origin, Result, describe_machine, print_results, write_results
from benchmarks.variants import BETAS, WEIGHT_DECAY
from osft.data.validation.rows import IGNORED_LABEL
from osft.logs import configure_logging
from osft.subspace.attach import attach, merge, project_gradients, trained_weights
from osft.subspace.decomposition import protect_leading_directions
from osft.subspace.factored import FactoredWeight
from osft.subspace.parametrization import SubspaceWeight, TrainedWeight
from osft.subspace.targets import find_targets

logger = logging.getLogger("osft.benchmarks")

DEMO = Path(__file__).parents[1] / "demo"
STEPS = (1, 10, 50)
# Between 0.8 and 1.25 times as far.
LARGEST_FACTOR = 1.25

SHAPES = {"square": (256, 256), "wide": (192, 512), "tall": (512, 192), "k/v": (64, 384)}
SPECTRA = ("power law", "Marchenko-Pastur")
RATIOS = (0.1, 0.25, 0.5, 0.9)
LEARNING_RATES = (5e-6, 2e-5, 1e-4)
USUAL_LEARNING_RATE = 2e-5
DEMO_RATIOS = (0.25, 0.5)

TYPICAL_STD = 0.02
OUTLIER_SHARE = 1 / 16
BATCH_TOKENS = 256
# The noise of the labels over what there is to learn: the gradients of two batches have little in common, as they have
# in fine-tuning.
NOISE = 10.0
DEMO_ROWS = 8
DEMO_TOKENS = 96


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What both forms train."""

    source: str
    """``made`` or ``demo``."""

    weight: str
    """Which weight, or which kind of weights."""

    unfreeze_rank_ratio: float
    learning_rate: float


Sizes = dict[int, float]
"""Norms of the update, or ratios of two, by number of steps."""


def bench(
    output: Annotated[Path | None, typer.Option(help="File to write the numbers to, as JSON.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; matrices this small gain nothing from more.")] = 1,
) -> None:
    """Measure how far a learning rate moves a weight, beside the paper's factors."""
    configure_logging()
    torch.set_num_threads(threads)
    ratios = {**dict(measure_made_weights()), **measure_demo_model()}
    command = shlex.join(["python", "-m", "benchmarks.update_size", *sys.argv[1:]])
    results = report(Origin(machine=describe_machine(on_gpu=False, threads=threads), command=command), ratios)
    console = Console()
    print_ratios(console, ratios)
    print_results(console, [result for result in results if result.goal is not None])
    if output is not None:
        write_results(output, results)
        logger.info("wrote %s", output)


def measure_made_weights() -> Iterator[tuple[Case, Sizes]]:
    """Yield the ratio of the two forms' updates for every spectrum, shape and ratio, and for every learning rate."""
    for spectrum in SPECTRA:
        for kind, shape in SHAPES.items():
            for unfreeze_rank_ratio in RATIOS:
                usual = unfreeze_rank_ratio != 0.25 or kind != "square"
                for learning_rate in (USUAL_LEARNING_RATE,) if usual else LEARNING_RATES:
                    case = Case(
                        source="made", weight=f"{spectrum} {kind}", unfreeze_rank_ratio=unfreeze_rank_ratio,
                        learning_rate=learning_rate,
                    )  # fmt: skip
                    yield case, _measure_made_weight(make_weight(spectrum, *shape), case)


def _measure_made_weight(weight: Tensor, case: Case) -> Sizes:
    protected = protect_leading_directions(weight, case.unfreeze_rank_ratio)
    ours = learn_regression(SubspaceWeight(weight.clone(), protected), weight, case.learning_rate)
    theirs = learn_regression(FactoredWeight(weight.clone(), protected), weight, case.learning_rate)
    return {step: ours[step] / theirs[step] for step in STEPS}


def make_weight(spectrum: str, rows: int, columns: int) -> Tensor:
    """Return a weight ``[rows, columns]`` with the singular values of a trained one.

    ``power law``: the i-th is proportional to ``i^-0.7``. ``Marchenko-Pastur``: those of noise, and outliers above.
    """
    generator = torch.Generator().manual_seed(0)
    smaller = min(rows, columns)
    count = smaller if spectrum == "power law" else int(smaller * OUTLIER_SHARE)
    left = torch.linalg.qr(torch.randn(rows, count, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, count, generator=generator)).Q
    if spectrum == "power law":
        values = torch.arange(1, count + 1) ** -0.7
        return (left * values * TYPICAL_STD * math.sqrt(rows * columns) / values.norm()) @ right.T
    noise = TYPICAL_STD * torch.randn(rows, columns, generator=generator)
    edge = TYPICAL_STD * (math.sqrt(rows) + math.sqrt(columns))
    return noise + (left * torch.linspace(4 * edge, edge, count)) @ right.T


def learn_regression(trained: TrainedWeight, weight: Tensor, learning_rate: float) -> Sizes:
    """Return how far ``trained`` is from ``weight``, where it started, after each number of :data:`STEPS`."""
    optimizer = AdamW(trained.parameters(), lr=learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY)
    sizes = {}
    for step, (inputs, labels) in enumerate(islice(regression_batches(weight), max(STEPS)), start=1):
        # Both forms are parametrizations: called with anything, they return the weight.
        loss = (inputs @ trained(weight).mT - labels).square().sum(-1).mean()
        loss.backward()
        trained.project_gradient()
        optimizer.step()
        optimizer.zero_grad()
        trained.merge()
        if step in STEPS:
            sizes[step] = (trained.merged - weight).norm().item()
    return sizes


def regression_batches(weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs ``[tokens, columns]`` with uneven directions and labels ``[tokens, rows]`` of a weight near by."""
    generator = torch.Generator().manual_seed(1)
    rows, columns = weight.shape
    spread = torch.arange(1, columns + 1) ** -0.5
    directions = torch.linalg.qr(torch.randn(columns, columns, generator=generator)).Q
    change = torch.randn(rows, 32, generator=generator) @ torch.randn(32, columns, generator=generator)
    change *= 0.05 * weight.norm() / change.norm()
    while True:
        inputs = torch.randn(BATCH_TOKENS, columns, generator=generator) * spread @ directions
        learnt = inputs @ change.mT
        noise = NOISE * learnt.std() * torch.randn(learnt.shape, generator=generator)
        yield inputs, inputs @ weight.mT + learnt + noise


def measure_demo_model() -> dict[Case, Sizes]:
    """Return the ratios for the weights of the demo model on its data; the geometric mean over the layers."""
    ratios = {}
    for unfreeze_rank_ratio in DEMO_RATIOS:
        ours = train_demo_model(unfreeze_rank_ratio, factored=False)
        theirs = train_demo_model(unfreeze_rank_ratio, factored=True)
        by_kind: dict[str, list[Sizes]] = defaultdict(list)
        for name, sizes in ours.items():
            by_kind[name.rpartition(".")[2]].append({step: sizes[step] / theirs[name][step] for step in STEPS})
        for kind, layers in by_kind.items():
            case = Case(
                source="demo", weight=kind, unfreeze_rank_ratio=unfreeze_rank_ratio, learning_rate=USUAL_LEARNING_RATE
            )
            ratios[case] = {step: geometric_mean(layer[step] for layer in layers) for step in STEPS}
    return ratios


def train_demo_model(unfreeze_rank_ratio: float, *, factored: bool) -> dict[str, Sizes]:
    """Return how far each weight of the demo model moves, by its name, after each number of :data:`STEPS`."""
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model").train()
    attach(
        model,
        find_targets(model),
        lambda _, weight: protect_leading_directions(weight, unfreeze_rank_ratio),
        factored=factored,
    )
    before = {name: trained.merged.clone() for name, trained in trained_weights(model)}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = AdamW(parameters, lr=USUAL_LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    sizes: dict[str, Sizes] = {name: {} for name in before}
    for step, (input_ids, labels) in enumerate(islice(demo_batches(), max(STEPS)), start=1):
        model(input_ids=input_ids, labels=labels).loss.backward()
        project_gradients(model)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        merge(model)
        if step in STEPS:
            for name, trained in trained_weights(model):
                sizes[name][step] = (trained.merged - before[name]).norm().item()
    return sizes


def demo_batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield token ids and labels ``[rows, tokens]`` of the demo's conversations, padded on the right."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    lines = (DEMO / "data" / "elements.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [
        tokenizer.apply_chat_template(json.loads(line)["messages"], return_dict=False)[:DEMO_TOKENS] for line in lines
    ]
    generator = torch.Generator().manual_seed(0)
    while True:
        for indices in torch.randperm(len(rows), generator=generator).split(DEMO_ROWS):
            batch = [torch.tensor(rows[index]) for index in indices]
            input_ids = nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=tokenizer.pad_token_id)
            lengths = torch.tensor([len(row) for row in batch])
            padding = torch.arange(input_ids.shape[1]) >= lengths.unsqueeze(-1)
            yield input_ids, input_ids.masked_fill(padding, IGNORED_LABEL)


def report(origin: Origin, ratios: dict[Case, Sizes]) -> list[Result]:
    """Return every ratio, and for each source and number of steps how far from 1 the farthest is, as a factor."""
    results = []
    for case, sizes in ratios.items():
        place = f"{case.source}, {case.weight}, rho {case.unfreeze_rank_ratio:g}, lr {case.learning_rate:g}"
        results += [
            origin.result(f"update size / the factored form's at step {step}: {place}", sizes[step]) for step in STEPS
        ]
    for source in dict.fromkeys(case.source for case in ratios):
        for step in STEPS:
            logs = [abs(math.log(sizes[step])) for case, sizes in ratios.items() if case.source == source]
            metric = f"farthest update size from the factored form's, as a factor, at step {step}: {source} weights"
            results.append(origin.result(metric, math.exp(max(logs)), LARGEST_FACTOR))
    return results


def print_ratios(console: Console, ratios: dict[Case, Sizes]) -> None:
    """Draw the ratios as a table, one row a case."""
    table = Table(title="||W - W0|| of this engine / of the paper's factors")
    table.add_column("weight", no_wrap=True)
    for heading in ("rho", "learning rate", *(f"step {step}" for step in STEPS)):
        table.add_column(heading)
    for case, sizes in ratios.items():
        numbers = [f"{sizes[step]:.2f}" for step in STEPS]
        label = f"{case.source}: {case.weight}"
        table.add_row(label, f"{case.unfreeze_rank_ratio:g}", f"{case.learning_rate:g}", *numbers)
    console.print(table)


if __name__ == "__main__":
    typer.run(bench)
