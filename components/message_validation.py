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
) -> None:
    """Check every row and write ``valid.jsonl``, ``quarantine.jsonl``, ``report.json`` to ``runs/<run_id>/valid``.

    Args:
        run_id: id of the pipeline run.
        data_format: ``messages``, ``processed`` or ``documents``.
        on_invalid: ``fail``, or ``drop`` to go on with the valid rows.
        max_invalid_fraction: with ``drop``, the largest share of bad rows that is accepted, 0 to 1.
        document_column: column of the text; used with ``documents`` only.
        unmask_messages: everything but system messages is trained, so a row needs no assistant turn.
        rows: manifest of the downloaded rows.
        valid: manifest of the valid rows.
        metrics: rows in, valid, quarantined.
    """
    from osft.data.messages import validate_dataset
    from osft.logs import configure_logging
    from osft.workspace import Manifest, Workspace, read_json

    configure_logging()
    workspace = Workspace.from_environment()
    source = workspace.directory_of(rows.path) / "rows.jsonl"
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
        ),
    )
    report = read_json(workspace.resolve(manifest.path) / "report.json")
    for name in ("rows_in", "rows_valid", "rows_quarantined"):
        metrics.log_metric(name, report[name])
    valid.metadata.update(path=manifest.path, rows=report["rows_valid"])
    manifest.save(valid.path)
