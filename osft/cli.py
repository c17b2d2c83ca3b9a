"""The ``osft`` command: each step of the pipeline as one command, on files and folders.

A result is summed up on standard output, progress goes to standard error. An error is one line there and exit code
1; with ``--debug`` the traceback is shown. Wrong usage is exit code 2.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.console import Console

from osft.comparison.commands import compare
from osft.errors import ConfigError, MissingPathError, OsftError, PreemptedError
from osft.logs import configure_logging
from osft.processes.preemption import PREEMPTED_EXIT_CODE
from osft.registration.commands import register
from osft.versions.commands import prune, rollback
from osft.versions.lineage_command import lineage

DEBUG_FLAG = "--debug"

app = typer.Typer(
    name="osft",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: boxes cut long option names off at 80 columns.
    rich_markup_mode=None,
    # A traceback is for --debug alone, and then Python's own.
    pretty_exceptions_enable=False,
)

OutputOption = Annotated[Path, typer.Option(help="Folder for the results.")]
FormatOption = Annotated[
    str,
    typer.Option(help="messages, sharegpt, alpaca, prompt_completion, documents, processed; auto looks at each row."),
]
ColumnOption = Annotated[str, typer.Option(help="Column of the text, with --data-format documents.")]


@app.callback()
def describe(debug: Annotated[bool, typer.Option(DEBUG_FLAG, help="Show the traceback of an error.")] = False) -> None:
    """Fine-tune a language model in the directions it does not use, and measure what it forgot."""
    # main() reads the flag, wherever it stands; it is declared here to be listed by --help.
    del debug


@app.command()
def download(
    uri: Annotated[
        str, typer.Argument(help="A path or pattern, pvc://, hf://name[:config][@revision], https:// or s3://.")
    ],
    output: OutputOption,
    date: Annotated[
        str, typer.Option(help="What {date:%Y-%m-%d} in the address stands for: ISO 8601, now, P1D/now.")
    ] = "now",
) -> None:
    """Fetch a dataset and write it as JSON lines: rows.jsonl, source.json. Asked again, go on or do nothing."""
    from osft.data.download.download import download_dataset
    from osft.data.files import ROWS_NAME
    from osft.data.increments.times import fill_date
    from osft.workspace import PVC_SCHEME, Workspace

    workspace = Workspace.from_environment() if uri.startswith(PVC_SCHEME) else None
    report = download_dataset(fill_date(uri, date), output, workspace=workspace)
    unchanged = ", unchanged" if report.unchanged else ""
    typer.echo(f"{report.rows} rows, {report.size_bytes} bytes{unchanged}: {output / ROWS_NAME}")


@app.command()
def validate(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="JSONL file, or a folder with rows.jsonl.")],
    output: OutputOption,
    on_invalid: Annotated[str, typer.Option(help="What a bad row does: fail, or drop.")] = "fail",
    max_invalid_fraction: Annotated[
        float, typer.Option(help="With drop, the largest share of bad rows, 0 to 1.")
    ] = 0.0,
    data_format: FormatOption = "messages",
    document_column: ColumnOption = "document",
    unmask_messages: Annotated[bool, typer.Option(help="Rows need no assistant turn: all is trained.")] = False,
    since: Annotated[
        str, typer.Option(help="Take rows from then on: ISO 8601, now, P7D/now. [default: of any time]")
    ] = "",
    time_column: Annotated[str, typer.Option(help="Key of a row's time, with --since.")] = "timestamp",
    seen_rows: Annotated[
        list[Path] | None, typer.Option(help="seen_rows.bin of an earlier run, to leave its rows out; may be repeated.")
    ] = None,
) -> None:
    """Check every row: valid.jsonl, quarantine.jsonl, seen_rows.bin, validation.json, validation.html."""
    from osft.data.files import VALIDATION_PAGE_NAME
    from osft.data.increments.increment import Increment
    from osft.data.increments.times import parse_time
    from osft.data.validation.page import write_validation_page
    from osft.data.validation.validate import validate_dataset

    report = validate_dataset(
        source,
        output,
        data_format=data_format,
        on_invalid=on_invalid,
        max_invalid_fraction=max_invalid_fraction,
        document_column=document_column,
        unmask_messages=unmask_messages,
        increment=Increment(
            since=parse_time(since, name="--since") if since else None,
            time_column=time_column,
            seen_rows=tuple(seen_rows or ()),
        ),
        on_report=lambda checked: write_validation_page(checked, output / VALIDATION_PAGE_NAME),
    )
    left_out = report.rows_too_old + report.rows_seen
    old = f"{report.rows_too_old} too old, {report.rows_seen} seen before, " if left_out else ""
    typer.echo(
        f"{report.rows_in} rows: {old}{report.rows_valid} valid, {report.rows_quarantined} quarantined: {output}"
    )


@app.command()
def process(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="JSONL file, or a folder with valid.jsonl.")],
    model: Annotated[str, typer.Option(help="Model whose tokenizer and chat template are used.")],
    output: OutputOption,
    max_seq_len: Annotated[int, typer.Option("--max-seq-len", help="Longest row in tokens.")] = 2048,
    unmask_messages: Annotated[bool, typer.Option(help="Train on all messages but the system's.")] = False,
    holdout_fraction: Annotated[float, typer.Option(help="Share of the rows kept for the evaluation, 0 to 1.")] = 0.1,
    on_too_long: Annotated[str, typer.Option(help="What happens to a longer row: drop, truncate or fail.")] = "drop",
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 42,
    data_format: FormatOption = "auto",
    block_size: Annotated[int | None, typer.Option(help="Tokens of a block, with --data-format documents.")] = None,
    document_column: ColumnOption = "document",
) -> None:
    """Tokenize with the model's chat template: train.parquet, holdout.parquet, processing.json, processing.html."""
    from osft.data.files import PROCESSING_PAGE_NAME
    from osft.data.processing.page import write_processing_page
    from osft.data.processing.process import process_dataset
    from osft.data.processing.report import ProcessingConfig

    config = ProcessingConfig(
        model=model,
        data_format=data_format,
        max_seq_len=max_seq_len,
        unmask_messages=unmask_messages,
        holdout_fraction=holdout_fraction,
        on_too_long=on_too_long,
        seed=seed,
        block_size=block_size,
        document_column=document_column,
    )
    report = process_dataset(source, output, config)
    write_processing_page(report, output / PROCESSING_PAGE_NAME)
    dropped = report.rows_dropped_too_long
    typer.echo(f"{report.rows_train} rows to train on, {report.rows_holdout} held out, {dropped} too long: {output}")


@app.command()
def train(
    model_path: Annotated[str, typer.Option(help="Folder or Hugging Face id of the model.")],
    data_path: Annotated[str, typer.Option(help="JSONL; with --use-processed-dataset, JSONL or parquet of token ids.")],
    unfreeze_rank_ratio: Annotated[
        float, typer.Option(help="Share of each weight's directions that may move, 0 to 1.")
    ],
    effective_batch_size: Annotated[int, typer.Option(help="Samples per optimizer step, over all processes.")],
    max_tokens_per_gpu: Annotated[int, typer.Option(help="Most tokens that a process takes at once.")],
    max_seq_len: Annotated[int, typer.Option(help="Longest sample in tokens; longer ones are left out.")],
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")],
    ckpt_output_dir: Annotated[str, typer.Option(help="Folder for checkpoints, metrics and the final model.")],
    data_output_dir: Annotated[str | None, typer.Option(help="Folder for tokenized data.")] = None,
    backend: Annotated[str, typer.Option(help="native, or mini-trainer (needs training-hub).")] = "native",
    target_patterns: Annotated[
        list[str] | None, typer.Option(help="Regular expression over module names; may be repeated.")
    ] = None,
    protect_inputs_of: Annotated[
        str | None, typer.Option(help="Text (JSONL): protect what it puts into every layer, in place of outputs.")
    ] = None,
    protect_weights: Annotated[
        bool | None, typer.Option(help="No: protect the inputs of that text alone. [default: yes]")
    ] = None,
    subspace_memory: Annotated[
        str | None, typer.Option(help="Folder of what earlier runs learnt: protect it in every layer's inputs.")
    ] = None,
    remember: Annotated[
        bool | None, typer.Option(help="Leave such a folder, <ckpt-output-dir>/memory, for later runs. [default: no]")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Text (JSONL) that the base must keep, where --remember begins a memory.")
    ] = None,
    base_memory: Annotated[
        str | None,
        typer.Option(help="Without it: the base's weights, or samples that it writes. [default: weights]"),
    ] = None,
    rank_allocation: Annotated[
        str | None, typer.Option(help="The same ratio for all layers, or by importance: uniform or adaptive.")
    ] = None,
    train_other_parameters: Annotated[
        bool | None, typer.Option(help="Train embeddings, norms, biases and head too; they are not protected.")
    ] = None,
    save_memory: Annotated[
        bool | None, typer.Option(help="Keep once-a-step tensors in host memory, moments in bfloat16.")
    ] = None,
    parametrization: Annotated[str | None, typer.Option(help="linear, or factored: the slow reference.")] = None,
    decomposition_cache: Annotated[str | None, typer.Option(help="Folder that keeps decompositions.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of order and PyTorch. [default: 42]")] = None,
    use_liger: Annotated[bool | None, typer.Option(help="Use Liger's kernels.")] = None,
    use_processed_dataset: Annotated[bool | None, typer.Option(help="The data has input_ids and labels.")] = None,
    unmask_messages: Annotated[bool | None, typer.Option(help="Train on all messages but the system's.")] = None,
    is_pretraining: Annotated[bool | None, typer.Option(help="The data are documents.")] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens of a block, with --is-pretraining.")] = None,
    document_column_name: Annotated[
        str | None, typer.Option(help="Column of the documents. [default: document]")
    ] = None,
    lr_scheduler: Annotated[str | None, typer.Option(help="Schedule's name in transformers. [default: cosine]")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps of linear warm-up. [default: 0]")] = None,
    lr_scheduler_kwargs: Annotated[str | None, typer.Option(help="Its further arguments, as a JSON object.")] = None,
    checkpoint_at_epoch: Annotated[bool | None, typer.Option(help="Save the model after each epoch.")] = None,
    save_final_checkpoint: Annotated[
        bool | None, typer.Option(help="Save the model at the end. [default: yes]")
    ] = None,
    num_epochs: Annotated[int | None, typer.Option(help="Passes over the data. [default: 1]")] = None,
    checkpoint_every_steps: Annotated[
        int | None, typer.Option(help="Steps between states to go on from. [default: by time alone]")
    ] = None,
    checkpoint_every_minutes: Annotated[
        float | None, typer.Option(help="Minutes between them; 0: not by time. [default: 30]")
    ] = None,
    keep_checkpoints: Annotated[int | None, typer.Option(help="How many of them stay. [default: 2]")] = None,
    resume: Annotated[
        str | None, typer.Option(help="auto: go on from what is there; never: anew; must: or fail. [default: auto]")
    ] = None,
    step_timeout_minutes: Annotated[
        float | None, typer.Option(help="Longest that a step, or loading or saving, may take. [default: 30]")
    ] = None,
    nproc_per_node: Annotated[int | None, typer.Option(help="Processes on this node. [default: one a GPU]")] = None,
    nnodes: Annotated[int | None, typer.Option(help="Nodes of the run. [default: 1]")] = None,
    node_rank: Annotated[int | None, typer.Option(help="Number of this node, from 0. [default: 0]")] = None,
    rdzv_id: Annotated[int | None, typer.Option(help="Id that the nodes of one run share.")] = None,
    rdzv_endpoint: Annotated[str | None, typer.Option(help="host:port of node 0.")] = None,
) -> None:
    """Fine-tune with osft(): the model, metrics.jsonl, loss.html."""
    parameters = {**locals(), "lr_scheduler_kwargs": _json_object("--lr-scheduler-kwargs", lr_scheduler_kwargs)}
    # typer gives an empty list for an option that was not given.
    parameters["target_patterns"] = target_patterns or None
    from osft.api import osft

    result = osft(**parameters)
    if backend == "native" and result is not None:
        where = result.final_checkpoint or result.metrics_file
        typer.echo(f"optimizer steps: {result.steps}, loss {result.first_loss:.4f} to {result.final_loss:.4f}: {where}")


@app.command()
def plan(
    model: Annotated[str, typer.Option(help="Folder, config.json or Hugging Face id; no weights are read.")],
    unfreeze_rank_ratio: Annotated[
        float, typer.Option(help="Share of each weight's directions that may move, 0 to 1.")
    ],
    max_tokens_per_gpu: Annotated[int, typer.Option(help="Most tokens that a process takes at once.")],
    max_seq_len: Annotated[int | None, typer.Option(help="Longest sample. [default: --max-tokens-per-gpu]")] = None,
    gpus: Annotated[int, typer.Option(help="GPUs of the run, on all nodes; 0 plans for a CPU.")] = 1,
    gpu_memory: Annotated[
        str | None, typer.Option(help="GiB of a card or its name, e.g. 45 or L40S. [default: the card at hand]")
    ] = None,
    target_patterns: Annotated[
        list[str] | None, typer.Option(help="Regular expression over module names; may be repeated.")
    ] = None,
    train_other_parameters: Annotated[bool, typer.Option(help="Train embeddings, norms and head as well.")] = False,
    save_memory: Annotated[
        bool, typer.Option(help="Moments in bfloat16; on one GPU, once-a-step tensors in host memory.")
    ] = False,
    remember: Annotated[bool, typer.Option(help="Leave a subspace memory, as the pipeline's runs do.")] = False,
) -> None:
    """Predict a run's memory by part and the time of the decomposition, and say whether it fits."""
    from osft.planning.plan import config_to_plan, memory_at_hand_gib, plan_training, read_gpu_memory
    from osft.planning.table import render_plan

    config = config_to_plan(
        model,
        unfreeze_rank_ratio,
        max_tokens_per_gpu,
        max_seq_len,
        target_patterns=tuple(target_patterns) if target_patterns else None,
        train_other_parameters=train_other_parameters,
        save_memory=save_memory,
        remember=remember,
    )
    capacity_gib = None
    if gpus > 0:
        capacity_gib = read_gpu_memory(gpu_memory) if gpu_memory else memory_at_hand_gib()
    prediction = plan_training(
        config, on_gpu=gpus > 0, world_size=max(1, gpus), capacity_gib=capacity_gib, with_time=True
    )
    Console().print(render_plan(prediction))


@app.command()
def evaluate(
    base: Annotated[str, typer.Option(help="Model before the training.")],
    tuned: Annotated[str, typer.Option(help="Model after it.")],
    tasks: Annotated[str, typer.Option(help="lm-eval tasks that must be kept, separated by commas.")],
    output: OutputOption,
    target_tasks: Annotated[str, typer.Option(help="lm-eval tasks of the new domain, separated by commas.")] = "",
    include_path: Annotated[Path | None, typer.Option(help="Folder with task files of your own.")] = None,
    holdout: Annotated[Path | None, typer.Option(help="Folder with holdout.parquet.")] = None,
    ancestor: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a version that the base descends from, or is; oldest first, may be repeated."),
    ] = None,
    origin: Annotated[
        str | None, typer.Option(help="Model that these began with; loaded where the first does not tell enough.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question. [default: the task's]")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Documents a task. [default: all]")] = None,
    batch_size: Annotated[str, typer.Option(help="Prompts through the model at once, or auto.")] = "16",
    apply_chat_template: Annotated[bool, typer.Option(help="Ask through the model's chat template.")] = True,
    generation: Annotated[
        str | None, typer.Option(help="Overrides of the tasks' generation settings, as a JSON object.")
    ] = None,
    probe: Annotated[Path | None, typer.Option(help="Text to compare both models' next tokens on.")] = None,
    backend: Annotated[str, typer.Option(help="hf, vllm, or openai: a server with both models.")] = "hf",
    base_url: Annotated[
        str | None, typer.Option(help="Completions endpoint of that server; its key is taken from OPENAI_API_KEY.")
    ] = None,
    max_forgetting: Annotated[
        float, typer.Option(help="Largest forgetting that passes, 0 to 1; its upper 95% bound must not exceed it.")
    ] = 0.05,
    max_cumulative_forgetting: Annotated[
        float, typer.Option(help="The same against each task's best version, where there are ancestors.")
    ] = 0.1,
    task_limits: Annotated[
        str | None, typer.Option(help='The same for single tasks, as a JSON object, e.g. {"gsm8k": 0.02}.')
    ] = None,
    min_target_gain: Annotated[float, typer.Option(help="Smallest gain that passes.")] = 0.0,
    fail_run: Annotated[bool, typer.Option("--fail-run", help="Exit with 1 if the tuned model does not pass.")] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps what was measured. [default: OUTPUT/cache]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of few-shot examples and intervals.")] = 42,
) -> None:
    """Compare two models with lm-eval: forgetting.json, report.html, report.md, samples.jsonl."""
    from osft.evaluation.config import Backend, EvaluationConfig, split_names

    config = EvaluationConfig(
        tasks=split_names(tasks),
        target_tasks=split_names(target_tasks),
        include_path=include_path,
        holdout=holdout,
        **_chain(base, ancestor or []),
        origin=origin,
        probe=probe,
        num_fewshot=num_fewshot,
        limit=limit,
        batch_size=_batch_size(batch_size),
        apply_chat_template=apply_chat_template,
        generation=_json_object("--generation", generation) or {},
        # The configuration refuses any other text.
        backend=cast(Backend, backend),
        base_url=base_url,
        max_forgetting=max_forgetting,
        max_cumulative_forgetting=max_cumulative_forgetting,
        task_limits=_json_object("--task-limits", task_limits) or {},
        min_target_gain=min_target_gain,
        seed=seed,
    )
    # Once the configuration holds: torch and lm-eval take seconds to import.
    from osft.evaluation.evaluate import HTML_NAME, evaluate_forgetting
    from osft.evaluation.parameters import fail_unless_passed
    from osft.evaluation.report.terminal import render_table

    report = evaluate_forgetting(base, tuned, config, output, cache=cache)
    Console().print(render_table(report))
    typer.echo(f"report: {output / HTML_NAME}")
    if fail_run:
        fail_unless_passed(report, output / HTML_NAME)


def _chain(base: str, versions: list[Path]) -> dict[str, Any]:
    """Return what an evaluation is told of the versions that the base descends from."""
    from osft.versions.folders import HOLDOUT_FOLDER, MEASUREMENTS_FOLDER
    from osft.versions.retention_tasks import task_name

    if missing := [version for version in versions if not version.is_dir()]:
        raise MissingPathError(f"--ancestor '{missing[0]}' is no folder. Give the folder of a promoted version.")
    return {
        "base_version": next((one.name for one in versions if one.resolve() == Path(base).resolve()), None),
        "earlier_holdouts": {
            task_name(version.name): version / HOLDOUT_FOLDER
            for version in versions
            if (version / HOLDOUT_FOLDER).is_dir()
        },
        "ancestor_measurements": {version.name: version / MEASUREMENTS_FOLDER for version in versions},
    }


def _batch_size(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise ConfigError(f"--batch-size '{text}' is neither a whole number nor auto.")
    return int(text)


def _json_object(option: str, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{option} '{text}' is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{option} '{text}' is not a JSON object, {{\"name\": value}}.")
    return value


for command in (lineage, compare, rollback, prune, register):
    app.command()(command)


def main() -> None:
    """Run the command line that ``sys.argv`` holds."""
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG_FLAG]
    debug = len(arguments) < len(sys.argv) - 1
    configure_logging()
    try:
        app(args=arguments)
    except PreemptedError as error:
        sys.stderr.write(f"osft: {error}\n")
        sys.exit(PREEMPTED_EXIT_CODE)
    # The one place that catches everything: a person at a terminal gets a line, not a traceback.
    except Exception as error:
        if debug:
            raise
        kind = "" if isinstance(error, OsftError) else f"{type(error).__name__}: "
        hint = "" if isinstance(error, OsftError) else f" ({DEBUG_FLAG} shows the traceback)"
        sys.stderr.write(f"osft: {kind}{' '.join(str(error).split())}{hint}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
