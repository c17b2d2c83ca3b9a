"""Step 3: the model's chat template turns messages into token ids and labels, split into training and held-out rows."""

from kfp import dsl

from components.images import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def message_processing(
    run_id: str,
    model: str,
    data_format: str,
    max_seq_len: int,
    unmask_messages: bool,
    holdout_fraction: float,
    on_too_long: str,
    block_size: int,
    document_column: str,
    seed: int,
    valid: dsl.Input[dsl.Dataset],
    processed: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Tokenize the valid rows and write ``train.parquet`` and ``holdout.parquet`` to ``runs/<run_id>/processed``.

    Args:
        run_id: id of the pipeline run.
        model: model whose tokenizer and chat template are used.
        data_format: what validation was asked for.
        max_seq_len: longest row in tokens.
        unmask_messages: train on everything but system messages.
        holdout_fraction: share of the rows kept for the evaluation, 0 to 1.
        on_too_long: ``drop``, ``truncate`` or ``fail``.
        block_size: tokens of a block of documents; used with ``documents`` only.
        document_column: column of the text; used with ``documents`` only.
        seed: seed of the split.
        valid: manifest of the valid rows.
        processed: manifest of the tokenized rows.
        metrics: rows and tokens of both parts, rows dropped.
        report: lengths, and what was dropped, cut or left out.
    """
    import shutil

    from osft.content_cache import ContentCache
    from osft.data.files import PROCESSING_PAGE_NAME, PROCESSING_REPORT_NAME, VALID_NAME
    from osft.data.processing.page import write_processing_page
    from osft.data.processing.process import process_dataset
    from osft.data.processing.report import ProcessingConfig
    from osft.logs import configure_logging
    from osft.workspace import Manifest, Workspace, as_json, read_json

    configure_logging()
    workspace = Workspace.from_environment()
    source = workspace.directory_of(valid.path) / VALID_NAME
    config = ProcessingConfig(
        model=workspace.locate(model),
        data_format=data_format,
        max_seq_len=max_seq_len,
        unmask_messages=unmask_messages,
        holdout_fraction=holdout_fraction,
        on_too_long=on_too_long,
        block_size=block_size,
        document_column=document_column,
        seed=seed,
    )
    manifest = workspace.complete(
        run_id,
        "processed",
        inputs={**as_json(config), "valid": Manifest.load(valid.path).fingerprint},
        work=lambda directory: write_processing_page(
            process_dataset(source, directory, config, cache=ContentCache(workspace.processed)),
            directory / PROCESSING_PAGE_NAME,
        ),
    )
    finished = workspace.resolve(manifest.path)
    counts = read_json(finished / PROCESSING_REPORT_NAME)
    for name in ("rows_train", "rows_holdout", "rows_dropped_too_long", "rows_truncated"):
        metrics.log_metric(name, counts[name])
    metrics.log_metric("train_tokens", counts["train"]["tokens"])
    processed.metadata.update(path=manifest.path, rows=counts["rows_train"])
    shutil.copyfile(finished / PROCESSING_PAGE_NAME, report.path)
    manifest.save(processed.path)
