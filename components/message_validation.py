"""Step 2: every row is checked; valid ones go on, the others are quarantined with the reason."""

from kfp import dsl

from components.images import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def message_validation(
    run_id: str,
    data_format: str,
    on_invalid: str,
    max_invalid_fraction: float,
    document_column: str,
    unmask_messages: bool,
    rows: dsl.Input[dsl.Dataset],
    valid: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Check every row; ``valid.jsonl``, ``quarantine.jsonl`` and the report go to ``runs/<run_id>/valid``.

    Args:
        run_id: id of the pipeline run.
        data_format: ``messages``, ``sharegpt``, ``alpaca``, ``prompt_completion``, ``documents``, ``processed``, or
            ``auto`` to take each row for what its keys say.
        on_invalid: ``fail``, or ``drop`` to go on with the valid rows.
        max_invalid_fraction: with ``drop``, the largest share of bad rows that is accepted, 0 to 1.
        document_column: column of the text; used with ``documents`` only.
        unmask_messages: everything but system messages is trained, so a row needs no assistant turn.
        rows: manifest of the downloaded rows.
        valid: manifest of the valid rows.
        metrics: rows in, valid, quarantined, duplicated.
        report: the findings, and what the rows are like.
    """
    import shutil

    from osft.data.files import ROWS_NAME, VALIDATION_PAGE_NAME, VALIDATION_REPORT_NAME
    from osft.data.validation.page import write_validation_page
    from osft.data.validation.validate import validate_dataset
    from osft.logs import configure_logging
    from osft.workspace import Manifest, Workspace, read_json

    configure_logging()
    workspace = Workspace.from_environment()
    source = workspace.directory_of(rows.path) / ROWS_NAME
    manifest = workspace.complete(
        run_id,
        "valid",
        inputs={
            "rows": Manifest.load(rows.path).fingerprint,
            "data_format": data_format,
            "on_invalid": on_invalid,
            "max_invalid_fraction": max_invalid_fraction,
            "document_column": document_column,
            "unmask_messages": unmask_messages,
        },
        work=lambda directory: validate_dataset(
            source,
            directory,
            data_format=data_format,
            on_invalid=on_invalid,
            max_invalid_fraction=max_invalid_fraction,
            document_column=document_column,
            unmask_messages=unmask_messages,
            on_report=lambda checked: write_validation_page(checked, directory / VALIDATION_PAGE_NAME),
        ),
    )
    finished = workspace.resolve(manifest.path)
    counts = read_json(finished / VALIDATION_REPORT_NAME)
    for name in ("rows_in", "rows_valid", "rows_quarantined", "rows_duplicated"):
        metrics.log_metric(name, counts[name])
    valid.metadata.update(path=manifest.path, rows=counts["rows_valid"])
    shutil.copyfile(finished / VALIDATION_PAGE_NAME, report.path)
    manifest.save(valid.path)
